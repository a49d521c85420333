"""Tests of ``gauss_flows.flow_matching``."""

import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import paramax
import pytest
import scipy

import gauss_flows as gf
from gauss_flows.flow_matching import _paired, matching_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {"nn_width": 8, "nn_depth": 1}


def of_velocity(velocity):
    """A flow with a given velocity."""
    return gf.Transformed(gf.standard_normal(2), gf.FlowODE(jr.key(0), (2,), velocity=velocity, steps=1))


def test_the_loss_exceeds_that_of_the_exact_velocity_by_the_squared_error():
    target = gf.targets.gaussian_mixture()
    x = target.sample(jr.key(1), (20_000,))
    error = lambda t, x: 0.3 * jnp.stack([jnp.sin(x[1]), t * x[0]])
    flows = [of_velocity(target.velocity), of_velocity(lambda t, x, c: target.velocity(t, x) + error(t, x))]
    losses = [float(jax.jit(lambda x, f=f: gf.flow_matching()(f, x, None, jr.key(2)))(x)) for f in flows]
    noise, t = jr.normal(jr.key(3), x.shape), jr.uniform(jr.key(4), (len(x),))
    squares = np.asarray(
        jnp.square(jax.vmap(error)(t, (1 - t)[:, None] * noise + t[:, None] * x)).sum(axis=1)
    )
    # The cross term, 2 E[error . (velocity - speed)], has mean 0; its deviation is below 2 |error| |speed|.
    spread = np.sqrt(4 * squares.mean() * losses[0] + squares.var()) / np.sqrt(len(x))
    assert abs(losses[1] - losses[0] - squares.mean()) <= 3 * spread
    assert squares.mean() > 10 * spread


@pytest.mark.parametrize(("path", "variance"), [("linear", 0.5), ("variance_preserving", 1.0)])
def test_paths_run_from_noise_to_data(path, variance):
    ends = gf.flow_matching(path)
    assert ends.path == path
    from gauss_flows.flow_matching import _PATHS

    x0, x1 = jr.normal(jr.key(0), (2, 4000))
    (start, _), (end, _), (middle, _) = (_PATHS[path](t, x0, x1) for t in (0.0, 1.0, 0.5))
    np.testing.assert_allclose(start, x0, atol=1e-6)
    np.testing.assert_allclose(end, x1, atol=1e-6)
    np.testing.assert_allclose(middle.var(), variance, rtol=0.1)
    point = lambda t: _PATHS[path](t, x0[:3], x1[:3])
    _, speed = point(0.3)
    np.testing.assert_allclose(jax.jacfwd(lambda t: point(t)[0])(0.3), speed, rtol=1e-4)


def test_times_are_drawn_one_in_each_part_of_the_interval():
    flow = of_velocity(lambda t, x, c: jnp.array([t, 0.0]))
    zeros = jnp.zeros((1000, 2))
    loss = jax.jit(lambda key: matching_loss(flow.bijection, "linear", zeros, zeros, None, key))
    # The mean of t² over independent times would have a standard error of 0.009.
    assert max(abs(float(loss(key)) - 1 / 3) for key in jr.split(jr.key(0), 10)) <= 1e-3


def test_pairs_minimize_the_squared_distances_within_blocks():
    noise, x = jr.normal(jr.key(0), (10, 2)), jr.normal(jr.key(1), (10, 2))
    paired = np.asarray(jax.jit(lambda n, x: _paired(n, x, 4))(noise, x))
    for block in (slice(0, 4), slice(4, 8), slice(8, 10)):
        a, b = np.asarray(x[block]), np.asarray(noise[block])
        cost = np.square(a[:, None] - b[None]).sum(axis=2)
        rows, columns = scipy.optimize.linear_sum_assignment(cost)
        assert sorted(map(tuple, paired[block].tolist())) == sorted(map(tuple, b.tolist()))
        np.testing.assert_allclose(np.square(a - paired[block]).sum(), cost[rows, columns].sum(), rtol=1e-5)


@pytest.mark.parametrize("pairs", ["independent", "optimal_transport"])
def test_flow_matching_learns_a_gaussian(pairs):
    target = gf.targets.gaussian_mixture([[1.0, -0.5]], 0.5)
    x = target.sample(jr.key(0), (2000,))
    flow = gf.continuous_flow(jr.key(1), 2, nn_width=16, nn_depth=2, steps=8)
    options = {"steps": 400, "progress": False}
    result = gf.fit(jr.key(2), flow, x, loss=gf.flow_matching(pairs=pairs), **options)
    fresh = target.sample(jr.key(3), (2000,))
    assert float((target.log_prob(fresh) - result.flow.log_prob(fresh)).mean()) <= 0.05
    assert result.density_error <= 1e-3


def test_the_noise_is_that_of_the_flows_base():
    x = 2 * jr.normal(jr.key(0), (2000, 2)) + 10
    base = fd.Normal(jnp.full(2, 8.0), jnp.full(2, 3.0))
    ode = gf.FlowODE(jr.key(1), (2,), nn_width=16, nn_depth=2, steps=8)
    flow = gf.Transformed(paramax.non_trainable(base), ode)
    options = {"loss": gf.flow_matching(), "steps": 400, "progress": False}
    samples = gf.fit(jr.key(2), flow, x, **options).flow.sample(jr.key(3), (2000,))
    np.testing.assert_allclose(samples.mean(axis=0), 10, atol=0.4)
    np.testing.assert_allclose(samples.std(axis=0), 2, atol=0.4)


def test_a_conditional_flow_learns_from_conditions():
    condition = jr.normal(jr.key(0), (2000, 1))
    x = 2 * condition + 0.3 * jr.normal(jr.key(1), (2000, 1))
    flow = gf.continuous_flow(jr.key(2), 1, cond_dim=1, nn_width=16, nn_depth=2, steps=8)
    options = {"loss": gf.flow_matching("variance_preserving"), "steps": 400, "progress": False}
    flow = gf.fit(jr.key(3), flow, x, condition=condition, **options).flow
    samples = flow.sample(jr.key(4), (), jnp.ones((1000, 1)))
    assert abs(float(samples.mean()) - 2) <= 0.2
    with pytest.raises(ValueError, match="`pairs` must be 'independent' for a flow with a condition"):
        gf.flow_matching(pairs="optimal_transport")(flow, x[:4], condition[:4], jr.key(5))


def test_reflow_makes_paths_straighter():
    target = gf.targets.gaussian_mixture([[-2.0, 0.0], [2.0, 0.0]], 0.4)
    teacher = gf.Transformed(
        gf.standard_normal(2), gf.FlowODE(jr.key(0), (2,), velocity=target.velocity, steps=16)
    )
    student = gf.continuous_flow(jr.key(1), 2, nn_width=32, nn_depth=2, steps=16)
    result = gf.reflow(jr.key(2), teacher, student=student, n_pairs=3000, steps=800, progress=False)
    z = jr.normal(jr.key(3), (500, 2))

    def one_step_error(flow):
        coarse = gf.FlowODE(jr.key(0), (2,), velocity=flow.bijection.velocity, solver="euler", steps=1)
        ends = jax.vmap(flow.bijection.transform)(z)
        return float(jnp.square(jax.vmap(coarse.transform)(z) - ends).sum(axis=1).mean())

    assert one_step_error(result.flow) <= 0.2 * one_step_error(teacher)


def test_equal_settings_share_their_programs():
    assert gf.flow_matching() == gf.flow_matching("linear", "independent", block=64)
    assert hash(gf.flow_matching()) == hash(gf.flow_matching())
    assert gf.flow_matching() != gf.flow_matching(pairs="optimal_transport")


def test_arguments_of_flow_matching_are_checked():
    with pytest.raises(ValueError, match=r"`path` must be one of .*'curved'"):
        gf.flow_matching("curved")
    with pytest.raises(ValueError, match="`pairs` must be one of"):
        gf.flow_matching(pairs="sinkhorn")
    with pytest.raises(ValueError, match="`block` must be a whole number of at least 2"):
        gf.flow_matching(block=1)
    coupling = gf.coupling_flow(jr.key(0), 2, layers=1, nn_width=4)
    with pytest.raises(ValueError, match="`flow` must be a continuous flow"):
        gf.flow_matching()(coupling, jnp.ones((4, 2)), None, jr.key(1))


def test_arguments_of_reflow_are_checked():
    flow = gf.continuous_flow(jr.key(0), 2, steps=1, **SMALL)
    with pytest.raises(ValueError, match="`loss` must be left out"):
        gf.reflow(jr.key(1), flow, loss=gf.flow_matching())
    with pytest.raises(ValueError, match="`flow` must be a continuous flow"):
        gf.reflow(jr.key(1), gf.coupling_flow(jr.key(0), 2, layers=1, nn_width=4))
    with pytest.raises(ValueError, match="`loss` must be left out"):
        gf.reflow(jr.key(1), flow, options=gf.FitOptions(loss=gf.flow_matching()))
    other = gf.Transformed(fd.Normal(jnp.ones(2)), flow.bijection)
    with pytest.raises(ValueError, match="`student` must have the base of `flow`"):
        gf.reflow(jr.key(1), flow, student=other)
    broken = gf.Transformed(
        gf.standard_normal(2), gf.FlowODE(jr.key(0), (2,), velocity=lambda t, x, c: x / 0, steps=1)
    )
    with pytest.raises(ValueError, match="`flow` must map noise to finite points"):
        gf.reflow(jr.key(1), broken, student=None, n_pairs=10)
    with pytest.raises(ValueError, match="`n_pairs` must be a whole number of at least 2"):
        gf.reflow(jr.key(1), flow, n_pairs=1)
    with pytest.raises(ValueError, match="`condition` must have shape None"):
        gf.reflow(jr.key(1), flow, n_pairs=4, condition=jnp.ones((4, 1)))
