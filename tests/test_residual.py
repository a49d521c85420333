"""Tests of ``gauss_flows.residual``."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import KEY, built

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 1.0}, "`lipschitz` must lie between 0 and 1.*1.0"),
        ({"lipschitz": 0.0}, "`lipschitz` must lie between 0 and 1"),
        ({"lipschitz": -0.5}, "`lipschitz` must lie between 0 and 1"),
        ({"shape": (33,)}, "`log_det` must be 'hutchinson' or 'roulette' for an event of 33 elements"),
        ({"shape": (33,), "log_det": "roulette", "inverse": "newton"}, "`inverse` must be 'banach'"),
        ({"log_det": "trace"}, "`log_det` must be one of"),
        ({"log_det": "hutchinson", "terms": 0}, "`terms` must be a whole number of at least 1"),
        ({"inverse": "jacobi"}, "`inverse` must be one of"),
        ({"nn_depth": 0}, "`nn_depth` must be a whole number of at least 1"),
        ({"cond_dim": 0}, "`cond_dim` must be a whole number of at least 1"),
    ],
)
def test_residual_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        gf.Residual(jr.key(0), **({"shape": (3,)} | options))
    with pytest.raises(ValueError, match="`flow` must hold a Residual block"):
        gf.with_log_det(gf.AffineCoupling(jr.key(0), (2,)), key=jr.key(1))
    with pytest.raises(ValueError, match="`keep` must lie between 0 and 1"):
        gf.log_det.log_det_estimate(lambda x, c: x / 2, jnp.ones(2), jr.key(0), terms=1, keep=1.0)


def test_residual_blocks_have_their_default_terms_and_inverses():
    block = lambda **options: built(gf.Residual, **({"shape": (2,)} | options))
    assert (block().log_det.method, block().inverse_method) == ("exact", "newton")
    assert block(log_det="hutchinson").log_det.terms == 10
    assert block(log_det="roulette").log_det.terms == 4
    assert block(log_det="roulette", terms=0).log_det.terms == 0
    assert block(shape=(32,)).inverse_method == "newton"
    assert block(shape=(33,), log_det="roulette").inverse_method == "banach"
    assert block(shape=(32,), inverse="banach").inverse_method == "banach"


def test_the_inverse_reports_a_bound_that_follows_from_what_is_left():
    """Where the residual is r, the error is at most the norm of r over 1 - L."""
    block = gf.Residual(KEY, shape=(2,), lipschitz=0.75, nn_width=4, inverse="banach")
    unbounded = lambda x, condition=None: 0.75 * x + 1e6 * jnp.sign(x - 1)  # no fixed point: it stops at once
    block = eqx.tree_at(
        lambda b: b.network, block, Plain(0.75, unbounded), is_leaf=lambda n: n is block.network
    )
    y = jnp.array([3.0, 4.0])
    x, _, bound = block.inverse_and_steps(y)
    left = np.linalg.norm(x + unbounded(x) - y)
    np.testing.assert_allclose(bound, left / (1 - 0.75), rtol=1e-6)


class Plain(eqx.Module):
    """A network that is a given function."""

    lipschitz: float = eqx.field(static=True)
    function: object = eqx.field(static=True)

    def __call__(self, x, condition=None):
        return self.function(x, condition)
