"""Tests of ``gauss_flows.mixtures``."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from paramax import unwrap

import gauss_flows as gf
from gauss_flows.mixtures import fit_mixture

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_components": 0}, "`n_components` must be a whole number of at least 1; got 0"),
        ({"n_components": 2.0}, "`n_components` must be a whole number of at least 1; got 2.0"),
        ({"log_scale_bound": 0.0}, "`log_scale_bound` must be positive"),
        ({"log_scale_bound": np.inf}, "`log_scale_bound` must be positive and finite; got inf"),
        ({"weights": "ab"}, "`weights` must be an array of real numbers"),
        ({"n_components": 2, "means": [0.0]}, r"`means` must have shape \(2,\).*got \(1,\)"),
        ({"n_components": 2, "scales": [1.0, -1.0]}, "`scales` must be positive"),
        ({"n_components": 2, "weights": [1.0, np.nan]}, "`weights` must be finite"),
        ({"n_components": 1, "scales": [9.0], "log_scale_bound": 2.0}, "`scales` must lie between"),
    ],
)
def test_mixture_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        gf.MixtureGaussianCDF(**arguments)


def hard_mixtures(n=500, k=8):
    """Well-separated components, narrow and wide, of very different weights."""
    keys = jr.split(jr.key(0), 3)
    make = lambda logits, means, scales: eqx.tree_at(
        lambda b: (b.logits, b.means, b.log_scales),
        gf.MixtureGaussianCDF(k),
        (logits, means, scales),
    )
    return jax.vmap(make)(
        1.5 * jr.normal(keys[0], (n, k)), 3 * jr.normal(keys[1], (n, k)), jr.normal(keys[2], (n, k)) - 0.5
    )


def test_hard_mixtures_invert(dtype):
    """|z| <= 10: to rounding error times the local slope, in a few steps, wherever |z| <= 10."""
    mixtures = hard_mixtures()
    z = jr.uniform(jr.key(4), (500,), minval=-10, maxval=10)
    x = jax.jit(jax.vmap(lambda b, z: b.inverse(z)))(mixtures, z)
    again, log_det = jax.jit(jax.vmap(lambda b, x: b.transform_and_log_det(x)))(mixtures, x)
    eps = float(jnp.finfo(dtype).eps)
    # One rounding of x moves z by eps |x| T'(x); allow some for T itself.
    allowed = 40 * eps * (1 + jnp.abs(z) + jnp.abs(x) * jnp.exp(log_det))
    assert bool((jnp.abs(again - z) <= allowed).all())
    _, steps = jax.jit(jax.vmap(lambda b, z: unwrap(b)._solve(z)))(mixtures, z)
    assert int(jnp.median(steps)) <= 7
    assert int(steps.max()) <= 25


def test_round_trip_bounds_of_the_default_mixture(dtype):
    b = gf.MixtureGaussianCDF()
    z = jnp.linspace(-10, 10, 401)
    x = jax.jit(jax.vmap(b.inverse))(z)
    again = jax.jit(jax.vmap(b.transform))(x)
    assert float(jnp.abs(again - z).max()) <= (1e-12 if dtype == "float64" else 1e-4)


def test_one_standard_component_is_the_identity(dtype):
    b = gf.MixtureGaussianCDF(1)
    x = jnp.array([-1e4, -100.0, -30.0, -8.0, -1.0, 0.0, 1e-3, 2.0, 8.0, 30.0, 100.0, 1e4])
    z, log_det = jax.jit(jax.vmap(b.transform_and_log_det))(x)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(z, x, rtol=8 * eps, atol=8 * eps)
    np.testing.assert_allclose(log_det, 0, atol=8 * eps)
    np.testing.assert_allclose(jax.jit(jax.vmap(b.inverse))(z), x, rtol=8 * eps, atol=16 * eps)
    slopes = jax.jit(jax.vmap(jax.grad(b.transform)))(x)
    np.testing.assert_allclose(slopes, 1, rtol=100 * eps)


def test_mixture_of_two_far_modes_has_a_finite_log_det(dtype):
    """Between narrow modes the density underflows; its logarithm must not."""
    b = gf.MixtureGaussianCDF(2, means=[-3.0, 3.0], scales=[0.01, 0.01])
    z, log_det = b.transform_and_log_det(jnp.zeros(()))
    expected = -0.5 * 300.0**2 - np.log(0.01) - 0.5 * np.log(2 * np.pi) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_det, expected, rtol=1e-4)
    assert abs(float(z)) < 1e-3


def test_mixture_gaussianizes_its_own_mixture():
    """Samples of the mixture come out standard normal: mean, variance, kurtosis."""
    b = gf.MixtureGaussianCDF(2, weights=[1, 3], means=[-2.0, 1.0], scales=[0.3, 0.8])
    k1, k2 = jr.split(jr.key(0))
    which = jr.bernoulli(k1, 0.75, (40_000,))
    x = jnp.where(which, 1.0, -2.0) + jnp.where(which, 0.8, 0.3) * jr.normal(k2, (40_000,))
    z = np.asarray(jax.vmap(b.transform)(x))
    np.testing.assert_allclose([z.mean(), z.var(), (z**4).mean()], [0, 1, 3], atol=0.12)


def test_components_do_not_share_gradients():
    b = gf.MixtureGaussianCDF(4)
    grad = eqx.filter_grad(lambda b: b.transform(jnp.float32(0.7)))(b)
    assert len({round(float(g), 6) for g in grad.means}) == 4


def test_the_inverse_of_one_component_has_the_derivatives_of_an_affine_map():
    """The map x = m + s z has the mixed derivative 1 in z and s, and no other of second order."""
    with jax.enable_x64(True):
        bijector = gf.MixtureGaussianCDF(1, means=[0.5], scales=[2.0])
        scaled = lambda z, m, s: eqx.tree_at(
            lambda b: (b.means, b.log_scales), unwrap(bijector), (m[None], jnp.log(s)[None])
        ).inverse(z)
        args = (jnp.array(1.5), jnp.array(0.5), jnp.array(2.0))
        np.testing.assert_allclose(jax.jit(scaled)(*args), 3.5, rtol=1e-13)
        hessian = jax.jit(jax.jacrev(jax.jacrev(scaled, (0, 1, 2)), (0, 1, 2)))(*args)
        np.testing.assert_allclose(hessian, [[0, 0, 1], [0, 0, 0], [1, 0, 0]], atol=1e-9)


def test_em_finds_a_mixture(dtype):
    """Never less likely with more steps, in the end as likely as the truth; scale and place do not matter."""
    kinds = jr.bernoulli(jr.key(0), 0.3, (5000,))
    x = jnp.where(kinds, -2 + 0.3 * jr.normal(jr.key(1), (5000,)), 1 + jr.normal(jr.key(2), (5000,)))

    def log_p(x, log_weights, means, scales):
        logits = (log_weights - jnp.log(scales))[None, :] - 0.5 * jnp.square(
            (x[:, None] - means[None, :]) / scales[None, :]
        )
        return jax.nn.logsumexp(logits, axis=1).mean()

    likelihoods = [float(log_p(x, *fit_mixture(x, 6, steps=steps))) for steps in (1, 5, 20, 80)]
    assert all(b > a - 1e-4 for a, b in pairwise(likelihoods))
    true = log_p(x, jnp.log(jnp.array([0.3, 0.7])), jnp.array([-2.0, 1.0]), jnp.array([0.3, 1.0]))
    assert likelihoods[-1] >= float(true) - 0.005
    weights, means, scales = fit_mixture(x, 6)
    moved = fit_mixture(1000 * x + 7, 6)
    np.testing.assert_allclose(moved[0], weights, atol=1e-3)
    np.testing.assert_allclose((moved[1] - 7) / 1000, means, atol=1e-3)
    np.testing.assert_allclose(moved[2] / 1000, scales, atol=1e-3)
    with pytest.raises(ValueError, match="`n_components` must be a whole number of at least 2"):
        fit_mixture(x, 1)


@pytest.mark.parametrize(("kind", "near"), [(gf.MixtureGaussianCDF, 0.25), (gf.DeepSigmoid, 0.09)])
def test_default_mixtures_start_near_the_identity(kind, near):
    """The Gaussian mixture has mean 0 and variance 1; components are equal in weight and in scale."""
    x = np.linspace(-3, 3, 13).astype(np.float32)
    assert kind().means.size == 8
    for n in (2, 8):
        bijector = unwrap(kind(n))
        logits, means, log_scales = map(np.asarray, (bijector.logits, bijector.means, bijector.log_scales))
        np.testing.assert_allclose(logits, logits[0], rtol=1e-6)
        np.testing.assert_allclose(log_scales, log_scales[0], rtol=1e-5)
        assert (np.diff(means) > 0).all()
        z = jax.jit(jax.vmap(kind(n).transform))(x)
        assert np.abs(z - x).max() < near
        if kind is gf.MixtureGaussianCDF:
            np.testing.assert_allclose(means.mean(), 0, atol=1e-6)
            np.testing.assert_allclose((means**2 + np.exp(2 * log_scales)).mean(), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", [gf.MixtureGaussianCDF, gf.DeepSigmoid])
def test_components_can_be_replaced_and_scales_beyond_the_bound_move_inside(kind):
    log_scales = np.array([-9.0, 0.5, 4.9, 9.0])
    weights, means = np.array([2.0, 4, 6, 8], np.float32), np.arange(4, dtype=np.float32)
    change = jax.jit(lambda *parts: unwrap(kind(4).with_components(*parts)))
    new = change(np.log(weights), means, np.exp(log_scales).astype(np.float32))
    found = np.asarray(new.log_scales)
    np.testing.assert_allclose(found[1:3], log_scales[1:3], rtol=1e-4)
    assert (np.abs(found) < 5).all()
    np.testing.assert_allclose(found[[0, 3]], [-5, 5], atol=0.05)
    logits = np.asarray(new.logits)
    np.testing.assert_allclose(np.exp(logits - logits[0]), [1, 2, 3, 4], rtol=1e-5)
    np.testing.assert_array_equal(new.means, means)


def test_a_fitted_mixture_keeps_a_background_and_least_scales():
    """Two far clusters, each narrower than the least scale: one component remains as wide as the sample."""
    x = np.concatenate([np.linspace(-1.001, -0.999, 30), np.linspace(4.999, 5.001, 10)]).astype(np.float32)
    log_weights, means, scales = (
        np.asarray(a, float) for a in jax.jit(lambda x: fit_mixture(x, 3, steps=30))(x)
    )
    std = x.std()
    np.testing.assert_allclose([means[0], scales[0]], [x.mean(), std], rtol=1e-5)
    assert 0.0098 < np.exp(log_weights[0]) < 0.0105
    np.testing.assert_allclose(scales[1:], 0.02 * std, rtol=1e-4)
    np.testing.assert_allclose(np.sort(means[1:]), [-1, 5], atol=0.05)
    np.testing.assert_allclose(np.exp(log_weights).sum(), 1, rtol=1e-5)
