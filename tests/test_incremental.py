"""Tests of ``gauss_flows.incremental``."""

import jax
import jax.random as jr
import numpy as np
import pytest
from cases import ORDER_1, ORDER_3, axes

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    ("order", "cond_dim", "width"),
    [
        (np.arange(20), None, 17),  # several loops, fewer units than degrees
        (ORDER_1, 2, 3),
        (np.array([1, 1, 0, 0]), 2, 17),
        (ORDER_3.ravel(), None, 3),
    ],
)
def test_the_three_inverses_agree(order, cond_dim, width):
    """Bit for bit the same inverse up to rounding, from a network of few units or of many."""
    with jax.enable_x64(True):
        size = len(order)
        x = jr.normal(jr.key(1), (20, size))
        c = None if cond_dim is None else jr.normal(jr.key(2), (20, cond_dim))
        found = []
        for inverse in ("incremental", "sequential", "jacobi"):
            layer = gf.MaskedAutoregressive(
                jr.key(0), shape=(size,), bijector=gf.Affine(), order=order, cond_dim=cond_dim,
                nn_width=width, inverse=inverse,
            )  # fmt: skip
            z = jax.jit(jax.vmap(layer.transform, axes(c)))(x, c)
            found.append(jax.jit(jax.vmap(layer.inverse_and_log_det, axes(c)))(z, c))
            np.testing.assert_allclose(found[-1][0], x, atol=1e-13)
        for other in found[1:]:
            np.testing.assert_allclose(found[0][1], other[1], atol=1e-13)
