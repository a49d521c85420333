"""The stored notebooks are complete and canonical, and nbval's comparison is strict and portable."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mutants
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK))
from _execute import canonical, chapters  # noqa: E402

FIRST = BOOK / "coupling_pattern.ipynb"
MEASURED = re.compile(r"≈")
BOUNDED = re.compile(r"≈ *[-+]?\d[\d,]*\.?\d*(e[-+]?\d+)?(?= |$).*[≤≥].*\b(ok|FAILED)$")


def problems(path: Path) -> list[str]:
    """Everything by which a stored notebook would escape the comparison, or fail the reader."""
    found = []
    notebook = nbformat.read(path, as_version=4)
    if nbformat.writes(notebook) != nbformat.writes(canonical(notebook)):
        found.append("not canonical: run `make notebooks`")
    for number, cell in enumerate(notebook.cells):
        where = f"cell {number}"
        if cell.cell_type != "code":
            continue
        source, outputs = cell.source, cell.outputs
        shows = re.search(r"\b(print|check_bijection|check)\(", source)
        if ((shows and not defines_only(source)) or "plt.show()" in source) and not outputs:
            found.append(f"{where} shows something, but no output is stored")
        if re.search(r"nbval[-_](skip|ignore)", f"{source} {cell.metadata}", re.IGNORECASE):
            found.append(f"{where} is taken out of the comparison")
        if source.rstrip().endswith(";"):
            found.append(f"{where} ends in a semicolon, which hides the result but not from nbval")
        if re.search(r"filterwarnings\(\s*[\"']ignore", source):
            found.append(f"{where} silences warnings")
        for output in outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"{where} stores an error or stderr")
            data = output.get("data", {})
            html = data.get("text/html", "")
            if html and not html.startswith('<table class="checks">'):
                found.append(f"{where} stores HTML other than a table of checks")
            for line in texts(output):
                if MEASURED.search(line) and not BOUNDED.search(line):
                    found.append(f"{where}: a measured number without its bound: {line!r}")
            if "image/png" in data:
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
                if len(alt) < 40:
                    found.append(f"{where}: a figure without alt text")
    return found


def texts(output) -> list[str]:
    """The lines of an output that a reader sees as text; a table's row is one line."""
    data = output.get("data", {})
    rows = [re.sub(r"(<[^>]*>)+", "  ", row).strip() for row in data.get("text/html", "").splitlines()]
    return [*(output.get("text", "") + data.get("text/plain", "")).splitlines(), *rows]


def defines_only(source: str) -> bool:
    """Whether a cell only defines things: every line at the margin starts a def or a class."""
    margin = [line for line in source.splitlines() if line and not line[0].isspace()]
    return all(line.startswith(("def ", "class ", "@", "#", ")", '"""')) for line in margin)


def nbval(path: Path, **env: str) -> subprocess.CompletedProcess:
    """Run the project's own strict nbval over one notebook, and nothing else."""
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.figures", "-q"),
        *("-rN", "--nbval", "--nbval-current-env"),  # the summary repeats each message where CI is set
        *("--nbval-cell-timeout=600", f"--nbval-sanitize-with={ROOT / 'tests/nbval_sanitize.cfg'}"),
        *("-c", os.devnull, "--rootdir", str(path.parent), str(path)),
    ]
    return subprocess.run(
        command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """A copy of the first chapter up to its own check_bijection, which is quick to run."""
    notebook = nbformat.read(FIRST, as_version=4)
    last = next(i for i, c in enumerate(notebook.cells) if "gf.check_bijection(layer" in c.source)
    notebook.cells = notebook.cells[: last + 1]
    folder = tmp_path_factory.mktemp("copy with a space")
    path = folder / "copy.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_stored_notebook_is_whole(path):
    assert problems(path) == []


def test_every_chapter_is_in_the_table_of_contents():
    toc = (ROOT / "_toc.yml").read_text()
    missing = [p.stem for p in chapters() if f"book/{p.stem}\n" not in toc]
    assert missing == []


def test_an_untouched_copy_passes(beginning):
    run = nbval(beginning)
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.363", "0.364"),  # a printed result
        pytest.param("≤ 1e-12", "≤ 1e-11", marks=pytest.mark.nightly),  # a bound
        pytest.param("-0.00768", "-0.00769", marks=pytest.mark.nightly),  # a log-determinant
        pytest.param("lower triangular", "upper triangular", marks=pytest.mark.nightly),  # a word
    ],
)
def test_a_changed_digit_fails(beginning, tmp_path, old, new):
    notebook = nbformat.read(beginning, as_version=4)
    changed = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for holder, kind in ((output, "text"), (output.get("data", {}), "text/html")):
                if not changed and old in holder.get(kind, ""):
                    holder[kind] = holder[kind].replace(old, new, 1)
                    changed += 1
    assert changed == 1
    path = tmp_path / "changed.ipynb"
    nbformat.write(notebook, path)
    run = nbval(path)
    assert run.returncode == 1, run.stdout[-3000:]
    assert "1 failed" in run.stdout


def test_a_measured_nan_fails(beginning, tmp_path):
    """nan and inf are never blanked."""
    notebook = nbformat.read(beginning, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for holder in (output, output.get("data", {})):
                for kind in ("text", "text/plain", "text/html"):
                    if kind in holder:
                        holder[kind] = re.sub(r"≈ [\d.e-]+", "≈ nan", holder[kind])
    path = tmp_path / "nan.ipynb"
    nbformat.write(notebook, path)
    assert nbval(path).returncode == 1
    assert any("without its bound" in p for p in problems(path))


def test_a_copy_without_outputs_is_refused(tmp_path):
    notebook = nbformat.read(FIRST, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    path = tmp_path / "stripped.ipynb"
    nbformat.write(notebook, path)
    refused = [p for p in problems(path) if "no output is stored" in p]
    printing = [c for c in notebook.cells if c.cell_type == "code" and "print(" in c.source]
    assert len(refused) >= len(printing) - 1 > 3


@pytest.mark.parametrize(
    "fault", [pytest.param(None, marks=pytest.mark.nightly), "sign of the coupling's log-det"]
)
def test_a_fault_in_the_package_fails_the_chapter(beginning, tmp_path, fault):
    """One of those that `make mutants` plants; None is the control: the copy itself is sound."""
    shutil.copytree(ROOT / "gauss_flows", tmp_path / "gauss_flows")
    if fault:
        mutants.plant(tmp_path, next(m for m in mutants.MUTANTS if m.name == fault))
    run = nbval(
        beginning, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]), PYTHONDONTWRITEBYTECODE="1"
    )
    assert run.returncode == (1 if fault else 0), run.stdout[-3000:]
    assert ("CheckError" in run.stdout) == bool(fault), run.stdout[-3000:]


def test_the_table_of_planted_faults_is_current():
    """The table has every fault: caught by the tests, and mostly by a chapter."""
    for mutant in mutants.MUTANTS:
        assert all((BOOK / f"{chapter}.ipynb").exists() for chapter in mutant.chapters.split()), mutant.name
    rows = mutants.read()
    assert list(rows) == [mutant.name for mutant in mutants.MUTANTS], "run `make mutants`"
    assert len(rows) >= 44
    assert [name for name, row in rows.items() if not row["tests"]] == []
    unseen = [name for name, row in rows.items() if not row["notebook"]]
    assert len(unseen) <= 0.1 * len(rows), unseen


@pytest.mark.nightly  # rewording a line must not break the build
@pytest.mark.parametrize("fault", [*mutants.MUTANTS, *mutants.DOCUMENTED], ids=lambda fault: fault.name)
def test_a_fault_still_fits_the_package(fault):
    mutants.place(ROOT / "gauss_flows", fault)


X86 = platform.machine() in ("x86_64", "AMD64")  # elsewhere the flag means nothing


@pytest.mark.nightly
@pytest.mark.skipif(not X86, reason="the flag means nothing on other processors")
def test_printed_numbers_travel_to_an_older_processor(beginning):
    """The untrained part of the first chapter; `make travel` runs whole chapters under three sets."""
    run = nbval(beginning, XLA_FLAGS="--xla_cpu_max_isa=SSE4_2")
    assert run.returncode == 0, run.stdout[-3000:]


def test_a_measured_number_needs_its_bound(tmp_path):
    path = tmp_path / "n.ipynb"
    for line, good in (
        ("error  ≈ 1.0e-03  ≤ 0.1  ok", True),
        ("error  ≈ 12.5 nats  ≥ 0.1, ≤ 20  ok", True),
        ("error  ≈ 1.0e-03", False),
        ("error  ≈ 1.0e-03  ≤ 0.1", False),
        ("error  ≈ nan  ≤ 0.1  ok", False),
        ("error  ≈ inf  ≤ 0.1  ok", False),
    ):
        cells = "".join(f"<td>{part}</td>" for part in line.split("  "))
        table = {"text/html": f'<table class="checks">\n<tr>{cells}</tr>\n</table>', "text/plain": ""}
        for output in (
            nbformat.v4.new_output("stream", name="stdout", text=line + "\n"),
            nbformat.v4.new_output("display_data", data=table),
        ):
            cell = nbformat.v4.new_code_cell("print(line)")
            cell.outputs = [output]
            nbformat.write(canonical(nbformat.v4.new_notebook(cells=[cell])), path)
            assert (problems(path) == []) == good, output


def test_executing_twice_changes_nothing(tmp_path):
    """make notebooks is idempotent but for ≈ numbers and pictures."""
    from _execute import execute

    path = tmp_path / "small.ipynb"
    cell = nbformat.v4.new_code_cell("print('a'); print('b')\n1 + 1")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("2")]), path)
    execute(path)
    first = path.read_bytes()
    execute(path)
    assert path.read_bytes() == first
    assert b'"a\\n",' in first
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(broken, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(path)
    assert path.read_bytes() == before


FIGURE = """import matplotlib.pyplot as plt
import numpy as np
t = np.linspace(0, 6, 200)
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(t, np.sin(t), label="sine")
ax.set_title("The wave repeats itself")
plt.show()"""


def test_a_stale_figure_fails(tmp_path):
    """Another colour, another curve or another word in the title; the same figure drawn again passes."""
    from _execute import execute

    path = tmp_path / "figure.ipynb"
    changes = (
        ("", ""),
        ('"sine"', '"sine", color="r"'),
        ("np.sin(t)", "0.9 * np.sin(t)"),
        ("repeats", "flatters"),
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FIGURE) for _ in changes]), path)
    execute(path)
    stored = nbformat.read(path, as_version=4)
    for cell, (old, new) in zip(stored.cells, changes, strict=True):
        cell.source = cell.source.replace(old, new, 1) if old else cell.source
    nbformat.write(stored, path)
    run = nbval(path)
    assert "3 failed, 1 passed" in run.stdout
    assert run.stdout.count("the stored figure is stale") == 3
