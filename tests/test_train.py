"""Tests of ``gauss_flows.train``."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optax.contrib
import pytest
from paramax import unwrap
from training_support import HalfLine, Point, breaks_below, data, fit_point, height, leaves, same, small

import gauss_flows as gf
from gauss_flows import fit_loop, train
from gauss_flows.bijection import partition

pytestmark = pytest.mark.usefixtures("quick_compilation")


def average_of(path, memory):
    """The moving average that ``fit`` keeps of the models after each update."""
    average = 0.0
    for i, at in enumerate(path):
        average += (at - average) / (1 + memory * i)
    return average


def test_fit_learns_a_gaussian_and_leaves_its_input_alone():
    flow = small()
    before = [np.array(a) for a in leaves(flow)]
    result = gf.fit(jr.key(1), flow, data(), steps=300, batch_size=128, progress=False)
    truth = -0.5 * np.log(2 * np.pi * np.e * 4) - 0.5 * np.log(2 * np.pi * np.e * 0.25)
    fresh = jnp.array([[1.0, -2.0]]) + jnp.array([[2.0, 0.5]]) * jr.normal(jr.key(5), (20_000, 2))
    kl = truth - float(result.flow.log_prob(fresh).mean())
    assert -0.02 < kl < 0.06
    assert result.train_loss.shape == (300,)
    assert result.val_loss.shape == result.val_steps.shape
    assert result.val_steps[-1] == 300
    assert result.best_step == result.val_steps[result.val_loss.argmin()]
    assert (result.stopped, result.failed_step) == ("steps", -1)
    assert all((a == b).all() for a, b in zip(before, leaves(flow), strict=True))
    base = unwrap(result.flow).base_dist
    assert not base.loc.any(), "the base was trained"
    assert (base.scale == 1).all()


@pytest.mark.nightly  # the chapter on residual flows trains one
@pytest.mark.parametrize("log_det", ["exact", "hutchinson", "roulette"])
def test_fit_trains_residual_flows_by_any_log_determinant(log_det):
    """Each learns a Gaussian, its layers stay within the bound, and its exact density is what is judged."""
    flow = gf.residual_flow(jr.key(0), 2, layers=2, lipschitz=0.9, nn_width=8, log_det=log_det)
    result = gf.fit(jr.key(1), flow, data(), steps=200, batch_size=128, learning_rate=3e-2, progress=False)
    exact = gf.with_log_det(result.flow, "exact")
    truth = -0.5 * np.log(2 * np.pi * np.e * 4) - 0.5 * np.log(2 * np.pi * np.e * 0.25)
    fresh = jnp.array([[1.0, -2.0]]) + jnp.array([[2.0, 0.5]]) * jr.normal(jr.key(5), (20_000, 2))
    assert -0.02 < truth - float(exact.log_prob(fresh).mean()) < 0.1
    norms = result.flow.bijection.bijection.bijection[1].network.norms()
    assert float(jnp.prod(norms, axis=-1).max()) <= 0.9


def test_fit_computes_what_the_loop_of_its_docstring_does():
    """The loop is read from the docstring and run."""
    block = gf.fit.__doc__.partition("::\n\n")[2].partition("\n    Args:")[0]
    options = {"steps": 60, "batch_size": 32, "learning_rate": 0.03, "val_fraction": 0.1}
    names = {
        "math": math,
        "jax": jax,
        "jnp": jnp,
        "jr": jr,
        "optax": optax,
        "eqx": eqx,
        "partition": partition,
    }
    flow = gf.coupling_flow(jr.key(0), 2, layers=1, nn_width=4, bijector=gf.Affine())
    x = jnp.array([[2.0, 0.5]]) * jr.normal(jr.key(1), (200, 2)) + 1
    names |= options | {"key": jr.key(2), "flow": flow, "x": x, "clip_norm": 1.0, "average": 1 / 12}
    exec(textwrap.dedent(block), names)
    result = gf.fit(jr.key(2), flow, x, progress=False, **options)
    assert float(result.val_loss.min()) == pytest.approx(float(names["best_loss"]), abs=1e-4)
    for ours, theirs in zip(leaves(result.flow), leaves(names["best"]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert result.val_loss.min() < result.val_loss[0] - 0.05  # the parameters have moved


def test_the_validation_rows_are_held_out():
    """A loss that records which rows it sees: training rows and validation rows never meet."""
    x = jnp.arange(100.0)[:, None] * jnp.ones((1, 2))
    seen = {"train": set(), "val": set()}

    def loss(flow, x, condition, key):
        where = "val" if len(x) == 20 else "train"
        jax.debug.callback(lambda rows: seen[where].update(rows.tolist()), x[:, 0])
        return gf.fit_loop.maximum_likelihood(flow, x / 100, condition, key)

    gf.fit(jr.key(0), small(), x, steps=40, batch_size=16, val_fraction=0.2, loss=loss, progress=False)
    jax.effects_barrier()
    assert len(seen["val"]) == 20
    assert len(seen["train"]) == 80
    assert not seen["val"] & seen["train"]


@pytest.mark.nightly
def test_fit_many_equals_fit_key_by_key():
    """Also where each key has a rate of its own; and a rate costs no compilation."""
    keys, rates, traces = jr.split(jr.key(3), 3), [1e-3, 3e-3, 1e-2], 0

    def loss(flow, x, condition, key):
        nonlocal traces
        traces += 1
        return fit_loop.maximum_likelihood(flow, x, condition, key)

    options = {"steps": 30, "batch_size": 64, "progress": False, "loss": loss}
    many = gf.fit_many(keys, small, data(), learning_rate=rates, **options)
    assert traces == 2  # once for the steps, once for the validation rows
    assert many.train_loss.shape == (3, 30)
    for i, key in enumerate(keys):
        make, run = jr.split(key)
        one = gf.fit(run, small(make), data(), learning_rate=rates[i], **options)
        np.testing.assert_allclose(many.train_loss[i], one.train_loss, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(many.val_loss[i], one.val_loss, rtol=1e-4, atol=1e-5)
        assert many.best_step[i] == one.best_step
    assert traces == 4


def test_the_parameters_kept_are_averaged():
    """With plain steps of size 1 on a loss whose gradient is 1, the average is known in closed form."""

    path = -np.arange(1.0, 41)
    for memory in (0.25, 0.5):
        np.testing.assert_allclose(fit_point(average=memory).flow.at, average_of(path, memory), rtol=1e-5)
    np.testing.assert_allclose(fit_point(average=0).flow.at, -40)


def test_the_averaged_parameters_are_judged_over_the_last_twelfth():
    """Each validation loss is that of the average so far, which is about a twelfth of the steps behind."""
    result = fit_point(steps=200)
    path = -np.arange(1.0, 201)
    assert list(result.val_steps) == list(range(20, 201, 20))
    wanted = [average_of(path[:k], 1 / 12) for k in result.val_steps]
    np.testing.assert_allclose(result.val_loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(result.val_loss[-1], -200 * 12 / 13, rtol=0.01)
    np.testing.assert_allclose(result.flow.at, wanted[-1], rtol=1e-5)


def test_the_schedule_is_one_cycle_that_ends_at_half_the_peak():
    """Under a constant gradient a step of Adam is the learning rate. Without averaging it ends at zero."""

    def rates(**options):
        losses = fit_point(steps=101, optimizer=None, **options).train_loss
        return -np.diff(losses)

    def cosine(start, stop, part):
        return start + (stop - start) * (1 - np.cos(np.pi * part)) / 2

    step = np.arange(100)
    for options, end in (({}, 0.5), ({"average": 0}, 0.0)):
        found = rates(learning_rate=1e-2, **options)
        rise = cosine(1 / 25, 1, step / 30)
        fall = cosine(1, end, (step - 30) / (101 - 30))
        np.testing.assert_allclose(found, 1e-2 * np.where(step < 30, rise, fall), rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(rates().max(), 1e-2, rtol=1e-3)  # the default peak


def test_the_gradient_is_clipped_by_its_global_norm():
    """A step of Adam shows the size of a gradient where that is near its ε of 1e-8."""
    loss = lambda point, x, condition, key: (point.at * jnp.array([3e-8, 4e-8])).sum()
    point = Point(jnp.zeros(2), shape=(2,))

    def moved(loss=loss, **options):
        options |= {"steps": 20, "average": 0, "optimizer": None}
        return np.asarray(fit_point(point, np.ones((8, 2)), loss=loss, **options).flow.at)

    rates = moved(loss=height)  # minus the sum of all rates
    for norm, gradient in ((1e-8, [0.6e-8, 0.8e-8]), (2e-8, [1.2e-8, 1.6e-8]), (None, [3e-8, 4e-8])):
        share = np.array(gradient) / (np.array(gradient) + 1e-8)
        np.testing.assert_allclose(moved(clip_norm=norm), share * rates, rtol=1e-3)
    loss = lambda point, x, condition, key: 3 * point.at.sum()
    np.testing.assert_allclose(fit_point(loss=loss, average=0, clip_norm=1.0).flow.at, -120)  # sgd: unclipped
    steep = lambda point, x, condition, key: jnp.exp(100 * point.at).sum()  # of norm 100, then much less
    losses = fit_point(loss=steep, optimizer=None, clip_norm=1.0, steps=20, learning_rate=1e-2).train_loss
    default = fit_point(loss=steep, optimizer=None, steps=20, learning_rate=1e-2).train_loss
    unclipped = fit_point(loss=steep, optimizer=None, clip_norm=None, steps=20, learning_rate=1e-2).train_loss
    np.testing.assert_array_equal(default, losses)
    assert abs(unclipped - default).max() > 0.01


def test_batches_are_drawn_with_replacement_from_the_training_rows():
    """Row k is 8^k, so that the sum of a batch of six says how often it holds each row."""
    x = 8.0 ** np.arange(7)[:, None]
    loss = lambda point, x, condition, key: 0 * point.at.sum() + x.sum()
    result = fit_point(x=x, loss=loss, batch_size=6, val_fraction=0.01)
    assert len(set(result.val_loss)) == 1
    held_out = int(np.log2(result.val_loss[0])) // 3
    assert result.val_loss[0] == 8.0**held_out, "one row is held out, however small the part"
    counts = np.array([[int(total) >> (3 * k) & 7 for k in range(7)] for total in result.train_loss])
    assert (counts.sum(axis=1) == 6).all()
    assert (counts[:, held_out] == 0).all()
    assert (counts.max(axis=1) > 1).all(), "six of six rows, drawn with replacement, would hardly ever differ"
    assert (counts.sum(axis=0) > 0).sum() == 6
    assert len(np.unique(counts, axis=0)) > 30


def test_another_learning_rate_costs_no_compilation():
    traces = []

    def loss(point, x, condition, key):
        traces.append(0)
        return height(point, x, condition, key)

    for rate in (1e-2, 3e-2):
        fit_point(loss=loss, optimizer=None, learning_rate=rate)
        assert len(traces) == 2  # once for the steps, once for the validation rows


def test_patience_is_counted_in_steps():
    """The validation loss is measured after every 10 steps, and is never lower than after the first 10."""
    for patience, steps in ((1, 20), (10, 20), (11, 30), (30, 40), (31, 50)):
        result = fit_point(steps=100, optimizer=optax.sgd(0.0), patience=patience)
        assert (result.stopped, len(result.train_loss), result.best_step) == ("patience", steps, 10)
        assert list(result.val_steps) == list(range(10, steps + 1, 10))


def test_steps_that_do_not_divide_into_chunks():
    for steps in (1, 23):
        result = gf.fit(jr.key(0), small(), data(), steps=steps, batch_size=32, progress=False)
        assert result.train_loss.shape == (steps,)
        assert result.val_steps[-1] == steps


@pytest.mark.nightly
def test_condition_optimizer_and_patience():
    c = jr.normal(jr.key(1), (600, 1))
    x = jnp.concatenate([c + 0.1 * jr.normal(jr.key(2), (600, 1)), jr.normal(jr.key(3), (600, 1))], axis=1)
    flow = small(cond_dim=1)
    result = gf.fit(jr.key(0), flow, x, condition=c, steps=300, batch_size=64, progress=False)
    assert float(result.flow.log_prob(x, c).mean()) > float(flow.log_prob(x, c).mean()) + 1
    still = gf.fit(
        jr.key(0), small(), data(), steps=500, batch_size=32, optimizer=optax.sgd(0.0), patience=50,
        progress=False,
    )  # fmt: skip
    assert still.stopped == "patience"
    assert len(still.train_loss) <= 150
    assert same(still.flow, small())


def test_a_loss_that_is_not_finite_stops_with_the_best_so_far():
    def loss(flow, x, condition, key):
        value = fit_loop.maximum_likelihood(flow, x, condition, key)
        return jnp.where(value < 3.4, jnp.nan, value)

    options = {"steps": 400, "batch_size": 128, "progress": False, "loss": loss}
    with pytest.raises(gf.NonFiniteLoss, match=r"not finite at step \d+") as error:
        gf.fit(jr.key(1), small(), data(), **options)
    result = error.value.result
    assert result.stopped == "non-finite"
    assert np.isnan(result.train_loss[result.failed_step])
    assert np.isfinite(result.train_loss[: result.failed_step]).all()
    assert all(bool(jnp.isfinite(a).all()) for a in leaves(result.flow))
    many = gf.fit_many(jr.split(jr.key(0), 2), small, data(), **options)
    assert (many.failed_step >= 0).all()


@pytest.mark.parametrize("depth", [0, 1, 20, 25])
def test_a_failure_inside_a_chunk_names_only_steps_that_were_taken(depth, tmp_path):
    """Chunks are of ten steps; the parameters kept are the average after the last good step."""
    options = {"steps": 100, "loss": breaks_below(depth), "checkpoint": tmp_path / "run.ckpt"}
    options["val_fraction"] = 3 / 8  # unlike the batch size
    results = []
    for _ in range(2):  # the second is read from the file, and takes no step
        with pytest.raises(gf.NonFiniteLoss, match=f"not finite at step {depth};") as error:
            fit_point(**options)
        results.append(error.value.result)
    for result in results:
        assert (result.failed_step, result.best_step, result.stopped) == (depth, depth, "non-finite")
        assert list(result.val_steps) == {0: [0], 1: [1], 20: [10, 20], 25: [10, 20, 25]}[depth]
        wanted = [average_of(-np.arange(1.0, k + 1), 1 / 12) for k in result.val_steps]
        np.testing.assert_allclose(result.val_loss, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(result.flow.at, wanted[-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(result.train_loss, [*-np.arange(depth), np.nan])


def test_after_a_failure_the_best_step_of_an_earlier_chunk_stands():
    with pytest.raises(gf.NonFiniteLoss, match=r"`.result` holds the flow of step 10\.") as error:
        fit_point(steps=100, loss=breaks_below(25, sign=-1), val_fraction=3 / 8)
    result = error.value.result
    assert (result.failed_step, result.best_step) == (25, 10)
    np.testing.assert_allclose(result.flow.at, average_of(-np.arange(1.0, 11), 1 / 12), rtol=1e-5)


def test_each_key_of_many_fails_alone_and_its_result_is_that_of_fit():
    """Key i starts at a height of its own, and fails after so many steps more, or never."""
    keys = jr.split(jr.key(0), 4)
    make = lambda key: Point(jnp.floor(150 * jr.uniform(key, (1,))))
    options = {
        "steps": 100, "batch_size": 2, "val_fraction": 3 / 8, "progress": False, "optimizer": optax.sgd(1.0),
        "loss": breaks_below(25),
    }  # fmt: skip
    x = np.ones((8, 1))
    many = gf.fit_many(keys, make, x, **options)
    assert (many.failed_step >= 0).any()
    assert (many.failed_step < 0).any()
    assert many.train_loss.shape == (4, 100)
    assert many.val_loss.shape == many.val_steps.shape == (4, 10)
    for i, key in enumerate(keys):
        start, run = jr.split(key)
        try:
            one = gf.fit(run, make(start), x, **options)
        except gf.NonFiniteLoss as error:
            one = error.result
            assert np.isnan(many.train_loss[i, one.failed_step :]).all()
        each = many[i]
        assert (each.best_step, each.failed_step) == (one.best_step, one.failed_step)
        assert each.stopped == one.stopped
        np.testing.assert_array_equal(each.val_steps, one.val_steps)
        np.testing.assert_allclose(each.train_loss, one.train_loss, rtol=1e-6)
        np.testing.assert_allclose(each.val_loss, one.val_loss, rtol=1e-6)
        np.testing.assert_allclose(each.flow.at, one.flow.at, rtol=1e-6)


def test_fit_many_refuses_what_is_not_an_array_of_keys():
    for keys in (jr.key(0), jr.split(jr.key(0), 3)[:0], 3):
        with pytest.raises(ValueError, match="`keys` must be an array of random keys, one per flow"):
            gf.fit_many(keys, small, data())


def test_rows_outside_the_support_are_counted_and_named():
    """Also where they are held out: every validation loss would be infinite, and training does not go on."""
    x = np.linspace(0.1, 2, 50)[:, None]
    start = HalfLine(jnp.zeros(1))
    options = {"steps": 100, "batch_size": 16, "loss": None, "optimizer": None}
    assert fit_point(start, x, **options).stopped == "steps"
    one, many = x.copy(), x.copy()
    one[17], many[3:20] = 0.0, -1.0
    with pytest.raises(
        gf.NonFiniteLoss, match=r"1 of 50 rows of `x` has log-density −inf: row 17\. .*support"
    ) as e:
        fit_point(start, one, **options)
    assert "learning_rate" not in str(e.value)
    with pytest.raises(gf.NonFiniteLoss, match=r"not finite at step 0.*17 of 50 rows") as error:
        fit_point(start, many, **options)
    assert "rows 3, 4, 5, 6, 7, …." in str(error.value)
    assert error.value.result.best_step == error.value.result.failed_step == 0
    probe = lambda point, x, condition, key: 0 * point.at.sum() + x.sum()
    place = 8.0 ** np.arange(7)[:, None]
    held_out = int(np.log2(fit_point(x=place, loss=probe, val_fraction=0.01, steps=1).val_loss[0])) // 3
    bad = np.ones((7, 1))
    bad[held_out] = 0.0
    with pytest.raises(gf.NonFiniteLoss, match=r"validation loss was never finite.*1 of 7 rows") as error:
        fit_point(start, bad, val_fraction=0.01, loss=None, steps=100)
    assert len(error.value.result.val_loss) == 1, "it went on"
    assert error.value.result.best_step == 0


def test_a_loss_that_is_never_finite_on_the_held_out_rows_is_not_a_success():
    loss = lambda point, x, condition, key: jnp.where(len(x) == 2, 1.0, jnp.nan) * point.at.sum()
    with pytest.raises(gf.NonFiniteLoss, match="the validation loss was never finite") as error:
        fit_point(loss=loss)
    assert (error.value.result.failed_step, error.value.result.best_step) == (-1, 0)
    minus = lambda point, x, condition, key: jnp.where(len(x) == 2, 0.0, -jnp.inf) + point.at.sum()
    with pytest.raises(gf.NonFiniteLoss, match="the validation loss was never finite") as error:
        fit_point(loss=minus)
    assert (error.value.result.best_step, float(error.value.result.flow.at[0])) == (0, 0.0)


def test_interruption_while_the_first_chunk_starts_returns_the_start(monkeypatch):
    """The loop has given its buffers away by then."""

    def interrupted(data, state, chunk=train.run_chunk):
        chunk(data, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_chunk", interrupted)
    result = fit_point(Point(jnp.full(1, 7.0)))
    assert (result.stopped, result.best_step, result.train_loss.shape) == ("interrupted", 0, (0,))
    assert float(result.flow.at[0]) == 7


def test_interruption_returns_the_best_so_far(monkeypatch):
    calls = []

    def interrupted(data, state, chunk=train.run_chunk):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return chunk(data, state)

    monkeypatch.setattr(train, "run_chunk", interrupted)
    result = gf.fit(jr.key(1), small(), data(), steps=100, batch_size=32, progress=False)
    assert result.stopped == "interrupted"
    assert result.train_loss.shape == (20,)
    assert result.best_step in (10, 20)


RUN = """
import sys, pathlib, gauss_flows as gf, jax.numpy as jnp, jax.random as jr, optax
sys.path.insert(0, {tests!r})
from test_train import small, data
weight = 2 * jnp.ones(64)
loss = lambda flow, x, condition, key: -weight.mean() * flow.log_prob(x).mean()
optimizer = optax.chain(optax.clip(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 2000)))
result = gf.fit(
    jr.key(1), small(), data(), steps=2000, batch_size=64, progress=False, checkpoint={path!r},
    loss=loss, optimizer=optimizer,
)
gf.save({out!r}, result.flow)
print(result.train_loss.sum(), result.best_step)
"""


def test_a_killed_run_ends_bit_identical_to_one_that_was_not(tmp_path):
    def start(path, out):
        code = RUN.format(tests=str(Path(__file__).parent), path=str(path), out=str(out))
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole.ckpt", tmp_path / "whole.npz")
    cut = start(tmp_path / "cut.ckpt", tmp_path / "cut.npz")
    for _ in range(6000):
        if (tmp_path / "cut.ckpt").exists():
            break
        time.sleep(0.01)
    os.kill(cut.pid, signal.SIGKILL)
    cut.communicate()
    assert not (tmp_path / "cut.npz").exists(), "it ended before it was killed"
    again = start(tmp_path / "cut.ckpt", tmp_path / "cut.npz")
    outputs = whole.communicate(timeout=300)[0], again.communicate(timeout=300)[0]
    assert outputs[0] == outputs[1] != ""
    assert same(gf.load(tmp_path / "whole.npz", small()), gf.load(tmp_path / "cut.npz", small()))


def distance(point, x, condition, key):
    return jnp.square(point.at - x.mean(axis=0)).sum()


def test_optimizers_receive_value_gradient_and_loss():
    """One that moves only where all three are those of the step's batch; and optax's own that need them."""

    def update(updates, state, params, *, value, grad, value_fn):
        right = (value == value_fn(params)) & (value == params.at.sum()) & (grad.at == updates.at)
        return jax.tree.map(lambda u: jnp.where(right, -u, jnp.nan), updates), state

    ours = optax.GradientTransformationExtraArgs(lambda params: (), update)
    np.testing.assert_allclose(fit_point(optimizer=ours, average=0).flow.at, -40)
    only_value = lambda updates, state, params, *, value: (
        jax.tree.map(lambda u: value - u - 5, updates),
        state,
    )
    ours = optax.GradientTransformationExtraArgs(lambda params: (), only_value)
    assert fit_point(optimizer=ours, average=0, steps=2).flow.at[0] == -18  # 0 → -6 → -6 + (-6 - 6)
    x = np.full((8, 1), 3.0)
    for optimizer in (
        optax.lbfgs(),
        optax.chain(optax.adam(0.5), optax.contrib.reduce_on_plateau(patience=2)),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=False),  # takes none of the three
    ):
        result = fit_point(x=x, loss=distance, optimizer=optimizer, average=0)
        assert result.train_loss[0] == 9
        assert result.val_loss[-1] < 1.0
    flat = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    still = lambda at: at - jax.lax.stop_gradient(at)  # 0, with a gradient of 1
    loss = lambda point, x, condition, key: (still(point.at) if len(x) == 2 else point.at).sum()
    path = fit_point(loss=loss, optimizer=flat, average=0, steps=6).flow.at
    assert -5 < path[0] < -1, "no plateau was seen"


@pytest.mark.nightly
def test_lbfgs_trains_a_flow():
    start, x = small(), data()
    result = gf.fit(jr.key(1), start, x, steps=20, batch_size=256, optimizer=optax.lbfgs(), progress=False)
    assert float(result.flow.log_prob(x).mean()) > float(start.log_prob(x).mean()) + 1


def test_fit_passes_under_debugging_and_strict_types():
    """Nothing that ``fit`` adds to a finite loss is infinite or NaN, and it mixes no types of numbers."""
    strict = lambda: jax.numpy_dtype_promotion("strict")
    for context in (lambda: jax.debug_infs(True), lambda: jax.debug_nans(True), strict):
        for optimizer in (None, optax.adam(1e-2)):
            with context():
                result = fit_point(optimizer=optimizer, steps=5)
            assert np.isfinite(result.val_loss).all()
    with strict(), pytest.raises(Exception, match="dtype promotion"):  # the user's own loss stays strict
        fit_point(loss=lambda point, x, condition, key: point.at.sum() + jnp.ones((), jnp.float16))


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import sys, jax, gauss_flows as gf, jax.random as jr, numpy as np
sys.path.insert(0, {tests!r})
from test_train import small, data
assert len(jax.devices()) == 8
mesh = jax.make_mesh((8,), ("batch",))
options = dict(steps=30, batch_size=64, progress=False)
one = gf.fit(jr.key(1), small(), data(), **options)
eight = gf.fit(jr.key(1), small(), data(), sharding=mesh, **options)
np.testing.assert_allclose(one.train_loss, eight.train_loss, rtol=1e-4, atol=1e-5)
try:
    gf.fit(jr.key(1), small(), data(), steps=1, batch_size=60, sharding=mesh)
except ValueError as error:
    print(error)
"""

MESHES = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import sys, contextlib, jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
sys.path.insert(0, {tests!r})
from test_train import Point, distance, fit_point, jnp
x = np.linspace(0, 1, 24)[:, None].astype(np.float32)
options = dict(loss=distance, batch_size=8, steps=5, optimizer=None)
one = fit_point(x=x, **options)
explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
for mesh, inside, placed in (
    (jax.make_mesh((8,), ("data",)), False, False),
    (jax.make_mesh((8,), ("data",)), True, True),
    (explicit, True, True),
    (explicit, False, True),
    (jax.make_mesh((4, 2), ("data", "model")), False, False),
):
    put = lambda a, *axes: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))
    inputs = (Point(put(np.zeros(1, np.float32))), put(x, "data")) if placed else (Point(jnp.zeros(1)), x)
    with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
        result = fit_point(*inputs, sharding=mesh, **options)
        assert (2 * result.flow.at).shape == (1,)
    np.testing.assert_allclose(one.train_loss, result.train_loss, rtol=1e-5)
    np.testing.assert_allclose(one.flow.at, result.flow.at, rtol=1e-5)
print("done")
"""


def test_meshes_of_explicit_axes_give_the_result_of_one_device():
    code = MESHES.format(tests=str(Path(__file__).parent))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "done\n", run.stderr[-2000:]


@pytest.mark.nightly
def test_eight_devices_give_the_result_of_one():
    code = SHARDED.format(tests=str(Path(__file__).parent))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "`batch_size` must be divisible by the mesh's 8 devices; got 60" in run.stdout
