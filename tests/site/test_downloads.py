"""What leaves the repository: the wheel, the zip of each chapter, and notebooks that install themselves."""

import json
import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html" / "book"
sys.path.insert(0, str(ROOT / "book"))
from _bundle import chapters, files_of, with_first_cell  # noqa: E402

QUICK = ("diagonal_vs_coupling", "jax_primer")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, folder], cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def without_repository(wheel, tmp_path_factory):
    """Python's path where the wheel is installed, and the repository is not."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return os.pathsep.join([str(folder), *site.getsitepackages()])


def test_the_wheel_holds_the_package_alone(wheel):
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"gauss_flows"}


@pytest.mark.parametrize("chapter", [path.stem for path in chapters()])
def test_a_chapter_is_offered_with_what_it_reads(chapter):
    page = (SITE / f"{chapter}.html").read_text()
    assert f'href="{chapter}.zip"' in page
    archive = zipfile.ZipFile(SITE / f"{chapter}.zip")
    assert {f"{chapter}.ipynb", "_style.py"} <= set(archive.namelist())
    for name, path in files_of(ROOT / "book" / f"{chapter}.ipynb").items():
        assert archive.read(name) == path.read_bytes()


@pytest.mark.parametrize(
    "chapter",
    [
        path.stem if path.stem in QUICK else pytest.param(path.stem, marks=pytest.mark.nightly)
        for path in chapters()
    ],
)
def test_a_downloaded_chapter_runs(chapter, without_repository, tmp_path, monkeypatch):
    """From its zip, in an empty folder, where the package is installed and the repository is not."""
    folder, kernels = tmp_path / "empty", tmp_path / "kernels" / "alone"
    zipfile.ZipFile(SITE / f"{chapter}.zip").extractall(folder)
    kernels.mkdir(parents=True)
    # -S: without the files of site-packages that lead to the repository.
    command = [sys.executable, "-S", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": command, "display_name": "alone", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", without_repository)
    notebook = nbformat.read(folder / f"{chapter}.ipynb", as_version=4)
    where = "import gauss_flows, _style; print(gauss_flows.__file__); print(_style.__file__)"
    notebook.cells.append(nbformat.v4.new_code_cell(where))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="alone", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    package, style = notebook.cells[-1].outputs[0].text.split()
    assert str(ROOT) not in package
    assert Path(style).parent == folder


def test_the_first_cell_installs_and_fetches_what_is_missing(wheel, tmp_path):
    """As a service runs it that opens a single notebook, with a local wheel and a local zip."""
    chapter = "masks"
    files = (SITE / f"{chapter}.zip").as_uri()
    notebook = with_first_cell(ROOT / "book" / f"{chapter}.ipynb", str(wheel), files)
    assert notebook.cells[1].source == nbformat.read(ROOT / "book" / f"{chapter}.ipynb", 4).cells[0].source
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "machine"], check=True)
    others = tmp_path / "others"
    others.mkdir()
    for packages in site.getsitepackages():
        for entry in Path(packages).iterdir():
            if "gauss_flows" not in entry.name and not (others / entry.name).exists():
                (others / entry.name).symlink_to(entry)
    folder = tmp_path / "empty"
    folder.mkdir()
    python = tmp_path / "machine" / "bin" / "python"
    environment = os.environ | {"PYTHONPATH": str(others), "PIP_NO_INDEX": "1"}

    def run(code):
        options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
        return subprocess.run([python, "-c", code], check=False, **options)

    assert run("import gauss_flows").returncode == 1
    first = run(notebook.cells[0].source)
    assert first.returncode == 0, first.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["_style.py", "exercises", "experiments"]
    code = (
        "import gauss_flows, _style; print(gauss_flows.__file__); from experiments.common import read_table"
    )
    second = run(code + "; read_table('masks/mask_families.csv')")
    assert second.returncode == 0, second.stderr
    assert str(tmp_path / "machine") in second.stdout
    assert run(notebook.cells[0].source).returncode == 0  # a second run installs and fetches nothing
