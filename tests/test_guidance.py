"""Tests of ``gauss_flows.guidance``."""

import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import KEY, built, drawn

import gauss_flows as gf
from gauss_flows.bijection import partition
from gauss_flows.fit_loop import maximum_likelihood

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_guidance_moves_a_shift_beyond_the_condition():
    """The first patch of a layer that only shifts: its shift is θ(c) + w (θ(c) - θ(0))."""
    options = {"layers": 1, "nn_width": 8, "cond_dim": 1, "bijector": fb.Loc(jnp.zeros(()))}
    flow = drawn(lambda key: gf.transformer_flow(key, (2, 4), **options).bijection)
    zeros, one = jnp.zeros((2, 4)), jnp.ones(1)
    first = lambda bijection, c: np.asarray(bijection.inverse(zeros, c))[::-1, ::-1][:, :2]
    with_c, without = first(flow, one), first(flow, 0 * one)
    assert np.abs(with_c - without).min() > 1e-3
    guided = gf.guided(flow, 2.0)
    np.testing.assert_allclose(first(guided, one), with_c + 2 * (with_c - without), rtol=1e-5)
    np.testing.assert_allclose(first(guided, 0 * one), without, rtol=1e-5)
    again = jax.tree.leaves(gf.guided(gf.guided(flow, 2.0), 0.0))
    assert all(a is b for a, b in zip(again, jax.tree.leaves(flow), strict=True))
    z = jr.normal(jr.key(1), (2, 4))
    np.testing.assert_allclose(guided.inverse(guided.transform(z, one), one), z, atol=1e-5)


def test_the_weight_of_guidance_is_not_trained():
    flow = gf.guided(built(gf.transformer_flow, (2, 4), layers=2, nn_width=8, cond_dim=2), 1.5)
    where = lambda flow: flow.bijection.bijection.bijection[0].conditioner.guidance
    params, static = partition(flow)
    assert where(params) is None
    np.testing.assert_array_equal(where(static).tree, [1.5, 1.5])  # one for each layer


def test_a_row_loses_its_condition_as_often_as_asked_for():
    """As many rows as the probability says, all of a row at once; the rest reaches the loss unchanged."""
    seen = lambda flow, x, condition, key: (flow, x, condition)
    x, c = jnp.ones((4000, 3)), 1 + jr.uniform(KEY, (4000, 2))
    flow, rows, kept = gf.drop_condition(seen, 0.25)("flow", x, c, jr.key(1))
    dropped = (np.asarray(kept) == 0).all(axis=1)
    assert abs(dropped.mean() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    np.testing.assert_array_equal(np.asarray(kept)[~dropped], np.asarray(c)[~dropped])
    assert flow == "flow"
    assert rows is x
    np.testing.assert_array_equal(gf.drop_condition(seen, 0)(flow, x, c, KEY)[2], c)
    assert not gf.drop_condition(seen, 1)(flow, x, c, KEY)[2].any()
    assert gf.drop_condition(seen) == gf.drop_condition(seen, 0.1)
    assert gf.drop_condition() == gf.drop_condition() != gf.drop_condition(gf.flow_matching())


def test_the_default_loss_is_that_of_fit_and_flow_matching_fits_too():
    assert gf.drop_condition() == gf.drop_condition(maximum_likelihood, 0.1)
    x, c = jr.normal(jr.key(1), (8, 2)), jnp.ones((8, 2))
    ode = gf.continuous_flow(KEY, 2, nn_width=8, cond_dim=2)
    run = jax.jit(lambda c, p: gf.drop_condition(gf.flow_matching(), p)(ode, x, c, KEY), static_argnums=1)
    np.testing.assert_allclose(run(c, 1), run(0 * c, 0), rtol=1e-5)
    assert abs(float(run(c, 0) - run(c, 1))) > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gf.drop_condition(probability=1.5), r"`probability` must lie in \[0, 1\]; got 1.5"),
        (lambda: gf.drop_condition("likelihood"), "`loss` must be a function .*; got 'likelihood'"),
        (lambda: gf.drop_condition()(None, jnp.ones((2, 2)), None, KEY), "`flow` must have a condition"),
        (
            lambda: gf.guided(gf.Affine(), 1.0),
            "`flow` must hold a patch_transformer with a condition.*; got Affine without one",
        ),
        (lambda: gf.guided(None, -1.0), "`weight` must be at least 0 and finite; got -1.0"),
        (lambda: gf.guided(None, float("nan")), "`weight` must be at least 0 and finite; got nan"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
