"""Run the tests of what changed: ``python tests/changed.py BASE`` (``make quick``).

A changed module of the package runs its own test file, its examples and the contract of the bijections that
it defines; a changed test file or chapter runs itself. Changes since the common ancestor with BASE count,
uncommitted ones and new files included.
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def git(*arguments: str) -> list[str]:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.split() if run.returncode == 0 else []


def changed_files(base: str) -> list[Path]:
    """The files that differ from the base or, where a fresh clone lacks it, from the last commit."""
    ancestor = git("merge-base", base, "HEAD") or ["HEAD"]
    names = {*git("diff", "--name-only", ancestor[0]), *git("ls-files", "--others", "--exclude-standard")}
    return sorted(ROOT / name for name in names if (ROOT / name).is_file())


def selection(path: Path) -> tuple[set[str], set[str]]:
    """What pytest runs for a changed file, and the classes whose contract it runs."""
    place = path.relative_to(ROOT)
    if place.parts[0] == "gauss_flows" and path.suffix == ".py":
        tests = ROOT / "tests" / f"test_{path.stem}.py"
        classes = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
        return {str(place), *([str(tests.relative_to(ROOT))] if tests.exists() else [])}, classes
    if place.parts[0] == "tests" and path.suffix == ".py" and path.name.startswith("test_"):
        return {str(place)}, set()
    if path.suffix == ".ipynb" and place.parts[0] == "book":
        return {str(place)}, set()
    return set(), set()


def main() -> int:
    paths, classes = set(), set()
    for path in changed_files(sys.argv[1] if len(sys.argv) > 1 else "origin/main"):
        files, names = selection(path)
        paths |= files
        classes |= {name for name in names if not name.startswith("_")}
    site = {path for path in paths if path.startswith("tests/site")}  # needs the built site: `make test`
    paths -= site
    if not paths:
        print("No module, test or chapter has changed.")
        return 0
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    status = subprocess.run([*command, *sorted(paths)], cwd=ROOT, check=False).returncode
    if classes and not status:
        chosen = ["tests/test_contract.py", "-k", " or ".join(sorted(classes))]
        status = subprocess.run([*command, *chosen], cwd=ROOT, check=False).returncode
    return 0 if status == 5 else status  # 5: a class without a case of its own


if __name__ == "__main__":
    sys.exit(main())
