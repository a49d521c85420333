"""Tests of ``gauss_flows.circular``: angles, alone and beside lines."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
from flow_cases import SMALL, with_random_networks

import gauss_flows as gf
from gauss_flows.circular import _periodic

pytestmark = pytest.mark.usefixtures("quick_compilation")

TURN = 2 * np.pi


def bent(k, n_bins=5):
    return jax.tree.map(lambda a: a + jr.normal(k, a.shape), gf.CircularSpline(n_bins))


def test_a_circular_spline_repeats_itself_and_has_one_slope_at_the_seam():
    with jax.enable_x64(True):
        spline = bent(jr.key(0))
        x = jnp.linspace(0.1, 6.2, 20)
        run = jax.vmap(spline.transform_and_log_det)
        (y, slope), (later, same) = run(x), run(x + 3 * TURN)
        np.testing.assert_allclose(later, y + 3 * TURN, rtol=1e-12)
        np.testing.assert_allclose(same, slope, atol=1e-10)
        (left, right), slopes = run(jnp.array([TURN - 1e-9, TURN + 1e-9]))
        np.testing.assert_allclose(left, right, atol=1e-7)
        np.testing.assert_allclose(*slopes, atol=1e-6)
        assert abs(float(slopes[0])) > 0.01  # and it is not simply 1


def mixed(key, **options):
    """Lines and circles in every order, under networks that are not zero."""
    supports = ["angle", "positive", ("angle", 360.0), "real", (0, 1), "angle"]
    flow = gf.coupling_flow(key, 6, supports=supports, **SMALL, **options)
    return with_random_networks(flow, 0.3, jr.key(3))


def test_a_mixed_flow_is_a_density_on_its_supports():
    """The density of samples is that evaluated afterwards; angles are periodic, in value and in slope."""
    with jax.enable_x64(True):
        flow = mixed(jr.key(0), cond_dim=1, mixing="householder", actnorm=True)
        c = jnp.ones(1)
        draw = jax.jit(jax.vmap(lambda key: flow.sample_and_log_prob(key, (), c)))
        x, log_prob = draw(jr.split(jr.key(1), 200))
        log_q = jax.jit(jax.vmap(lambda x: flow.log_prob(x, c)))
        np.testing.assert_allclose(log_q(x), log_prob, atol=1e-9)
        low, high = np.array([0, 0, 0, -np.inf, 0, 0]), np.array([TURN, np.inf, 360, np.inf, 1, TURN])
        assert bool((x >= low[None]).all() & (x < high[None]).all())
        for i, period in ((0, TURN), (2, 360.0), (5, TURN)):
            np.testing.assert_allclose(log_q(x.at[:, i].add(period)), log_prob, atol=1e-9)
            ends = jnp.stack([x[0].at[i].set(end) for end in (1e-9, period - 1e-9)])
            gradients = jax.vmap(jax.grad(lambda x: flow.log_prob(x, c)))(ends)
            np.testing.assert_allclose(*log_q(ends), atol=1e-6)
            np.testing.assert_allclose(gradients[0, 1], gradients[1, 1], atol=1e-4)
            around = jnp.stack([x[0].at[i].set(angle) for angle in np.linspace(0, period, 9)])
            assert np.ptp(log_q(around)) > 0.1


@pytest.mark.parametrize("supports", [["angle"], ["angle", "angle"], ["real", "angle"]])
def test_a_flow_with_angles_integrates_to_one(supports):
    flow = with_random_networks(
        gf.coupling_flow(jr.key(0), len(supports), supports=supports, **SMALL), 0.3, jr.key(5)
    )
    flow = eqx.tree_at(  # the spline of a lone angle has no network
        lambda f: f.bijection.bijections[0].bijection.bijections[1].bijection, flow, replace_fn=_moved
    )
    axes = [np.linspace(0, TURN, 401)[:-1] if s == "angle" else np.linspace(-9, 9, 901) for s in supports]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    density = jnp.exp(flow.log_prob(grid))
    assert float(density.sum() * cell) == pytest.approx(1, abs=2e-3)
    assert float(jnp.ptp(density)) > 0.01


def _moved(layers):
    return jax.tree.map(
        lambda a: a + 0.2 * jr.normal(jr.key(8), a.shape) if eqx.is_inexact_array(a) else a, layers
    )


def test_a_circular_spline_learns_von_mises_densities_across_the_seam():
    """Two modes, one on the seam: KL at most 0.01 nats, no sample outside, one value at both ends."""
    parts = scipy.stats.vonmises(4.0, loc=3.0), scipy.stats.vonmises(8.0, loc=0.1)
    rng = np.random.default_rng(0)
    draws = np.concatenate([part.rvs(5000, random_state=rng) for part in parts])[:, None]
    flow = gf.coupling_flow(jr.key(0), 1, layers=3, supports=[("angle", 360.0)])
    result = gf.fit(jr.key(1), flow, np.degrees(draws) % 360, steps=600, progress=False)
    x = np.linspace(0, 360, 2001)[:, None]
    p = sum(0.5 * part.pdf(np.radians(x[:, 0])) for part in parts) * np.pi / 180
    log_q = np.asarray(result.flow.log_prob(x), float)
    assert np.trapezoid(p * (np.log(p) - log_q), x[:, 0]) <= 0.01
    assert np.trapezoid(np.exp(log_q), x[:, 0]) == pytest.approx(1, abs=1e-4)
    assert log_q[0] == pytest.approx(log_q[-1], abs=1e-4)
    samples = np.asarray(result.flow.sample(jr.key(2), (10_000,)))
    assert samples.min() >= 0
    assert samples.max() < 360


def test_a_flow_with_angles_takes_no_other_base():
    with pytest.raises(ValueError, match="`base` must be left out of a flow with angles"):
        gf.coupling_flow(jr.key(0), 2, supports=["real", "angle"], base=gf.standard_normal(2))


def test_networks_are_given_cosine_and_sine():
    taken = _periodic(lambda in_size, out_size, *, key: lambda inputs: inputs, 1, 3)(4, 6, key=jr.key(0))
    inputs = jnp.array([5.0, 0.3, -0.3, 7.0])
    np.testing.assert_allclose(
        taken(inputs), [5.0, *np.cos([0.3, -0.3]), *np.sin([0.3, -0.3]), 7.0], rtol=1e-6
    )
