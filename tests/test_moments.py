"""Tests of ``gauss_flows.moments``."""

import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from data_support import sample

import gauss_flows as gf
from gauss_flows.mixtures import fit_mixture
from gauss_flows.moments import mean_and_std, principal_axes

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("way", [lambda layer: layer, fb.Invert])
def test_principal_axes_decorrelate(way):
    """And the first output has the largest variance."""
    x = jr.normal(jr.key(0), (500, 3)) @ jnp.array([[3.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.3]])
    marginal = gf.MarginalGaussianization((3,), bijector=gf.MixtureGaussianCDF(2))
    warm = gf.warm_start(
        fb.Chain([way(gf.HouseholderRotation(3, (3,))), marginal]), x, rotation="pca", em_steps=1
    )
    covariance = jnp.cov(jax.vmap(warm.bijections[0].transform)(x).T)
    np.testing.assert_allclose(covariance, jnp.diag(jnp.diag(covariance)), atol=1e-3)
    assert bool((jnp.diff(jnp.diag(covariance)) < 0).all())


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
