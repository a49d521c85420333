"""Plant faults in the package, one at a time, and say which tests and which chapters notice.

    python tests/mutants.py [NAME ...] [--resume] [--only tests]        (make mutants: all)

Each fault is one that a careful person makes. It is planted in a copy of the repository's files, where the
tests named for it run, and then its chapters, by strict nbval, up to the first that fails. The same selection
must first pass in the copy as it is. The results are the tables `mutants.csv` and, for the faults that no
chapter needs to notice, `documented.csv`; rows are replaced as they come.
"""

import argparse
import ast
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
FIELDS = ("name", "where", "tests", "notebook", "seconds")
PARTS = (
    *("gauss_flows", "book", "tests", "benchmarks"),
    *("_style.py", "conftest.py", "pyproject.toml", "requirements.lock"),
)


class Mutant(NamedTuple):
    """A fault: inside one definition of the package, ``old`` becomes ``new``.

    A definition is found by its name wherever it lies, and ``old`` by its words and signs, so that neither
    moving nor reformatting nor rewording a line makes a fault miss its place.
    """

    name: str
    where: str  # the definition: a function, Class.method, or a constant
    old: str
    new: str
    chapters: str  # by name, the cheapest that teaches it first; empty where no chapter needs to notice it
    tests: str  # a file in tests/, and what to select in it (pytest's -k)


MUTANTS = tuple(Mutant(*row) for row in (
    ("tail clipped", "normal_tails", "near = log_mills - half_square",
     "near = jnp.maximum(log_mills - half_square, -100.0)", "bijector_menu",
     "test_normal.py tails_against_scipy"),
    ("sign in the tails' derivative", "_normal_tails_jvp", "NormalTails(below * du, -above * du,",
     "NormalTails(below * du, above * du,", "coupling_pattern", "test_normal.py derivatives"),
    ("solver stops a step early", "solve_monotone.step", "small = jnp.maximum(1e-2 * eps**0.5 * scale",
     "small = jnp.maximum(eps**0.25 * scale", "bijector_menu",
     "test_mixtures.py hard_mixtures and float64"),
    ("implicit derivative not divided by the slope", "implicit_root",
     "lambda linear, y: y / linear(jnp.ones_like(y))", "lambda linear, y: y", "bijector_menu",
     "test_rootfinding.py implicit_root"),
    ("trained base", "standard_normal",
     "return non_trainable(fd.Normal(jnp.zeros(shape)))", "return fd.Normal(jnp.zeros(shape))",
     "depth_stability", "test_train.py learns_a_gaussian"),
    ("layers' log-dets not added", "Scan._run.one", "return (event, log_det + change), None",
     "return (event, change), None", "depth_stability", "test_contract.py contract and Scan-float64"),
    ("least value refused", "expect_whole", "int(value) >= at_least)", "int(value) > at_least)",
     "coupling_pattern", "test_mixtures.py em_finds"),
    ("sign of the mixture's inverse log-det", "MixtureGaussianCDF.inverse_and_log_det",
     "return x, -self._log_slope(tails, y)", "return x, self._log_slope(tails, y)", "coupling_pattern",
     "test_contract.py contract and MixtureGaussianCDF-float64"),
    ("scale missing in the mixture's slope", "MixtureGaussianCDF._log_slope",
     "logsumexp(log_share + hazards - self.log_scales) - own", "logsumexp(log_share + hazards) - own",
     "coupling_pattern", "test_mixtures.py two_far_modes and float64"),
    ("means not mirrored", "_Mixture._solve", "z, means = mirror * z, mirror * self.means",
     "z, means = mirror * z, self.means", "coupling_pattern", "test_mixtures.py hard_mixtures and float64"),
    ("upper tail's term dropped", "DeepSigmoid._value_and_log_slope",
     "jnp.logaddexp(lower - below + jax.nn.log_sigmoid(-t), upper - above + jax.nn.log_sigmoid(t))",
     "lower - below + jax.nn.log_sigmoid(-t)", "bijector_menu",
     "test_contract.py contract and DeepSigmoid-float64"),
    ("bin off by one", "RQSpline._bin", "edge(jnp.arange(k), left / total)) - 1",
     "edge(jnp.arange(k), left / total))", "bijector_menu",
     "test_spline.py spline_is_smooth and float64"),
    ("derivative of the neighbouring bin", "_entry_jvp",
     "here = jnp.arange(len(array)) == jnp.clip(i, 0, len(array) - 1)",
     "here = jnp.arange(len(array)) == i + 1", "depth_stability",
     "test_contract.py gradients_of_the_inverse and RQSplineCoupling"),
    ("square missing in the spline's slope", "RQSpline._log_slope", "return 2 * jnp.log(s / below)",
     "return jnp.log(s / below)", "bijector_menu",
     "test_contract.py contract and RQSplineCoupling-float64"),
    ("soft clip of the wrong slope", "soft_clip", "return bound * jnp.tanh(raw / bound)",
     "return bound * jnp.tanh(raw)", "bijector_menu", "test_mixtures.py gaussianizes_its_own"),
    ("half off by one", "half", "return (np.arange(size) < size // 2).reshape(shape)",
     "return (np.arange(size) <= size // 2).reshape(shape)", "masks", "test_masks.py masks_half"),
    ("board's colours exchanged", "checkerboard", "np.arange(width)) % 2 == 0", "np.arange(width)) % 2 == 1",
     "masks", "test_masks.py masks_say_who"),
    ("every other channel", "channel", "np.arange(channels) < channels // 2", "np.arange(channels) % 2 == 0",
     "masks", "test_masks.py masks_say_who"),
    ("key of the random mask unused", "random", "jax.random.permutation(key, size)",
     "jax.random.permutation(jax.random.key(0), size)", "masks", "test_masks.py masks_say_who"),
    ("reachability in the wrong order", "reachability", "(layer.astype(int) @ reach.astype(int)) > 0",
     "(reach.astype(int) @ layer.astype(int)) > 0", "masks",
     "test_masks.py reachability_is_the_pattern and channel"),
    ("hidden mask off by one", "MaskedMLP.masks", "np.greater_equal.outer(b, a) for a, b",
     "np.greater.outer(b, a) for a, b", "maf_iaf", "test_autoregressive.py an_order_is_normalised"),
    ("largest degree never given", "Made.__call__", "j * (high - low + 1) // self.width",
     "j * (high - low) // self.width", "maf_iaf",
     "test_contract.py contract and MaskedAutoregressive-float64"),
    ("kernel not silenced", "set_constant", "(jnp.zeros_like(layer.weight), output", "(layer.weight, output",
     "equivalence", "test_initialize.py dead_conditioner and float32"),
    ("tokens without their places", "_Attention.__call__", "self.scale[None, :] + self.places",
     "self.scale[None, :]", "conditioners", "test_conditioners.py conditioners_are_what"),
    ("factors exchanged", "LULinear.transform_and_log_det", "return lower @ (upper @ x) + self.bias",
     "return upper @ (lower @ x) + self.bias", "depth_stability",
     "test_contract.py contract and LULinear-float64"),
    ("projection in place of a reflection", "_reflect", "jnp.outer(transposed @ v, 2 * v / (v @ v))",
     "jnp.outer(transposed @ v, v / (v @ v))", "change_of_variables",
     "test_linear.py householder_is_orthogonal"),
    ("transposed rotation", "_reflect", "return x @ transposed", "return transposed @ x",
     "change_of_variables", "test_linear.py householder_takes_any"),
    ("mean not scaled", "standardize", "exact, mean / std)", "exact, mean)", "depth_stability",
     "test_initialize.py data_init and False"),
    ("every layer set from the raw data", "_chain", "parts[i], rows = go(parts[i], rows, forward)",
     "parts[i], _ = go(parts[i], rows, forward)", "depth_stability",
     "test_initialize.py data_init and False"),
    ("sample not sorted", "_log_density", "x[order][high] - x[order][low]", "x[high] - x[low]",
     "diagonal_vs_coupling", "test_information.py entropies_are_right"),
    ("deviation in place of its error", "_mean", "float(terms.std() / math.sqrt(len(terms)))",
     "float(terms.std())", "diagonal_vs_coupling", "test_information.py entropies_are_right"),
    ("sign of the coupling's log-det", "Coupling.transform_and_log_det",
     "log_slopes.sum()", "-log_slopes.sum()", "coupling_pattern",
     "test_coupling.py reproduces_the_source"),
    ("a copy that is none", "Coupling.transform_and_log_det", "self._merge(passive, active)",
     "self._merge(passive + 1e-9, active)", "coupling_pattern", "test_coupling.py reproduces_the_source"),
    ("order not inverted", "Coupling._merge", "np.argsort(np.array(self._passive + self._active))",
     "np.array(self._passive + self._active)", "coupling_pattern",
     "test_masks.py reachability_is_the_pattern and random"),
    ("parameters laid out the other way", "Coupling.theta",
     "self.conditioner(inputs).reshape(len(self._active), -1)",
     "self.conditioner(inputs).reshape(-1, len(self._active)).T", "coupling_pattern",
     "test_coupling.py reproduces_the_source"),
    ("inverse one step short", "incremental_inverse", "np.array_split(np.arange(n_steps), _LOOPS",
     "np.array_split(np.arange(n_steps - 1), _LOOPS", "maf_iaf",
     "test_incremental.py three_inverses_agree and order1"),
    ("sweeps end with the first still coordinate", "MaskedAutoregressive._jacobi.solve.step",
     "jnp.max(jnp.abs(new - x) /", "jnp.min(jnp.abs(new - x) /", "maf_iaf",
     "test_incremental.py three_inverses_agree and order0"),
    ("degrees not sorted", "_plan", 'by_rank = np.argsort(ranks, kind="stable")', "by_rank = np.arange(size)",
     "maf_iaf", "test_incremental.py three_inverses_agree and order1"),
    ("output reads itself", "MaskedAutoregressive.__init__", "np.repeat(np.array(self._ranks) - 1,",
     "np.repeat(np.array(self._ranks),", "maf_iaf", "test_autoregressive.py an_order_is_normalised"),
    ("series does not alternate", "log_det_estimate.term", "k, weight = k + 1, -weight",
     "k, weight = k + 1, weight", "residual_flows", "test_log_det.py roulette_is_unbiased and 2-0.5"),
    ("1/k of the series forgotten", "log_det_estimate.term", "value - weight / k * jnp.vdot(u, v)",
     "value - weight * jnp.vdot(u, v)", "residual_flows",
     "test_log_det.py roulette_is_unbiased and 2-0.5"),
    ("roulette's terms not reweighted", "log_det_estimate.term",
     "jnp.where(k > terms, weight / keep, weight)", "jnp.where(k > terms, weight, weight)", "residual_flows",
     "test_log_det.py roulette_is_unbiased and 2-0.5"),
    ("one layer forgotten in the bound", "LipschitzMLP.__init__", "self.lipschitz ** (1 / (depth + 1))",
     "self.lipschitz ** (1 / depth)", "residual_flows",
     "test_lipschitz.py stay_within_their_bound and float32"),
    ("unwrap forgotten", "LipschitzMLP.__call__", "net = unwrap(self)", "net = self", "residual_flows",
     "test_lipschitz.py stay_within_their_bound and float32"),
    ("sign of the block's inverse log-det", "Residual.inverse_and_log_det",
     "return x.reshape(self.shape), -self._find_log_det(x, condition)",
     "return x.reshape(self.shape), self._find_log_det(x, condition)", "residual_flows",
     "test_contract.py contract and Residual-float64"),
    ("conditioner of a new flow not zero", "_coupling_layer",
     "conditioner = mlp(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)",
     "conditioner = mlp(nn_width, nn_depth, activation=jax.nn.silu)", "depth_stability",
     "test_flows.py a_new_coupling_flow"),
    ("IAF the wrong way round", "iaf", "Transformed(flow.base_dist, flow.bijection.bijection)",
     "Transformed(flow.base_dist, flow.bijection)", "maf_iaf", "test_flows.py maf_and_iaf_start"),
    ("passive columns fitted", "gaussianize", "active = ~layer.mask.ravel() if",
     "active = layer.mask.ravel() if", "warm_start", "test_initialize.py dead_conditioner and float32"),
    ("principal axes transposed", "gaussianize", "turn = layer.with_axes(axes)",
     "turn = layer.with_axes(axes.T)", "warm_start", "test_moments.py principal_axes"),
    ("mean of the log-slopes", "MarginalGaussianization.transform_and_log_det",
     "return z.reshape(self.shape), log_det.sum()", "return z.reshape(self.shape), log_det.mean()",
     "diagonal_vs_coupling", "test_initialize.py dead_conditioner and float32"),
    ("validation rows leak into the batches", "_steps.step", "(settings.batch_size,), 0, n_train)]",
     "(settings.batch_size,), 0, len(x))]", "depth_stability", "test_train.py validation_rows_are_held_out"),
    ("one key for every batch", "_steps.step", "jr.split(jr.fold_in(key, i))", "jr.split(key)",
     "depth_stability", "test_train.py validation_rows_are_held_out"),
    ("sign lost in the check", "_measure", "jnp.abs(log_det + inverse_log_det)",
     "jnp.abs(log_det - inverse_log_det)", "coupling_pattern", "test_frame.py each_line_of_the_report"),
    ("check blind to the sign", "_measure", "jnp.abs(log_volume - log_det[:m].reshape(m))",
     "jnp.abs(jnp.abs(log_volume) - jnp.abs(log_det[:m].reshape(m)))", "change_of_variables",
     "test_frame.py each_line_of_the_report"),
    ("lower and upper exchanged", "_structure_line", "np.triu(pattern, 1), np.tril(pattern, -1)",
     "np.tril(pattern, -1), np.triu(pattern, 1)", "coupling_pattern",
     "test_frame.py structure_can_be_demanded"),
    ("one factor of the normal's constant", "_mixture", "np.log(scales).sum(axis=1) - dim * LOG_SQRT_2PI",
     "np.log(scales).sum(axis=1) - LOG_SQRT_2PI", "masks", "test_targets.py mass_one and moons"),
    ("sign of the standardised density", "Target.standardized.log_density",
     "return self.log_density(mean + std * z) + log_scale",
     "return self.log_density(mean + std * z) - log_scale", "masks",
     "test_targets.py samples_follow and moons"),
    ("key used again", "_curves.sampler", "key_side, key_t, key_noise = jr.split(key, 3)",
     "key_side, key_t, key_noise = key, key, key", "diagonal_vs_coupling",
     "test_targets.py samples_follow and spiral"),
    ("names compared, not shapes and types", "_compare_arrays", "if mine != their: raise",
     "if mine.split()[0] != their.split()[0]: raise", "your_own_data", "test_io.py load_says_what"),
    ("levels below counted with the level itself", "PixelTable.scores",
     "log_cdf = jnp.logaddexp(log_share(upto - here)", "log_cdf = jnp.logaddexp(log_share(upto)",
     "image_flows", "test_levels.py scores_are_quantiles and float64"),
    ("density of the noise left out", "Dequantize._log_prob", "- norm.logpdf(v)).sum() - log_q",
     "- norm.logpdf(v)).sum()", "", "test_dequantize.py mean_of_many_draws"),
    ("floor not taken from the rest", "DiscreteAutoregressive.log_prob_of",
     "(1 - self.levels * FLOOR) * jnp.maximum(inside, 0)", "jnp.maximum(inside, 0)", "",
     "test_discrete.py all_images_sum_to_one"),
    ("coder's state moved too late", "_Coder.push", "(self.LEAST + self.WORD - self.BITS)",
     "(self.LEAST + self.WORD)", "", "test_codec.py the_coder_spends"),
    ("middles and sides exchanged", "interlaced", "2 * step + is_side", "2 * step + ~is_side", "",
     "test_masks.py interlaced_ranks"),
))  # fmt: skip

# Faults against what the docstrings state: no chapter needs to notice them.
DOCUMENTED = tuple(Mutant(*row) for row in (
    ("density of a table in other units", "Prepared.log_prob", "log_q + np.where(good, log_det, 0)", "log_q",
     "", "test_tables.py integrate_to_one"),
    ("count rounded up", "Column.from_line", "np.floor(y / self.step) if", "np.round(y / self.step) if", "",
     "test_tables.py way_back_is_exact"),
    ("offset subtracted after the cast", "Prepared._coordinates", "self.columns, values, pieces, strict",
     "self.columns, [v.astype(np.float32).astype(float) for v in values], pieces, strict", "",
     "test_tables.py digits_that_it_has"),
    ("no log-width of an interval", "_to_line", "np.log(width * TURN / period) - up - down", "-up - down", "",
     "test_supports.py books_name"),
    ("one part missing in the simplex", "_to_simplex_logits", "-logs.sum() - rest", "-logs.sum()", "",
     "test_supports.py logistic_normal"),
    ("seam with two slopes", "CircularSpline._ends", "j % k", "jnp.minimum(j, k - 1)", "",
     "test_circular.py one_slope_at_the_seam"),
    ("angle without its sine", "_Periodic.__call__", "jnp.cos(angles), jnp.sin(angles)",
     "jnp.cos(angles), jnp.cos(angles)", "", "test_circular.py cosine_and_sine"),
    ("path gradient through the parameters", "_ReverseKL.__call__", "jax.lax.stop_gradient(params)", "params",
     "", "test_density.py path_gradient"),
    ("annealed to the end", "_ReverseKL.__call__", "1 - 2 * progress", "1 - progress", "",
     "test_density.py tempers"),
    ("evidence without the number of draws", "ImportanceSample.log_evidence",
     "self._log_sum - float(np.log(n))", "self._log_sum", "", "test_importance.py formulas"),
    ("metropolis ratio upside down", "_chain.step", "log_w[i] - log_w[state]", "log_w[state] - log_w[i]", "",
     "test_importance.py follow_the_density"),
    ("neighbors counted without themselves", "mutual_information", "digamma(counts[0]) - digamma(counts[1])",
     "digamma(counts[0] - 1) - digamma(counts[1])", "", "test_information.py correlated_normals"),
    ("half precision widened", "mills_ratio", "return mills_ratio(v.astype(jnp.float32)).astype(v.dtype)",
     "return mills_ratio(v.astype(jnp.float32))", "", "test_normal.py half_precision"),
    ("derivatives of the root without theirs", "_root_jvp",
     "x = _root_p.bind(*primals, equation=equation, quotient=quotient)", "x = primals[0]", "",
     "test_rootfinding.py closed_form and plain"),
    ("quantile's derivative cut at the median", "_ndtri_exp_jvp", "_SQRT_2PI * mills_ratio(-z) * tangents[0]",
     "_SQRT_2PI * mills_ratio(jnp.maximum(-z, 0)) * tangents[0]", "", "test_edges.py quantile_at_the_median"),
    ("program made anew for each call", "compiled", "static = (function, structure, tuple(rest))",
     "static = (functools.partial(function), structure, tuple(rest))", "",
     "test_compiling.py plain_calls_compile and coupling_flow"),
    ("constants by identity", "_Constant.__init__", "(array.shape, array.dtype.str, array.tobytes()) if",
     "id(array) if", "", "test_compiling.py numpy_arrays_alone"),
    ("constants by shape and type", "_Constant.__init__",
     "(array.shape, array.dtype.str, array.tobytes()) if", "(array.shape, array.dtype.str) if", "",
     "test_compiling.py numpy_arrays_alone"),
    ("NaN of a row hidden", "Transformed._log_prob", "return jnp.where(broken, jnp.nan, log_prob)",
     "return log_prob", "", "test_transformed.py broken_row"),
    ("NaN of a condition hidden", "Transformed._log_prob", "for array in (condition, *jax.tree",
     "for array in (None, *jax.tree", "", "test_transformed.py broken_row"),
    ("stack of flows not named", "Transformed.expect_single",
     "isinstance(base, fd.Normal) and jnp.ndim(base.loc)", "False and jnp.ndim(base.loc)", "",
     "test_transformed.py stack_of_flows"),
    ("infinite after the cast of a point", "as_floats", "if lost:\n            raise",
     "if False:\n            raise", "", "test_transformed.py infinite_in_single"),
    ("carries do not vary over devices", "Scan._run",
     "start = jax.tree.map(lambda a: varying_like(a, event, condition, arrays), start)", "", "",
     "test_transformed.py shard_map"),
    ("squares of deviations overflow", "mean_and_std",
     "unit = xp.where(largest > 0, largest, 1).astype(x.dtype)", "unit = xp.ones_like(largest)", "",
     "test_actnorm.py columns_of_any_scale"),
    ("rounding taken for spread", "mean_and_std", "constant = largest <= 8 * eps * xp.abs(x).max(axis=0)",
     "constant = largest <= 0", "", "test_actnorm.py rounding_is_not_magnified"),
    ("a constant column's spread magnified", "mean_and_std", "xp.where(constant, xp.maximum(std, 1), std)",
     "std", "", "test_actnorm.py constant_column_keeps"),
    ("spread of a constant column forgotten", "mean_and_std", "xp.where(constant, xp.maximum(std, 1), std)",
     "xp.where(constant, 1, std)", "", "test_actnorm.py rounding_is_not_magnified"),
    ("data checked before the cast alone", "_cast", "if infinite.any():", "if False:", "",
     "test_validate.py what_is_no_finite and sentinel"),
    ("spread lost to rounding passes", "_cast", "if lost.any():", "if False:", "",
     "test_validate.py what_is_no_finite and another"),
    ("masked arrays pass", "_is_masked", "return isinstance(value, np.ma.MaskedArray)", "return False", "",
     "test_validate.py what_is_no_finite and masked"),
    ("softplus where an exponential is promised", "exp_affine", '(jnp.zeros(()),), "exp",',
     '(jnp.zeros(()),), "softplus",', "", "test_coupling.py affine_scales"),
    ("mixture does not start near the identity", "MixtureGaussianCDF.__init__",
     "super().__init__(n_components, log_scale_bound, quantile, 1.0, **components)",
     "super().__init__(n_components, log_scale_bound, quantile, 2.0, **components)", "",
     "test_mixtures.py default_mixtures"),
    ("deep sigmoid does not start near the identity", "DeepSigmoid.__init__",
     "quantile, math.pi**2 / 3, **components", "quantile, 1.0, **components", "",
     "test_mixtures.py default_mixtures"),
    ("scale beyond the bound cut to half of it", "_Mixture.with_components", "-0.999, 0.999", "-0.5, 0.5", "",
     "test_mixtures.py components_can"),
    ("scale beyond the bound not moved inside", "_Mixture.with_components",
     "jnp.clip(jnp.log(scales) / bound, -0.999, 0.999)", "jnp.log(scales) / bound", "",
     "test_mixtures.py components_can"),
    ("thinner bins of a spline", "RQSpline.__init__", "min_width: float = 1e-2", "min_width: float = 1e-3",
     "", "test_spline.py bins_of"),
    ("flatter slopes of a spline", "RQSpline.__init__", "min_slope: float = 0.1", "min_slope: float = 0.01",
     "", "test_spline.py bins_of"),
    ("greatest slope not the inverse of the least", "RQSpline._slope", "soft_clip(raw, 1 / self.min_slope)",
     "soft_clip(raw, 2 / self.min_slope)", "", "test_spline.py bins_of"),
    ("other default bins of the spline", "RQSpline.__init__", "self, n_bins: int = 8, interval: float = 4.0",
     "self, n_bins: int = 6, interval: float = 4.0", "", "test_spline.py splines_are"),
    ("other default interval of the spline", "RQSpline.__init__",
     "self, n_bins: int = 8, interval: float = 4.0", "self, n_bins: int = 8, interval: float = 3.0", "",
     "test_spline.py splines_are"),
    ("log of a scale that underflowed", "PositiveScale.log",
     "return jnp.where(far, raw - 0.5 * jnp.exp(jnp.where(far, raw, 0)), near)", "return jnp.log(self.value)",
     "", "test_bijectors.py log_of_a_scale"),
    ("limits dropped", "Parametrized.theta", "if self._limits is not None:\n            low, high",
     "if False:\n            low, high", "",
     "test_parametrize.py far_point and maf and Affine and not exp and not flowjax"),
    ("no limits for flowjax's bijectors", "_limits_in_order",
     "isinstance(bijector, fb.Affine | fb.Loc | fb.Scale)", "False", "",
     "test_parametrize.py far_point and maf and flowjax"),
    ("limits of a softplus for an exponential", "Affine.limits", 'if self.scale.link == "exp":', "if False:",
     "", "test_parametrize.py far_point and maf and exp_affine"),
    ("components' means without limits", "_Mixture.limits", '"logits": shift, "means": shift,',
     '"logits": shift,', "", "test_parametrize.py far_point and maf and MixtureGaussianCDF"),
    ("all components kept wide", "_Mixture.limits", "low[0] = -high", "low[:] = -high", "",
     "test_parametrize.py first_component"),
    ("no component kept wide", "_Mixture.limits", "low[0] = -high", "", "",
     "test_parametrize.py first_component"),
    ("limits begin at a half", "soft_limit", "inner_low, inner_high = 0.75 * low, 0.75 * high",
     "inner_low, inner_high = 0.5 * low, 0.5 * high", "",
     "test_parametrize.py ordinary_outputs and DeepSigmoid"),
    ("limits exceeded", "soft_limit", "room = 0.25 * jnp.where", "room = 0.5 * jnp.where", "",
     "test_parametrize.py ordinary_outputs and DeepSigmoid"),
    ("inverse of a bin cut at its knots", "_bin_root",
     "return xi + lax.stop_gradient(jnp.clip(xi, 0, 1) - xi)", "return jnp.clip(xi, 0, 1)", "",
     "test_edges.py in_a_scan and RQSpline"),
    ("change and gate exchanged", "_ResNet.__call__", "change, gate = jnp.split(",
     "gate, change = jnp.split(", "", "test_conditioners.py formulas"),
    ("block without its first activation", "_ResNet.__call__",
     "outer(self.activation(inner(self.activation(h))))", "outer(self.activation(inner(h)))", "",
     "test_conditioners.py formulas"),
    ("narrow layer without an activation", "shared_trunk.factory",
     "depth, activation, activation, key=trunk_key", "depth, activation, key=trunk_key", "",
     "test_conditioners.py formulas"),
    ("wider head", "shared_trunk", "head_width: int = 8", "head_width: int = 16", "",
     "test_conditioners.py defaults"),
    ("attention forgets its tokens", "_Attention.__call__", "tokens = tokens + look(", "tokens = look(", "",
     "test_conditioners.py formulas"),
    ("attention not normalized at the end", "_Attention.__call__",
     "self.last(self.norm(tokens.mean(axis=0)))", "self.last(tokens.mean(axis=0))", "",
     "test_conditioners.py formulas"),
    ("attention normalizes too late", "_Attention.__call__", "look(normal, normal, normal)",
     "look(tokens, tokens, tokens)", "", "test_conditioners.py formulas"),
    ("two heads", "attention", "heads: int = 4,", "heads: int = 2,", "", "test_conditioners.py defaults"),
    ("activation of attention", "attention", "activation: Activation = jax.nn.gelu",
     "activation: Activation = jax.nn.relu", "", "test_conditioners.py defaults"),
    ("hidden degrees not shared out evenly", "Made.__call__", "low + j * (high - low + 1) // self.width",
     "min(low + j, high)", "", "test_made.py hidden_units"),
    ("activation of the masked network's input", "MaskedMLP.__call__", "(self.activation(x) if i else x)",
     "self.activation(x)", "", "test_conditioners.py formulas"),
    ("random rotation that is none", "HouseholderRotation.__init__",
     "self.params = jax.random.normal(key, (n, *self.shape))", "self.params = jnp.ones((n, *self.shape))", "",
     "test_linear.py reflections_of"),
    ("smaller window", "_WINDOW", "_WINDOW = 8", "_WINDOW = 4", "", "test_information.py entropies"),
    ("another neighbour", "entropy", "def entropy(x: ArrayLike, *, k: int = 4)",
     "def entropy(x: ArrayLike, *, k: int = 3)", "", "test_information.py entropies"),
    ("another neighbour of the negentropy", "negentropy", "def negentropy(x: ArrayLike, *, k: int = 4)",
     "def negentropy(x: ArrayLike, *, k: int = 3)", "", "test_information.py entropies"),
    ("another neighbour of the total correlation", "total_correlation",
     "joint_entropy: float | None = None, k: int = 4", "joint_entropy: float | None = None, k: int = 3", "",
     "test_information.py entropies"),
    ("many fours pass", "_TIED_FOUR", "0.01", "0.1", "", "test_information.py groups_of_four"),
    ("ten times the repeated values pass", "_REPEATED", "3.8", "38", "",
     "test_information.py ties_are_refused"),
    ("ten times the equal rows pass", "_TIED_ROWS", "0.01", "0.1", "",
     "test_information.py ties_are_refused"),
    ("equal rows pass for a small k", "_sample", "_TIED_ROWS * min(1, (k - 1) / 3)", "_TIED_ROWS", "",
     "test_information.py fewer_equal_rows"),
    ("repetition taken for rounding", "_is_rounded", "return bool(small < 0.5", "return bool(small < 50", "",
     "test_information.py ties_are_refused"),
    ("rounding taken for repetition", "_is_rounded", "return bool(small < 0.5", "return bool(small < 0", "",
     "test_information.py single_precision or ties_that_pass"),
    ("condition before the passive coordinates", "Coupling.theta", "jnp.concatenate([passive, condition])",
     "jnp.concatenate([condition, passive])", "", "test_coupling.py conditioner_takes"),
    ("narrower default network of a coupling", "Coupling.__init__", "nn_width: int = 64,",
     "nn_width: int = 32,", "", "test_coupling.py default_networks"),
    ("shallower default network of a coupling", "Coupling.__init__", "nn_depth: int = 2,",
     "nn_depth: int = 1,", "", "test_coupling.py default_networks"),
    ("log-scale bound doubled", "AffineCoupling.__init__", "exp_affine(log_scale_bound)",
     "exp_affine(2 * log_scale_bound)", "", "test_coupling.py affine_scales"),
    ("mixture coupling forgets its bound", "MixtureGaussianCDFCoupling.__init__",
     "MixtureGaussianCDF(n_components, log_scale_bound=log_scale_bound)", "MixtureGaussianCDF(n_components)",
     "", "test_coupling.py mixture_couplings"),
    ("deep sigmoid coupling forgets its bound", "DeepSigmoidCoupling.__init__",
     "DeepSigmoid(n_components, log_scale_bound=log_scale_bound)", "DeepSigmoid(n_components)", "",
     "test_coupling.py mixture_couplings"),
    ("spline coupling of another interval", "RQSplineCoupling.__init__",
     "n_bins: int = 8, interval: float = 4.0, **options", "n_bins: int = 8, interval: float = 5.0, **options",
     "", "test_spline.py splines_are"),
    ("condition before the event", "MaskedAutoregressive.theta", "else jnp.concatenate([v, condition])",
     "else jnp.concatenate([condition, v])", "", "test_autoregressive.py any_network"),
    ("what may not be seen is one", "MaskedAutoregressive.theta", "jnp.where(keep, flat, 0)",
     "jnp.where(keep, flat, 1)", "", "test_autoregressive.py any_network"),
    ("slow inverse by default", "MaskedAutoregressive.__init__", '"incremental" if masked else "sequential"',
     '"sequential"', "", "test_autoregressive.py incremental"),
    ("sweeps end early", "MaskedAutoregressive._jacobi", "tolerance = 8 * float(jnp.finfo(y.dtype).eps)",
     "tolerance = 80 * float(jnp.finfo(y.dtype).eps)", "", "test_autoregressive.py jacobi"),
    ("sweeps' change not relative", "MaskedAutoregressive._jacobi.solve.step",
     "jnp.max(jnp.abs(new - x) / (1 + jnp.abs(new)))", "jnp.max(jnp.abs(new - x))", "",
     "test_autoregressive.py jacobi"),
    ("narrower default network of an autoregressive layer", "MaskedAutoregressive.__init__",
     "nn_width: int = 64,", "nn_width: int = 32,", "", "test_coupling.py default_networks"),
    ("terms of the truncated series", "_TERMS", '"hutchinson": 10', '"hutchinson": 4', "",
     "test_residual.py default_terms"),
    ("terms of the roulette", "_TERMS", '"roulette": 4', '"roulette": 2', "",
     "test_residual.py default_terms"),
    ("another activation at the start", "LipschitzMLP.__call__", "beta - 0.4327521", "beta", "",
     "test_conditioners.py formulas and lipschitz"),
    ("activation not divided by 1.1", "LipschitzMLP.__call__", "* x) / 1.1", "* x) / 1.2", "",
     "test_conditioners.py formulas and lipschitz"),
    ("terms forgotten with a key", "with_log_det.change", "wanted = node.log_det.terms", "wanted = None", "",
     "test_log_det.py another_log"),
    ("one noise for all points", "estimate_log_prob", "(jr.split(key, len(x)), x, condition)",
     "(jnp.stack([key] * len(x)), x, condition)", "", "test_log_det.py noise_of_its_own"),
    ("exact up to a smaller size", "EXACT_LIMIT", "EXACT_LIMIT = 32", "EXACT_LIMIT = 16", "",
     "test_residual.py default_terms"),
    ("Banach by default", "Residual.__init__", 'inverse = "newton" if size <= EXACT_LIMIT else "banach"',
     'inverse = "banach"', "", "test_residual.py default_terms"),
    ("narrow blocks", "Residual.__init__",
     "nn_width: int = 64, nn_depth: int = 2", "nn_width: int = 32, nn_depth: int = 2",
     "", "test_coupling.py default_networks"),
    ("bound of the inverse's error not divided", "Residual._root.solve", "size(r) / (1 - contraction)",
     "size(r)", "", "test_residual.py inverse_reports"),
    ("terms of the roulette counted twice", "log_det_estimate",
     "last = last + jnp.floor(jnp.log(uniform) / math.log(keep))",
     "last = last + jnp.floor(2 * jnp.log(uniform) / math.log(keep))", "", "test_log_det.py series"),
    ("fewer couplings by default", "coupling_flow", "layers: int = 8,", "layers: int = 6,", "",
     "test_flows.py coupling_flows"),
    ("fewer autoregressive layers by default", "maf", "layers: int = 5,", "layers: int = 4,", "",
     "test_flows.py autoregressive_flows"),
    ("fewer residual blocks by default", "residual_flow", "layers: int = 16,", "layers: int = 8,", "",
     "test_flows.py residual_flows"),
    ("residual flow without ActNorm by default", "residual_flow", "actnorm: bool = True,",
     "actnorm: bool = False,", "", "test_flows.py residual_flows"),
    ("relu in place of silu", "_coupling_layer",
     "mlp(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)",
     "mlp(nn_width, nn_depth, zero_last=True)", "", "test_flows.py coupling_flows"),
    ("relu in place of silu, autoregressive", "_autoregressive_layer",
     "made(nn_width, nn_depth, activation=jax.nn.silu, zero_last=True)",
     "made(nn_width, nn_depth, zero_last=True)", "", "test_flows.py autoregressive_flows"),
    ("rotations start at rest", "_coupling_layer", "shape, key=mix_key)", "shape)", "",
     "test_flows.py householder"),
    ("one reflection too many", "_coupling_layer", "2 * ((min(*shape, 8) + 1) // 2)",
     "2 * ((min(*shape, 8) + 1) // 2) + 1", "", "test_flows.py householder"),
    ("lu without a flip", "_coupling_layer",
     'parts += [flip] if mixing == "flip" else [flip, LULinear(shape)]',
     'parts += [flip] if mixing == "flip" else [LULinear(shape)]', "", "test_flows.py coupling_flows"),
    ("coupling before its mixing", "_coupling_layer",
     "Chain([*parts, Coupling(key, shape=shape, conditioner=conditioner, **options)])",
     "Chain([Coupling(key, shape=shape, conditioner=conditioner, **options), *parts])", "",
     "test_flows.py coupling_flows"),
    ("another mixing by default", "coupling_flow", 'mixing: Mixing = "lu"', 'mixing: Mixing = "flip"', "",
     "test_flows.py coupling_flows"),
    ("reversal after the autoregressive layer", "_autoregressive_layer",
     "Chain([flip, MaskedAutoregressive(key, shape=shape, conditioner=conditioner, **options)])",
     "Chain([MaskedAutoregressive(key, shape=shape, conditioner=conditioner, **options), flip])", "",
     "test_flows.py autoregressive_flows"),
    ("block before its ActNorm", "_residual_layer", "Chain([ActNorm(shape), block])",
     "Chain([block, ActNorm(shape)])", "", "test_flows.py residual_flows"),
    ("limits ten times as wide", "limited", "max_log_scale=24 / layers", "max_log_scale=240 / layers", "",
     "test_parametrize.py far_point and maf and Affine and not exp and not flowjax"),
    ("a single coordinate ignores its condition", "_single", "if cond_dim is None:", "if True:", "",
     "test_flows.py one_dimension and maf"),
    ("no scale and shift before a single coordinate", "_autoregressive_layer",
     "Chain([LULinear(shape), _single(key, conditioner=conditioner, **options)])",
     "Chain([_single(key, conditioner=conditioner, **options)])", "",
     "test_flows.py layers_of_one_coordinate"),
    ("a single coupling without its mixing", "_coupling_layer", "return Chain([*parts, _single(",
     "return Chain([_single(", "", "test_flows.py layers_of_one_coordinate"),
    ("rotation before the marginals", "gaussianization_layer",
     "Chain([marginal, HouseholderRotation(dim, (dim,), key=key)])",
     "Chain([HouseholderRotation(dim, (dim,), key=key), marginal])", "",
     "test_flows.py gaussianization_flows"),
    ("two reflections in place of D", "gaussianization_layer", "HouseholderRotation(dim, (dim,), key=key)",
     "HouseholderRotation(2, (dim,), key=key)", "", "test_flows.py gaussianization_flows"),
    ("rbig judges on the rows that it fits", "rbig", "(data[order[:n_val]], data[order[n_val:]])",
     "(data[order[n_val:]], data[order[n_val:]])", "", "test_rbig.py rbig_judges"),
    ("rbig fits all rows", "rbig", "(data[order[:n_val]], data[order[n_val:]])",
     "(data[order[:n_val]], data)", "", "test_rbig.py rbig_judges"),
    ("rbig holds out a fifth", "rbig", "val_fraction: float = 0.1", "val_fraction: float = 0.2", "",
     "test_rbig.py rbig_judges"),
    ("rbig keeps a layer too many", "rbig", "found[:best]", "found[: best + 1]", "",
     "test_rbig.py rbig_keeps"),
    ("rbig asks one layer alone", "rbig", "sum(g for g, _ in gains[-patience:])",
     "sum(g for g, _ in gains[-1:])", "", "test_rbig.py rbig_stops"),
    ("rbig stops a layer early", "rbig", "if len(gains) > patience", "if len(gains) >= patience", "",
     "test_rbig.py rbig_stops"),
    ("deviation in place of the gain's error", "_fit_layer", "gain.std() / np.sqrt(len(held))", "gain.std()",
     "", "test_rbig.py rbig_judges"),
    ("no background component", "_BACKGROUND", "_BACKGROUND = 0.01", "_BACKGROUND = 1e-6", "",
     "test_mixtures.py fitted_mixture"),
    ("narrower least scale", "fit_mixture", "min_scale: float = 0.02", "min_scale: float = 0.002", "",
     "test_mixtures.py fitted_mixture"),
    ("other marginals by default", "MarginalGaussianization.__init__",
     "parametrize(MixtureGaussianCDF() if bijector is None",
     "parametrize(MixtureGaussianCDF(4) if bijector is None", "", "test_flows.py gaussianization_flows"),
    ("fewer components of rbig", "rbig", "n_components: int = 8,\n    rotation",
     "n_components: int = 4,\n    rotation", "", "test_rbig.py keeps_its_defaults"),
    ("rbig keeps one layer at least", "rbig", "best = int(np.argmax(np.cumsum([0.0, *gain])))",
     "best = int(np.argmax(np.cumsum(gain))) + 1", "", "test_rbig.py rbig_keeps_no_layer"),
    ("bounds ten times too wide", "check_bijection", "base = 100 * float", "base = 1000 * float", "",
     "test_checks.py bounds_are"),
    ("log-det's bound without the condition number", "_allowed.deltas",
     "base * (1 + log_det[points] + volume)", "base * (1 + log_det[points])", "",
     "test_checks.py bounds_are"),
    ("an ill-conditioned map passes", "check_bijection", "(allowed <= 1e-2 * (1 + sizes))",
     "(allowed <= 1 * (1 + sizes))", "", "test_checks.py hundredth"),
    ("bound rounded down", "_power_of_ten", "math.ceil(math.log10(bound) - 1e-9)",
     "math.floor(math.log10(bound))", "", "test_check_report.py report_prints"),
    ("unit not printed", "number", "{' ' + unit if unit else ''}", "", "",
     "test_check_report.py measured_line"),
    ("long permutations printed", "_structure_line", "len(order) <= 12", "len(order) <= 1200", "",
     "test_check_report.py report_prints"),
    ("pattern of the first point alone", "check_bijection", '(found["jacobian"] != 0).any(axis=0)',
     '(found["jacobian"] != 0)[0]', "", "test_checks.py structure_is"),
    ("copies compared at the first point alone", "check_bijection", '(found["z"] == found["x"]).all(axis=0)',
     '(found["z"] == found["x"])[0]', "", "test_checks.py structure_is"),
    ("report gives ratios for errors", "Report.__getitem__",
     "return line.value if line.error is None else line.error", "return line.value", "",
     "test_checks.py large_numbers"),
    ("ratios from a factor of a hundred", "check_bijection", "10 * bounds.min()", "100 * bounds.min()", "",
     "test_checks.py factor_of_ten"),
    ("ratios where one point is far out", "check_bijection", "if good.all() and all(",
     "if good.all() and any(", "", "test_checks.py far_out"),
    ("largest error over largest bound", "check_bijection", "float((errors / allowed).max())",
     "float(errors.max() / allowed.max())", "", "test_checks.py large_numbers"),
    ("fewer samples of the divergence", "kl_divergence", "n: int = 10_000", "n: int = 1_000", "",
     "test_information.py divergence"),
    ("targets equal to themselves alone", "_Made.__eq__",
     "isinstance(other, _Made) and self.recipe == other.recipe", "self is other", "",
     "test_targets.py share_their_programs and gaussian_mixture"),
    ("recipe of a mixture without its numbers", "_mixture",
     "*(tuple(np.ravel(array).tolist()) for array in (means, scales, weights)), dim", "dim", "",
     "test_targets.py different_targets"),
    ("recipe of a board without its squares", "checkerboard", '("checkerboard", squares, half_width)',
     '("checkerboard", half_width)', "", "test_targets.py different_targets"),
    ("one recipe for all that is standardized", "Target.standardized",
     'recipe = ("standardized", self.log_density.recipe)', 'recipe = "standardized"', "",
     "test_targets.py different_targets"),
    ("schedule ends at a twentieth", "_optimizer", "end = 0.5 if", "end = 0.05 if", "",
     "test_train.py one_cycle"),
    ("not annealed without averaging", "_optimizer", "end = 0.5 if settings.average else 1e-6", "end = 0.5",
     "", "test_train.py one_cycle"),
    ("another cycle", "_optimizer", "cosine_onecycle_schedule(settings.steps, 1.0,",
     "cosine_onecycle_schedule(settings.steps, 1.0, 0.5,", "", "test_train.py one_cycle"),
    ("patience off by one", "ended", "int(state.best_step) >= patience", "int(state.best_step) > patience",
     "", "test_train.py counted_in_steps"),
    ("gradient never clipped", "_optimizer",
     "optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)",
     "optax.identity()", "", "test_train.py clipped_by_its_global"),
    ("each number clipped by itself", "_optimizer", "optax.clip_by_global_norm(settings",
     "optax.clip(settings", "", "test_train.py clipped_by_its_global"),
    ("judged by the last parameters", "_steps", "value = loss(eqx.combine(average, static), *held_out",
     "value = loss(eqx.combine(params, static), *held_out", "", "test_train.py judged_over_the_last"),
    ("average over a sixth", "FitOptions.average", "1 / 12", "1 / 6", "",
     "test_train.py judged_over_the_last"),
    ("batches without replacement", "_steps.step",
     "rows = state.rows[jr.randint(batch_key, (settings.batch_size,), 0, n_train)]",
     "rows = state.rows[jr.permutation(batch_key, n_train)[: settings.batch_size]]", "",
     "test_train.py with_replacement"),
    ("no row held out", "FitOptions.held_out", "max(1, round(self.val_fraction * n))",
     "max(0, round(self.val_fraction * n))", "", "test_train.py with_replacement"),
    ("steps not taken counted", "_steps", "taken = jnp.where(failed < 0, done, failed)", "taken = done", "",
     "test_train.py inside_a_chunk"),
    ("last good step not counted", "_steps", "jnp.where(failed < 0, done, failed)",
     "jnp.where(failed < 0, done, failed - 1)", "", "test_train.py inside_a_chunk"),
    ("validation named after the chunk", "_result",
     "np.where(failed >= 0, np.minimum(val_steps, failed), val_steps)", "val_steps + 0 * failed", "",
     "test_train.py inside_a_chunk"),
    ("losses after a failure kept", "_result",
     "np.where((failed >= 0) & (np.arange(history.shape[-1]) > failed), np.nan, history)", "history", "",
     "test_fit_result.py were_not_taken_are_not"),
    ("infinite validation loss is best", "_steps", "jnp.isfinite(judged) & (judged < state.best_loss)",
     "judged < state.best_loss", "", "test_train.py never_finite_on_the_held"),
    ("infinite first loss", "_first_state", "jnp.full((), jnp.finfo(loss_type).max, loss_type)",
     "jnp.full((), jnp.inf, loss_type)", "", "test_train.py under_debugging"),
    ("value not passed", "_steps.step", 'more = {"value": value, "grad"',
     'more = {"value": 0 * value, "grad"', "", "test_train.py receive_value"),
    ("extra arguments not selected", "_update",
     "if all(p.kind is not p.VAR_KEYWORD for p in taken.values()):", "if False:", "",
     "test_train.py receive_value"),
    ("optax under strict types", "_OPTAX_PROMOTES",
     'functools.partial(jax.numpy_dtype_promotion, "standard")', "contextlib.nullcontext", "",
     "test_train.py under_debugging"),
    ("optimizer not checked", "FitOptions.__post_init__", "_expect_optimizer(self.optimizer)", "pass", "",
     "test_fit_options.py optimizer_that_is_none"),
    ("rate compiled in", "_train", "rates = _rates(options.learning_rate, many)",
     "rates = float(options.learning_rate)", "", "test_train.py costs_no_compilation"),
    ("waits for rows outside the support", "_train",
     "not many and not options.loss and not np.isfinite(chunks[0][1])", "False", "",
     "test_train.py outside_the_support"),
    ("flow left on the compiler's mesh", "fit", "if AxisType.Explicit in mesh.axis_types:", "if False:", "",
     "test_train.py meshes_of_explicit"),
    ("noise blamed", "reason", 'getattr(loss, "rows_are_noise", False)', "False", "",
     "test_fit_result.py advice_of_a_failure"),
    ("index not checked below", "FitResult.__getitem__", "if not -m <= i < m:", "if i >= m:", "",
     "test_fit_result.py indexed_by_key"),
    ("constants not compared", "digest", "[below(value.jaxpr), *map(below, value.consts)]",
     "[below(value.jaxpr)]", "", "test_checkpoint.py another_optimizer_or_loss or digest_sees"),
    ("literals not compared", "digest", "below(v.val) if isinstance(v, Literal)",
     '"literal" if isinstance(v, Literal)', "", "test_checkpoint.py another_optimizer_or_loss"),
    ("addresses compared", "digest", 're.sub(r"0x[0-9a-fA-F]+", "", repr(value))', "repr(value)", "",
     "test_checkpoint.py digest_sees"),
    ("program not compared", "expect_same_run", 'if theirs["program"] == mark["program"]:', "if True:", "",
     "test_checkpoint.py another_optimizer_or_loss"),
    ("settings not compared", "_read", 'refuse(of_kind("value"))', "refuse([])", "",
     "test_structure.py every_single_setting and RQSpline"),
    ("double precision rounded on loading", "_read", "with jax.enable_x64(True):",
     "with jax.enable_x64(False):", "", "test_io.py arrays_of_every_type and float64"),
    ("version 1 without a warning", "load", "if structure is None:", "if False:", "",
     "test_io.py files_of_version_1"),
    ("captured values not compared", "Description._function",
     "return self._fields(name, parts | (value.__kwdefaults__ or {}), path)",
     "return self._fields(name, {}, path)", "", "test_structure.py nameless_function"),
    ("our missing settings pass", "compare_fields", "if owner == _OURS and theirs is not None:", "if False:",
     "", "test_structure.py one_version_lacks"),
    ("file named before it is complete", "_write", "os.fsync(file.fileno())\n        temporary.replace(path)",
     "temporary.replace(path)\n            os.fsync(file.fileno())", "", "test_io.py complete_before"),
    ("bits of bfloat16 without a name", "_as_numpy", "if array.dtype.isbuiltin == 2:", "if False:", "",
     "test_io.py bfloat16"),
    ("lambdas without a warning", "Description._function", 'self.unclear.append(f"{path} ({name})")', "pass",
     "", "test_structure.py no_name_is_warned"),
    ("way back followed forward", "FlowODE.inverse_and_log_det", "self._follow(y, condition, 1.0, 0.0)",
     "self._follow(y, condition, 0.0, 1.0)", "", "test_contract.py contract and FlowODE-float64"),
    ("probes summed, not averaged", "FlowODE._follow.field",
     'traces.sum() if self.log_det.method == "exact" else traces.mean()', "traces.sum()", "",
     "test_continuous.py trace_is_unbiased and 4"),
    ("third slope at the start of the step", "_rk4", "third = field(t + h / 2,", "third = field(t,", "",
     "test_ode_solver.py power_of_the_step and rk4"),
    ("pace of the clock forgotten", "_pace", "return 1 + _BEND * (1 - 2 * s)", "return 1 + 0 * s", "",
     "test_ode_solver.py power_of_the_step and rk4"),
    ("times drawn independently", "matching_loss",
     "(jnp.arange(n, dtype=x0.dtype) + jr.uniform(key, (n,), x0.dtype)) / n",
     "jr.uniform(key, (n,), x0.dtype)", "", "test_flow_matching.py times_are_drawn"),
    ("rows paired the other way", "_paired.order", "(products, maximize=True)[1]",
     "(products.T, maximize=True)[1]", "", "test_flow_matching.py pairs_minimize"),
    ("velocity of equal weights", "Target.velocity", "log_share = jnp.log(weights) -", "log_share = -", "",
     "test_continuous.py exact_velocity and two_moons"),
    ("sign of a density's error", "density_error", "difference = coarse - fine",
     "difference = fine - coarse", "continuous_flows", "test_continuous.py looks_better"),
    ("line's velocity reversed", "_linear", "x1 - x0", "x0 - x1", "flow_matching",
     "test_flow_matching.py paths_run_from_noise and linear"),
    ("component's velocity without its mean", "Target.velocity", "share @ (means + (t", "share @ ((t",
     "flow_matching", "test_continuous.py exact_velocity and two_moons"),
    ("attention to later tokens", "Block.__call__", "np.tri(len(tokens), dtype=bool)",
     "np.tri(len(tokens), k=1, dtype=bool)", "transformer_flows",
     "test_patch_transformer.py depends_on_earlier"),
    ("own key not used", "Block.step", "jnp.arange(len(keys)) <= place", "jnp.arange(len(keys)) < place",
     "transformer_flows", "test_patch_transformer.py cache_gives_the_inverse"),
    ("heads not scaled", "Block._update", "query.shape[-1] ** -0.5", "query.size ** -0.5", "",
     "test_patch_transformer.py computes_what"),
    ("token holds its own patch", "CausalTransformer.__call__", "(patches[:-1]), ((1, 0), (0, 0))",
     "(patches[1:]), ((0, 1), (0, 0))", "transformer_flows",
     "test_patch_transformer.py depends_on_earlier"),
    ("guidance towards no condition", "CausalTransformer._guided", "outs[0] - outs[1]", "outs[1] - outs[0]",
     "transformer_flows", "test_guidance.py beyond_the_condition"),
    ("condition kept as often as it should be dropped", "_DropCondition.__call__", "1 - self.probability",
     "self.probability", "", "test_guidance.py as_often_as"),
    ("patches column by column", "patch_order", "rows[:, None] * (width // patch) + columns[None, :]",
     "columns[None, :] * (height // patch) + rows[:, None]", "", "test_masks.py order_of_patches"),
    ("no reversal between layers", "_layer", "order=order, **options), flip])", "order=order, **options)])",
     "", "test_transformer_flow.py reversed_in_every_other"),
    ("rows and columns of a block exchanged", "squeeze", "transpose(0, 2, 1, 3, 4)",
     "transpose(0, 2, 3, 1, 4)", "image_flows", "test_image.py drawn_example"),
    ("sign of the split's log-det", "Split.transform_and_log_det", "log_det - log_std.sum()",
     "log_det + log_std.sum()", "image_flows", "test_image.py what_their_formulas_say"),
    ("pixels not counted by the 1x1 convolution", "Conv1x1._log_det", "math.prod(self.shape[:-1]) * ", "",
     "image_flows", "test_linear.py one_matrix_at_every_pixel"),
    ("pixels not counted by ActNorm", "ActNorm._log_det",
     "math.prod(self.shape) // self.log_scale.size * self.log_scale.sum()", "self.log_scale.sum()", "",
     "test_actnorm.py over_all_pixels"),
    ("ActNorms of images not shared by pixels", "_step", "ActNorm(shape, per_channel=True)",
     "ActNorm(shape)", "", "test_image.py has_the_parts"),
    ("corner of the kernel taken for the center", "_convolve", "((1, 1), (1, 1), (0, 0))",
     "((0, 2), (0, 2), (0, 0))", "", "test_convolution.py what_its_formula_says"),
))  # fmt: skip


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """The functions, classes, methods and constants of a module, by their qualified names."""
    found: dict[str, ast.stmt] = {}

    def visit(body, prefix, inside):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.setdefault(prefix + node.name, node)
                visit(node.body, f"{prefix}{node.name}.", inside or isinstance(node, ast.FunctionDef))
            elif isinstance(node, ast.Assign | ast.AnnAssign) and not inside:
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                found.setdefault(prefix + ast.unparse(target), node)
            elif hasattr(node, "body"):
                visit(node.body, prefix, inside)
                visit(getattr(node, "orelse", []), prefix, inside)

    visit(tree.body, "", False)
    return found


def pattern(old: str) -> re.Pattern:
    """Match a text, with any spaces, line breaks and trailing commas between its parts."""
    parts = [re.escape(part) for part in re.findall(r"\w+|[^\w\s]", old)]
    joined = parts[0]
    for part in parts[1:]:
        comma = ",?" if part in (r"\)", r"\]", r"\}") else ""
        joined += rf"\s*{comma}\s*{part}"
    return re.compile(joined)


def place(package: Path, mutant: Mutant) -> tuple[Path, str]:
    """The file in which a fault lies, and the file's text with the fault in it.

    Raises:
        LookupError: If the definition or the text is not found exactly once.
    """
    found = []
    for path in sorted(package.glob("*.py")):
        text = path.read_text()
        node = definitions(ast.parse(text)).get(mutant.where)
        if node is None:
            continue
        lines = text.splitlines(keepends=True)
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        before, after = "".join(lines[: first - 1]), "".join(lines[node.end_lineno :])
        inside = "".join(lines[first - 1 : node.end_lineno])
        hits = list(pattern(mutant.old).finditer(inside))
        if len(hits) == 1:
            start, end = hits[0].span()
            found.append((path, before + inside[:start] + mutant.new + inside[end:] + after))
    if len(found) != 1:
        raise LookupError(f"{mutant.name}: found {len(found)} times in {mutant.where}")
    return found[0]


def plant(folder: Path, mutant: Mutant) -> None:
    """Put one fault into a copy of the package."""
    path, text = place(folder / "gauss_flows", mutant)
    path.write_text(text)


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
        row = {"tests": "", "notebook": ""} | row | {"name": mutant.name, "where": mutant.where}
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
