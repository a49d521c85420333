"""Tests of ``gauss_flows.log_det``."""

import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import KEY

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Scaled(eqx.Module):
    """A contraction that is at its bound in every direction: L times a rotated tanh."""

    matrix: jax.Array

    def __call__(self, x, condition=None):
        return self.matrix @ jnp.tanh(x)


def scaled(dim, lipschitz):
    turn, _ = jnp.linalg.qr(jr.normal(jr.key(4), (dim, dim)))
    return Scaled(-lipschitz * (0.8 * jnp.eye(dim) + 0.2 * turn))


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("dim", [2, pytest.param(8, marks=pytest.mark.nightly)])
def test_roulette_is_unbiased_and_truncation_is_not(dim, lipschitz):
    """Values and gradients (in x and in the parameters) within three standard errors of the exact ones."""
    with jax.enable_x64(True):
        network, x, keys = scaled(dim, lipschitz), jnp.full(dim, 0.1), jr.split(jr.key(5), 20_000)
        exact = lambda n, x: jnp.linalg.slogdet(jnp.eye(dim) + jax.jacfwd(n)(x))[1]
        both = lambda f: jax.value_and_grad(f, argnums=(0, 1))
        value, grads = both(exact)(network, x)

        @eqx.filter_jit
        def draws(**options):
            estimate = lambda n, x, key: gf.log_det.log_det_estimate(n, x, key, **options)[0]
            return jax.vmap(both(estimate), (None, None, 0))(network, x, keys)

        values, slopes = draws(terms=2, keep=lipschitz)
        for truth, found in zip(
            jax.tree.leaves((value, grads)), jax.tree.leaves((values, slopes)), strict=True
        ):
            error = found.std(0) / np.sqrt(len(keys))
            assert float(jnp.max(jnp.abs(found.mean(0) - truth) / error)) <= (3 if truth.ndim == 0 else 4)
        cut = draws(terms=4, keep=None)[0]
        bias = float(cut.mean() - value)
        tail = dim * (-np.log1p(-lipschitz) - sum(lipschitz**k / k for k in range(1, 5)))
        assert 5 * float(cut.std()) / np.sqrt(len(keys)) < abs(bias) <= tail


def test_residual_log_dets_need_a_key_and_can_be_exchanged():
    flow = gf.residual_flow(jr.key(0), 3, layers=2, nn_width=8, log_det="roulette")
    x = jr.normal(jr.key(1), (400, 3))
    with pytest.raises(ValueError, match="`log_det` must have a random key, since 'roulette' is an estimate"):
        flow.log_prob(x)
    exact = gf.with_log_det(flow, "exact").log_prob(x)
    estimates = gf.estimate_log_prob(flow, x, jr.key(2))
    error = (estimates - exact).std() / 20
    assert 0 < abs(float((estimates - exact).mean())) <= 3 * float(error)
    np.testing.assert_array_equal(estimates, gf.estimate_log_prob(flow, x, jr.key(2)))
    keyed = gf.with_log_det(flow, "hutchinson", terms=60, key=jr.key(3))
    np.testing.assert_allclose(jnp.mean(keyed.log_prob(x) - exact), 0, atol=0.2)
    keys = keyed.bijection.bijection.bijection[1].log_det.key
    assert len(jax.random.key_data(keys)) == 2  # one a block, not one for all
    block = gf.Residual(jr.key(0), shape=(2,), log_det="roulette")
    np.testing.assert_allclose(block.inverse(block.transform(jnp.ones(2))), 1, atol=1e-5)  # no key needed


def test_another_log_determinant_has_its_own_terms_and_a_key_changes_none():
    block = gf.Residual(KEY, shape=(2,), nn_width=4, log_det="hutchinson", terms=7)
    terms = lambda *args, **options: gf.with_log_det(block, *args, **options).log_det.terms
    assert terms(key=jr.key(1)) == terms("hutchinson") == terms() == 7
    assert terms("roulette") == 4
    assert terms("roulette", terms=2) == terms(terms=2) == 2
    keyed = gf.with_log_det(block, key=jr.key(1))
    assert keyed.log_det.key is not None
    assert gf.with_log_det(keyed).log_det.key is None  # the default is none
    is_random = gf.log_det.is_random
    assert (is_random(keyed), is_random(gf.with_log_det(keyed, "exact"))) == (True, False)


class Slope(eqx.Module):
    """g(x) = a x in one dimension, where random signs cancel and each term of the series is exact."""

    a: jax.Array

    def __call__(self, x, condition=None):
        return self.a * x


def series(a, count, terms, keep):
    """The two series of `log_det_estimate` with `count` terms, at J = a."""
    weight = lambda k: keep ** -max(k - terms, 0) if keep else 1.0
    value = sum((-1) ** (k + 1) / k * weight(k) * a**k for k in range(1, count + 1))
    return value, sum((-1) ** k * weight(k) * a**k for k in range(count + 1))


@pytest.mark.parametrize(("terms", "keep"), [(3, None), (2, 0.5), (0, 0.5)])
def test_estimates_of_the_log_determinant_are_the_series_that_they_state(terms, keep):
    """Terms after the certain ones go on with probability `keep`, and are divided by their own."""
    estimate = lambda a, key: gf.log_det.log_det_estimate(Slope(a), jnp.ones(1), key, terms=terms, keep=keep)
    both = jax.jit(jax.vmap(jax.value_and_grad(estimate, has_aux=True), (None, 0)))
    (values, counts), slopes = jax.tree.map(np.asarray, both(jnp.float32(0.4), jr.split(KEY, 1000)))
    for count in np.unique(counts):
        value, slope = series(0.4, int(count), terms, keep)
        np.testing.assert_allclose(values[counts == count], value, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(slopes[counts == count], slope, rtol=1e-4)
    if keep is None:
        assert (counts == terms).all()
    else:
        assert counts.min() == terms
        np.testing.assert_allclose(counts.mean() - terms, keep / (1 - keep), atol=0.15)


def test_each_point_has_noise_of_its_own_and_keys_change_it():
    block = gf.Residual(KEY, shape=(2,), nn_width=4, log_det="hutchinson", terms=1)
    flow = fd.Transformed(fd.Normal(jnp.zeros(2)), fb.Invert(block))
    draw = jax.jit(lambda key: gf.estimate_log_prob(flow, jnp.ones((8, 2)), key))
    found = np.asarray(draw(KEY))
    assert len(np.unique(found)) > 1
    assert (found != np.asarray(draw(jr.key(1)))).any()
