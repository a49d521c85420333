"""Tests of ``gauss_flows.rbig``."""

import inspect
import itertools

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from data_support import sample
from flowjax.distributions import Normal, Transformed
from moons_support import MIX, moons
from network_support import find

import gauss_flows as gf
from gauss_flows.mixtures import fit_mixture

pytestmark = pytest.mark.usefixtures("quick_compilation")


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
def test_a_warm_start_is_rbig_for_every_layer():
    """Marginal layers, pairs of couplings and autoregressive layers with the same rotations: one density."""
    with jax.enable_x64(True):
        x, key = moons(1000), jr.key(0)
        turns = [gf.HouseholderRotation(2, (2,), key=k) for k in jr.split(key, 3)]
        mask = gf.masks.half((2,))
        network = {"bijector": MIX, "conditioner": gf.conditioners.mlp(4, 1)}

        def flow(make):
            parts = [gf.ActNorm((2,)), *(part for turn in turns for part in (*make(), turn))]
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


def test_rbig_keeps_no_layer_that_does_not_help():
    x = np.asarray(jr.normal(jr.key(3), (400, 2))) * np.array([2.0, 3e30])
    result = gf.rbig(jr.key(0), x, layers=1, n_components=2, em_steps=5)
    assert result.gain.shape == (1,)
    assert result.gain[0] < 0  # else this sample tests nothing
    assert result.layers == 0
    first = result.flow.bijection.bijection[0]
    assert isinstance(first, gf.ActNorm)
    scale, bias = (np.asarray(a, np.float64) for a in (np.exp(first.log_scale), first.bias))
    z = scale * x + bias
    np.testing.assert_allclose([z.mean(axis=0), z.std(axis=0) - 1], 0, atol=0.05)  # set from nine tenths
    exact = -np.log(2 * np.pi) - 0.5 * np.square(z).sum(axis=1) + np.log(scale).sum()
    np.testing.assert_allclose(result.flow.log_prob(x), exact, rtol=1e-4)
    assert result.flow.sample(jr.key(1), (5,)).shape == (5, 2)


def test_rbig_refuses_what_has_no_density_or_too_few_rows():
    x = sample(100)
    far = x.copy()
    far[:, 0] = np.where(np.arange(100) == 7, 1e30, x[:, 0])
    held = next(  # a key that holds row 7 out
        jr.key(i) for i in range(100) if 7 in np.asarray(jr.permutation(jr.split(jr.key(i), 2)[0], 100))[:10]
    )
    for call, message in (
        (lambda: gf.rbig(jr.key(0), sample(17)), "`x` must leave at least 16 rows to fit; got 15"),
        (lambda: gf.rbig(jr.key(0), np.tile(sample(20), (1, 10)), n_components=2), "at least 21 rows to fit"),
        (lambda: gf.rbig(jr.key(0), np.column_stack([x, np.full(100, 0.1)])), "column 2 is constant"),
        (lambda: gf.rbig(jr.key(0), np.column_stack([x, x.sum(axis=1)])), "linearly independent"),
        (lambda: gf.rbig(held, far, layers=1), "finite log-density in every held-out row; 1 of 10"),
    ):
        with pytest.raises(ValueError, match=f"`x` must .*{message}" if "`x`" not in message else message):
            call()


@pytest.fixture(scope="module", name="iterated")
def _iterated():
    """Data, options and the result of a short run, of which four rows in forty are held out."""
    x = np.asarray(jr.normal(jr.key(10), (40, 2)))
    x = np.sign(x) * np.abs(x) ** 1.5  # gains of about 0.45, 0.15, 0.03, 0.09, -0.015
    options = {"layers": 5, "n_components": 2, "em_steps": 3, "tolerance": 0.0, "patience": 5}
    return x, options, gf.rbig(jr.key(1), x, **options)


def held_out(result, x, n_val):
    """The rows that did not set the ActNorm at the flow's beginning: the only subset that fits."""
    first = find(result.flow, gf.ActNorm)[0]
    mean = -np.asarray(first.bias, float) * np.exp(-np.asarray(first.log_scale, float))
    subsets = np.array(list(itertools.combinations(range(len(x)), n_val)))
    total = x.astype(float).sum(axis=0) - x.astype(float)[subsets].sum(axis=1)
    errors = np.abs(total / (len(x) - n_val) - mean).max(axis=1)
    assert errors.min() < 1e-5
    assert np.sort(errors)[1] > 20 * errors.min()
    return subsets[errors.argmin()]


def test_rbig_judges_each_layer_on_a_tenth_of_the_rows_that_it_does_not_fit(iterated):
    """Its gains are the differences of the held-out mean log-density from layer to layer."""
    x, _, result = iterated
    rows = held_out(result, x, 4)
    first = find(result.flow, gf.ActNorm)[0]
    (scan,) = find(result.flow, fb.Scan)

    @jax.jit
    def log_density(x):
        """After standardization, and after each further layer."""
        x = jax.vmap(first.transform)(x)
        normal = lambda z: jax.scipy.stats.norm.logpdf(z).sum(axis=-1)

        def step(state, arrays):
            z, log_det = state
            layer = eqx.combine(arrays, eqx.filter(scan.bijection, eqx.is_array, inverse=True))
            z, change = jax.vmap(layer.transform_and_log_det)(z)
            return (z, log_det + change), normal(z) + log_det + change

        _, after = jax.lax.scan(step, (x, 0 * x[:, 0]), eqx.filter(scan.bijection, eqx.is_array))
        return jnp.concatenate([normal(x)[None], after])

    gains = np.diff(np.asarray(log_density(x[rows])), axis=0)
    assert len(gains) == result.layers >= 1
    np.testing.assert_allclose(result.gain[: result.layers], gains.mean(axis=1), atol=1e-4)
    error = gains.std(axis=1) / np.sqrt(4)
    np.testing.assert_allclose(result.gain_error[: result.layers], error, rtol=1e-2, atol=1e-4)


def test_rbig_keeps_as_many_layers_as_were_best(iterated):
    _, options, result = iterated
    total = np.cumsum(result.gain)
    assert len(total) == options["layers"]
    assert result.stopped == "layers"
    assert result.layers == total.argmax() + 1 < options["layers"]
    assert result.layers != result.gain.argmax() + 1
    (turn,) = find(result.flow, gf.HouseholderRotation)
    assert turn.params.shape == (result.layers, 2, 2)


@pytest.mark.parametrize(("patience", "tolerance"), [(1, 1e9), (3, 1e9), (1, 0.0), (2, 0.0)])
def test_rbig_stops_when_the_last_layers_together_bring_less(iterated, patience, tolerance):
    x, options, full = iterated
    result = gf.rbig(jr.key(1), x, **options | {"patience": patience, "tolerance": tolerance})
    together = [full.gain[k - patience : k].sum() for k in range(patience + 1, 6)]
    stops = [k for k, gain in enumerate(together, patience + 1) if gain < tolerance]
    assert result.stopped == ("tolerance" if stops else "layers")
    assert len(result.gain) == (stops[0] if stops else 5)
    np.testing.assert_allclose(result.gain, full.gain[: len(result.gain)], rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "defaults"),
    [
        (gf.rbig, {"layers": 50, "n_components": 8, "rotation": "random", "tolerance": 0.01}),
        (gf.rbig, {"patience": 10, "val_fraction": 0.1, "em_steps": 50}),
        (gf.warm_start, {"rotation": None, "em_steps": 50}),
        (fit_mixture, {"steps": 50, "min_scale": 0.02}),
    ],
)
def test_iterative_gaussianization_keeps_its_defaults(function, defaults):
    """Read from the signature: a run of fifty layers would take long."""
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults
