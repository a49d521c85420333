"""Plant faults in the package, one at a time, and say which tests and which chapters notice.

    python tests/mutants.py [NAME ...] [--resume] [--only tests]        (make mutants: all)

Each fault is one that a careful person makes. It is planted in a copy of the repository's files, where the
tests named for it run, and then its chapters, by strict nbval, up to the first that fails. The same selection
must first pass in the copy as it is. The results are the tables `mutants.csv` and, for the faults that no
chapter needs to notice, `documented.csv`; rows are replaced as they come.
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
DOCUMENTED_TABLE = ROOT / "tests" / "documented.csv"
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
    chapters: str  # by name, the cheapest that teaches it first; empty where no chapter needs to notice it
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
    ("trained base", "base.py", 'return non_trainable(fd.Normal(jnp.zeros(expect_whole("dim", dim, 1))))',
     'return fd.Normal(jnp.zeros(expect_whole("dim", dim, 1)))', "depth_stability",
     "test_train.py learns_a_gaussian"),
    ("layers' log-dets not added", "base.py",
     "return (event, log_det + change), None", "return (event, change), None", "depth_stability",
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
     "jnp.logaddexp(lower - below + jax.nn.log_sigmoid(-t), upper - above + jax.nn.log_sigmoid(t))",
     "lower - below + jax.nn.log_sigmoid(-t)", "bijector_menu",
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
     "exact, mean / std)", "exact, mean)", "depth_stability",
     "test_bijections.py data_init and False"),
    ("every layer set from the raw data", "actnorm.py",
     "parts[i], rows = go(parts[i], rows, forward)", "parts[i], _ = go(parts[i], rows, forward)",
     "depth_stability",
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
    ("mean of the log-slopes", "marginal.py",
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

# Faults that no chapter needs to notice: defaults, orders and statistics that a docstring states; and what
# only unusual data, a second call, another machine or an interrupted run would show.
DOCUMENTED = tuple(Mutant(*row) for row in (
    # --- numerics
    ("half precision widened", "numerics.py", "return mills_ratio(v.astype(jnp.float32)).astype(v.dtype)",
     "return mills_ratio(v.astype(jnp.float32))", "", "test_documented.py half_precision"),
    ("derivatives of the root without theirs", "numerics.py",
     "x = _root_p.bind(*primals, equation=equation, quotient=quotient)", "x = primals[0]", "",
     "test_derivatives.py closed_form and plain"),
    ("quantile's derivative cut at the median", "numerics.py", "_SQRT_2PI * mills_ratio(-z) * tangents[0]",
     "_SQRT_2PI * mills_ratio(jnp.maximum(-z, 0)) * tangents[0]", "", "test_edges.py quantile_at_the_median"),
    # --- base
    ("program made anew for each call", "base.py", "static = (function, structure, tuple(rest))",
     "static = (functools.partial(function), structure, tuple(rest))", "",
     "test_flows.py plain_calls_compile and coupling_flow"),
    ("constants by identity", "base.py", "(array.shape, array.dtype.str, array.tobytes()) if",
     "id(array) if", "", "test_flows.py numpy_arrays_alone"),
    ("constants by shape and type", "base.py", "(array.shape, array.dtype.str, array.tobytes()) if",
     "(array.shape, array.dtype.str) if", "", "test_flows.py numpy_arrays_alone"),
    ("NaN of a row hidden", "base.py", "return jnp.where(broken, jnp.nan, log_prob)", "return log_prob", "",
     "test_flows.py broken_row"),
    ("NaN of a condition hidden", "base.py", "for array in (condition, *jax.tree",
     "for array in (None, *jax.tree", "", "test_flows.py broken_row"),
    ("stack of flows not named", "base.py", "isinstance(base, fd.Normal) and jnp.ndim(base.loc)",
     "False and jnp.ndim(base.loc)", "",
     "test_flows.py stack_of_flows"),
    ("infinite after the cast of a point", "base.py", "        if lost:\n            raise",
     "        if False:\n            raise", "", "test_flows.py infinite_in_single"),
    ("carries do not vary over devices", "base.py",
     "start = jax.tree.map(lambda a: varying_like(a, event, condition, arrays), start)", "", "",
     "test_flows.py shard_map"),
    ("squares of deviations overflow", "base.py", "unit = xp.where(largest > 0, largest, 1).astype(x.dtype)",
     "unit = xp.ones_like(largest)", "", "test_data.py columns_of_any_scale"),
    ("rounding taken for spread", "base.py", "constant = largest <= 8 * eps * xp.abs(x).max(axis=0)",
     "constant = largest <= 0", "", "test_data.py rounding_is_not_magnified"),
    ("a constant column's spread magnified", "base.py", "xp.where(constant, xp.maximum(std, 1), std)", "std",
     "", "test_data.py constant_column_keeps"),
    ("spread of a constant column forgotten", "base.py", "xp.where(constant, xp.maximum(std, 1), std)",
     "xp.where(constant, 1, std)", "", "test_data.py rounding_is_not_magnified"),
    ("data checked before the cast alone", "base.py", "    if infinite.any():\n", "    if False:\n", "",
     "test_data.py what_is_no_finite and sentinel"),
    ("spread lost to rounding passes", "base.py", "    if lost.any():\n", "    if False:\n", "",
     "test_data.py what_is_no_finite and another"),
    ("masked arrays pass", "base.py", "return isinstance(value, np.ma.MaskedArray)", "return False", "",
     "test_data.py what_is_no_finite and masked"),
    # --- bijectors
    ("softplus where an exponential is promised", "bijectors.py", '(jnp.zeros(()),), "exp",',
     '(jnp.zeros(()),), "softplus",', "", "test_documented.py affine_scales"),
    ("mixture does not start near the identity", "bijectors.py",
     "super().__init__(n_components, log_scale_bound, quantile, 1.0, **components)",
     "super().__init__(n_components, log_scale_bound, quantile, 2.0, **components)", "",
     "test_documented.py default_mixtures"),
    ("deep sigmoid does not start near the identity", "bijectors.py",
     "quantile, math.pi**2 / 3, **components", "quantile, 1.0, **components", "",
     "test_documented.py default_mixtures"),
    ("scale beyond the bound cut to half of it", "bijectors.py", "-0.999, 0.999", "-0.5, 0.5", "",
     "test_documented.py components_can"),
    ("scale beyond the bound not moved inside", "bijectors.py",
     "jnp.clip(jnp.log(scales) / bound, -0.999, 0.999)", "jnp.log(scales) / bound", "",
     "test_documented.py components_can"),
    ("thinner bins of a spline", "bijectors.py", "min_width: float = 1e-2", "min_width: float = 1e-3", "",
     "test_documented.py bins_of"),
    ("flatter slopes of a spline", "bijectors.py", "min_slope: float = 0.1", "min_slope: float = 0.01", "",
     "test_documented.py bins_of"),
    ("greatest slope not the inverse of the least", "bijectors.py", "soft_clip(raw, 1 / self.min_slope)",
     "soft_clip(raw, 2 / self.min_slope)", "", "test_documented.py bins_of"),
    ("other default bins of the spline", "bijectors.py", "self, n_bins: int = 8, interval: float = 4.0",
     "self, n_bins: int = 6, interval: float = 4.0", "", "test_documented.py splines_are"),
    ("other default interval of the spline", "bijectors.py", "self, n_bins: int = 8, interval: float = 4.0",
     "self, n_bins: int = 8, interval: float = 3.0", "", "test_documented.py splines_are"),
    ("log of a scale that underflowed", "bijectors.py",
     "return jnp.where(far, raw - 0.5 * jnp.exp(jnp.where(far, raw, 0)), near)", "return jnp.log(self.value)",
     "", "test_flows.py log_of_a_scale"),
    ("limits dropped", "bijectors.py", "        if self._limits is not None:\n            low, high",
     "        if False:\n            low, high", "",
     "test_flows.py far_point and maf and Affine and not exp and not flowjax"),
    ("no limits for flowjax's bijectors", "bijectors.py",
     "if isinstance(bijector, Affine | fb.Affine | fb.Loc | fb.Scale):", "if isinstance(bijector, Affine):",
     "", "test_flows.py far_point and maf and flowjax"),
    ("limits of a softplus for an exponential", "bijectors.py",
     'if isinstance(bijector, Affine) and bijector.scale.link == "exp":', "if False:", "",
     "test_flows.py far_point and maf and exp_affine"),
    ("components' means without limits", "bijectors.py", '"logits": shift, "means": shift,',
     '"logits": shift,', "", "test_flows.py far_point and maf and MixtureGaussianCDF"),
    ("all components kept wide", "bijectors.py", "low[0] = -high", "low[:] = -high", "",
     "test_flows.py first_component"),
    ("no component kept wide", "bijectors.py", "low[0] = -high", "", "", "test_flows.py first_component"),
    ("limits begin at a half", "bijectors.py", "inner_low, inner_high = 0.75 * low, 0.75 * high",
     "inner_low, inner_high = 0.5 * low, 0.5 * high", "", "test_flows.py ordinary_outputs and DeepSigmoid"),
    ("limits exceeded", "bijectors.py", "room = 0.25 * jnp.where", "room = 0.5 * jnp.where", "",
     "test_flows.py ordinary_outputs and DeepSigmoid"),
    ("inverse of a bin cut at its knots", "bijectors.py",
     "return xi + lax.stop_gradient(jnp.clip(xi, 0, 1) - xi)", "return jnp.clip(xi, 0, 1)", "",
     "test_edges.py in_a_scan and RQSpline"),
    # --- conditioners
    ("change and gate exchanged", "conditioners.py", "change, gate = jnp.split(",
     "gate, change = jnp.split(", "", "test_documented.py formulas"),
    ("block without its first activation", "conditioners.py",
     "outer(self.activation(inner(self.activation(h))))", "outer(self.activation(inner(h)))", "",
     "test_documented.py formulas"),
    ("narrow layer without an activation", "conditioners.py",
     "depth, activation, activation, key=trunk_key", "depth, activation, key=trunk_key", "",
     "test_documented.py formulas"),
    ("wider head", "conditioners.py", "head_width: int = 8", "head_width: int = 16", "",
     "test_documented.py defaults"),
    ("attention forgets its tokens", "conditioners.py", "tokens = tokens + look(", "tokens = look(", "",
     "test_documented.py formulas"),
    ("attention not normalized at the end", "conditioners.py", "self.last(self.norm(tokens.mean(axis=0)))",
     "self.last(tokens.mean(axis=0))", "", "test_documented.py formulas"),
    ("attention normalizes too late", "conditioners.py", "look(normal, normal, normal)",
     "look(tokens, tokens, tokens)", "", "test_documented.py formulas"),
    ("two heads", "conditioners.py", "heads: int = 4,", "heads: int = 2,", "",
     "test_documented.py defaults"),
    ("activation of attention", "conditioners.py", "activation: Activation = jax.nn.gelu",
     "activation: Activation = jax.nn.relu", "", "test_documented.py defaults"),
    ("hidden degrees not shared out evenly", "conditioners.py", "low + j * (high - low + 1) // self.width",
     "min(low + j, high)", "", "test_documented.py hidden_units"),
    ("activation of the masked network's input", "conditioners.py", "(self.activation(x) if i else x)",
     "self.activation(x)", "", "test_documented.py formulas"),
    # --- linear
    ("random rotation that is none", "linear.py", "self.params = jax.random.normal(key, (n, *self.shape))",
     "self.params = jnp.ones((n, *self.shape))", "", "test_documented.py reflections_of"),
    # --- information
    ("smaller window", "information.py", "_WINDOW = 8", "_WINDOW = 4", "", "test_documented.py entropies"),
    ("another neighbour", "information.py", "def entropy(x: ArrayLike, *, k: int = 4)",
     "def entropy(x: ArrayLike, *, k: int = 3)", "", "test_documented.py entropies"),
    ("another neighbour of the negentropy", "information.py", "def negentropy(x: ArrayLike, *, k: int = 4)",
     "def negentropy(x: ArrayLike, *, k: int = 3)", "", "test_documented.py entropies"),
    ("another neighbour of the total correlation", "information.py",
     "joint_entropy: float | None = None, k: int = 4", "joint_entropy: float | None = None, k: int = 3", "",
     "test_documented.py entropies"),
    ("many fours pass", "information.py", "_TIED_FOUR, _REPEATED, _TIED_ROWS = 0.01, 3.8, 0.01",
     "_TIED_FOUR, _REPEATED, _TIED_ROWS = 0.1, 3.8, 0.01", "", "test_data.py groups_of_four"),
    ("ten times the repeated values pass", "information.py",
     "_TIED_FOUR, _REPEATED, _TIED_ROWS = 0.01, 3.8, 0.01",
     "_TIED_FOUR, _REPEATED, _TIED_ROWS = 0.01, 38, 0.01", "", "test_data.py ties_are_refused"),
    ("ten times the equal rows pass", "information.py", "_TIED_FOUR, _REPEATED, _TIED_ROWS = 0.01, 3.8, 0.01",
     "_TIED_FOUR, _REPEATED, _TIED_ROWS = 0.01, 3.8, 0.1", "", "test_data.py ties_are_refused"),
    ("equal rows pass for a small k", "information.py", "_TIED_ROWS * min(1, (k - 1) / 3)", "_TIED_ROWS", "",
     "test_data.py fewer_equal_rows"),
    ("repetition taken for rounding", "information.py", "return bool(small < 0.5", "return bool(small < 50",
     "", "test_data.py ties_are_refused"),
    ("rounding taken for repetition", "information.py", "return bool(small < 0.5", "return bool(small < 0",
     "", "test_data.py single_precision or ties_that_pass"),
    # --- coupling
    ("condition before the passive coordinates", "coupling.py", "jnp.concatenate([passive, condition])",
     "jnp.concatenate([condition, passive])", "", "test_documented.py conditioner_takes"),
    ("narrower default network of a coupling", "coupling.py", "        nn_width: int = 64,\n",
     "        nn_width: int = 32,\n", "", "test_documented.py default_networks"),
    ("shallower default network of a coupling", "coupling.py", "        nn_depth: int = 2,\n",
     "        nn_depth: int = 1,\n", "", "test_documented.py default_networks"),
    ("log-scale bound doubled", "coupling.py", "exp_affine(log_scale_bound)",
     "exp_affine(2 * log_scale_bound)", "", "test_documented.py affine_scales"),
    ("mixture coupling forgets its bound", "coupling.py",
     "MixtureGaussianCDF(n_components, log_scale_bound=log_scale_bound)",
     "MixtureGaussianCDF(n_components)", "", "test_documented.py mixture_couplings"),
    ("deep sigmoid coupling forgets its bound", "coupling.py",
     "DeepSigmoid(n_components, log_scale_bound=log_scale_bound)", "DeepSigmoid(n_components)", "",
     "test_documented.py mixture_couplings"),
    ("spline coupling of another interval", "coupling.py",
     "n_bins: int = 8, interval: float = 4.0, **options",
     "n_bins: int = 8, interval: float = 5.0, **options", "", "test_documented.py splines_are"),
    # --- autoregressive
    ("condition before the event", "autoregressive.py", "else jnp.concatenate([v, condition])",
     "else jnp.concatenate([condition, v])", "", "test_documented.py any_network"),
    ("what may not be seen is one", "autoregressive.py", "jnp.where(keep, flat, 0)",
     "jnp.where(keep, flat, 1)", "", "test_documented.py any_network"),
    ("slow inverse by default", "autoregressive.py", '"incremental" if masked else "sequential"',
     '"sequential"', "", "test_documented.py incremental"),
    ("sweeps end early", "autoregressive.py", "tolerance = 8 * float(jnp.finfo(y.dtype).eps)",
     "tolerance = 80 * float(jnp.finfo(y.dtype).eps)", "", "test_documented.py jacobi"),
    ("sweeps' change not relative", "autoregressive.py", "jnp.max(jnp.abs(new - x) / (1 + jnp.abs(new)))",
     "jnp.max(jnp.abs(new - x))", "", "test_documented.py jacobi"),
    ("narrower default network of an autoregressive layer", "autoregressive.py",
     "        nn_width: int = 64,\n", "        nn_width: int = 32,\n", "",
     "test_documented.py default_networks"),
    # --- residual
    ("terms of the truncated series", "residual.py", '"hutchinson": 10', '"hutchinson": 4', "",
     "test_documented.py default_terms"),
    ("terms of the roulette", "residual.py", '"roulette": 4', '"roulette": 2', "",
     "test_documented.py default_terms"),
    ("another activation at the start", "residual.py", "beta - 0.4327521", "beta", "",
     "test_documented.py formulas and lipschitz"),
    ("activation not divided by 1.1", "residual.py", "* x) / 1.1", "* x) / 1.2", "",
     "test_documented.py formulas and lipschitz"),
    ("terms forgotten with a key", "residual.py", "wanted = node.log_det.terms", "wanted = None", "",
     "test_documented.py another_log"),
    ("one noise for all points", "residual.py", "(jr.split(key, len(x)), x, condition)",
     "(jnp.stack([key] * len(x)), x, condition)", "", "test_documented.py noise_of_its_own"),
    ("exact up to a smaller size", "residual.py", "EXACT_LIMIT = 32", "EXACT_LIMIT = 16", "",
     "test_documented.py default_terms"),
    ("Banach by default", "residual.py", 'inverse = "newton" if size <= EXACT_LIMIT else "banach"',
     'inverse = "banach"', "", "test_documented.py default_terms"),
    ("narrow blocks", "residual.py",
     "        nn_width: int = 64,\n        nn_depth: int = 2,\n        cond_dim: int | None "
     "= None,\n        zero_last: bool = False,\n        log_det",
     "        nn_width: int = 32,\n        nn_depth: int = 2,\n        cond_dim: int | None "
     "= None,\n        zero_last: bool = False,\n        log_det",
     "", "test_documented.py default_networks"),
    ("bound of the inverse's error not divided", "residual.py", "size(r) / (1 - contraction)", "size(r)",
     "", "test_documented.py inverse_reports"),
    ("terms of the roulette counted twice", "residual.py",
     "last = last + jnp.floor(jnp.log(uniform) / math.log(keep))",
     "last = last + jnp.floor(2 * jnp.log(uniform) / math.log(keep))", "", "test_documented.py series"),
    # --- flows
    ("fewer couplings by default", "flows.py", "    layers: int = 8,\n", "    layers: int = 6,\n", "",
     "test_documented.py coupling_flows"),
    ("fewer autoregressive layers by default", "flows.py", "    layers: int = 5,\n",
     "    layers: int = 4,\n", "", "test_documented.py autoregressive_flows"),
    ("fewer residual blocks by default", "flows.py", "    layers: int = 16,\n", "    layers: int = 8,\n",
     "", "test_documented.py residual_flows"),
    ("residual flow without ActNorm by default", "flows.py", "    actnorm: bool = True,\n",
     "    actnorm: bool = False,\n", "", "test_documented.py residual_flows"),
    ("relu in place of silu", "flows.py", "mlp(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)",
     "mlp(nn_width, nn_depth, zero_last=True)", "", "test_documented.py coupling_flows"),
    ("relu in place of silu, autoregressive", "flows.py",
     "made(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)",
     "made(nn_width, nn_depth, zero_last=True)", "", "test_documented.py autoregressive_flows"),
    ("rotations start at rest", "flows.py", "shape, key=mix_key)", "shape)", "",
     "test_documented.py householder"),
    ("one reflection too many", "flows.py", "2 * ((min(*shape, 8) + 1) // 2)",
     "2 * ((min(*shape, 8) + 1) // 2) + 1", "", "test_documented.py householder"),
    ("lu without a flip", "flows.py", 'parts += [flip] if mixing == "flip" else [flip, LULinear(shape)]',
     'parts += [flip] if mixing == "flip" else [LULinear(shape)]', "", "test_documented.py coupling_flows"),
    ("coupling before its mixing", "flows.py",
     "Chain([*parts, Coupling(key, shape=shape, conditioner=conditioner, **options)])",
     "Chain([Coupling(key, shape=shape, conditioner=conditioner, **options), *parts])", "",
     "test_documented.py coupling_flows"),
    ("another mixing by default", "flows.py", 'mixing: str = "lu"', 'mixing: str = "flip"', "",
     "test_documented.py coupling_flows"),
    ("reversal after the autoregressive layer", "flows.py",
     "Chain([flip, MaskedAutoregressive(key, shape=shape, conditioner=conditioner, **options)])",
     "Chain([MaskedAutoregressive(key, shape=shape, conditioner=conditioner, **options), flip])", "",
     "test_documented.py autoregressive_flows"),
    ("block before its ActNorm", "flows.py", "Chain([ActNorm1D(shape), block])",
     "Chain([block, ActNorm1D(shape)])", "", "test_documented.py residual_flows"),
    ("limits ten times as wide", "flows.py", "max_log_scale=24 / layers", "max_log_scale=240 / layers", "",
     "test_flows.py far_point and maf and Affine and not exp and not flowjax"),
    ("a single coordinate ignores its condition", "flows.py",
     "    if cond_dim is None:\n        return Marginal", "    if True:\n        return Marginal", "",
     "test_flows.py one_dimension and maf"),
    ("no scale and shift before a single coordinate", "flows.py",
     "Chain([LULinear(shape), _single(key, conditioner=conditioner, **options)])",
     "Chain([_single(key, conditioner=conditioner, **options)])", "",
     "test_flows.py layers_of_one_coordinate"),
    ("a single coupling without its mixing", "flows.py", "return Chain([*parts, _single(",
     "return Chain([_single(", "", "test_flows.py layers_of_one_coordinate"),
    # --- gaussianization
    ("rotation before the marginals", "gaussianization.py",
     "Chain([marginal, HouseholderRotation(dim, (dim,), key=key)])",
     "Chain([HouseholderRotation(dim, (dim,), key=key), marginal])", "",
     "test_documented.py gaussianization_flows"),
    ("two reflections in place of D", "gaussianization.py", "HouseholderRotation(dim, (dim,), key=key)",
     "HouseholderRotation(2, (dim,), key=key)", "", "test_documented.py gaussianization_flows"),
    ("rbig judges on the rows that it fits", "gaussianization.py",
     "(data[order[:n_val]], data[order[n_val:]])", "(data[order[n_val:]], data[order[n_val:]])", "",
     "test_documented.py rbig_judges"),
    ("rbig fits all rows", "gaussianization.py", "(data[order[:n_val]], data[order[n_val:]])",
     "(data[order[:n_val]], data)", "", "test_documented.py rbig_judges"),
    ("rbig holds out a fifth", "gaussianization.py", "val_fraction: float = 0.1",
     "val_fraction: float = 0.2", "", "test_documented.py rbig_judges"),
    ("rbig keeps a layer too many", "gaussianization.py", "found[:best]", "found[: best + 1]", "",
     "test_documented.py rbig_keeps"),
    ("rbig asks one layer alone", "gaussianization.py", "sum(g for g, _ in gains[-patience:])",
     "sum(g for g, _ in gains[-1:])", "", "test_documented.py rbig_stops"),
    ("rbig stops a layer early", "gaussianization.py", "if len(gains) > patience",
     "if len(gains) >= patience", "", "test_documented.py rbig_stops"),
    ("deviation in place of the gain's error", "gaussianization.py", "gain.std() / np.sqrt(len(held))",
     "gain.std()", "", "test_documented.py rbig_judges"),
    ("no background component", "gaussianization.py", "_BACKGROUND = 0.01", "_BACKGROUND = 1e-6", "",
     "test_documented.py fitted_mixture"),
    ("narrower least scale", "gaussianization.py", "min_scale: float = 0.02", "min_scale: float = 0.002",
     "", "test_documented.py fitted_mixture"),
    ("other marginals by default", "marginal.py",
     "as_family(MixtureGaussianCDF() if bijector is None",
     "as_family(MixtureGaussianCDF(4) if bijector is None", "",
     "test_documented.py gaussianization_flows"),
    ("fewer components of rbig", "gaussianization.py", "    n_components: int = 8,\n    rotation",
     "    n_components: int = 4,\n    rotation", "", "test_documented.py keeps_its_defaults"),
    ("rbig keeps one layer at least", "gaussianization.py", "best = int(np.argmax(np.cumsum([0.0, *gain])))",
     "best = int(np.argmax(np.cumsum(gain))) + 1", "", "test_data.py rbig_keeps_no_layer"),
    # --- checks
    ("bounds ten times too wide", "checks.py", "base = 100 * float", "base = 1000 * float", "",
     "test_documented.py bounds_are"),
    ("log-det's bound without the condition number", "checks.py", "base * (1 + log_det[points] + volume)",
     "base * (1 + log_det[points])", "", "test_documented.py bounds_are"),
    ("an ill-conditioned map passes", "checks.py", "(allowed <= 1e-2 * (1 + sizes))",
     "(allowed <= 1 * (1 + sizes))", "", "test_documented.py hundredth"),
    ("bound rounded down", "checks.py", "math.ceil(math.log10(bound) - 1e-9)",
     "math.floor(math.log10(bound))", "", "test_documented.py report_prints"),
    ("unit not printed", "checks.py", "{' ' + unit if unit else ''}", "", "",
     "test_documented.py measured_line"),
    ("long permutations printed", "checks.py", "len(order) <= 12", "len(order) <= 1200", "",
     "test_documented.py report_prints"),
    ("pattern of the first point alone", "checks.py", '(found["jacobian"] != 0).any(axis=0)',
     '(found["jacobian"] != 0)[0]', "", "test_documented.py structure_is"),
    ("copies compared at the first point alone", "checks.py", '(found["z"] == found["x"]).all(axis=0)',
     '(found["z"] == found["x"])[0]', "", "test_documented.py structure_is"),
    ("report gives ratios for errors", "checks.py", "return line.value if line.error is None else line.error",
     "return line.value", "", "test_checks.py large_numbers"),
    ("ratios from a factor of a hundred", "checks.py", "10 * bounds.min()", "100 * bounds.min()", "",
     "test_checks.py factor_of_ten"),
    ("ratios where one point is far out", "checks.py", "if good.all() and all(", "if good.all() and any(", "",
     "test_checks.py far_out"),
    ("largest error over largest bound", "checks.py", "float((errors / allowed).max())",
     "float(errors.max() / allowed.max())", "", "test_checks.py large_numbers"),
    # --- targets
    ("fewer samples of the divergence", "targets.py", "n: int = 10_000", "n: int = 1_000", "",
     "test_documented.py divergence"),
    ("targets equal to themselves alone", "targets.py",
     "isinstance(other, _Made) and self.recipe == other.recipe", "self is other", "",
     "test_targets.py share_their_programs and gaussian_mixture"),
    ("recipe of a mixture without its numbers", "targets.py",
     "*(tuple(np.ravel(array).tolist()) for array in (means, scales, weights)), dim", "dim", "",
     "test_targets.py different_targets"),
    ("recipe of a board without its squares", "targets.py", '("checkerboard", squares, half_width)',
     '("checkerboard", half_width)', "", "test_targets.py different_targets"),
    ("one recipe for all that is standardized", "targets.py",
     'recipe = ("standardized", self.log_density.recipe)', 'recipe = "standardized"', "",
     "test_targets.py different_targets"),
    # --- train
    ("schedule ends at a twentieth", "train.py", "end = 0.5 if", "end = 0.05 if", "",
     "test_train.py one_cycle"),
    ("not annealed without averaging", "train.py", "end = 0.5 if settings.average else 1e-6", "end = 0.5", "",
     "test_train.py one_cycle"),
    ("another cycle", "train.py", "cosine_onecycle_schedule(settings.steps, 1.0,",
     "cosine_onecycle_schedule(settings.steps, 1.0, 0.5,", "", "test_train.py one_cycle"),
    ("patience off by one", "train.py", "int(state.best_step) >= patience", "int(state.best_step) > patience",
     "", "test_train.py counted_in_steps"),
    ("gradient never clipped", "train.py",
     "optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)",
     "optax.identity()", "", "test_train.py clipped_by_its_global"),
    ("each number clipped by itself", "train.py", "optax.clip_by_global_norm(settings", "optax.clip(settings",
     "", "test_train.py clipped_by_its_global"),
    ("judged by the last parameters", "train.py", "value = loss(eqx.combine(average, static), *held_out",
     "value = loss(eqx.combine(params, static), *held_out", "", "test_train.py judged_over_the_last"),
    ("average over a sixth", "train.py", "average: float = 1 / 12,", "average: float = 1 / 6,", "",
     "test_train.py judged_over_the_last"),
    ("batches without replacement", "train.py",
     "rows = state.rows[jr.randint(batch_key, (settings.batch_size,), 0, n_train)]",
     "rows = state.rows[jr.permutation(batch_key, n_train)[: settings.batch_size]]", "",
     "test_train.py with_replacement"),
    ("no row held out", "train.py", "max(1, round(val_fraction * n))", "max(0, round(val_fraction * n))", "",
     "test_train.py with_replacement"),
    ("steps not taken counted", "train.py", "taken = jnp.where(failed < 0, done, failed)", "taken = done", "",
     "test_train.py inside_a_chunk"),
    ("last good step not counted", "train.py", "jnp.where(failed < 0, done, failed)",
     "jnp.where(failed < 0, done, failed - 1)", "", "test_train.py inside_a_chunk"),
    ("validation named after the chunk", "train.py",
     "np.where(failed >= 0, np.minimum(val_steps, failed), val_steps)", "val_steps + 0 * failed", "",
     "test_train.py inside_a_chunk"),
    ("losses after a failure kept", "train.py",
     "np.where((failed >= 0) & (np.arange(history.shape[-1]) > failed), np.nan, history)", "history", "",
     "test_train.py were_not_taken_are_not"),
    ("infinite validation loss is best", "train.py", "jnp.isfinite(judged) & (judged < state.best_loss)",
     "judged < state.best_loss", "", "test_train.py never_finite_on_the_held"),
    ("infinite first loss", "train.py", "jnp.full((), jnp.finfo(loss_type).max, loss_type)",
     "jnp.full((), jnp.inf, loss_type)", "", "test_train.py under_debugging"),
    ("value not passed", "train.py", 'more = {"value": value, "grad"', 'more = {"value": 0 * value, "grad"',
     "", "test_train.py receive_value"),
    ("extra arguments not selected", "train.py",
     "if all(p.kind is not p.VAR_KEYWORD for p in taken.values()):", "if False:", "",
     "test_train.py receive_value"),
    ("optax under strict types", "train.py", 'functools.partial(jax.numpy_dtype_promotion, "standard")',
     "contextlib.nullcontext", "", "test_train.py under_debugging"),
    ("optimizer not checked", "train.py", "    _expect_optimizer(optimizer)\n", "", "",
     "test_train.py optimizer_that_is_none"),
    ("rate compiled in", "train.py",
     "rates = jnp.asarray(np.broadcast_to(rate, (many,) if many else ()), float)", "rates = float(rate)", "",
     "test_train.py costs_no_compilation"),
    ("waits for rows outside the support", "train.py",
     "not many and loss is None and not np.isfinite(chunks[0][1])", "False", "",
     "test_train.py outside_the_support"),
    ("flow left on the compiler's mesh", "train.py",
     "if isinstance(theirs, Mesh) and AxisType.Explicit in theirs.axis_types:", "if False:", "",
     "test_train.py meshes_of_explicit"),
    # --- result
    ("noise blamed", "result.py", "np.zeros(len(x)) if noise else log_densities", "log_densities", "",
     "test_train.py advice_of_a_failure"),
    ("index not checked below", "result.py", "if not -m <= i < m:", "if i >= m:", "",
     "test_train.py indexed_by_key"),
    # --- checkpoint
    ("constants not compared", "checkpoint.py", "[below(value.jaxpr), *map(below, value.consts)]",
     "[below(value.jaxpr)]", "", "test_train.py another_optimizer_or_loss or digest_sees"),
    ("literals not compared", "checkpoint.py", "below(v.val) if isinstance(v, Literal)",
     '"literal" if isinstance(v, Literal)', "", "test_train.py another_optimizer_or_loss"),
    ("addresses compared", "checkpoint.py", 're.sub(r"0x[0-9a-fA-F]+", "", repr(value))', "repr(value)", "",
     "test_train.py digest_sees"),
    ("program not compared", "checkpoint.py", 'if theirs["program"] == mark["program"]:', "if True:", "",
     "test_train.py another_optimizer_or_loss"),
    # --- io
    ("settings not compared", "io.py", '    _refuse(of_kind("value"))', "    _refuse([])", "",
     "test_io.py every_single_setting and RQSpline"),
    ("double precision rounded on loading", "io.py", "with jax.enable_x64(True):",
     "with jax.enable_x64(False):", "", "test_io.py arrays_of_every_type and float64"),
    ("version 1 without a warning", "io.py", "if structure is None:", "if False:", "",
     "test_io.py files_of_version_1"),
    ("captured values not compared", "io.py",
     "return self._fields(name, parts | (value.__kwdefaults__ or {}), path)",
     "return self._fields(name, {}, path)", "", "test_io.py nameless_function"),
    ("our missing settings pass", "io.py", "if owner == _OURS and theirs is not None:", "if False:", "",
     "test_io.py one_version_lacks"),
    ("file named before it is complete", "io.py",
     "            os.fsync(file.fileno())\n        temporary.replace(path)",
     "            temporary.replace(path)\n            os.fsync(file.fileno())", "",
     "test_io.py complete_before"),
    ("bits of bfloat16 without a name", "io.py", "if array.dtype.isbuiltin == 2:", "if False:", "",
     "test_io.py bfloat16"),
    ("lambdas without a warning", "io.py", 'self.unclear.append(f"{path} ({name})")', "pass", "",
     "test_io.py no_name_is_warned"),
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


def read(table: Path = TABLE) -> dict[str, dict[str, str]]:
    """The table's rows by the fault's name."""
    if not table.exists():
        return {}
    with table.open() as file:
        file.readline()
        return {row["name"]: row for row in csv.DictReader(file)}


def write(table: Path, faults: tuple[Mutant, ...], rows: dict[str, dict[str, str]]) -> None:
    """One table, in the order of its list."""
    made = ", ".join(f"{name} {version(name)}" for name in ("gauss_flows", "jax", "flowjax", "nbval"))
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    with table.open("w", newline="") as file:
        file.write(f"# {made}, {machine}, {datetime.date.today()}\n")
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[m.name] for m in faults if m.name in rows)


def main() -> None:
    """Run all faults or those named, and say what was not caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; default: all")
    parser.add_argument("--resume", action="store_true", help="leave out what the table says is caught")
    parser.add_argument("--only", choices=("tests", "notebook"), help="fill this column alone")
    options = parser.parse_args()
    every = (*MUTANTS, *DOCUMENTED)
    unknown = set(options.names) - {m.name for m in every}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    rows = read() | read(DOCUMENTED_TABLE)
    caught = lambda m: rows.get(m.name, {}).get("tests") and (rows[m.name]["notebook"] or not m.chapters)
    done = {m.name for m in every if options.resume and caught(m)}
    chosen = [m for m in every if m.name in (options.names or [m.name]) and m.name not in done]
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
        documented = mutant in DOCUMENTED
        write(DOCUMENTED_TABLE if documented else TABLE, DOCUMENTED if documented else MUTANTS, rows)
    for kind in ("tests", "notebook"):
        asked = [m for m in every if kind == "tests" or m.chapters]
        missed = [m.name for m in asked if not rows.get(m.name, {}).get(kind)]
        print(f"caught by {kind}: {len(asked) - len(missed)} of {len(asked)}; not:", ", ".join(missed))


if __name__ == "__main__":
    main()
