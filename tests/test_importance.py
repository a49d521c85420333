"""Tests of ``gauss_flows.importance``, against integrals that are known."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats

import gauss_flows as gf
from gauss_flows.bijection import partition

BASE = gf.standard_normal(1)
SCALE = 0.8
LOG_Z = float(np.log(SCALE * np.sqrt(2 * np.pi)))


def narrow(x):
    """A Gaussian narrower than the flow, times its constant: the weights are bounded."""
    return -0.5 * jnp.square(x / SCALE).sum()


def test_the_numbers_are_those_of_the_formulas():
    sample = gf.importance_sample(jr.key(0), BASE, narrow, 4000)
    x = np.asarray(sample.x, float)[:, 0]
    ratios = scipy.stats.norm.logpdf(x, 0, SCALE) + LOG_Z - scipy.stats.norm.logpdf(x)
    np.testing.assert_allclose(sample.log_ratios, ratios, atol=1e-5)
    w = np.exp(ratios)
    np.testing.assert_allclose(sample.weights, w / w.sum(), rtol=1e-4)
    assert sample.weights.sum() == pytest.approx(1)
    assert sample.effective_sample_size == pytest.approx(w.sum() ** 2 / np.square(w).sum(), rel=1e-4)
    assert sample.log_evidence.value == pytest.approx(np.log(w.mean()), abs=1e-5)
    assert sample.log_evidence.standard_error == pytest.approx(
        w.std(ddof=1) / w.mean() / np.sqrt(4000), rel=1e-3
    )
    assert sample.elbo.value == pytest.approx(ratios.mean(), abs=1e-5)
    assert sample.elbo.value < sample.log_evidence.value
    # E_q[w²] / E_q[w]² = 1 / (s sqrt(2 - s²)) for N(0, s²) over N(0, 1).
    assert sample.effective_sample_size / 4000 == pytest.approx(SCALE * np.sqrt(2 - SCALE**2), rel=0.05)


def test_the_error_bars_hold():
    """Of 100 repetitions, the standardized errors have mean 0 and standard deviation 1."""
    scores = {"evidence": [], "second moment": []}
    for key in jr.split(jr.key(1), 100):
        sample = gf.importance_sample(key, BASE, narrow, 500)
        value, error = sample.log_evidence
        scores["evidence"].append((value - LOG_Z) / error)
        value, error = sample.mean(lambda x: jnp.square(x[0]))
        scores["second moment"].append((value - SCALE**2) / error)
    for name, z in scores.items():
        assert abs(np.mean(z)) < 0.35, name
        assert 0.8 < np.std(z) < 1.25, name


def test_the_chain_and_the_resampled_draws_follow_the_density():
    sample = gf.importance_sample(jr.key(2), BASE, narrow, 20_000)
    states, accepted = sample.metropolis(jr.key(3))
    assert states.shape == sample.x.shape
    assert 0.8 < accepted < 0.95
    thinned = np.asarray(states[100::4, 0], float)
    assert scipy.stats.kstest(thinned, scipy.stats.norm(0, SCALE).cdf).pvalue > 0.001
    assert (
        scipy.stats.kstest(np.asarray(sample.x[:5000, 0], float), scipy.stats.norm(0, SCALE).cdf).pvalue
        < 1e-6
    )
    again = np.asarray(sample.resample(jr.key(4), 5000)[:, 0], float)
    assert again.std() == pytest.approx(SCALE, rel=0.05)


def test_a_chain_never_enters_where_the_density_is_zero():
    sample = gf.importance_sample(jr.key(0), BASE, lambda x: jnp.where(x[0] > 0, narrow(x), -jnp.inf), 400)
    first = int(np.flatnonzero(np.asarray(sample.x[:, 0]) > 0)[0])
    states, _ = sample.metropolis(jr.key(1))
    assert bool((states[first:] > 0).all())
    assert float(sample.mean()[0][0]) == pytest.approx(SCALE * np.sqrt(2 / np.pi), abs=0.1)


def test_pareto_k_tells_a_heavy_tail():
    """Below 0 for bounded weights; 1 − 1/s² for a Gaussian of scale s under a standard normal flow."""
    pytest.importorskip("arviz_stats")
    k = lambda scale: (
        gf.importance_sample(jr.key(0), BASE, lambda x: -0.5 * jnp.square(x / scale).sum(), 20_000).pareto_k
    )
    assert k(0.8) < 0.2
    assert k(1.5) == pytest.approx(1 - 1 / 1.5**2, abs=0.15)
    assert k(3.0) > 0.7


def test_pareto_k_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_stats", None)
    monkeypatch.setitem(sys.modules, "arviz_stats.base", None)
    sample = gf.importance_sample(jr.key(0), BASE, narrow, 50)
    with pytest.raises(ImportError, match=r"pip install 'gauss_flows\[inference\]'"):
        sample.pareto_k  # noqa: B018


def test_importance_sample_refuses():
    with pytest.raises(ValueError, match="`n` must be a whole number of at least 2; got 1"):
        gf.importance_sample(jr.key(0), BASE, narrow, 1)
    with pytest.raises(ValueError, match="`key` must be a random key"):
        gf.importance_sample(0, BASE, narrow, 10)
    flow = gf.coupling_flow(jr.key(0), 1, layers=1, bijector=gf.Affine())
    params, rest = partition(flow)
    broken = eqx.combine(jax.tree.map(lambda a: a * jnp.nan, params), rest)
    with pytest.raises(ValueError, match="must be finite"):
        gf.importance_sample(jr.key(0), broken, narrow, 10)
