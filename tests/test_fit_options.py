"""Tests of ``gauss_flows.fit_options``."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optax.contrib
import pytest
from training_support import Point, data, fit_point, height, small

import gauss_flows as gf
from gauss_flows import train

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.adam, r"got adam; call it first, as in `adam\(\.\.\.\)`"),
        (optax.GradientTransformation, "call it first"),
        (lambda: optax.adam(1e-2), "call it first"),
        ("adam", "got 'adam'"),
        (1e-3, r"got 0\.001"),
    ],
)
def test_an_optimizer_that_is_none_is_named(optimizer, message):
    with pytest.raises(ValueError, match=rf"`optimizer` must be an optax transformation .*{message}"):
        fit_point(optimizer=optimizer)
    with pytest.raises(ValueError, match="`optimizer` must be"):
        gf.fit_many(jr.split(jr.key(0), 2), small, data(), optimizer=optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((50, 2), int)}, "`x` must be floating point.*got dtype int64"),
        ({"x": np.ones((50, 3))}, r"`x` must have shape \(n, 2\) with n ≥ 2; got \(50, 3\)"),
        ({"x": np.full((50, 2), np.nan)}, "`x` must be finite; got NaN or infinity in 50 of 50 rows"),
        ({"x": np.array([[np.inf, 0.0], *[[0.0, 0.0]] * 49])}, "in 1 of 50 rows"),
        ({"x": np.ones((1, 2)), "batch_size": 1}, r"`x` must have shape.*n ≥ 2; got \(1, 2\)"),
        ({"batch_size": 46}, "`batch_size` must be at most the 45 training rows; got 46"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1; got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"learning_rate": [1e-3, 1e-2]}, r"`learning_rate` must be one number; got shape"),
        ({"learning_rate": np.nan}, "`learning_rate` must be positive; got nan"),
        ({"average": 1.0}, r"`average` must lie in \[0, 1\)"),
        ({"clip_norm": -1.0}, "`clip_norm` must be positive"),
        ({"val_fraction": 1.0}, "`val_fraction` must lie between 0 and 1"),
        ({"patience": 0}, "`patience` must be at least 1"),
        ({"condition": np.ones((50, 1))}, "`condition` must be None"),
        ({"sharding": 8}, "`sharding` must be a jax.sharding.Mesh; got int"),
    ],
)
def test_fit_refuses_before_the_first_step(change, message, monkeypatch):
    monkeypatch.setattr(train, "run_chunk", None)
    options = {"x": np.ones((50, 2)), "batch_size": 8, "steps": 3} | change
    with pytest.raises(ValueError, match=message):
        gf.fit(jr.key(0), small(), options.pop("x"), **options)


def test_keys_of_any_implementation_train():
    x = jr.normal(jr.key(0), (60, 2))
    flow = gf.coupling_flow(jr.key(1), 2, layers=1, nn_width=4, bijector=gf.Affine())
    for key in (jr.key(0, impl="rbg"), jr.PRNGKey(0)):
        assert np.isfinite(gf.fit(key, flow, x, steps=2, batch_size=8, progress=False).val_loss).all()


def test_options_are_shared_and_an_unknown_one_is_named():
    options = gf.FitOptions(steps=3, batch_size=4, progress=False)
    result = fit_point(options=options, steps=5, batch_size=2)
    assert len(result.train_loss) == 5  # a keyword goes before the options
    result = gf.fit(jr.key(0), Point(jnp.zeros(1)), np.ones((8, 1)), options=options, loss=height)
    assert len(result.train_loss) == 3
    with pytest.raises(TypeError, match=r"There is no option 'stps'; the options are steps, batch_size"):
        gf.fit(jr.key(0), Point(jnp.zeros(1)), np.ones((8, 1)), stps=3)
