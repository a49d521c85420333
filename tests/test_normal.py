"""Tests of ``gauss_flows.normal``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
from jax.test_util import check_grads

import gauss_flows as gf
from gauss_flows import normal

pytestmark = pytest.mark.usefixtures("quick_compilation")


def grid(dtype):
    far = [-1e4, -300, -38, -20, -13, 13, 20, 38, 300, 1e4]
    return jnp.asarray(np.concatenate([np.linspace(-9, 9, 721), far]), dtype)


def test_normal_tails_against_scipy(dtype):
    u = grid(dtype)
    v = np.asarray(u, float)
    tails = jax.jit(normal.normal_tails)(u)
    eps = float(jnp.finfo(dtype).eps)
    tiny = float(jnp.finfo(dtype).tiny)
    # scipy's own log_ndtr is off by 1e-14 near 0.2, so the reference is put together from erfcx.
    far = np.log(sp.erfcx(np.abs(v) / np.sqrt(2)) / 2) - v**2 / 2
    near = np.log1p(-sp.erfc(np.abs(v) / np.sqrt(2)) / 2)
    lower, upper = np.where(v < 0, (far, near), (near, far))
    # 200: XLA's log1p in double is off by 2.2e-14 = 100 eps near -0.41 (against 40 digits), on
    # the larger tail; the smaller one keeps to a few eps.
    np.testing.assert_allclose(np.minimum(tails.lower, tails.upper), far, rtol=10 * eps)
    np.testing.assert_allclose(tails.lower, lower, rtol=200 * eps, atol=tiny)
    np.testing.assert_allclose(tails.upper, upper, rtol=200 * eps, atol=tiny)
    hazard = np.sqrt(2 / np.pi) / sp.erfcx(-v / np.sqrt(2))  # phi / Phi, without cancellation
    left = v < 3
    np.testing.assert_allclose(
        np.exp(np.asarray(tails.lower_hazard, float))[left], hazard[left], rtol=60 * eps
    )
    mirrored = jax.jit(normal.normal_tails)(-u)
    np.testing.assert_allclose(tails.upper_hazard, mirrored.lower_hazard, rtol=20 * eps, atol=20 * eps)


def test_derivatives_of_the_tails():
    with jax.enable_x64(True):
        u = jnp.array([-30.0, -5.0, -1.0, 0.0, 1.0, 5.0])
        check_grads(normal.normal_tails, (u,), order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-5)
    grads = jax.vmap(jax.grad(lambda v: sum(normal.normal_tails(v))))(grid(jnp.float32))
    assert bool(jnp.isfinite(grads).all())


def test_ndtri_exp_against_scipy(dtype):
    z = -np.concatenate([np.linspace(0, 12, 600), [40.0, 100.0, 1e3, 1e4, 1e6, 1e8, 1e12]])
    log_p = jnp.asarray(sp.log_ndtr(z), dtype)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(jax.jit(normal.ndtri_exp)(log_p), z, rtol=8 * eps, atol=8 * eps)


def test_derivatives_of_the_quantile():
    with jax.enable_x64(True):
        f = lambda z: normal.normal_quantile(*normal.normal_tails(z)[:2])
        z = jnp.array([-20.0, -3.0, -0.1, 0.2, 4.0, 25.0])
        np.testing.assert_allclose(jax.vmap(jax.grad(f))(z), 1, rtol=1e-13)
        check_grads(normal.ndtri_exp, (jnp.array([-0.8, -3.0, -50.0]),), order=2, rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_single():
    v = jnp.array([0.0, 0.5, 3.0, 100.0], jnp.bfloat16)
    both = jax.jit(lambda v: (gf.normal.mills_ratio(v), gf.normal.mills_ratio(v.astype(jnp.float32))))
    half, single = both(v)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))
