"""Tests of ``gauss_flows.parametrize``."""

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flow_cases import SMALL, with_random_networks
from paramax import NonTrainable, unwrap

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_frozen_parts_of_a_bijector_stay_and_are_not_trained():
    bijector = eqx.tree_at(lambda b: b.loc, gf.Affine(3.0), replace_fn=NonTrainable)
    layer = gf.Coupling(jr.key(0), shape=(2,), bijector=bijector)
    assert layer.conditioner.out_size == 1  # the scale only
    grads = eqx.filter_grad(lambda b: b.transform(jnp.ones(2)).sum())(layer)
    moving = [g for g in jax.tree.leaves(grads.conditioner) if eqx.is_array(g)]
    still = [g for g in jax.tree.leaves((grads._bijector._theta, grads._bijector._rest)) if eqx.is_array(g)]
    assert any(bool(g.any()) for g in moving)
    assert not any(bool(g.any()) for g in still)
    shift = layer.transform(jnp.array([0.5, 0.0]))[1]
    np.testing.assert_allclose(shift, 3.0, rtol=1e-6)


MENU = {
    "Affine": gf.Affine(),
    "exp_affine": gf.bijectors.exp_affine(),
    "flowjax's Affine": fb.Affine(),
    "Loc": fb.Loc(jnp.zeros(())),
    "MixtureGaussianCDF": gf.MixtureGaussianCDF(3),
    "DeepSigmoid": gf.DeepSigmoid(3),
    "RQSpline": gf.RQSpline(n_bins=4),
}


def far_cases():
    """Every factory with every map; some pairs are left to `make nightly`."""
    for make in (gf.coupling_flow, gf.maf, gf.iaf):
        for name in MENU:
            later = make is gf.iaf
            later = later or (make is gf.maf and name not in ("Affine", "DeepSigmoid")) or name == "Loc"
            marks = [pytest.mark.nightly] if later else []
            yield pytest.param(make, name, id=f"{make.__name__}-{name}", marks=marks)


@pytest.mark.parametrize(("make", "name"), list(far_cases()))
def test_no_weights_make_a_far_point_overflow(make, name):
    """Log-densities and their gradients are finite up to 1e6 standard deviations, with any networks."""
    flow = make(jr.key(0), 2, bijector=MENU[name], layers=5, nn_width=8)
    x = jr.normal(jr.key(1), (16, 2))
    run = eqx.filter_jit(lambda flow, x: jax.vmap(jax.value_and_grad(lambda v: flow.log_prob(v)))(x))
    for scale in (1.0, 30.0, 1e3, 1e5):
        wild = with_random_networks(flow, scale, jr.key(2))
        for far in (1.0, 1e3, 1e6):
            value, gradient = run(wild, far * x)
            assert bool(jnp.isfinite(value).all() & jnp.isfinite(gradient).all()), (scale, far)


@pytest.mark.parametrize("name", ["Affine", "exp_affine", "MixtureGaussianCDF", "DeepSigmoid"])
def test_limits_leave_ordinary_outputs_exactly_as_they_are(name):
    """Up to three quarters of the limits: with 8 layers scales within exp(±2.2), shifts up to 7e5."""
    free = gf.Parametrized(MENU[name])
    limited = gf.Parametrized(MENU[name], max_log_scale=3.0)
    out = jnp.linspace(-2.2, 2.2, 7)[:, None] * jnp.ones(free.size)[None, :]
    np.testing.assert_array_equal(limited.theta(out), free.theta(out))
    far = limited.theta(1e9 * out) - limited.theta(0 * out)
    low, high = np.array(limited._limits).T[:, None, :]
    assert bool((far >= low * 1.0001).all() & (far <= high * 1.0001).all())
    slope = jax.vmap(jax.grad(lambda v: gf.parametrize.soft_limit(v, -3.0, 3.0)))(
        jnp.array([2.25, -2.25, 2.2501])
    )
    np.testing.assert_allclose(slope, 1, rtol=1e-4)


@pytest.mark.parametrize("kind", [gf.MixtureGaussianCDF, gf.DeepSigmoid])
def test_limits_keep_the_first_component_wide_and_let_the_others_be_narrow(kind):
    """At extreme outputs no log-scale is above the limit, and only that of the first is bounded below."""
    family = gf.Parametrized(kind(3, scales=np.ones(3)), max_log_scale=3.0)
    ends = jax.vmap(lambda theta: unwrap(family(theta)).log_scales)(
        family.theta(jnp.array([-1e9, 1e9])[:, None] * jnp.ones(family.size)[None, :])
    )
    np.testing.assert_allclose(ends, [[-3, -5, -5], [3, 3, 3]], rtol=1e-4)


def test_gradients_of_unlimited_parameters_do_not_overflow():
    """Far points send large cotangents back: times the width of an unlimited range they were infinite."""
    limit = lambda v: gf.parametrize.soft_limit(v, jnp.float32(-1e30), jnp.float32(1e30))
    np.testing.assert_allclose(jax.vjp(limit, jnp.float32(0.1))[1](jnp.float32(2e9))[0], 2e9, rtol=1e-6)


def test_a_bijector_without_parameters_is_named():
    for make in (gf.coupling_flow, gf.maf):
        with pytest.raises(ValueError, match=r"`bijector` must have a trainable parameter .*; it has none"):
            make(jr.key(0), 2, bijector=fb.Tanh(), **SMALL)


def test_a_bijector_without_parameters_acts_on_its_own():
    layer, x = gf.MarginalGaussianization((3,), bijector=fb.Tanh()), jnp.array([-1.0, 0.5, 2.0])
    np.testing.assert_allclose(layer.transform(x), jnp.tanh(x), rtol=1e-6)
