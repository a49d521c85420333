"""Tests of ``gauss_flows.density``: training on a log-density whose evidence is known."""

import equinox as eqx
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from paramax import non_trainable, unwrap
from training_support import leaves, small

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOG_Z = float(np.log(2 * np.pi))
SHORT = {"steps": 300, "batch_size": 128, "progress": False}


def shifted(x):
    """A Gaussian with mean 1, times 2π."""
    return -0.5 * jnp.square(x - 1).sum()


def two_modes(x):
    """Two unit Gaussians at ±4 in the first coordinate, unnormalized; log Z = log(4π)."""
    return jnp.logaddexp(*(-0.5 * (jnp.square(x[0] - m) + jnp.square(x[1])) for m in (-4.0, 4.0)))


@pytest.mark.parametrize("gradient", ["total", "path"])
def test_the_elbo_reaches_the_evidence(gradient):
    result = gf.fit_density(jr.key(1), small(), shifted, gradient=gradient, **SHORT)
    value, error = result.elbo
    assert 0 < error < 0.01
    assert LOG_Z - 0.02 < value < LOG_Z + 4 * error  # a bound: above by chance alone
    assert result.train_loss.shape == (300,)
    assert result.val_loss[-1] == pytest.approx(-value, abs=0.05)
    sample = result.flow.sample(jr.key(2), (5000,))
    np.testing.assert_allclose(sample.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(sample.std(axis=0), 1, atol=0.1)


def test_a_mean_field_family_finds_its_best_member():
    """For a Gaussian of precision P the best factorized one has variances 1 / P_ii; the gap is known."""
    precision = np.array([[2.0, 1.2], [1.2, 1.0]])
    log_z = np.log(2 * np.pi) - 0.5 * np.log(np.linalg.det(precision))
    log_density = lambda x: -0.5 * x @ jnp.asarray(precision, x.dtype) @ x
    flow = fd.Normal(jnp.ones(2), 3 * jnp.ones(2))
    result = gf.fit_density(jr.key(0), flow, log_density, learning_rate=5e-2, **SHORT | {"steps": 800})
    best = unwrap(result.flow)
    np.testing.assert_allclose(best.scale**2, 1 / np.diag(precision), rtol=0.05)
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.log(np.linalg.det(precision)))
    assert result.elbo.value == pytest.approx(log_z - gap, abs=4 * result.elbo.standard_error + 0.01)


def loss_of(gradient, annealing=1.0):
    """The loss that one call hands to the training loop."""
    found = {}

    class Stop(Exception):
        pass

    def capture(key, flow, x, *, options):
        found["loss"] = options.loss
        raise Stop

    from gauss_flows import density

    original, density.fit = density.fit, capture
    try:
        gf.fit_density(jr.key(0), small(), shifted, gradient=gradient, annealing=annealing)
    except Stop:
        return found["loss"]
    finally:
        density.fit = original


def test_the_path_gradient_has_the_same_mean_and_vanishes_at_the_density():
    """Near the exact flow its variance is far smaller; at it, each single gradient is zero."""
    rows = np.zeros((64, 2))
    exact = gf.Transformed(gf.standard_normal(2), gf.Affine(jnp.ones(2), jnp.ones(2)))
    near = gf.Transformed(gf.standard_normal(2), gf.Affine(1.3 * jnp.ones(2), 0.8 * jnp.ones(2)))
    gradients = {}
    for name in ("total", "path"):
        loss = loss_of(name)
        one = eqx.filter_jit(
            lambda flow, key, loss=loss: jnp.concatenate(leaves(eqx.filter_grad(loss)(flow, rows, None, key)))
        )
        for flow, where in ((exact, "exact"), (near, "near")):
            gradients[name, where] = np.stack([one(flow, key) for key in jr.split(jr.key(1), 200)])
    assert np.abs(gradients["path", "exact"]).max() < 1e-5
    assert gradients["total", "exact"].std(axis=0).max() > 0.05
    means = {name: gradients[name, "near"].mean(axis=0) for name in ("total", "path")}
    errors = gradients["total", "near"].std(axis=0) / np.sqrt(200)
    assert (np.abs(means["total"] - means["path"]) <= 4 * errors).all()
    assert (np.abs(means["total"]) > 4 * errors).any()


def test_annealing_tempers_the_first_half_of_the_steps():
    loss = loss_of("total", annealing=0.01)
    flow, rows = small(), np.zeros((64, 2))
    value = lambda progress: float(loss(flow, rows, None, jr.key(3), progress))
    x, log_q = flow.sample_and_log_prob(jr.key(3), (64,))
    log_p = jax.vmap(shifted)(x)
    for progress, power in ((0.0, 0.01), (0.25, 0.1), (0.5, 1.0), (0.9, 1.0)):
        np.testing.assert_allclose(value(progress), (log_q - power * log_p).mean(), rtol=1e-5)
    assert float(loss(flow, rows, None, jr.key(3))) == value(1.0)  # as it is judged


@pytest.mark.nightly  # the chapter on variational inference checks the same
def test_annealing_finds_the_second_mode():
    """From a start on one mode; without annealing the flow stays there, and the ELBO is log 2 too small."""
    start = lambda: gf.coupling_flow(
        jr.key(0), 2, layers=4, nn_width=16, base=non_trainable(fd.Normal(jnp.array([4.0, 0.0])))
    )
    options = SHORT | {"steps": 600, "learning_rate": 5e-3}
    shares = {}
    for annealing in (None, 0.02):
        result = gf.fit_density(jr.key(1), start(), two_modes, annealing=annealing, **options)
        shares[annealing] = float((result.flow.sample(jr.key(2), (4000,))[:, 0] < 0).mean())
    assert shares[None] < 0.05
    assert 0.3 < shares[0.02] < 0.7


def test_a_second_call_compiles_nothing_and_equal_keys_give_equal_flows(tmp_path):
    import logging

    options = SHORT | {"steps": 8, "n_judged": 64}
    first = gf.fit_density(jr.key(1), small(), shifted, **options)
    with jax.log_compiles():
        records = []
        handler = logging.Handler()
        handler.emit = records.append
        logging.getLogger("jax").addHandler(handler)
        again = gf.fit_density(jr.key(1), small(), shifted, **options)
        logging.getLogger("jax").removeHandler(handler)
    assert not [r for r in records if "Compiling" in r.getMessage() and "run_chunk" in r.getMessage()]
    assert all((a == b).all() for a, b in zip(leaves(first.flow), leaves(again.flow), strict=True))
    file = tmp_path / "run.npz"
    stored = gf.fit_density(jr.key(1), small(), shifted, checkpoint=file, **options)
    resumed = gf.fit_density(jr.key(1), small(), shifted, checkpoint=file, **options)
    assert all((a == b).all() for a, b in zip(leaves(stored.flow), leaves(resumed.flow), strict=True))
    with pytest.raises(ValueError, match="`checkpoint` must be of this run"):
        gf.fit_density(jr.key(1), small(), two_modes, checkpoint=file, **options)


def test_a_failure_names_the_log_density():
    """It becomes NaN where training leads, not where it starts."""
    falls = lambda x: jnp.where(x[0] < 3, 5 * x[0], jnp.nan) - 0.05 * jnp.square(x).sum()
    start = gf.coupling_flow(
        jr.key(0), 2, layers=1, bijector=gf.Affine(), nn_width=4, base=fd.Normal(-20 * jnp.ones(2), 0.1)
    )
    with pytest.raises(gf.NonFiniteLoss, match="step") as caught:
        gf.fit_density(jr.key(1), start, falls, n_judged=64, **SHORT | {"learning_rate": 0.3, "average": 0.0})
    assert caught.value.result.flow is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": "score"}, "`gradient` must be one of .*; got 'score'"),
        ({"annealing": 0.0}, r"`annealing` must lie in \(0, 1\] or be None; got 0.0"),
        ({"annealing": 2.0}, "`annealing` must lie in"),
        ({"n_judged": 1}, "`n_judged` must be a whole number of at least 2"),
        ({"loss": shifted}, "`loss` must be left out of `fit_density`"),
        ({"val_fraction": 0.2}, "`val_fraction` must be left out"),
        ({"condition": np.ones((2, 1))}, "`condition` must be left out"),
        ({"options": gf.FitOptions(val_fraction=0.3)}, "`val_fraction` must be left out"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1"),
    ],
)
def test_fit_density_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        gf.fit_density(jr.key(0), small(), shifted, **change)
