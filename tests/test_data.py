"""Data of any scale and type, with ties, constants or outliers: a right result, or an error that says why."""

import functools

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flowjax.distributions import Normal, Transformed, VmapMixture
from hypothesis import given, settings
from hypothesis import strategies as st
from paramax import NonTrainable, Parameterize

import gauss_flows as gf
from gauss_flows.actnorm import standardize
from gauss_flows.base import expect_real, expect_rows, mean_and_std
from gauss_flows.gaussianization import fit_mixture, principal_axes

pytestmark = pytest.mark.usefixtures("quick_compilation")
DRAWS = settings.default.max_examples
MIX = gf.MixtureGaussianCDF(2)
NORM = gf.ActNorm1D((2,))


def sample(n=64, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2))


def flow_of(*layers, shape=(2,)):
    return Transformed(Normal(jnp.zeros(shape)), fb.Invert(fb.Chain(list(layers))))


def coupling_flow(actnorm=True, cond_dim=None):
    options = {"layers": 2, "nn_width": 4, "bijector": gf.Affine(), "actnorm": actnorm, "cond_dim": cond_dim}
    return gf.coupling_flow(jr.key(0), 2, **options)


# --- one coordinate: constants and scales


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 3.3, 14.62, -1e30, 1e-30])
def test_a_constant_column_keeps_scale_one(dtype, value):
    x = np.column_stack([np.full(64, value), sample()[:, 0]])
    for layer, sign in ((NORM, 1), (fb.Invert(NORM), -1)):
        new = gf.data_init(layer, x)
        inner = new if sign == 1 else new.bijection
        z = jax.vmap(new.transform)(jnp.asarray(x))
        assert float(inner.log_scale[0]) == 0
        np.testing.assert_array_equal(z[:, 0], 0)
        np.testing.assert_allclose(z[:, 1].std(), 1, rtol=1e-5)


def test_rounding_is_not_magnified():
    """Neither a few units in the last place, nor the spread that is left of a large offset."""
    ulp = np.float32(0.1) + np.spacing(np.float32(0.1)) * (np.arange(64) % 4).astype(np.float32)
    steps = np.float32(1e9) + 64 * (np.arange(64, dtype=np.float32) % 3)
    layer = gf.data_init(NORM, np.column_stack([ulp, steps]))
    assert float(layer.log_scale[0]) == 0
    assert float(layer.log_scale[1]) == pytest.approx(-np.log(steps.astype(float).std()), abs=1e-4)
    double = 0.1 + np.spacing(0.1) * (np.arange(64) % 4)  # constant in its own type
    assert float(gf.data_init(NORM, np.column_stack([double, sample()[:, 0]])).log_scale[0]) == 0


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_columns_of_any_scale_are_standardized(offset):
    """In single precision, inside jit, forward and backward; spreads from 1e-30 to 1e37."""
    u = sample(500)[:, 0] / 4 + offset
    forward = jax.jit(lambda x: jax.vmap(standardize(gf.ActNorm1D((1,)), x).transform)(x))
    backward = jax.jit(lambda x: jax.vmap(standardize(gf.ActNorm1D((1,)), x, forward=False).inverse)(x))
    for scale in (1e-30, 1e-25, 1e-18, 1e18, 2e30, 1e37):
        with np.errstate(over="ignore"):
            x = (scale * u).astype(np.float32)
        if not np.isfinite(x).all():
            continue
        for run in (forward, backward):
            z = np.asarray(run(x[:, None]), float)
            # A unit in the last place of the offset, in deviations; times the log-scale's where it is small.
            tolerance = 1e-5 + 4 * offset * 1.2e-7 * (90 if offset == 1 else 1)
            assert abs(z.mean()) <= tolerance
            assert abs(z.std() - 1) <= tolerance
        layer = gf.data_init(gf.ActNorm1D((1,)), x[:, None])
        assert float(layer.log_scale[0]) == pytest.approx(
            -np.log(scale) - np.log(x.std(dtype=float) / scale), abs=1e-4
        )


def test_mean_and_std_are_the_plain_ones(dtype):
    x = jnp.asarray(sample(), dtype)
    for values in (x, np.asarray(x)):
        mean, std, constant = mean_and_std(values)
        np.testing.assert_allclose(mean, np.asarray(x).mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(std, np.asarray(x).std(0), rtol=1e-6)
        assert not constant.any()
        assert std.dtype == dtype


def test_mixtures_and_axes_do_not_depend_on_the_scale():
    x = jnp.asarray(sample(200), jnp.float32)
    fit = jax.jit(lambda x: fit_mixture(x, 2, steps=5))
    axes = jax.jit(principal_axes)
    slanted = x @ jnp.array([[2.0, 1.0], [0.0, 0.5]])
    weights, means, scales = fit(x[:, 0])
    for scale in (1e-25, 1e25):
        found = fit(scale * x[:, 0])
        np.testing.assert_allclose(found[0], weights, atol=1e-3)
        np.testing.assert_allclose(found[1] / scale, means, atol=1e-3)
        np.testing.assert_allclose(found[2] / scale, scales, atol=1e-3)
        np.testing.assert_allclose(jnp.abs(axes(scale * slanted)), jnp.abs(axes(slanted)), atol=1e-4)
    np.testing.assert_allclose(axes(0 * x) @ axes(0 * x).T, np.eye(2), atol=1e-6)


def test_a_warm_start_leaves_constant_columns_alone_and_names_what_bounds_stop():
    layer = gf.MarginalGaussianization((2,), bijector=MIX)
    x = np.column_stack([np.full(64, 0.1), sample()[:, 0]])
    warm = gf.warm_start(layer, x, em_steps=2)
    np.testing.assert_array_equal(warm.raw[0], 0)
    assert np.abs(warm.raw[1]).max() > 0
    noise = np.float32(0.1) + np.spacing(np.float32(0.1)) * (np.arange(64) % 2).astype(np.float32)
    rounded = gf.warm_start(fb.Chain([NORM, layer]), np.column_stack([noise, x[:, 1]]), em_steps=2)
    np.testing.assert_array_equal(rounded[1].raw[0], 0)
    for scale in (1e3, 1e-3):  # the mixture's log-scales stay within ±5
        with pytest.raises(ValueError, match="`x` must reach each layer with standard deviations within"):
            gf.warm_start(layer, scale * sample(), em_steps=2)
    before = fb.Chain([NORM, layer])
    z = jax.vmap(gf.warm_start(before, 1e30 * sample(), em_steps=2).transform)(jnp.asarray(1e30 * sample()))
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.2)


# --- types, and the cast


def refused(argument):
    """Arrays that stand for no real numbers, or would lose something, from good ones."""
    return {
        "masked": (np.ma.masked_greater(argument, 1.0), "must not be a masked array"),
        "masked, nothing hidden": (np.ma.array(argument), "must not be a masked array"),
        "rows of masked": ([np.ma.array(row) for row in argument], "must not be a masked array"),
        "complex": (argument * 1j, "must be real-valued"),
        "object": (argument.astype(object), "must be an array of real numbers"),
        "text": (argument.astype(str), "must be an array of real numbers"),
        "longdouble": (argument.astype(np.longdouble), "must be in double precision at most"),
        "ragged": ([[1.0, 2.0], [3.0]], "must be an array of real numbers"),
        "key": (jr.split(jr.key(0), 64), "must be an array of real numbers"),
        "date": (argument.astype("datetime64[s]"), "must be an array of real numbers"),
        "NaN": (np.where(argument > 1, np.nan, argument), "must be finite"),
        "infinite": (np.where(argument > 1, -np.inf, argument), "must be finite"),
        "sentinel": (np.where(argument > 1, 1e39, argument), "must be finite in float32; columns 0"),
        "close to another": (1.7e9 + 10 * argument, "must keep its spread in float32"),
        "tiny": (1e-42 * argument, "must have a spread between"),
        "range": (np.sign(argument) * 3e38, "must have a spread between 1e-31 and 9e.37 in float32"),
        "subnormal": (1e-36 * argument, "must have a spread between"),
    }


CALLS = {
    "data_init": lambda x: gf.data_init(NORM, x),
    "warm_start": lambda x: gf.warm_start(gf.MarginalGaussianization((2,), bijector=MIX), x),
    "rbig": lambda x: gf.rbig(jr.key(0), x),
    "fit": lambda x: gf.fit(jr.key(0), coupling_flow(), x, progress=False),
    "fit_many": lambda x: gf.fit_many(jr.split(jr.key(0)), lambda key: coupling_flow(), x, progress=False),
    "entropy": gf.entropy,
    "negentropy": gf.negentropy,
    "total_correlation": gf.total_correlation,
}


@pytest.mark.parametrize("kind", refused(sample()))
def test_what_is_no_finite_real_array_is_named(kind):
    x, message = refused(sample())[kind]
    single = kind in ("sentinel", "close to another", "tiny", "range", "subnormal")
    for name, call in CALLS.items():
        if not (single and name in ("entropy", "negentropy", "total_correlation")):  # in double precision
            with pytest.raises(ValueError, match=f"`x` {message}"):
                call(x)
    condition = coupling_flow(cond_dim=2)
    if kind == "ragged":
        return
    with pytest.raises(ValueError, match=f"`condition` {message}"):
        gf.data_init(condition, sample(), x)
    with pytest.raises(ValueError, match=f"`condition` {message}"):
        gf.fit(jr.key(0), condition, sample(), condition=x, progress=False)


def test_errors_name_the_columns_and_the_way_out():
    x = np.tile(sample(), (1, 4))
    x[::7, [1, 2, 4]] = 1e39
    with pytest.raises(ValueError, match=r"columns 1, 2 and 4 would become infinite.*jax_enable_x64"):
        expect_rows(x, (8,), 2)
    with jax.enable_x64(True):
        assert expect_rows(x, (8,), 2).dtype == np.float64
    x[::7] = 1e39
    with pytest.raises(ValueError, match="columns 0, 1, 2, 3, 4, … would become"):
        expect_rows(x, (8,), 2)
    with pytest.raises(ValueError, match=r"element \(0, 1\) would become"):
        expect_rows(np.full((4, 1, 2), [1.0, 1e39]), (1, 2), 2)
    stamps = 1.7e9 + 10 * sample()[:, 0]
    stamps[3] = 0  # next to an outlier too
    with pytest.raises(ValueError, match=r"that of column 1 is lost to rounding. Subtract an offset"):
        expect_rows(np.column_stack([sample()[:, 0], stamps]), (2,), 2)
    np.testing.assert_array_equal(expect_rows(2.0**24 + np.ones((4, 2)), (2,), 2), 2**24)  # no spread to lose


def test_every_real_type_is_cast_once():
    x = sample()
    for dtype in (np.float16, jnp.bfloat16, np.float32, np.float64):
        rows = expect_rows(jnp.asarray(x, dtype) if dtype == jnp.bfloat16 else x.astype(dtype), (2,), 2)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, x, atol=0.02)
    assert expect_rows(x.tolist(), (2,), 2).dtype == np.float32
    flow = coupling_flow(cond_dim=1)
    labels = np.arange(64)[:, None] % 3
    by = [gf.data_init(flow, x, c) for c in (labels, labels.astype(float))]
    assert eqx.tree_equal(*by)
    with pytest.raises(ValueError, match="`condition` must keep its spread"):
        gf.data_init(flow, x, 2**40 + labels)
    jax.jit(lambda x: expect_real("x", x))(x)  # a tracer is no masked array


def test_parameters_of_layers_and_targets_are_not_masked_either():
    masked = np.ma.masked_greater([0.5, 2.0], 1.0)
    for call in (
        lambda: gf.targets.rings(masked),
        lambda: gf.targets.gaussian_mixture(np.eye(2), weights=masked),
        lambda: gf.targets.gaussian_mixture(np.eye(2) * 1j),
        lambda: gf.MixtureGaussianCDF(2, weights=masked),
        lambda: gf.AffineCoupling(jr.key(0), (2,), mask=np.ma.array([True, False])),
    ):
        with pytest.raises(ValueError, match=r"must (not be a masked array|be real-valued)"):
            call()


# --- entropies


ULPS = (np.arange(2000) % 2).astype(np.float32)


def test_ties_are_refused_and_counted():
    x = sample(2000)
    repeated = x.copy()
    repeated[:100] = repeated[100:200]  # 10 % of the values
    rows = x.copy()
    rows[:20] = rows[20:40]  # 2 % of the rows
    label = np.column_stack([x[:, 0], (x[:, 1] > 0).astype(float)])
    for function, data, message in (
        (gf.entropy, np.round(x[:, 0], 1), r"few equal values.*; 99\.\d% of the values of `x` occur"),
        (gf.entropy, np.round(x, 1), "few equal values.* of column 0"),
        (gf.negentropy, np.repeat(x[:400], 5, axis=0), "few equal values.*100.0%"),
        (gf.entropy, np.repeat(x[:1000], 2, axis=0)[:, 0], "few equal values.*100.0%"),
        (gf.entropy, repeated[:, 0], "few equal values.*10.0%.*uniform noise of one rounding step"),
        (gf.entropy, rows, "few equal rows.*2.0%"),
        (gf.total_correlation, label, "of column 1 occur more than once"),
        (gf.total_correlation, np.column_stack([x[:, 0], np.full(2000, 0.1)]), "column 1 is constant"),
        (gf.entropy, np.float32(0.1) + np.float32(1e-8) * ULPS, "constant"),
        (gf.negentropy, np.column_stack([x[:, 0], x[:, 0]]), "linearly independent columns"),
        (gf.entropy, np.column_stack([x, x.sum(axis=1)]).astype(np.float32), "linearly independent columns"),
        (lambda x: gf.entropy(x, k=1), np.concatenate([x, x[:1]]), "few equal rows"),
        (gf.entropy, sample(14)[:12].repeat(7, axis=1), "n ≥ 15"),
    ):
        with pytest.raises(ValueError, match=f"`x` must (have|vary in every|have shape).*{message}"):
            function(data)
    for known in ("a", np.nan, [1.0, 2.0], 1j):
        with pytest.raises(ValueError, match="`joint_entropy` must be"):
            gf.total_correlation(x, joint_entropy=known)


def test_values_in_groups_of_four_are_refused_where_as_many_pairs_pass():
    """4 % of the values; of pairs 8 % may be repeated at this size."""
    x = sample(2000)[:, 0]
    pairs, fours = x.copy(), x.copy()
    pairs[:40] = pairs[40:80]
    fours[:60] = np.tile(fours[60:80], 3)
    assert np.isfinite(gf.entropy(pairs)).all()
    with pytest.raises(ValueError, match=r"`x` must have few equal values.*4\.0% of the values"):
        gf.entropy(fours)


def test_fewer_equal_rows_pass_where_the_neighbour_is_nearer():
    """Half a percent of the rows: 1 % may be equal for k = 4, a third of that for k = 2."""
    x = sample(2000)
    x[:5] = x[5:10]
    assert np.isfinite(gf.entropy(x)).all()
    with pytest.raises(ValueError, match=r"`x` must have few equal rows.*0\.5% of the rows"):
        gf.entropy(x, k=2)


@pytest.mark.parametrize("n", [2000, 20_000])
def test_ties_that_pass_change_less_than_a_standard_error(n):
    """Just below each threshold, where the error is smallest: a uniform density."""
    part = 3.7 / np.sqrt(n)

    def repeat(x, times):
        size = int(part * n / times)
        return np.concatenate([x[:size]] * times + [x[times * size :]])

    steps = n / 0.3  # 0.3 points a step
    ways = [lambda x: repeat(x, 2), lambda x: repeat(x, 3), lambda x: np.round(x * steps) / steps]
    for way in ways:
        changes = []
        for seed in range(8):
            x = np.random.default_rng(seed).uniform(size=n)
            value, error = gf.entropy(x)
            changes.append((gf.entropy(way(x)).value - value) / error)
        assert abs(np.mean(changes)) < 1.15  # and a standard error of that mean
    pairs = sample(n)
    few = pairs.copy()
    size = int(0.0095 * n / 2)
    few[:size] = few[size : 2 * size]
    value, error = gf.entropy(pairs)
    assert abs(gf.entropy(few).value - value) < error


def test_single_precision_numbers_pass():
    for draw in (jr.normal, jr.uniform, jr.exponential):
        x = np.asarray(draw(jr.key(0), (200_000,)))
        assert len(np.unique(x)) < len(x)  # some are equal
        gf.entropy(x)


def test_entropies_at_any_scale():
    x = sample(2000)
    h, j, tc = (function(x).value for function in (gf.entropy, gf.negentropy, gf.total_correlation))
    for scale in (1e-25, 2e30, np.array([1e-25, 2e30]), np.array([1e-280, 1e280])):
        moved = scale * (x + 3)
        assert gf.entropy(moved).value == pytest.approx(h + np.log(scale * np.ones(2)).sum(), abs=1e-6)
        assert gf.negentropy(moved).value == pytest.approx(j, abs=1e-6)
        assert gf.total_correlation(moved).value == pytest.approx(tc, abs=1e-6)
    assert gf.entropy(1e25 * x[:, 0].astype(np.float32)).value == pytest.approx(
        gf.entropy(x[:, 0]).value + 25 * np.log(10), abs=1e-5
    )


# --- flows inside flows


POSITIVE, BOUNDED = np.exp(3 + 0.5 * sample()), 1 / (1 + np.exp(-sample() - 2))


def test_nested_flows_are_set_as_merged_ones():
    """Positive and bounded data: a flow inside two distributions, and a warm start inside one."""
    twice = Transformed(Transformed(coupling_flow(), fb.Exp((2,))), fb.Affine(jnp.zeros(2), jnp.full(2, 0.5)))
    warm = Transformed(flow_of(NORM, gf.MarginalGaussianization((2,), bijector=MIX)), fb.Sigmoid((2,)))
    for init, flow, x in (
        (gf.data_init, twice, 0.5 * POSITIVE),
        (functools.partial(gf.warm_start, em_steps=2), warm, BOUNDED),
    ):
        new, merged = init(flow, x), init(flow.merge_transforms(), x)
        assert jax.tree.structure(new) == jax.tree.structure(flow)
        leaves = [jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (flow, new, merged)]
        for _, ours, theirs in zip(*leaves, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        changed = [bool((old != ours).any()) for old, ours, _ in zip(*leaves, strict=True)]
        assert sum(changed) >= 2


def test_rows_outside_the_support_are_named():
    nested = Transformed(flow_of(NORM), fb.Exp((2,)))
    x = POSITIVE.copy()
    x[[5, 7], 1] = -1.0
    with pytest.raises(
        ValueError, match=r"`x` must have a finite image under the flow; 2 of 64 rows .* row 5"
    ):
        gf.data_init(nested, x)
    warm = Transformed(flow_of(gf.MarginalGaussianization((2,), bijector=MIX)), fb.Sigmoid((2,)))
    x = BOUNDED.copy()
    x[9, 0] = 1.0
    with pytest.raises(ValueError, match=r"1 of 64 rows .* row 9"):
        gf.warm_start(warm, x, em_steps=2)


def containers():
    """ActNorm in every container, with the indices of the coordinates that it must standardize."""
    one, scalar = gf.ActNorm1D((1,)), gf.ActNorm1D(())
    many = eqx.filter_vmap(lambda _: gf.ActNorm1D(()), axis_size=2)(jnp.zeros(2))
    tiled = eqx.filter_vmap(lambda _: NORM, axis_size=1)(jnp.zeros(1))
    shift = fb.Affine(jnp.array([3.0, -2.0]), jnp.array([2.0, 0.5]))
    return {
        "Chain": fb.Chain([shift, fb.Flip((2,)), NORM]),
        "Chain in Chain": fb.Chain([fb.Chain([shift]), fb.Chain([NORM])]),
        "Scan": fb.Scan(tiled),
        "gf.Scan": gf.Scan(tiled),
        "Invert": fb.Invert(NORM),
        "Invert of Invert": fb.Invert(fb.Invert(NORM)),
        "Concatenate": fb.Concatenate([one, one]),
        "Concatenate, Invert": fb.Concatenate([fb.Invert(one), one], axis=-1),
        "Stack": fb.Stack([scalar, fb.Invert(scalar)]),
        "Stack, last axis": fb.Reshape(fb.Stack([one, one], axis=1), (2,)),
        "Reshape": fb.Reshape(gf.ActNorm1D((2, 1)), (2,)),
        "Indexed": fb.Chain([fb.Indexed(one, slice(0, 1), (2,)), fb.Indexed(scalar, 1, (2,))]),
        "Permute": fb.Chain([fb.Permute(np.array([1, 0])), NORM]),
        "Vmap": fb.Vmap(many, in_axes=eqx.if_array(0)),
        "NonTrainable": fb.Chain([shift, NonTrainable(NORM)]),
        "frozen arrays": jax.tree.map(lambda a: NonTrainable(a) if eqx.is_array(a) else a, NORM),
        "NumericalInverse": fb.NumericalInverse(NORM, lambda b, y, condition=None: b.inverse(y)),
        "EmbedCondition": fb.EmbedCondition(
            gf.AffineCoupling(jr.key(0), (2,), cond_dim=1), lambda c: c[:1], (3,)
        ),
    }


@pytest.mark.parametrize("name", containers())
def test_layers_in_every_container_are_set(name):
    bijection = containers()[name]
    condition = np.ones((64, 3)) if name == "EmbedCondition" else None
    if condition is not None:
        bijection = fb.Chain([bijection, NORM])
    x = 5 + 3 * sample()
    new = gf.data_init(bijection, x, condition)
    assert jax.tree.structure(new) == jax.tree.structure(bijection)
    axes = (0, None if condition is None else 0)
    run = jax.jit(jax.vmap(new.transform, axes))
    z = np.asarray(run(jnp.asarray(x), None if condition is None else jnp.asarray(condition)))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)
    if name in ("NumericalInverse", "EmbedCondition"):
        return
    flow = Transformed(Normal(jnp.zeros(2)), fb.Invert(bijection))
    again = gf.data_init(flow, x).bijection.bijection
    assert eqx.tree_equal(again, new)


def test_an_embedded_condition_reaches_the_layers_inside():
    layer = fb.Chain([gf.AffineCoupling(jr.key(0), (2,), cond_dim=1), NORM])
    x, c = sample(), sample(seed=1)
    embed = lambda c: c.sum(keepdims=True)
    inside = gf.data_init(fb.EmbedCondition(layer, embed, (2,)), x, c)
    plain = gf.data_init(layer, x, c.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(inside.bijection[1].log_scale, plain[1].log_scale, rtol=1e-5)
    shaped = gf.data_init(fb.Reshape(layer, (2, 1), (1, 1)), x[:, :, None], c.sum(axis=1)[:, None, None])
    np.testing.assert_allclose(shaped.bijection[1].log_scale, plain[1].log_scale, rtol=1e-5)


def test_one_layer_for_all_places_sees_the_data_of_all():
    shared = gf.data_init(fb.Vmap(gf.ActNorm1D(()), axis_size=2), 5 + 3 * sample())
    assert float(shared.bijection.log_scale) == pytest.approx(-np.log((3 * sample()).std()), abs=1e-5)
    x, c = sample(), sample(seed=1)[:, :1]
    layer = fb.Chain([gf.AffineCoupling(jr.key(0), (2,), cond_dim=1), NORM])
    once = gf.data_init(fb.Vmap(layer, axis_size=1), x[:, None], c)
    along = gf.data_init(fb.Vmap(layer, axis_size=1, in_axes_condition=0), x[:, None], c[:, None])
    for vmap in (once, along):
        np.testing.assert_allclose(
            vmap.bijection[1].log_scale, gf.data_init(layer, x, c)[1].log_scale, rtol=1e-5
        )


def test_a_sandwich_is_set_from_the_outside_in():
    outer, inner = fb.Chain([NORM, fb.Affine(jnp.ones(2), jnp.full(2, 3.0))]), NORM
    for way in (lambda b: b, fb.Invert):
        new = gf.data_init(way(fb.Sandwich(inner, outer)), sample())
        new = new if isinstance(new, fb.Sandwich) else new.bijection
        inside = jax.vmap(new.outer.transform)(jnp.asarray(sample()))
        np.testing.assert_allclose(inside.std(axis=0), 3, atol=1e-4)
        method = new.inner.transform if way is not fb.Invert else new.inner.inverse
        np.testing.assert_allclose(jax.vmap(method)(inside).std(axis=0), 1, atol=1e-3)


class Doubled(gf.Bijection):
    """A container of one's own."""

    shape: tuple = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    inner: gf.ActNorm1D

    def __init__(self):
        self.shape, self.cond_shape, self.inner = (2,), None, NORM

    def transform_and_log_det(self, x, condition=None):
        return self.inner.transform_and_log_det(2 * x)

    def inverse_and_log_det(self, y, condition=None):
        x, log_det = self.inner.inverse_and_log_det(y)
        return x / 2, log_det


def test_a_container_that_cannot_be_entered_is_named():
    many = eqx.filter_vmap(lambda _: flow_of(NORM), axis_size=3)(jnp.zeros(3))
    layer = gf.MarginalGaussianization((2,), bijector=MIX)
    in_axes = eqx.tree_at(lambda b: (b.log_scale, b.bias), gf.ActNorm1D(()), (None, 0))
    tree = gf.ActNorm1D(())
    tree = eqx.tree_at(lambda b: b.bias, tree, jnp.zeros(2))
    numerical = fb.NumericalInverse(NORM, lambda b, y, condition=None: b.inverse(y))
    for init, flow, kind in (
        (gf.data_init, fb.Chain([Doubled()]), "Doubled"),
        (gf.data_init, fb.Invert(numerical), "NumericalInverse"),
        (gf.data_init, VmapMixture(many, weights=jnp.ones(3)), "VmapMixture"),
        (gf.data_init, fb.Vmap(tree, in_axes=in_axes), "Vmap"),
        (gf.data_init, fb.Chain([fb.Flip((2,)), Parameterize(lambda b: b, NORM)]), "Parameterize"),
        (gf.warm_start, fb.Chain([layer, Doubled()]), "Doubled"),
    ):
        with pytest.raises(ValueError, match=f"`flow` must hold its layers .*; {kind} holds ActNorm1D"):
            init(flow, sample())
    for init in (gf.data_init, gf.warm_start):
        with pytest.raises(ValueError, match="`flow` must be a flowjax distribution or bijection"):
            init(3, sample())
        with pytest.raises(ValueError, match=r"`x` must have shape \(n, 2\)"):
            init(Transformed(flow_of(layer), fb.Exp((2,))), sample()[:, :1])


def test_flows_made_under_vmap_are_set_one_by_one():
    x = 5 + 3 * sample()
    init = lambda key: gf.data_init(gf.coupling_flow(key, 2, layers=1, nn_width=4, actnorm=True), x)
    keys = jr.split(jr.key(0))
    made = eqx.filter_vmap(init)(keys)
    second = jax.tree.map(lambda a: a[1] if eqx.is_array(a) else a, made)
    log_prob = eqx.filter_jit(lambda f: f.log_prob(x))
    np.testing.assert_allclose(log_prob(second), log_prob(init(keys[1])), rtol=1e-4, atol=1e-4)


# --- rbig


def test_rbig_keeps_no_layer_that_does_not_help():
    x = np.asarray(jr.normal(jr.key(3), (400, 2))) * np.array([2.0, 3e30])
    result = gf.rbig(jr.key(0), x, layers=1, n_components=2, em_steps=5)
    assert result.gain.shape == (1,)
    assert result.gain[0] < 0  # else this sample tests nothing
    assert result.layers == 0
    first = result.flow.bijection.bijection[0]
    assert isinstance(first, gf.ActNorm1D)
    scale, bias = (np.asarray(a, np.float64) for a in (np.exp(first.log_scale), first.bias))
    z = scale * x + bias
    np.testing.assert_allclose([z.mean(axis=0), z.std(axis=0) - 1], 0, atol=0.05)  # set from nine tenths
    exact = -np.log(2 * np.pi) - 0.5 * np.square(z).sum(axis=1) + np.log(scale).sum()
    np.testing.assert_allclose(result.flow.log_prob(x), exact, rtol=1e-4)
    assert result.flow.sample(jr.key(1), (5,)).shape == (5, 2)


def test_rbig_refuses_what_has_no_density_or_too_few_rows():
    x = sample(100)
    far = x.copy()
    far[:, 0] = np.where(np.arange(100) == 7, 1e30, x[:, 0])
    held = next(  # a key that holds row 7 out
        jr.key(i) for i in range(100) if 7 in np.asarray(jr.permutation(jr.split(jr.key(i), 2)[0], 100))[:10]
    )
    for call, message in (
        (lambda: gf.rbig(jr.key(0), sample(17)), "`x` must leave at least 16 rows to fit; got 15"),
        (lambda: gf.rbig(jr.key(0), np.tile(sample(20), (1, 10)), n_components=2), "at least 21 rows to fit"),
        (lambda: gf.rbig(jr.key(0), np.column_stack([x, np.full(100, 0.1)])), "column 2 is constant"),
        (lambda: gf.rbig(jr.key(0), np.column_stack([x, x.sum(axis=1)])), "linearly independent"),
        (lambda: gf.rbig(held, far, layers=1), "finite log-density in every held-out row; 1 of 10"),
    ):
        with pytest.raises(ValueError, match=f"`x` must .*{message}" if "`x`" not in message else message):
            call()


# --- anything at all


SCALES = [1.0, 1.0, 0.03, 1e-45, 1e-36, 1e-25, 1e-18, 1e18, 2e30, 3e37, 1e38, 1e200]
OFFSETS = [0.0, 0.0, 1.0, 1e3, 1e7, -1e9]
FAULTS = {
    "none": lambda x, row: x,
    "ties": lambda x, row: x.std(axis=0) / 4 * np.round(4 * x / x.std(axis=0)),
    "constant": lambda x, row: x * [1, 0] + [0, x[0, 1]],
    "outlier": lambda x, row: np.where(row, 1e3 * x, x),
    "far outlier": lambda x, row: np.where(row, 1e25 * x, x),
    "equal columns": lambda x, row: x[:, [0, 0]],
    "NaN": lambda x, row: np.where(row, np.nan, x),
    "sentinel": lambda x, row: np.where(row, 1e39, x),
}
TYPES = {
    "float32": lambda x: x.astype(np.float32),
    "float64": lambda x: x,
    "jax": lambda x: jnp.asarray(x.astype(np.float32)),
    "float16": lambda x: x.astype(np.float16),
    "big-endian": lambda x: x.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "list": lambda x: x.tolist(),
    "masked": np.ma.masked_invalid,
    "complex": lambda x: x.astype(complex),
    "longdouble": lambda x: x.astype(np.longdouble),
    "object": lambda x: x.astype(object),
    "text": lambda x: x.astype(str),
    "integer": lambda x: np.nan_to_num(np.clip(x, -9, 9)).astype(int),
}
HOSTILE_FLOW = flow_of(NORM, gf.MarginalGaussianization((2,), bijector=MIX))


@st.composite
def hostile(draw):
    """Data with a fault, of a type; what both are; and whether the fault is that there is none."""
    x = np.random.default_rng(draw(st.integers(0, 2**31 - 1))).normal(size=(64, 2))
    pair = lambda values: np.array([draw(st.sampled_from(values)) for _ in range(2)])
    x = pair(SCALES) * (x + pair(OFFSETS))
    row = np.arange(64)[:, None] == draw(st.integers(0, 63))
    fault = draw(st.just("none") | st.sampled_from(sorted(FAULTS)))
    kind = draw(st.sampled_from(["float32", "float64"]) | st.sampled_from(sorted(TYPES)))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return TYPES[kind](FAULTS[fault](x, row)), kind, fault


@functools.cache
def hostile_programs():
    log_prob = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
    transform = jax.jit(jax.vmap(lambda layer, x: layer.transform(x), (None, 0)))
    options = {"layers": 1, "nn_width": 4, "bijector": gf.Affine()}
    train = gf.coupling_flow(jr.key(0), 2, **options)
    return log_prob, transform, train, gf.coupling_flow(jr.key(0), 2, cond_dim=2, **options)


def attempt(call, *names):
    """What a call returns, or None if it raised a `ValueError` that names the argument."""
    try:
        return call()
    except ValueError as error:
        if not str(error).startswith(tuple(f"`{name}` must" for name in names)):
            raise
        return None


@pytest.mark.drawn
@settings(max_examples=8 * DRAWS)
@given(drawn=hostile())
def test_any_data_give_a_right_result_or_a_named_error(drawn):
    data, kind, fault = drawn
    log_prob, transform, trainable, conditional = hostile_programs()
    layer = attempt(lambda: gf.data_init(NORM, data), "x")
    warm = attempt(lambda: gf.warm_start(HOSTILE_FLOW, data, em_steps=3), "x")
    result = attempt(lambda: gf.rbig(jr.key(0), data, layers=1, n_components=2, em_steps=3), "x")
    options = {"steps": 2, "batch_size": 16, "progress": False}
    try:
        fitted = attempt(
            lambda: gf.fit(jr.key(0), conditional, np.zeros((64, 2)), condition=data, **options), "condition"
        )
    except gf.NonFiniteLoss as error:  # conditions of 1e30 overflow in a network, and `fit` says so
        fitted = error.result
    try:
        learned = attempt(lambda: gf.fit(jr.key(0), trainable, data, **options), "x")
    except gf.NonFiniteLoss as error:  # data of 1e30 overflow in a flow that was not set from them
        learned = error.result
    if kind in ("masked", "complex", "longdouble", "object", "text") or fault in ("NaN", "sentinel"):
        assert layer is warm is result is learned is None or kind == "integer"
    if layer is not None:
        rows = jnp.asarray(np.asarray(data), jnp.float32)
        exact = np.asarray(rows, np.float64)
        mean, std, _ = mean_and_std(exact, float(np.finfo(np.float32).eps))
        # Units in the last place of the largest number and of the log-scale, in standard deviations.
        rounding = 1.2e-7 * (
            8 + 90 * np.minimum(np.abs(mean) / std, 10) + 4 * np.abs(exact / std).max(axis=0)
        )
        right = (exact - mean) / std
        z = np.asarray(transform(layer, rows), np.float64)
        assert (np.abs(z - right) <= rounding + 2e-5 * np.abs(right)).all()
        gaussian = -np.log(2 * np.pi) - 0.5 * np.square(z).sum(axis=1) - np.log(std).sum()
        assert warm is not None  # behind an ActNorm no bound is in the way
        assert fitted is not None
        found = np.asarray(log_prob(warm, rows))
        assert np.isfinite(found).all()
        assert found.mean() >= gaussian.mean() - 0.1
    if result is not None:
        assert np.isfinite([*result.gain, *result.gain_error]).all()
        if fault == "none":
            assert np.asarray(log_prob(result.flow, rows)).mean() >= gaussian.mean() - 0.3
    report = attempt(lambda: gf.check_bijection(NORM, data), "x")
    assert report is None or report.ok
    for function in (gf.entropy, gf.negentropy, gf.total_correlation):
        found = attempt(lambda function=function: function(data), "x")
        if found is not None:
            assert np.isfinite(found).all()
            if fault == "none":  # against the closed form of a normal with the sample's scales
                scale = mean_and_std(np.asarray(data, np.float64))[1]
                truth = 2.8379 + np.log(scale).sum() if function is gf.entropy else 0.0
                assert abs(found.value - truth) < 0.2 + 5 * found.standard_error


def test_entropies_of_strongly_correlated_columns_are_right():
    """Columns that differ by a thousandth, and ten columns mixed by a random matrix: Gaussian, so known."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 2))
    pair = np.column_stack([z[:, 0], z[:, 0] + 1e-3 * z[:, 1]])
    exact = np.log(2 * np.pi * np.e) + np.log(1e-3)
    value, error = gf.entropy(pair)
    assert abs(value - exact) < 4 * error
    value, error = gf.total_correlation(pair)
    assert abs(value - 0.5 * np.log(1 + 1e6)) < 4 * error
    mixing = rng.normal(size=(10, 10))
    x = rng.normal(size=(5000, 10)) @ mixing
    exact = 5 * np.log(2 * np.pi * np.e) + np.linalg.slogdet(mixing)[1]
    value, error = gf.entropy(x)
    assert abs(value - exact) < 0.1  # the bias that the docstring speaks of; without the map it is 2.0
    assert abs(gf.negentropy(x).value) < 0.1
