"""Tests of ``gauss_flows.log_density``: what ``fit_density`` and ``importance_sample`` refuse."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from training_support import small

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")

OFFSET = 1.7e9  # seconds since 1970: single precision has steps of 128 there
TIMES = OFFSET + np.linspace(-100.0, 100.0, 21)


def normal(x):
    return -0.5 * jnp.square(x).sum()


def of_times(x):
    """A Gaussian likelihood of times, whose mean is 100 x[0] seconds after the offset."""
    return -0.5 * jnp.square((jnp.asarray(TIMES) - (OFFSET + 100.0 * x[0])) / 100.0).sum()


def steps(key, flow, log_density):
    return gf.fit_density(key, flow, log_density, steps=2, n_judged=64, progress=False)


def weigh(key, flow, log_density):
    return gf.importance_sample(key, flow, log_density, 64)


def only_left(x):
    return jnp.where(x[0] < 0, normal(x), -jnp.inf)


@pytest.mark.parametrize("use", [steps, weigh])
@pytest.mark.parametrize(
    ("log_density", "message"),
    [
        (lambda x: -0.5 * x**2, r"to one real number, .* it returned shape \(2,\) and dtype float32"),
        (lambda x: (normal(x), 0.0), "it returned tuple"),
        (lambda x: jnp.sum(x > 0), r"it returned shape \(\) and dtype int32"),
        (3.0, r"`log_density` must be a function of one point of shape \(2,\); got float"),
        (lambda x: jnp.where(x[0] > 1, jnp.nan, normal(x)), r"it is NaN at \d+ of 64 of them, such as x ="),
        (lambda x: normal(x) + jnp.where(x[0] > 0, jnp.inf, 0), r"it is \+inf at \d+ of 64 of them"),
        (of_times, r"`log_density` needs double precision: single precision changes its values by"),
        (lambda x: normal(x) + jnp.log1p(jnp.exp(100 * x[0] ** 2)), "finite there alone"),
        (lambda x: normal(x) - 1e7, "needs double precision"),
    ],
)  # fmt: skip
def test_a_log_density_is_refused(use, log_density, message):
    with pytest.raises(ValueError, match=message):
        use(jr.key(0), small(), log_density)


@pytest.mark.parametrize("use", [steps, weigh])
@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (gf.Affine(), "`flow` must be a flowjax distribution; got Affine"),
        (small(cond_dim=1), r"`flow` must be unconditional; its condition has shape \(1,\)"),
        (
            gf.residual_flow(jr.key(0), 2, layers=1, nn_width=4, log_det="roulette"),
            "`flow` must have an exact log-determinant",
        ),
    ],
    ids=["no distribution", "conditional", "random"],
)
def test_a_flow_is_refused(use, flow, message):
    with pytest.raises(ValueError, match=message):
        use(jr.key(0), flow, normal)


def test_a_zero_density_is_refused_where_the_divergence_would_be_infinite():
    with pytest.raises(
        ValueError, match=r"is −inf at \d+ of 64 .* map its samples into the density's support"
    ):
        steps(jr.key(0), small(), only_left)
    assert np.isneginf(weigh(jr.key(0), small(), only_left).log_ratios).any()
    with pytest.raises(ValueError, match="must not be −inf at all 64 draws"):
        weigh(jr.key(0), small(), lambda x: jnp.where(x[0] > 90, 0.0, -jnp.inf))


def test_what_needs_double_precision_works_in_it():
    with jax.enable_x64(True):
        assert np.isfinite(weigh(jr.key(0), small(), of_times).log_ratios).all()


def test_large_values_far_from_the_density_are_no_rounding():
    """A start 1,000 standard deviations away: its log-densities are rounded by whole nats."""
    far = weigh(jr.key(0), small(), lambda x: -0.5 * jnp.square(1000 * (x - 3)).sum())
    assert far.log_ratios.min() < -1e6
