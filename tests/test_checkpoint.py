"""Tests of ``gauss_flows.checkpoint``."""

import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optax.contrib
import pytest
from training_support import Point, data, fit_point, height, small

import gauss_flows as gf
from gauss_flows import checkpoint, fit_loop, io

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    options = {"batch_size": 32, "progress": False, "checkpoint": path}
    gf.fit(jr.key(1), small(), data(), steps=20, **options)
    done = gf.fit(jr.key(1), small(), data(), steps=20, **options)  # complete: nothing is run again
    assert done.train_loss.shape == (20,)
    for key, x, steps in ((jr.key(2), data(), 20), (jr.key(1), data() + 1, 20), (jr.key(1), data(), 30)):
        with pytest.raises(ValueError, match="`checkpoint` must be of this run"):
            gf.fit(key, small(), x, steps=steps, **options)


def scaled(weight):
    return lambda point, x, condition, key: (weight * point.at).sum()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"optimizer": optax.adam(1e-4)}, {"optimizer": optax.adam(1e-2)}),
        ({"optimizer": optax.adam(1e-2)}, {"optimizer": optax.adam(1e-2, b1=0.90001)}),
        ({"optimizer": optax.adam(1e-2)}, {"optimizer": optax.adamw(1e-2)}),
        ({"optimizer": optax.adam(1e-2)}, {"optimizer": optax.lbfgs()}),  # a state of another structure
        ({"optimizer": optax.sgd(optax.cosine_decay_schedule(1.0, 9))},
         {"optimizer": optax.sgd(optax.cosine_decay_schedule(1.0, 10))}),
        ({"optimizer": optax.inject_hyperparams(optax.sgd)(1.0)},
         {"optimizer": optax.inject_hyperparams(optax.sgd)(2.0)}),
        ({"loss": scaled(2.0)}, {"loss": scaled(2.0000002)}),
        ({"loss": scaled(np.float32(2.0))}, {"loss": scaled(np.float32(2.0000002))}),
        ({"loss": scaled(jnp.full(1, 2.0))}, {"loss": scaled(jnp.full(1, 3.0))}),
        ({"loss": lambda p, x, c, k: jax.jit(scaled(jnp.full(1, 2.0)))(p, x, c, k)},
         {"loss": lambda p, x, c, k: jax.jit(scaled(jnp.full(1, 3.0)))(p, x, c, k)}),
        ({"loss": lambda p, x, c, k: jnp.sin(p.at).sum()}, {"loss": lambda p, x, c, k: jnp.cos(p.at).sum()}),
        ({"optimizer": None, "clip_norm": 1.0}, {"optimizer": None, "clip_norm": 2.0}),
        ({"optimizer": None, "average": 0.25}, {"optimizer": None, "average": 0.5}),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_optimizer_or_loss_is_refused(first, second, tmp_path):
    whole = fit_point(steps=8, checkpoint=tmp_path / "run.ckpt", **first)
    again = fit_point(steps=8, checkpoint=tmp_path / "run.ckpt", **first)
    np.testing.assert_array_equal(whole.train_loss, again.train_loss)
    with pytest.raises(ValueError, match=r"`checkpoint` must be of this run; .*run\.ckpt"):
        fit_point(steps=8, checkpoint=tmp_path / "run.ckpt", **second)


def test_a_checkpoint_is_accepted_from_an_equal_optimizer_and_loss_made_anew(tmp_path):
    """Also with another patience; and a run that ended by patience ends there again."""
    make = lambda: {"optimizer": optax.adam(1e-9), "loss": scaled(jnp.full(1, 2.0)), "steps": 100}
    path = tmp_path / "run.ckpt"
    loss = lambda point, x, condition, key: 0 * point.at.sum()
    flat = [fit_point(steps=100, loss=loss, patience=20, checkpoint=path) for _ in range(2)]
    assert [(result.stopped, len(result.train_loss)) for result in flat] == [("patience", 30)] * 2
    assert fit_point(steps=100, loss=loss, patience=40, checkpoint=path).train_loss.shape == (50,)
    path.unlink()
    first, second = (fit_point(**make(), checkpoint=path) for _ in range(2))
    np.testing.assert_array_equal(first.train_loss, second.train_loss)


def test_the_error_of_a_checkpoint_says_what_differs(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    run = lambda **options: fit_point(steps=4, checkpoint=path, **options)
    run()
    for options, what in (
        ({"key": jr.key(5)}, "the key"),
        ({"x": 2 * np.ones((8, 1))}, "the data"),
        ({"point": Point(jnp.ones(1))}, "the start parameters"),
        ({"average": 0.5}, "the settings"),
        ({"average": 0.5, "key": jr.key(5)}, "the key and the settings"),
        ({"loss": scaled(3.0)}, "the loss, the optimizer or the flow's structure"),
    ):
        with pytest.raises(ValueError, match=f"is of a run that differs in {what}\\."):
            run(**options)
    now = checkpoint._version("jax")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_version", lambda package: "99.9")
        with pytest.raises(ValueError, match=rf"was written under jax {re.escape(now)} \(now 99\.9\)"):
            run(loss=scaled(3.0))
        assert run().train_loss.shape == (4,)  # the program is the same under both
    settings = fit_loop.Settings(4, 1, 2, 1.0, 1 / 12, optax.sgd(1.0), height, None, "threefry2x32")
    state, notes = io.read(path, fit_loop.start(jr.key(0), Point(jnp.zeros(1)), settings, 8, None))
    io.write(path, state, notes | {"run": "0" * 64})  # as 0.1.0 wrote it
    with pytest.raises(ValueError, match="by a version of it that did not record the loss and the optimizer"):
        run()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"`checkpoint` must be of this run; .*run\.ckpt: "):
        run()


def test_a_digest_sees_values_and_not_addresses():
    """The program's text is not enough: arrays are shortened there."""
    digest = lambda function, *args: checkpoint.digest(jax.make_jaxpr(function)(*args))
    long = np.zeros(5000, np.float32)
    other = long.copy()
    other[2500] = 1e-30
    inner = lambda a: jax.jit(lambda x: jax.lax.cond(x > 0, lambda: x * jnp.asarray(a).sum(), lambda: x))
    assert digest(inner(long), 1.0) == digest(inner(long.copy()), 1.0)
    assert digest(inner(long), 1.0) != digest(inner(other), 1.0)
    assert digest(lambda x: x - 2 * x, 1.0) != digest(lambda x: 2 * x - x, 1.0)
    assert digest(lambda x, y: x - y, 1.0, 2.0) != digest(lambda x, y: y - x, 1.0, 2.0)
    assert checkpoint.digest([object(), {"b": 1, "a": {2}}]) == checkpoint.digest(
        [object(), {"a": {2}, "b": 1}]
    )
