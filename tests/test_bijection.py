"""Tests of ``gauss_flows.bijection``."""

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flowjax.distributions import Normal, Transformed

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_scan_is_flowjaxs_and_stores_less(dtype):
    """The same gradient, to rounding, from less than a third of the memory."""
    x = jr.normal(jr.key(1), (256, 2))
    layers = eqx.filter_vmap(lambda k: gf.RQSplineCoupling(k, (2,)))(jr.split(jr.key(0), 8))
    params, static = eqx.partition(layers, eqx.is_inexact_array)

    def gradient(stack):
        def total(params, x):
            z, log_det = jax.vmap(stack(eqx.combine(params, static)).transform_and_log_det)(x)
            return jnp.sin(z).sum() + log_det.sum()

        program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, x).compile()
        return program(params, x), program.memory_analysis().temp_size_in_bytes

    (ours, memory), (theirs, more) = gradient(gf.Scan), gradient(fb.Scan)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert 3 * memory < more


@pytest.mark.nightly  # the chapter on depth prints the same norms
def test_affine_stacks_have_the_source_documents_gradient_norms():
    """The source's data, layout and keys; its norms are printed to one decimal."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0.5, 3.5, 3000)
    arm = (rng.integers(0, 2, 3000) * 2 - 1)[:, None]
    xy = arm * np.stack([t * np.cos(2.5 * t), t * np.sin(2.5 * t)], axis=1)
    xy += 0.08 * rng.standard_normal((3000, 2))
    with jax.enable_x64(True):
        x = jnp.asarray((xy - xy.mean(0)) / xy.std(0))[:1000]

        def block(key):
            turn_key, first, second = jr.split(key, 3)
            turn = gf.HouseholderRotation(n_reflections=2, shape=(2,))
            turn = eqx.tree_at(lambda r: r.params, turn, jr.normal(turn_key, turn.params.shape))
            coupling = lambda k: gf.AffineCoupling(k, shape=(2,), nn_width=24, nn_depth=2)
            return fb.Chain([turn, coupling(first), fb.Flip((2,)), coupling(second), fb.Flip((2,))])

        for depth, expected in ((2, 1.8), (4, 3.6), (8, 2.4), (16, 8.9)):
            stack = fb.Scan(eqx.filter_vmap(block)(jr.split(jr.key(0), depth)))
            flow = Transformed(Normal(jnp.zeros(2)), fb.Invert(stack))
            grads = eqx.filter_jit(eqx.filter_grad(lambda f: -f.log_prob(x).mean()))(flow)
            norm = optax.tree.norm(eqx.filter(grads, eqx.is_array))
            assert abs(float(norm) - expected) <= 0.0501, (depth, float(norm))


def test_the_base_density_has_any_shape():
    assert gf.standard_normal(3).shape == (3,)
    assert gf.standard_normal((4, 4, 1)).shape == (4, 4, 1)
    with pytest.raises(ValueError, match="`shape` must be a tuple of positive integers"):
        gf.standard_normal((2, 0))
    with pytest.raises(ValueError, match="`dim` must be a whole number of at least 1; got 0"):
        gf.standard_normal(0)
