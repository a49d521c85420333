"""What the experiments share: their tables, their score and their clock."""

import csv
import datetime
import platform
from pathlib import Path

import equinox as eqx
import flowjax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from paramax import NonTrainable

import gauss_flows as gf
from experiments.timing import seconds
from gauss_flows.bijection import partition
from gauss_flows.conditioners import MaskedMLP

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
    return {field: np.array([row[field] for row in rows]) for field in rows[0]}, made


@eqx.filter_jit
def mean_log_prob(flows, x):
    """Of each of a stack of flows, over all points, some at a time; shape (m,)."""
    of_one = lambda flow: jax.lax.map(flow.log_prob, x, batch_size=1000).mean()
    return eqx.filter_vmap(of_one)(flows)


def divergences(target, flows, x):
    """KL(target || flow) of each of a stack of flows, in nats, on points x of the target; shape (m,)."""
    truth = float(target.log_prob(x).mean())
    return truth - np.asarray(mean_log_prob(flows, x), float)


def parameters(make):
    """Count the trainable numbers in what ``make(key)`` makes, without weights that a mask sets to zero."""
    shapes = eqx.filter_eval_shape(make, jr.key(0))  # nothing is computed
    kinds = (MaskedMLP, NonTrainable)
    count = 0
    for node in jax.tree.leaves(shapes, is_leaf=lambda n: isinstance(n, kinds)):
        if isinstance(node, MaskedMLP):
            copies = len(node.layers[0].weight)
            weights = sum(mask.sum() for mask in node.masks)
            biases = sum(b.bias.shape[-1] for b in node.layers)
            count += copies * int(weights + biases)
        elif isinstance(node, jax.ShapeDtypeStruct):
            count += node.size * jnp.issubdtype(node.dtype, jnp.floating)
    return count


def step_seconds(makes, x, **options):
    """The time of one gradient of the mean log-likelihood of x for each flow, as ``seconds`` takes it."""

    def step(make):
        params, static = partition(make(jr.key(0)))
        loss = lambda p: -eqx.combine(p, static).log_prob(x).mean()
        gradient = jax.jit(jax.grad(loss))
        return lambda: gradient(params)

    return seconds([step(make) for make in makes], **options)


__all__ = [
    "divergences",
    "mean_log_prob",
    "parameters",
    "read_table",
    "seconds",
    "step_seconds",
    "write_table",
]
