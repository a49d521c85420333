"""Tests of ``gauss_flows.validate``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from data_support import MIX, NORM, coupling_flow, sample

import gauss_flows as gf
from gauss_flows.validate import expect_key, expect_real, expect_rows

pytestmark = pytest.mark.usefixtures("quick_compilation")


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


@pytest.mark.parametrize("key", [0, np.int64(0), np.ones(2), np.zeros((2, 2), np.uint32), None])
def test_what_is_no_single_key_is_refused(key):
    with pytest.raises(ValueError, match="`key` must be a random key, such as"):
        expect_key(key)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: gf.coupling_flow(key, 2),
        lambda key: gf.maf(key, 2),
        lambda key: gf.residual_flow(key, 2),
        lambda key: gf.gaussianization_flow(key, 2),
        lambda key: gf.image_flow(key, (4, 4, 1)),
        lambda key: gf.transformer_flow(key, (4, 4)),
        lambda key: gf.variational_noise(key, (2, 2)),
        lambda key: gf.Residual(key, (2,)),
        lambda key: gf.HouseholderRotation(1, (2,), key=key),
        lambda key: gf.masks.random(key, (4,)),
        lambda key: gf.rbig(key, np.zeros((9, 2))),
        lambda key: gf.fit(key, MIX, np.zeros((9, 2)), progress=False),
    ],
)
def test_what_draws_checks_its_key(draw):
    with pytest.raises(ValueError, match=r"`key` must be a random key, .*; got 0"):
        draw(0)


def test_keys_of_both_kinds_are_taken():
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert expect_key(key) is key
