"""Execute chapters in place: ``python book/_execute.py [notebook ...]``, all of them by default.

Each runs in a fresh kernel, from its own folder. What is written is *canonical*: the cells'
sources, outputs and meaningful metadata, without times, kernel details or random identifiers.
Running it twice changes nothing but the numbers after ≈ and the pictures. A cell that raises stops
the run, and the stored notebook stays as it was.

``python book/_execute.py --times [notebook ...]`` writes instead how long each takes to
``running_times.csv``, and leaves the notebooks alone. Do so while the machine does nothing else.
"""

import csv
import datetime
import os
import platform
import sys
import time
from collections import Counter
from hashlib import sha1
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from _bundle import chapters

BOOK = Path(__file__).parent
KERNEL = {
    "display_name": "Python 3",
    "language": "python",
    "name": "python3",
}
TIMES = BOOK / "running_times.csv"
KEPT_CELL_METADATA = ("tags", "mystnb")


def canonical(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without anything that changes from one run to the next for no reason."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    count = 0
    for cell in notebook.cells:
        digest = sha1(cell.source.encode()).hexdigest()[:8]  # same text, same id
        cell.id = f"{digest}-{seen[digest]}" if seen[digest] else digest
        seen[digest] += 1
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count  # nbval takes a cell without it for one that never ran
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output["execution_count"] = count
                if "metadata" in output:
                    output["metadata"] = {}
    return notebook


def run(path: Path, timeout: float = 600) -> tuple[nbformat.NotebookNode, float]:
    """The notebook with new outputs, and the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    return notebook, time.perf_counter() - start


def execute(path: Path, timeout: float = 600) -> float:
    """Run one notebook in place, and return the seconds it took."""
    notebook, seconds = run(path, timeout)
    temporary = path.with_suffix(".ipynb.tmp")
    nbformat.write(canonical(notebook), temporary)
    temporary.replace(path)
    return seconds


def record(path: Path, seconds: float) -> None:
    """Put a chapter's time into the table, in place of an older one."""
    rows = {}
    if TIMES.exists():
        rows = {r["chapter"]: r for r in csv.DictReader(TIMES.read_text().splitlines())}
    name = f"{{doc}}`{path.stem}`"
    rows[name] = {
        "chapter": name,
        "seconds": f"{seconds:.0f}",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": f"Python {platform.python_version()}, JAX {version('jax')}",
        "date": datetime.date.today(),
    }
    with TIMES.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[name], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))


def main(names: list[str]) -> None:
    times, words = "--times" in names, "--words" in names
    names = [name for name in names if not name.startswith("--")]
    for path in [Path(name).resolve() for name in names] or chapters():
        if words:  # only text changed: nothing to run
            nbformat.write(canonical(nbformat.read(path, as_version=4)), path)
            continue
        print(f"{path.name}: ", end="", flush=True)
        seconds = run(path)[1] if times else execute(path)
        print(f"{seconds:.0f} s")
        if times:
            record(path, seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
