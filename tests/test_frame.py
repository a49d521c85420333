"""The frame: what the README promises, and files that must agree with each other."""

import ast
import contextlib
import io
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE)
FLOORS = {
    name: floor
    for floor, names in enumerate(
        (
            "validate compiling deprecated masked_network",
            "incremental frames",
            "bijection moments normal rootfinding fit_options masks made patch_transformer convolution "
            "ode_solver",
            "parametrize transformed conditioners lipschitz log_det linear actnorm information layer_walk "
            "levels",
            "bijectors mixtures spline velocity supports log_density",
            "coupling autoregressive residual marginal continuous importance columns",
            "circular tables",
            "flows transformer_flow image initialize fit_result dequantize discrete",
            "rbig fit_loop codec",
            "train guidance",
            "flow_matching density",
            "distill",
        )
    )
    for name in names.split()
}
BESIDE = {"checks", "check_report", "known_density", "targets", "io", "structure", "checkpoint"}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_top_level_is_whole():
    for name in (
        *("README.md", "LICENSE", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"),
        *("pyproject.toml", "requirements.lock", "environment.yml", "_config.yml", "_toc.yml", "_style.py"),
        *("book", "gauss_flows", "tests", "benchmarks", ".ci/run", ".github/workflows/tests.yml"),
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_the_lock_satisfies_the_bounds(extra):
    for text in EXTRAS[extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            continue
        versions = [v for name, v in PINS if name == canonicalize_name(requirement.name)]
        assert versions, f"{requirement.name} is not in requirements.lock: run `make lock`"
        assert all(requirement.specifier.contains(v) for v in versions), text


@pytest.mark.parametrize("name", ["jax", "jaxlib", "flowjax", "equinox", "optax", "matplotlib"])
def test_the_lock_pins_one_version_for_every_python(name):
    assert len([v for n, v in PINS if n == name]) == 1


def test_the_lock_has_hashes_and_no_addresses():
    entries = re.split(r"\n(?=[\w.-]+==)", LOCK)[1:]
    assert len(entries) == len(PINS) > 50
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|index-url|find-links", LOCK)


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip = environment["dependencies"][0], environment["dependencies"][-1]["pip"]
    assert python.startswith("python" + PROJECT["requires-python"])
    (install,) = pip
    (extras,) = re.findall(r"-e \.\[(.*)\]", install)
    assert set(extras.split(",")) <= set(EXTRAS)
    assert "gauss_flows[book]" in EXTRAS["dev"]
    newest = max(c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c)
    assert python.endswith(f"<3.{int(newest.split('.')[1]) + 1}")


def test_versions_agree():
    import gauss_flows as gf

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == gf.__version__ == citation["version"]


def test_the_readme_example_prints_what_it_says():
    readme = (ROOT / "README.md").read_text()
    code, shown = re.search(r"```python\n(.*?)```\s*```text\n(.*?)```", readme, re.DOTALL).groups()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    regex, replacement = re.findall(
        r"^regex: (.*)\nreplace: (.*)$", (ROOT / "tests/nbval_sanitize.cfg").read_text(), re.MULTILINE
    )[0]
    assert re.sub(regex, replacement, run.stdout) == re.sub(regex, replacement, shown)
    assert len(code.splitlines()) <= 12


def test_importing_loads_little_beyond_flowjax():
    """What costs time is loaded when first used: the import takes 1.1 times flowjax's own."""
    code = (
        "import sys, flowjax.bijections, flowjax.distributions, flowjax.flows, flowjax.train; "
        "before = set(sys.modules); import gauss_flows; print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name for name in run.stdout.split() if name.count(".") == 1 and not name.startswith("gauss_flows")}
    new = {name for name in new if not name.split(".")[1].startswith("_")}
    assert {name for name in new if not name.startswith("numpy.polynomial")} <= {"scipy.version"}


def test_imports_go_down_the_floors():
    for path in (ROOT / "gauss_flows").glob("*.py"):
        if path.stem not in FLOORS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("gauss_flows") for a in node.names), path.name
            if not isinstance(node, ast.ImportFrom):
                continue
            assert node.level == 0, f"{path.name} has a relative import"
            if not node.module.startswith("gauss_flows"):
                continue
            names = [node.module.partition(".")[2]] if "." in node.module else [a.name for a in node.names]
            for name in set(names) - BESIDE:
                assert FLOORS[name] < FLOORS[path.stem], f"{path.name} imports {name}"


def test_every_module_has_a_floor_or_stands_beside():
    modules = {p.stem for p in (ROOT / "gauss_flows").glob("*.py")} - {"__init__"}
    assert modules - set(FLOORS) <= BESIDE


def test_files_stay_small():
    lines = {p.name: len(p.read_text().splitlines()) for p in (ROOT / "gauss_flows").glob("*.py")}
    assert {name: n for name, n in lines.items() if n > 400} == {}


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_benchmarks_find_what_they_import(script, monkeypatch):
    assert 'PYTHONPATH=book $(PY) "$$script"' in (ROOT / "Makefile").read_text()
    monkeypatch.syspath_prepend(str(ROOT / "book"))
    monkeypatch.setattr(sys, "path", sys.path[:])  # a script may add to it
    assert "main" in runpy.run_path(str(script), run_name="imported")


def test_types_say_something():
    """`Any` stands on few lines: where Python's own types end, and in aliases that say what is meant."""
    lines = {
        (path.name, node.lineno)
        for path in (ROOT / "gauss_flows").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id == "Any"
    }
    assert len(lines) <= 20, sorted(lines)


def test_nothing_tracked_holds_a_path_of_one_machine():
    suffixes = {".py", ".md", ".yml", ".toml", ".cfg", ".ipynb", ".lock", ".cff", ".bib", ".css", ""}
    home = re.compile(r"/(?:home|root|Users|tmp)/\w")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if path.suffix in suffixes
        for match in home.finditer(path.read_text())
    ]
    assert found == []


def test_every_public_name_is_in_the_api_reference():
    import gauss_flows as gf

    page = (ROOT / "book" / "api.md").read_text()
    missing = [name for name in gf.__all__ if not re.search(rf"gauss_flows\.{name}\b", page)]
    assert missing == []


def faulty(transform=None, inverse=None, mask=None, order=None):
    """z = 2 x on two coordinates, with one thing wrong."""
    import jax.numpy as jnp

    import gauss_flows as gf

    class Double(gf.Bijection):
        shape = (2,)
        cond_shape = None

        def transform_and_log_det(self, x, condition=None):
            return transform(x) if transform else (2 * x, jnp.log(4.0))

        def inverse_and_log_det(self, y, condition=None):
            return inverse(y) if inverse else (y / 2, -jnp.log(4.0))

    if mask is not None:
        Double.mask = mask
    if order is not None:
        Double.order = order
    return Double()


def faults():
    import jax.numpy as jnp
    import numpy as np

    mask = np.array([True, False])
    sheared = lambda sign: lambda v: (v + sign * jnp.stack([0 * v[1], v[0]]), jnp.zeros(()))
    return {
        "round trip x -> z -> x": faulty(inverse=lambda y: (y / 2 + 1e-3, -jnp.log(4.0))),
        "log-det vs. autodiff": faulty(lambda x: (2 * x, jnp.log(5.0)), lambda y: (y / 2, -jnp.log(5.0))),
        "log-det, both ways": faulty(inverse=lambda y: (y / 2, jnp.log(4.0))),
        "log-det vs. autodiff  ": faulty(  # the sign, and in both directions
            lambda x: (2 * x, -jnp.log(4.0)), lambda y: (y / 2, jnp.log(4.0))
        ),
        "a passive coordinate changed": faulty(mask=mask),
        "an active coordinate depends on another": faulty(
            lambda x: (sheared(1)(x)[0][::-1], jnp.zeros(())),
            lambda y: sheared(-1)(y[::-1]),
            mask=np.array([False, False]),
        ),
        "element 1 depends on element 0, which is not before it": faulty(
            sheared(1), sheared(-1), order=np.array([1, 0])
        ),
        # One steep coordinate must not excuse another: reviewers' cases.
        "log-det vs. autodiff ": faulty(
            lambda x: (x * jnp.array([1e3, 1e-3]), jnp.array(0.5)),
            lambda y: (y / jnp.array([1e3, 1e-3]), -jnp.array(0.5)),
        ),
        "round trip x -> z -> x ": faulty(
            lambda x: (x * jnp.array([1e3, 1.0]), jnp.log(1e3)),
            lambda y: (y / jnp.array([1e3, 1.01]), -jnp.log(1e3)),
        ),
    }


@pytest.mark.parametrize("name", faults())
def test_each_line_of_the_report_can_fail(name):
    import jax.numpy as jnp

    import gauss_flows as gf

    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(gf.CheckError) as error:
        gf.check_bijection(faults()[name], jnp.array([[1.0, 2.0], [-0.5, 3.0]]))
    failed = [line for line in out.getvalue().splitlines() if line.endswith("FAILED")]
    assert any(name.strip() in line for line in failed), out.getvalue()
    assert name.strip() in str(error.value)


def test_the_structure_can_be_demanded_and_the_permutation_is_named():
    import jax.numpy as jnp
    import jax.random as jr
    import numpy as np

    import gauss_flows as gf

    x = jr.normal(jr.key(1), (5, 4))
    layer = gf.AffineCoupling(jr.key(0), (4,), mask=np.array([False, True, False, True]), nn_width=8)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        report = gf.check_bijection(layer, x, structure="triangular")
        assert report.permutation == (1, 3, 0, 2)
        assert "triangular after the permutation [1, 3, 0, 2]" in out.getvalue()
        half = gf.masks.half((4,))
        for mask, word in ((half, "lower"), (~half, "upper")):
            triangle = gf.AffineCoupling(jr.key(0), (4,), mask=mask, nn_width=8)
            assert gf.check_bijection(triangle, x)["Jacobian"] == f"{word} triangular"
        with pytest.raises(gf.CheckError, match="asked for: diagonal"):
            gf.check_bijection(layer, x, structure="diagonal")
        with pytest.raises(gf.CheckError, match="round trip"):
            gf.check_bijection(faulty(inverse=lambda y: (y / 2 + 1e-6, -jnp.log(4.0))), x[:, :2], atol=1e-7)
        gf.check_bijection(faulty(inverse=lambda y: (y / 2 + 1e-3, -jnp.log(4.0))), x[:, :2], atol=0.1)
        flat = faulty(
            lambda x: (x * jnp.array([1.0, 1e-12]), jnp.log(1e-12)),
            lambda y: (y / jnp.array([1.0, 1e-12]), -jnp.log(1e-12)),
        )
        gf.check_bijection(flat, x[:, :2])  # steep, but told apart coordinate by coordinate


def test_the_checks_can_fail():
    """check and check_bijection raise, name what broke, and keep their report."""
    import jax.numpy as jnp

    import gauss_flows as gf

    class Wrong(gf.Bijection):
        shape = (2,)
        cond_shape = None

        def transform_and_log_det(self, x, condition=None):
            return 2 * x, jnp.zeros(())

        def inverse_and_log_det(self, y, condition=None):
            return y / 2, jnp.zeros(())

    with contextlib.redirect_stdout(io.StringIO()) as out:
        with pytest.raises(gf.CheckError, match=r"log-det vs\. autodiff") as error:
            gf.check_bijection(Wrong(), jnp.ones((3, 2)))
        for value in (2.0, float("nan"), float("inf")):
            with pytest.raises(gf.CheckError, match="x: ≈ "):
                gf.check("x", value, at_most=1)
        with pytest.raises(gf.CheckError):
            gf.check("x", -1, at_least=0)
        gf.check("x", 1, at_most=1, at_least=1)
    assert "FAILED" in out.getvalue()
    report = error.value.report
    assert not report.ok
    assert abs(report["log-det vs. autodiff"] - 2 * 0.6931) < 1e-3
    assert report["round trip x -> z -> x"] == 0
    assert report.permutation == (0, 1)
    assert '<table class="checks">' in report._repr_html_()
    for wrong in (
        lambda: gf.check("x", 1),
        lambda: gf.check("x", jnp.ones(2), at_most=1),
        lambda: gf.check_bijection(jnp.tanh, jnp.ones(2)),
        lambda: gf.check_bijection(Wrong(), jnp.ones(3)),
        lambda: gf.check_bijection(Wrong(), jnp.ones(2) * 1j),
        lambda: gf.check_bijection(Wrong(), jnp.array([1.0, jnp.nan])),
        lambda: gf.check_bijection(Wrong(), jnp.ones(2, jnp.bfloat16)),
        lambda: gf.check_bijection(Wrong(), "x"),
        lambda: gf.check_bijection(Wrong(), jnp.ones((0, 2))),
        lambda: gf.check_bijection(Wrong(), jnp.ones(2), structure="upper"),
        lambda: gf.check_bijection(Wrong(), jnp.ones(2), atol=-1.0),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()


def test_a_large_event_forms_few_jacobians(monkeypatch):
    """Past the limit the remaining points share one matrix of bounds, and still fail alone."""
    import jax.numpy as jnp
    import jax.random as jr

    import gauss_flows as gf

    monkeypatch.setattr(gf.checks, "_JACOBIAN_ENTRIES", 12)
    x = jr.normal(jr.key(0), (50, 2))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert gf.check_bijection(faulty(), x).ok
        assert "50 points, float32 (Jacobians at 3)" in out.getvalue()
        wrong = lambda y: (y / 2 + jnp.where(jnp.all(y == 2 * x[40]), 1e-2, 0.0), -jnp.log(4.0))
        with pytest.raises(gf.CheckError, match="at point 40"):
            gf.check_bijection(faulty(inverse=wrong), x)
