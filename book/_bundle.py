"""What a chapter needs to run away from the repository, and how it gets there.

``files_of(notebook)`` finds the files. The site offers them as a zip (``_ext/book_site.py``), and

    python book/_bundle.py --site URL --package REQUIREMENT --out FOLDER

writes every chapter with a first cell that installs ``gauss_flows`` and unpacks the chapter's zip, for
services that open a single notebook. The workflow that publishes the book pushes that folder to a branch.
"""

import argparse
import io
import re
import textwrap
import zipfile
from pathlib import Path

import nbformat

BOOK = Path(__file__).parent
IMPORTED = re.compile(r"^from experiments\.(\w+) import run\b", re.MULTILINE)
SHARED = re.compile(r"^from experiments(?:\.| import )(common|timing)\b", re.MULTILINE)
GRADERS = re.compile(r"^from exercises\.(\w+) import\b", re.MULTILINE)
TABLES = re.compile(r"read_table\(\s*\"([\w/]+\.csv)\"")

FIRST_CELL = """
# Install gauss_flows and fetch what this chapter reads, where they are missing.
import importlib.util
import io
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

PACKAGE = {package!r}
FILES = {files!r}

if importlib.util.find_spec("gauss_flows") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
if not Path("_style.py").exists():
    with urllib.request.urlopen(FILES) as answer:
        files = zipfile.ZipFile(io.BytesIO(answer.read()))
    files.extractall(members=[name for name in files.namelist() if not name.endswith(".ipynb")])
"""


def chapters() -> list[Path]:
    """The book's notebooks, in alphabetical order."""
    return sorted(BOOK.glob("*.ipynb"))


def files_of(notebook: Path) -> dict[str, Path]:
    """The chapter and every file that it reads, by the place in which it expects them."""
    cells = nbformat.read(notebook, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    found = {notebook.name: notebook, "_style.py": BOOK.parent / "_style.py"}
    found |= {f"experiments/{name}": BOOK / "experiments" / name for name in TABLES.findall(code)}
    found |= {f"exercises/{name}.py": BOOK / "exercises" / f"{name}.py" for name in GRADERS.findall(code)}
    waiting = [code]
    while waiting:
        text = waiting.pop()
        modules = [f"{name}/run.py" for name in IMPORTED.findall(text)]
        modules += [f"{name}.py" for name in SHARED.findall(text)]
        for name in modules:
            if f"experiments/{name}" not in found:
                path = BOOK / "experiments" / name
                found[f"experiments/{name}"] = path
                waiting.append(path.read_text())
    return found


def bundle(notebook: Path) -> bytes:
    """The chapter and its files as a zip, the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files_of(notebook).items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), path.read_bytes())
    return buffer.getvalue()


def with_first_cell(notebook: Path, package: str, files: str) -> nbformat.NotebookNode:
    """The chapter, without outputs, behind a cell that installs and fetches what is missing."""
    made = nbformat.read(notebook, as_version=4)
    source = textwrap.dedent(FIRST_CELL).strip().format(package=package, files=files)
    made.cells.insert(0, nbformat.v4.new_code_cell(source, id="install"))
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return made


def main():
    parser = argparse.ArgumentParser(description="Write the chapters for services that open one notebook.")
    parser.add_argument("--site", required=True, help="the address of the published book")
    parser.add_argument("--package", required=True, help="what pip installs, such as an archive's address")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    folder = arguments.out / "book"
    folder.mkdir(parents=True, exist_ok=True)
    for notebook in chapters():
        files = f"{arguments.site.rstrip('/')}/book/{notebook.stem}.zip"
        nbformat.write(with_first_cell(notebook, arguments.package, files), folder / notebook.name)


if __name__ == "__main__":
    main()
