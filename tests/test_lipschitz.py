"""Tests of ``gauss_flows.lipschitz``."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from cases import steep

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)], indirect=True
)
def test_residual_blocks_stay_within_their_bound(dtype):
    """However large the weights; the certified bound covers the inverse's error; Newton and Banach agree."""
    for lipschitz in (0.5, 0.9, 0.97):
        found = []
        for inverse in ("newton", "banach"):
            block = steep(
                gf.Residual(jr.key(0), shape=(3,), lipschitz=lipschitz, nn_width=16, inverse=inverse)
            )
            assert lipschitz * 0.999 < float(jnp.prod(block.network.norms())) <= lipschitz
            x = 2 * jr.normal(jr.key(1), (500, 3))
            z = jax.jit(jax.vmap(block.transform))(x)
            np.testing.assert_allclose(jax.vmap(block.network)(x), z - x, atol=1e-5)  # used alone
            back, steps, bound = jax.jit(jax.vmap(block.inverse_and_steps))(z)
            rounding = 8 * float(jnp.finfo(dtype).eps) * 10
            assert bool((jnp.linalg.norm(back - x, axis=1) <= bound + rounding).all())
            assert float(bound.max()) <= rounding / (1 - lipschitz)
            found.append((back, steps.max()))
        np.testing.assert_allclose(found[0][0], found[1][0], atol=rounding)
        assert int(found[0][1]) < int(found[1][1])
