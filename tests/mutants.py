"""Plant faults in the package, one at a time, and say which tests and which chapters notice.

    python tests/mutants.py [NAME ...] [--resume] [--only tests]        (make mutants: all)

Each fault is one that a careful person makes. It is planted in a copy of the repository's files, where the
tests named for it run, and then its chapters, by strict nbval, up to the first that fails. The same selection
must first pass in the copy as it is. The result is the table `mutants.csv`; rows are replaced as they come.
"""

import argparse
import csv
import datetime
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "mutants.csv"
CACHE = ROOT / ".pytest_cache" / "jax" / "mutants"  # one process at a time writes here
FIELDS = ("name", "file", "tests", "notebook", "seconds")
PARTS = (
    *("gauss_flows", "book", "tests", "benchmarks"),
    *("_style.py", "conftest.py", "pyproject.toml", "requirements.lock"),
)


class Mutant(NamedTuple):
    """A fault: ``old``, found exactly once in the file, becomes ``new``."""

    name: str
    file: str  # in gauss_flows/
    old: str
    new: str
    chapters: str  # by name, the cheapest that teaches it first
    tests: str  # a file in tests/, and what to select in it (pytest's -k)


MUTANTS = tuple(Mutant(*row) for row in (
    # --- numerics
    ("tail clipped", "numerics.py",
     "near = log_mills - half_square", "near = jnp.maximum(log_mills - half_square, -100.0)",
     "bijector_menu", "test_numerics.py tails_against_scipy"),
    ("sign in the tails' derivative", "numerics.py",
     "NormalTails(below * du, -above * du,", "NormalTails(below * du, above * du,", "coupling_pattern",
     "test_numerics.py derivatives"),
    ("solver stops a step early", "numerics.py",
     "small = jnp.maximum(1e-2 * eps**0.5 * scale", "small = jnp.maximum(eps**0.25 * scale",
     "bijector_menu", "test_bijections.py hard_mixtures and float64"),
    ("implicit derivative not divided by the slope", "numerics.py",
     "lambda linear, y: y / linear(jnp.ones_like(y))", "lambda linear, y: y", "bijector_menu",
     "test_numerics.py implicit_root"),
    # --- base
    ("trained base", "base.py", 'return non_trainable(Normal(jnp.zeros(expect_whole("dim", dim, 2))))',
     'return Normal(jnp.zeros(expect_whole("dim", dim, 2)))', "depth_stability",
     "test_train.py learns_a_gaussian"),
    ("layers' log-dets not added", "base.py",
     "return (x, log_det + change), None", "return (x, change), None", "depth_stability",
     "test_bijections.py contract and Scan-float64"),
    ("least value refused", "base.py",
     "int(value) >= at_least, name", "int(value) > at_least, name", "coupling_pattern",
     "test_gaussianization.py em_finds"),
    # --- bijectors
    ("sign of the mixture's inverse log-det", "bijectors.py",
     "return x, -self._log_slope(tails, y)", "return x, self._log_slope(tails, y)", "coupling_pattern",
     "test_bijections.py contract and MixtureGaussianCDF-float64"),
    ("scale missing in the mixture's slope", "bijectors.py",
     "logsumexp(log_share + hazards - self.log_scales) - own", "logsumexp(log_share + hazards) - own",
     "coupling_pattern", "test_bijections.py two_far_modes and float64"),
    ("means not mirrored", "bijectors.py",
     "z, means = mirror * z, mirror * self.means", "z, means = mirror * z, self.means",
     "coupling_pattern", "test_bijections.py hard_mixtures and float64"),
    ("upper tail's term dropped", "bijectors.py",
     "jax.nn.softmax(lower) * jax.nn.sigmoid(-t) + jax.nn.softmax(upper) * jax.nn.sigmoid(t)",
     "jax.nn.softmax(lower) * jax.nn.sigmoid(-t)", "bijector_menu",
     "test_bijections.py contract and DeepSigmoid-float64"),
    ("bin off by one", "bijectors.py",
     "edge(jnp.arange(k), left / total)) - 1", "edge(jnp.arange(k), left / total))", "bijector_menu",
     "test_bijections.py spline_is_smooth and float64"),
    ("derivative of the neighbouring bin", "bijectors.py",
     "here = jnp.arange(len(array)) == jnp.clip(i, 0, len(array) - 1)",
     "here = jnp.arange(len(array)) == i + 1", "depth_stability",
     "test_bijections.py gradients_of_the_inverse and RQSplineCoupling"),
    ("square missing in the spline's slope", "bijectors.py",
     "return 2 * jnp.log(s / below)", "return jnp.log(s / below)", "bijector_menu",
     "test_bijections.py contract and RQSplineCoupling-float64"),
    ("soft clip of the wrong slope", "bijectors.py",
     "return bound * jnp.tanh(raw / bound)", "return bound * jnp.tanh(raw)", "bijector_menu",
     "test_bijections.py gaussianizes_its_own"),
    # --- masks
    ("half off by one", "masks.py", "return (np.arange(size) < size // 2).reshape(shape)",
     "return (np.arange(size) <= size // 2).reshape(shape)", "masks", "test_numerics.py masks_half"),
    ("board's colours exchanged", "masks.py",
     "np.arange(width)) % 2 == 0", "np.arange(width)) % 2 == 1", "masks",
     "test_bijections.py masks_say_who"),
    ("every other channel", "masks.py",
     "np.arange(channels) < channels // 2", "np.arange(channels) % 2 == 0", "masks",
     "test_bijections.py masks_say_who"),
    ("key of the random mask unused", "masks.py",
     "jax.random.permutation(key, size)", "jax.random.permutation(jax.random.key(0), size)", "masks",
     "test_bijections.py masks_say_who"),
    ("reachability in the wrong order", "masks.py",
     "(layer.astype(int) @ reach.astype(int)) > 0", "(reach.astype(int) @ layer.astype(int)) > 0", "masks",
     "test_bijections.py reachability_is_the_pattern and channel"),
    # --- conditioners
    ("hidden mask off by one", "conditioners.py",
     "np.greater_equal.outer(b, a) for a, b", "np.greater.outer(b, a) for a, b", "maf_iaf",
     "test_bijections.py an_order_is_normalised"),
    ("largest degree never given", "conditioners.py",
     "j * (high - low + 1) // self.width", "j * (high - low) // self.width", "maf_iaf",
     "test_bijections.py contract and MaskedAutoregressive-float64"),
    ("kernel not silenced", "conditioners.py",
     "(jnp.zeros_like(layer.weight), output", "(layer.weight, output", "equivalence",
     "test_gaussianization.py dead_conditioner and float32"),
    ("tokens without their places", "conditioners.py",
     "self.scale[None, :] + self.places", "self.scale[None, :]", "conditioners",
     "test_bijections.py conditioners_are_what"),
    # --- linear
    ("factors exchanged", "linear.py",
     "return lower @ (upper @ x) + self.bias", "return upper @ (lower @ x) + self.bias", "depth_stability",
     "test_bijections.py contract and LULinear-float64"),
    ("projection in place of a reflection", "linear.py",
     "jnp.outer(transposed @ v, 2 * v / (v @ v))", "jnp.outer(transposed @ v, v / (v @ v))",
     "change_of_variables", "test_bijections.py householder_is_orthogonal"),
    ("transposed rotation", "linear.py",
     "    return x @ transposed", "    return transposed @ x", "change_of_variables",
     "test_bijections.py householder_takes_any"),
    # --- actnorm
    ("mean not scaled", "actnorm.py",
     "(-jnp.log(std), -mean / std)", "(-jnp.log(std), -mean)", "depth_stability",
     "test_bijections.py data_init and False"),
    ("every layer set from the raw data", "actnorm.py",
     "parts[i], x = walk(", "parts[i], _ = walk(", "depth_stability",
     "test_bijections.py data_init and False"),
    # --- information
    ("sample not sorted", "information.py",
     "x[order][high] - x[order][low]", "x[high] - x[low]", "diagonal_vs_coupling",
     "test_gaussianization.py entropies_are_right"),
    ("deviation in place of its error", "information.py",
     "float(terms.std() / math.sqrt(len(terms)))", "float(terms.std())", "diagonal_vs_coupling",
     "test_gaussianization.py entropies_are_right"),
    # --- coupling
    ("sign of the coupling's log-det", "coupling.py",
     "self.shape), log_det.sum()", "self.shape), -log_det.sum()", "coupling_pattern",
     "test_bijections.py reproduces_the_source"),
    ("a copy that is none", "coupling.py",
     "return _join(passive, out,", "return _join(passive + 1e-9, out,", "coupling_pattern",
     "test_bijections.py reproduces_the_source"),
    ("order not inverted", "coupling.py",
     "back = np.argsort(np.array(at_a + at_b))", "back = np.array(at_a + at_b)", "coupling_pattern",
     "test_bijections.py reachability_is_the_pattern and random"),
    ("parameters laid out the other way", "coupling.py",
     "self.conditioner(inputs).reshape(len(self._active), -1)",
     "self.conditioner(inputs).reshape(-1, len(self._active)).T", "coupling_pattern",
     "test_bijections.py reproduces_the_source"),
    # --- autoregressive
    ("inverse one step short", "autoregressive.py",
     "np.array_split(np.arange(self.passes), _LOOPS", "np.array_split(np.arange(self.passes - 1), _LOOPS",
     "maf_iaf", "test_bijections.py three_inverses_agree and order1"),
    ("sweeps end with the first still coordinate", "autoregressive.py",
     "jnp.max(jnp.abs(new - x) /", "jnp.min(jnp.abs(new - x) /", "maf_iaf",
     "test_bijections.py three_inverses_agree and order0"),
    ("degrees not sorted", "autoregressive.py",
     'by_rank = np.argsort(self._ranks, kind="stable")', "by_rank = np.arange(size)", "maf_iaf",
     "test_bijections.py three_inverses_agree and order1"),
    ("output reads itself", "autoregressive.py",
     "np.repeat(np.array(self._ranks) - 1,", "np.repeat(np.array(self._ranks),", "maf_iaf",
     "test_bijections.py an_order_is_normalised"),
    # --- residual
    ("series does not alternate", "residual.py",
     "k, weight = k + 1, -weight", "k, weight = k + 1, weight", "residual_flows",
     "test_bijections.py roulette_is_unbiased and 2-0.5"),
    ("1/k of the series forgotten", "residual.py",
     "value - weight / k * jnp.vdot(u, v)", "value - weight * jnp.vdot(u, v)", "residual_flows",
     "test_bijections.py roulette_is_unbiased and 2-0.5"),
    ("roulette's terms not reweighted", "residual.py",
     "jnp.where(k > terms, weight / keep, weight)", "jnp.where(k > terms, weight, weight)",
     "residual_flows", "test_bijections.py roulette_is_unbiased and 2-0.5"),
    ("one layer forgotten in the bound", "residual.py",
     "self.lipschitz ** (1 / (depth + 1))", "self.lipschitz ** (1 / depth)", "residual_flows",
     "test_bijections.py stay_within_their_bound and float32"),
    ("unwrap forgotten", "residual.py", "        net = unwrap(self)", "        net = self", "residual_flows",
     "test_bijections.py stay_within_their_bound and float32"),
    ("sign of the block's inverse log-det", "residual.py",
     "return x.reshape(self.shape), -self._find_log_det(x, condition)",
     "return x.reshape(self.shape), self._find_log_det(x, condition)", "residual_flows",
     "test_bijections.py contract and Residual-float64"),
    # --- flows
    ("conditioner of a new flow not zero", "flows.py",
     "conditioner = mlp(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)",
     "conditioner = mlp(nn_width, nn_depth, activation=jax.nn.silu)", "depth_stability",
     "test_train.py a_new_coupling_flow"),
    ("IAF the wrong way round", "flows.py",
     "Transformed(flow.base_dist, flow.bijection.bijection)", "Transformed(flow.base_dist, flow.bijection)",
     "maf_iaf", "test_bijections.py maf_and_iaf_start"),
    # --- gaussianization
    ("passive columns fitted", "gaussianization.py",
     "active = ~layer.mask.ravel() if", "active = layer.mask.ravel() if", "warm_start",
     "test_gaussianization.py dead_conditioner and float32"),
    ("principal axes transposed", "gaussianization.py",
     "turn = layer.with_axes(axes)", "turn = layer.with_axes(axes.T)", "warm_start",
     "test_gaussianization.py principal_axes"),
    ("mean of the log-slopes", "gaussianization.py",
     "return z.reshape(self.shape), log_det.sum()", "return z.reshape(self.shape), log_det.mean()",
     "diagonal_vs_coupling", "test_gaussianization.py dead_conditioner and float32"),
    # --- train
    ("validation rows leak into the batches", "train.py",
     "(settings.batch_size,), 0, n_train)]", "(settings.batch_size,), 0, len(x))]", "depth_stability",
     "test_train.py validation_rows_are_held_out"),
    ("one key for every batch", "train.py",
     "jr.split(jr.fold_in(key, i))", "jr.split(key)", "depth_stability",
     "test_train.py validation_rows_are_held_out"),
    # --- checks
    ("sign lost in the check", "checks.py",
     "jnp.abs(log_det + inverse_log_det)", "jnp.abs(log_det - inverse_log_det)", "coupling_pattern",
     "test_frame.py each_line_of_the_proof"),
    ("check blind to the sign", "checks.py", "jnp.abs(log_volume - log_det[:m].reshape(m))",
     "jnp.abs(jnp.abs(log_volume) - jnp.abs(log_det[:m].reshape(m)))", "change_of_variables",
     "test_frame.py each_line_of_the_proof"),
    ("lower and upper exchanged", "checks.py",
     "np.triu(pattern, 1), np.tril(pattern, -1)", "np.tril(pattern, -1), np.triu(pattern, 1)",
     "coupling_pattern", "test_frame.py structure_can_be_demanded"),
    # --- targets
    ("one factor of the normal's constant", "targets.py",
     "np.log(scales).sum(axis=1) - dim * LOG_SQRT_2PI", "np.log(scales).sum(axis=1) - LOG_SQRT_2PI",
     "masks", "test_targets.py mass_one and moons"),
    ("sign of the standardised density", "targets.py", "return self.log_density(mean + std * z) + log_scale",
     "return self.log_density(mean + std * z) - log_scale", "masks",
     "test_targets.py samples_follow and moons"),
    ("key used again", "targets.py",
     "key_side, key_t, key_noise = jr.split(key, 3)", "key_side, key_t, key_noise = key, key, key",
     "diagonal_vs_coupling", "test_targets.py samples_follow and spiral"),
    # --- io
    ("names compared, not shapes and types", "io.py",
     "expect(mine == their,", "expect(mine.split()[0] == their.split()[0],", "your_own_data",
     "test_train.py load_says_what"),
))  # fmt: skip


def plant(folder: Path, mutant: Mutant) -> None:
    """Put one fault into a copy of the package."""
    path = folder / "gauss_flows" / mutant.file
    source = path.read_text()
    assert source.count(mutant.old) == 1, mutant.name
    path.write_text(source.replace(mutant.old, mutant.new))


def copy(folder: Path) -> None:
    """The files that the tests and the chapters need."""
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, folder / name)


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Pytest in the copy, up to the first failure; its status and what it wrote."""
    settings = {
        "PYTHONPATH": str(folder),  # before the editable installation
        "PYTHONDONTWRITEBYTECODE": "1",  # a stale file would hide a fault of the same length
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    options = ("-x", "-q", "-p", "no:cacheprovider", "-m", "")  # those left to `make nightly` too
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def failure(status: int, output: str) -> str:
    """The test or the cell that failed, or nothing: an error on the way there is no failure."""
    found = re.search(r"^FAILED (?:tests|book)/(.*?)(?: - .*)?$", output, re.MULTILINE)
    caught = found.group(1) if status == 1 and found else ""
    return "" if caught.endswith("::Cell 0") else caught  # the chapter's imports


def control(file: str, expressions: set[str]) -> None:
    """Demand once that what is selected in a file passes without a fault, and in the copy."""
    sources = [*sorted((ROOT / "gauss_flows").glob("*.py")), ROOT / file]
    content = b"".join(path.read_bytes() for path in sources)
    marks = {one: hashlib.sha256(content + one.encode()).hexdigest() for one in sorted(expressions)}
    known = CACHE / "passed.txt"
    passed = known.read_text().split() if known.exists() else []
    new = [one for one, mark in marks.items() if mark not in passed]
    if not new:
        return
    with tempfile.TemporaryDirectory() as name:
        copy(Path(name))
        where = "import gauss_flows, _style; print(gauss_flows.__file__, _style.__file__)"
        options = {"cwd": "/", "env": os.environ | {"PYTHONPATH": name}, "text": True}
        found = subprocess.check_output([sys.executable, "-c", where], **options).split()
        assert all(Path(path).is_relative_to(name) for path in found), found
        print("without a fault:", file, *new, sep="   ", flush=True)
        status, output = run(Path(name), file, "-k", " or ".join(f"({one})" for one in new if one))
    if status:
        sys.exit(f"{output[-3000:]}\nThis fails without a fault.")
    with known.open("a") as passed_file:
        passed_file.writelines(f"{marks[one]}\n" for one in new)


def examine(mutant: Mutant, row: dict[str, str], only: str | None) -> dict[str, str]:
    """The fault's row of the table, from its last one."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        plant(folder, mutant)
        row = {"tests": "", "notebook": ""} | row | {"name": mutant.name, "file": mutant.file}
        if only != "notebook":
            file, _, expression = mutant.tests.partition(" ")
            row["tests"] = failure(*run(folder, f"tests/{file}", "-k", expression))
        if only != "tests":
            found = (failure(*run(folder, f"book/{chapter}.ipynb")) for chapter in mutant.chapters.split())
            row["notebook"] = next(filter(None, found), "")
    return row | ({} if only else {"seconds": f"{time.monotonic() - start:.0f}"})


def read() -> dict[str, dict[str, str]]:
    """The table's rows by the fault's name."""
    if not TABLE.exists():
        return {}
    with TABLE.open() as file:
        file.readline()
        return {row["name"]: row for row in csv.DictReader(file)}


def write(rows: dict[str, dict[str, str]]) -> None:
    """The table, in the order of the list."""
    made = ", ".join(f"{name} {version(name)}" for name in ("gauss_flows", "jax", "flowjax", "nbval"))
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    with TABLE.open("w", newline="") as file:
        file.write(f"# {made}, {machine}, {datetime.date.today()}\n")
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[m.name] for m in MUTANTS if m.name in rows)


def main() -> None:
    """Run all faults or those named, and say what was not caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; default: all")
    parser.add_argument("--resume", action="store_true", help="leave out what the table says is caught")
    parser.add_argument("--only", choices=("tests", "notebook"), help="fill this column alone")
    options = parser.parse_args()
    unknown = set(options.names) - {m.name for m in MUTANTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    rows = read()
    done = {name for name, row in rows.items() if row["tests"] and row["notebook"]} if options.resume else ()
    chosen = [m for m in MUTANTS if m.name in (options.names or [m.name]) and m.name not in done]
    CACHE.mkdir(parents=True, exist_ok=True)
    chosen.sort(key=lambda m: m.chapters)
    expressions: dict[str, set[str]] = {}
    for mutant in chosen:
        file, _, expression = mutant.tests.partition(" ")
        expressions.setdefault(f"tests/{file}", set()).add(expression)
    for file, these in expressions.items() if options.only != "notebook" else ():
        control(file, these)
    for mutant in chosen:
        for chapter in mutant.chapters.split() if options.only != "tests" else ():
            control(f"book/{chapter}.ipynb", {""})
        row = rows[mutant.name] = examine(mutant, rows.get(mutant.name, {}), options.only)
        print(mutant.name, row["tests"] or "-", row["notebook"] or "-", sep="   ", flush=True)
        write(rows)
    for kind in ("tests", "notebook"):
        missed = [m.name for m in MUTANTS if not rows.get(m.name, {}).get(kind)]
        print(f"caught by {kind}: {len(MUTANTS) - len(missed)} of {len(MUTANTS)}; not:", ", ".join(missed))


if __name__ == "__main__":
    main()
