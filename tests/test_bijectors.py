"""Tests of ``gauss_flows.bijectors``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_log_of_a_scale_that_underflows_is_right(dtype):
    """With softplus(r), r = -1e4: the log-determinant is r, and no -inf."""
    for raw, wanted in ((-1e4, -1e4), (-30.0, -30.0), (0.0, np.log(np.log(2))), (1e4, np.log(1e4))):
        affine = eqx.tree_at(lambda a: a.scale.args, gf.Affine(), (jnp.array(raw, dtype),))
        np.testing.assert_allclose(affine.transform_and_log_det(1.0)[1], wanted, rtol=1e-6)
        slope = jax.grad(lambda r: eqx.tree_at(lambda a: a.scale.args, gf.Affine(), (r,)).scale.log)
        finite = jnp.array(raw, dtype)
        wanted = 1 if raw < -20 else jax.nn.sigmoid(finite) / jax.nn.softplus(finite)
        np.testing.assert_allclose(slope(finite), wanted, rtol=1e-5)
