"""Tests of ``gauss_flows.actnorm``."""

import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_support import NORM, sample

import gauss_flows as gf
from gauss_flows.actnorm import standardize

pytestmark = pytest.mark.usefixtures("quick_compilation")


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
    forward = jax.jit(lambda x: jax.vmap(standardize(gf.ActNorm((1,)), x).transform)(x))
    backward = jax.jit(lambda x: jax.vmap(standardize(gf.ActNorm((1,)), x, forward=False).inverse)(x))
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
        layer = gf.data_init(gf.ActNorm((1,)), x[:, None])
        assert float(layer.log_scale[0]) == pytest.approx(
            -np.log(scale) - np.log(x.std(dtype=float) / scale), abs=1e-4
        )
