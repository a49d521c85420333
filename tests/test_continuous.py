"""Tests of ``gauss_flows.continuous``."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.test_util import check_grads

import gauss_flows as gf
from gauss_flows.bijection import partition

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {"nn_width": 8, "nn_depth": 1}


def bent(key, dim=3, **options):
    """A continuous flow whose velocity is far from zero."""
    flow = gf.continuous_flow(key, dim, **SMALL, **options)
    params, rest = partition(flow)
    return eqx.combine(jax.tree.map(lambda a: 2 * a, params), rest)


def exact_flow(target, steps, **options):
    """The flow of a target's own velocity."""
    ode = gf.FlowODE(jr.key(0), target.shape, velocity=target.velocity, steps=steps, **options)
    return gf.Transformed(gf.standard_normal(*target.shape), ode)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param("gaussian_mixture", 64, marks=pytest.mark.nightly),
        ("two_moons", 128),
        pytest.param("spiral", 256, marks=pytest.mark.nightly),
    ],
)
def test_the_exact_velocity_of_a_mixture_gives_its_density(name, steps):
    with jax.enable_x64():
        target = getattr(gf.targets, name)()
        x = target.sample(jr.key(1), (100,))
        gap = target.log_prob(x) - exact_flow(target, steps).log_prob(x)
        assert abs(float(gap.mean())) <= 1e-6
        standard = target.standardized()
        z = (x[:20] - target.mean[None]) / target.std[None]
        apart = standard.log_prob(z) - exact_flow(standard, steps).log_prob(z)
        assert float(jnp.abs(apart).max()) <= 1e-4


@pytest.mark.parametrize("name", ["gaussian_mixture", "two_moons"])
def test_the_default_solver_is_exact_to_a_thousandth_of_a_nat(name):
    with jax.enable_x64():
        target = getattr(gf.targets, name)()
        x = target.sample(jr.key(2), (200,))
        flow = exact_flow(target, gf.continuous_flow(jr.key(0), 2).bijection.solver.steps)
        assert flow.bijection.solver.evaluations == 128
        truth = np.asarray(target.log_prob(x))
        error = np.asarray(flow.log_prob(x)) - truth
        assert np.abs(error).mean() <= 1e-3
        estimated = gf.density_error(flow, x)
        np.testing.assert_allclose(np.abs(estimated).mean(), np.abs(error).mean(), rtol=0.25)


def test_a_coarse_density_looks_better_than_it_is_and_the_estimate_says_so():
    with jax.enable_x64():
        target = gf.targets.two_moons()
        x = target.sample(jr.key(3), (400,))
        flow = exact_flow(target, 8)
        error = np.asarray(flow.log_prob(x) - target.log_prob(x))
        estimated = gf.density_error(flow, x)
    assert error.mean() > 1e-3
    np.testing.assert_allclose(estimated.mean(), error.mean(), rtol=0.3)


def test_there_and_back_ends_within_the_reported_error():
    with jax.enable_x64():
        ode = bent(jr.key(0), steps=8).bijection
        x = jr.normal(jr.key(1), (50, 3))
        reported = jax.vmap(ode.round_trip_error)(x)
        left = jnp.abs(jax.vmap(ode.inverse)(jax.vmap(ode.transform)(x)) - x).max(axis=1)
        np.testing.assert_allclose(reported, left, rtol=1e-6, atol=1e-15)
        assert 1e-12 < float(reported.max()) < 1e-3
        finer = bent(jr.key(0), steps=64).bijection
        assert float(jax.vmap(finer.round_trip_error)(x).max()) < 1e-3 * float(reported.max())


@pytest.mark.parametrize("terms", [1, 4])
def test_the_estimate_of_the_trace_is_unbiased(terms):
    flow = bent(jr.key(0), log_det="hutchinson", terms=terms, steps=4)
    x = jr.normal(jr.key(1), (3,))
    keys = jr.split(jr.key(2), 20_000)
    draw = eqx.filter_jit(
        jax.vmap(lambda key: gf.with_log_det(flow, key=key).bijection.transform_and_log_det(x)[1])
    )
    draws = np.asarray(draw(keys), float)
    exact = float(gf.with_log_det(flow, "exact").bijection.transform_and_log_det(x)[1])
    assert abs(draws.mean() - exact) <= 3 * draws.std() / np.sqrt(len(draws))
    assert draws.std() > 1e-3


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64():
        flow = bent(jr.key(0), dim=2, steps=4, cond_dim=1)
        params, rest = partition(flow)
        x, c = jr.normal(jr.key(1), (5, 2)), jr.normal(jr.key(2), (5, 1))
        check_grads(
            lambda params, x: eqx.combine(params, rest).log_prob(x, c).sum(), (params, x), 1, modes="rev"
        )


def test_an_estimate_never_passes_for_a_likelihood():
    flow = gf.continuous_flow(jr.key(0), 2, log_det="hutchinson", steps=2, **SMALL)
    x = jnp.ones((20, 2))
    with pytest.raises(ValueError, match="`log_det` must have a random key"):
        flow.log_prob(x)
    with pytest.raises(ValueError, match="`key` must be a random key where"):
        gf.density_error(flow, x)
    with pytest.raises(
        ValueError, match=r"`log_det` must be one of \('exact', 'hutchinson'\); got 'roulette'"
    ):
        gf.with_log_det(flow, "roulette")
    assert flow.sample(jr.key(1), (2,)).shape == (2, 2)
    estimates = gf.estimate_log_prob(flow, x, jr.key(1))
    assert len(set(np.asarray(estimates).tolist())) > 1  # equal rows, each with signs of its own
    exact = gf.with_log_det(flow, "exact").log_prob(x)
    assert float(jnp.abs(exact - estimates).max()) > 1e-4
    assert gf.density_error(flow, x, key=jr.key(2)).shape == (20,)


def test_training_by_likelihood_passes_through_the_solver():
    x = 0.5 * jr.normal(jr.key(1), (400, 2)) + 1
    flow = gf.continuous_flow(jr.key(0), 2, steps=8, **SMALL)
    options = {"steps": 60, "batch_size": 100, "progress": False}
    result = gf.fit(jr.key(2), flow, x, **options)
    # The entropy is 1.45 nats, and 40 held-out rows have a standard error of 0.16; before training it is 3.
    assert result.val_loss[-1] <= 1.45 + 3 * 0.16
    assert 0 < result.density_error < 1e-3
    noisy = gf.continuous_flow(jr.key(0), 2, steps=4, log_det="hutchinson", **SMALL)
    noisy = gf.fit(jr.key(2), noisy, x, **options)
    assert noisy.val_loss[-1] <= 1.45 + 3 * 0.16
    assert noisy.density_error is None


def test_fit_warns_of_a_coarse_solver_and_not_of_other_flows():
    x = gf.targets.two_moons().sample(jr.key(1), (300,))
    flow = gf.continuous_flow(jr.key(0), 2, solver="euler", steps=2, **SMALL)
    options = {"loss": gf.flow_matching(), "steps": 20, "batch_size": 64, "progress": False}
    with pytest.warns(UserWarning, match="The solver of this continuous flow is too coarse"):
        result = gf.fit(jr.key(2), flow, x, **options)
    assert result.density_error > 1e-3
    with pytest.warns(UserWarning, match="too coarse"):
        many = gf.fit_many(
            jr.split(jr.key(3), 2),
            lambda key: gf.continuous_flow(key, 2, solver="euler", steps=2, **SMALL),
            x,
            **options,
        )
    assert many.density_error.shape == (2,)
    assert many[1].density_error == many.density_error[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = gf.coupling_flow(jr.key(0), 2, layers=1, nn_width=4, bijector=gf.Affine())
        assert gf.fit(jr.key(2), other, x, steps=5, batch_size=64, progress=False).density_error is None


def test_diffrax_can_solve_a_flow():
    with jax.enable_x64():
        fixed = bent(jr.key(0), dim=2, steps=64)
        adaptive = bent(jr.key(0), dim=2, solver="Tsit5", tolerance=1e-8)
        x = jr.normal(jr.key(1), (10, 2))
        np.testing.assert_allclose(fixed.log_prob(x), adaptive.log_prob(x), atol=1e-6)
        assert np.abs(gf.density_error(adaptive, x)).max() <= 1e-6


def test_layers_of_a_stack_get_signs_of_their_own():
    make = lambda key: gf.FlowODE(key, (2,), steps=2, log_det="hutchinson", **SMALL)
    stack = gf.Scan(eqx.filter_vmap(make)(jr.split(jr.key(0), 3)))
    keyed = gf.with_log_det(stack, key=jr.key(1))
    assert keyed.bijection.log_det.key.shape == (3,)
    assert keyed.transform_and_log_det(jnp.ones(2))[0].shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"velocity": lambda t, x, c: x[:1]}, r"`velocity` must return .* shape \(2,\); it returned \(1,\)"),
        ({"velocity": lambda t, x: x}, "`velocity` must take a time, an event"),
        ({"velocity": 3.0}, "`velocity` must be a function"),
        ({"velocity": lambda t, x, c: jnp.zeros(2, int)}, "`velocity` must return floating-point numbers"),
        (
            {"velocity": lambda t, x, c: x, "conditioner": gf.conditioners.mlp(4)},
            "`conditioner` must be left",
        ),
        ({"steps": -1}, "`steps` must be a whole number of at least 1; got -1"),
        ({"solver": "midpoint"}, "`solver` must be one of"),
        ({"shape": (33,)}, "`log_det` must be 'hutchinson' for an event of 33 elements"),
        ({"log_det": "roulette"}, "`log_det` must be one of"),
        ({"log_det": "hutchinson", "terms": 0}, "`terms` must be a whole number of at least 1"),
        ({"cond_dim": 0}, "`cond_dim` must be a whole number of at least 1"),
    ],
)
def test_arguments_of_the_layer_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        gf.FlowODE(jr.key(0), **({"shape": (2,)} | options))


def test_the_error_of_a_density_is_asked_of_continuous_flows_and_of_arrays():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="`flow` must be a distribution that holds a FlowODE; got FlowODE"):
        gf.density_error(gf.FlowODE(jr.key(0), (2,), steps=1), x)
    with pytest.raises(ValueError, match="that holds a FlowODE; got Transformed"):
        gf.density_error(gf.coupling_flow(jr.key(0), 2, layers=1, nn_width=4), x)
    flow = gf.continuous_flow(jr.key(0), 2, steps=1, **SMALL)
    with pytest.raises(ValueError, match="`x` must be a concrete array"):
        jax.jit(lambda x: gf.density_error(flow, x))(x)
    assert gf.density_error(flow, x[:1]).shape == (1,)


def test_times_and_targets_without_a_velocity_are_refused():
    with pytest.raises(ValueError, match="no mixture of Gaussians"):
        gf.targets.rings().velocity(0.5, jnp.zeros(2))
    moons = gf.targets.two_moons()
    for t in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`t` must lie between 0 and 1"):
            moons.velocity(t, jnp.zeros(2))
    for x in (jnp.zeros(1), jnp.zeros(()), jnp.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"`x` must be one point of shape \(2,\)"):
            moons.velocity(0.5, x)
    with pytest.raises(ValueError, match="`t` must be one number"):
        moons.velocity(jnp.array([0.1, 0.2]), jnp.zeros(2))


def test_a_density_error_that_is_not_known_is_warned_of():
    class Steep(eqx.Module):
        rate: jnp.ndarray

        def __call__(self, t, x, condition):
            return self.rate * x

    ode = gf.FlowODE(jr.key(0), (2,), velocity=Steep(jnp.full(2, 300.0)), steps=4)
    flow = gf.Transformed(gf.standard_normal(2), ode)
    options = {"loss": gf.flow_matching(), "steps": 4, "batch_size": 8, "progress": False}
    with pytest.warns(UserWarning, match="too coarse"):
        gf.fit(jr.key(1), flow, jr.normal(jr.key(2), (40, 2)), **options)


def test_a_row_that_diffrax_cannot_solve_does_not_end_the_call():
    flow = bent(jr.key(0), dim=2, solver="Tsit5")
    good = flow.log_prob(jnp.zeros((1, 2)))
    both = flow.log_prob(jnp.array([[jnp.nan, 1.0], [0.0, 0.0]]))
    assert bool(jnp.isnan(both[0]))
    np.testing.assert_allclose(both[1:], good, rtol=1e-4)
