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


def test_channels_are_standardized_over_all_pixels():
    """Forward and backward; a channel without spread keeps scale 1."""
    layer = gf.ActNorm((2, 3, 3), per_channel=True)
    assert layer.log_scale.shape == layer.bias.shape == (1, 1, 3)
    pixels = np.arange(6).reshape(2, 3, 1) + sample(50)[:, 0].reshape(50, 1, 1, 1)  # unequal means
    x = np.concatenate([pixels, 3 - 10 * pixels, np.full_like(pixels, 0.1)], axis=-1)
    for way in (layer, fb.Invert(layer)):
        new = gf.data_init(way, x)
        z = np.asarray(jax.jit(jax.vmap(new.transform))(jnp.asarray(x))).reshape(-1, 3)
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(z.std(axis=0), [1, 1, 0], atol=1e-5)
    _, log_det = gf.data_init(layer, x).transform_and_log_det(x[0])
    stds = x.reshape(-1, 3).std(axis=0)[:2]
    np.testing.assert_allclose(log_det, -6 * np.log(stds).sum(), rtol=1e-5)


def test_channels_need_an_axis():
    assert gf.ActNorm((4,), per_channel=True).log_scale.shape == (4,)
    with pytest.raises(ValueError, match=r"`shape` must have at least one axis.*; got \(\)"):
        gf.ActNorm((), per_channel=True)
