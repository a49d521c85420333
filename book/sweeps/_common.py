"""What the sweeps share: their tables, their score and their clock."""

import csv
import datetime
import platform
from pathlib import Path

import equinox as eqx
import flowjax
import gauss_flows as gf
import jax
import numpy as np
from benchmarks._timing import seconds

HERE = Path(__file__).parent


def write_table(name, fields, rows):
    """A CSV beside this file, whose first line names the versions, the machine and the date."""
    here = (
        f"gauss_flows {gf.__version__}, jax {jax.__version__}, flowjax {flowjax.__version__}, Python"
        f" {platform.python_version()}, {platform.system()} {platform.machine()}, {datetime.date.today()}"
    )
    with (HERE / name).open("w", newline="") as file:
        file.write(f"# {here}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows(rows)


def read_table(name):
    """A sweep's table as columns of text, and the line that says where it was made."""
    with (HERE / name).open() as file:
        made = file.readline().removeprefix("# ").strip()
        rows = list(csv.DictReader(file))
    return {
        field: np.array([row[field] for row in rows]) for field in rows[0]
    }, made


@eqx.filter_jit
def mean_log_prob(flows, x):
    """Of each of a stack of flows, over all points, some at a time; shape (m,)."""
    of_one = lambda flow: jax.lax.map(
        flow.log_prob, x, batch_size=1000
    ).mean()
    return eqx.filter_vmap(of_one)(flows)


__all__ = ["mean_log_prob", "read_table", "seconds", "write_table"]
