"""Entropies of samples, and flows that are fitted without a gradient."""

from itertools import pairwise

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flowjax.distributions import Normal, Transformed

import gauss_flows as gf
from gauss_flows.gaussianization import fit_mixture

MIX = gf.MixtureGaussianCDF(4)


def moons(n=4000, seed=1):
    return gf.targets.two_moons().sample(jr.key(seed), (n,))


def test_entropies_are_right_within_their_standard_errors():
    """Against closed forms: normal, uniform, exponential; correlated normals in two and three dimensions."""
    n = 20_000
    normal, uniform = jr.normal(jr.key(0), (n,)), jr.uniform(jr.key(1), (n,))
    for x, truth in (
        (3 * normal, np.log(3) + 1.41894),
        (uniform, 0.0),
        (jr.exponential(jr.key(2), (n,)), 1.0),
    ):
        value, error = gf.entropy(x)
        assert abs(float(value) - truth) <= 3 * float(error) + 2e-3  # the ends, where p is not constant
        assert 0 < float(error) <= 0.01  # a standard deviation of about 1, over sqrt(n)
    value, error = gf.negentropy(uniform)
    assert abs(float(value) - (1.41894 + 0.5 * np.log(1 / 12))) <= 3 * float(error) + 2e-3
    assert abs(float(gf.negentropy(normal).value)) <= 0.01
    matrix = jnp.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.5, 0.0, 0.5]])
    z = jr.normal(jr.key(3), (n, 3))
    x = z @ matrix.T
    covariance = np.asarray(matrix @ matrix.T)
    truth = 3 * 1.41894 + 0.5 * np.linalg.slogdet(covariance)[1]
    value, error = gf.entropy(x)
    assert abs(float(value) - truth) <= 3 * float(error) + 0.02  # neighbours, in three dimensions
    together = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    value, error = gf.total_correlation(x)
    assert abs(float(value) - together) <= 3 * float(error) + 0.02
    value, error = gf.total_correlation(x, joint_entropy=truth)
    assert abs(float(value) - together) <= 3 * float(error)
    assert abs(float(gf.negentropy(x).value)) <= 0.03
    assert abs(float(gf.total_correlation(z).value)) <= 0.03


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((4, 2, 2)), r"`x` must have shape \(n,\) or \(n, D\)"),
        (np.arange(20), "`x` must be floating point"),
        (np.ones(3), r"`x` must have shape \(n,\) with n ≥ 11"),
        (np.full(20, np.nan), "`x` must be finite"),
    ],
)
def test_samples_are_checked(x, message):
    for function in (gf.entropy, gf.negentropy, gf.total_correlation):
        with pytest.raises(ValueError, match=message):
            function(x)
    with pytest.raises(ValueError, match=r"`x` must have shape .* with D at least 2"):
        gf.total_correlation(np.random.default_rng(0).normal(size=50))


def test_em_finds_a_mixture(dtype):
    """Never less likely with more steps, in the end as likely as the truth; scale and place do not matter."""
    kinds = jr.bernoulli(jr.key(0), 0.3, (5000,))
    x = jnp.where(kinds, -2 + 0.3 * jr.normal(jr.key(1), (5000,)), 1 + jr.normal(jr.key(2), (5000,)))

    def log_p(x, log_weights, means, scales):
        logits = (log_weights - jnp.log(scales))[None, :] - 0.5 * jnp.square(
            (x[:, None] - means[None, :]) / scales[None, :]
        )
        return jax.nn.logsumexp(logits, axis=1).mean()

    likelihoods = [float(log_p(x, *fit_mixture(x, 6, steps=steps))) for steps in (1, 5, 20, 80)]
    assert all(b > a - 1e-4 for a, b in pairwise(likelihoods))
    true = log_p(x, jnp.log(jnp.array([0.3, 0.7])), jnp.array([-2.0, 1.0]), jnp.array([0.3, 1.0]))
    assert likelihoods[-1] >= float(true) - 0.005
    weights, means, scales = fit_mixture(x, 6)
    moved = fit_mixture(1000 * x + 7, 6)
    np.testing.assert_allclose(moved[0], weights, atol=1e-3)
    np.testing.assert_allclose((moved[1] - 7) / 1000, means, atol=1e-3)
    np.testing.assert_allclose(moved[2] / 1000, scales, atol=1e-3)
    with pytest.raises(ValueError, match="`n_components` must be a whole number ≥ 2"):
        fit_mixture(x, 1)


@pytest.mark.parametrize("rotation", ["random", pytest.param("pca", marks=pytest.mark.nightly)])
def test_rbig_gains_what_it_says_and_is_a_bijection(rotation):
    x, fresh = moons(), moons(seed=2)
    result = gf.rbig(jr.key(0), x, layers=12, n_components=4, rotation=rotation)
    assert result.gain.shape == result.gain_error.shape
    assert 1 <= result.layers <= len(result.gain) <= 12
    gain = result.gain[: result.layers].sum()
    first = result.flow.bijection.bijection[0]
    start = Transformed(Normal(jnp.zeros(2)), fb.Invert(first))
    log_prob = eqx.filter_jit(lambda flow, x: flow.log_prob(x).mean())
    measured = float(log_prob(result.flow, fresh) - log_prob(start, fresh))
    assert abs(measured - gain) <= 0.1  # other rows than those held out
    assert gain > 0.5
    z = jax.jit(jax.vmap(lambda x: result.flow.bijection.inverse(x)))(fresh)
    stacked = result.flow.bijection.bijection[1].bijection[1]
    last = eqx.tree_at(lambda turn: turn.params, stacked, stacked.params[-1])
    before = jax.vmap(last.inverse)(z)  # the last rotation's marginals have not been fitted
    assert max(gf.negentropy(before[:, i]).value for i in range(2)) <= 0.02
    assert gf.check_bijection(fb.Invert(result.flow.bijection), fresh[:64]).ok


@pytest.mark.nightly
def test_rbig_stops_when_nothing_falls_any_more():
    x = 3 + 0.1 * jr.normal(jr.key(0), (4000, 2))
    result = gf.rbig(jr.key(1), x, layers=30, n_components=2, patience=4)
    assert result.stopped == "tolerance"
    assert len(result.gain) == 5
    assert result.gain.sum() <= 0.01
    exact = gf.rbig(jr.key(1), moons(500), layers=2, n_components=4, val_fraction=0)
    assert exact.stopped == "layers"
    assert exact.gain[0] > 0.1


@pytest.mark.nightly  # the chapter on the warm start shows it of couplings
def test_a_warm_start_is_rbig_whatever_the_layer():
    """Marginal layers, pairs of couplings and autoregressive layers with the same rotations: one density."""
    with jax.enable_x64(True):
        x, key = moons(1000), jr.key(0)
        turns = [gf.HouseholderRotation(2, (2,), key=k) for k in jr.split(key, 3)]
        mask = gf.masks.half((2,))
        network = {"bijector": MIX, "conditioner": gf.conditioners.mlp(4, 1)}

        def flow(make):
            parts = [gf.ActNorm1D((2,)), *(part for turn in turns for part in (*make(), turn))]
            return Transformed(Normal(jnp.zeros(2)), fb.Invert(fb.Chain(parts)))

        kinds = {
            "marginal": lambda: [gf.MarginalGaussianization((2,), bijector=MIX)],
            "coupling": lambda: [gf.Coupling(key, shape=(2,), mask=m, **network) for m in (mask, ~mask)],
            "autoregressive": lambda: [
                gf.MaskedAutoregressive(key, shape=(2,), bijector=MIX, nn_width=4, nn_depth=1)
            ],
        }
        found = {}
        for name, make in kinds.items():
            warm = gf.warm_start(flow(make), x)
            found[name] = np.asarray(eqx.filter_jit(warm.log_prob)(x))
        np.testing.assert_allclose(found["coupling"], found["marginal"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found["autoregressive"], found["marginal"], rtol=0, atol=1e-12)
        scanned = gf.gaussianization_flow(key, 2, layers=3, bijector=MIX)
        where = lambda f: f.bijection.bijection[1].bijection[1].params
        scanned = eqx.tree_at(where, scanned, jnp.stack([turn.params for turn in turns]))
        again = eqx.filter_jit(gf.warm_start(scanned, x).log_prob)(x)
        np.testing.assert_allclose(again, found["marginal"], rtol=0, atol=1e-12)
        cold = eqx.filter_jit(scanned.log_prob)(x).mean()
        assert found["marginal"].mean() > float(cold) + 0.5


def test_a_dead_conditioner_is_a_diagonal_layer(dtype):
    layer = gf.Coupling(jr.key(0), shape=(4,), bijector=MIX, conditioner=gf.conditioners.mlp(8, 2))
    x = jr.normal(jr.key(1), (200, 4))
    warm = gf.warm_start(layer, x)
    marginal = gf.warm_start(gf.MarginalGaussianization((2,), bijector=MIX), x[:, 2:])
    ours = jax.jit(jax.vmap(lambda x: warm.transform_and_log_det(x)))(x)
    theirs = jax.jit(jax.vmap(lambda x: marginal.transform_and_log_det(x)))(x[:, 2:])
    tolerance = 32 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(ours[0][:, 2:], theirs[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", [lambda layer: layer, fb.Invert])
def test_principal_axes_decorrelate(way):
    """And the first output has the largest variance."""
    x = jr.normal(jr.key(0), (500, 3)) @ jnp.array([[3.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.3]])
    marginal = gf.MarginalGaussianization((3,), bijector=gf.MixtureGaussianCDF(2))
    warm = gf.warm_start(
        fb.Chain([way(gf.HouseholderRotation(3, (3,))), marginal]), x, rotation="pca", em_steps=1
    )
    covariance = jnp.cov(jax.vmap(warm.bijections[0].transform)(x).T)
    np.testing.assert_allclose(covariance, jnp.diag(jnp.diag(covariance)), atol=1e-3)
    assert bool((jnp.diff(jnp.diag(covariance)) < 0).all())


def test_what_cannot_be_warmed_or_fitted_is_named():
    x = moons(100)
    constant = lambda in_size, out_size, *, key: lambda passive: jnp.zeros(out_size)
    refused = [
        (lambda: gf.warm_start(gf.LULinear((2,)), x), "`flow` must hold a layer to set"),
        (
            lambda: gf.warm_start(gf.coupling_flow(jr.key(0), 2, layers=1), x),
            "`flow` must have MixtureGaussianCDF",
        ),
        (
            lambda: gf.warm_start(fb.Invert(gf.MarginalGaussianization((2,))), x),
            "`flow` must take data to latent",
        ),
        (
            lambda: gf.warm_start(gf.Coupling(jr.key(0), shape=(2,), bijector=MIX, conditioner=constant), x),
            "`conditioner` must end in a dense layer",
        ),
        (lambda: gf.warm_start(gf.MarginalGaussianization((3,)), x), r"`x` must have shape \(n, 3\)"),
        (lambda: gf.warm_start(gf.MarginalGaussianization((2,)), x, rotation="ica"), "`rotation` must be"),
        (lambda: gf.rbig(jr.key(0), x[:, 0]), r"`x` must have shape \(n, D\)"),
        (lambda: gf.rbig(jr.key(0), x, rotation="ica"), "`rotation` must be one of"),
        (lambda: gf.rbig(jr.key(0), x, n_components=1), "`n_components` must be a whole number ≥ 2"),
        (lambda: gf.rbig(jr.key(0), x, val_fraction=1.0), r"`val_fraction` must lie in \[0, 1\)"),
        (lambda: gf.rbig(jr.key(0), x.at[0, 0].set(jnp.inf)), "`x` must be finite"),
        (lambda: gf.gaussianization_flow(jr.key(0), 0), "`dim` must be a whole number ≥ 1"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
