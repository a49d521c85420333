"""Training and files: what fit promises, kept."""

import os
import re
import signal
import subprocess
import sys
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
from flowjax.bijections import Affine
from flowjax.distributions import Normal, Transformed
from paramax import unwrap

import gauss_flows as gf
from gauss_flows import checkpoint, io, train
from gauss_flows.result import reason

pytestmark = pytest.mark.usefixtures("quick_compilation")


def small(key=None, **options):
    key = jr.key(0) if key is None else key
    return gf.coupling_flow(key, 2, layers=2, bijector=gf.Affine(), nn_width=8, **options)


def data(n=600):
    return jnp.array([[1.0, -2.0]]) + jnp.array([[2.0, 0.5]]) * jr.normal(jr.key(9), (n, 2))


class Point(eqx.Module):
    """A model of a few numbers, whose path is known in closed form; compiling it costs next to nothing."""

    at: jax.Array
    shape: tuple[int, ...] = eqx.field(static=True, default=(1,))
    cond_shape: None = eqx.field(static=True, default=None)


class HalfLine(Point):
    """An exponential density, whose support is x > 0."""

    def log_prob(self, x, condition=None):
        rate = jnp.exp(self.at)[0]
        return jnp.where(x[..., 0] > 0, jnp.log(rate) - rate * x[..., 0], -jnp.inf)


def height(point, x, condition, key):
    """A loss of gradient 1, so that an update is the learning rate, and a loss says where the model is."""
    return point.at.sum()


def fit_point(point=None, x=None, key=None, **options):
    """Forty steps in chunks of four, by default plain steps of size 1 downhill."""
    defaults = {
        "steps": 40, "batch_size": 2, "progress": False, "optimizer": optax.sgd(1.0), "loss": height
    }  # fmt: skip
    point = Point(jnp.zeros(1)) if point is None else point
    return gf.fit(
        jr.key(0) if key is None else key, point, np.ones((8, 1)) if x is None else x, **defaults | options
    )


def average_of(path, memory):
    """The moving average that ``fit`` keeps of the models after each update."""
    average = 0.0
    for i, at in enumerate(path):
        average += (at - average) / (1 + memory * i)
    return average


def leaves(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def same(a, b):
    return all(bool((x == y).all()) for x, y in zip(leaves(a), leaves(b), strict=True))


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


def test_the_validation_rows_are_held_out():
    """A loss that records which rows it sees: training rows and validation rows never meet."""
    x = jnp.arange(100.0)[:, None] * jnp.ones((1, 2))
    seen = {"train": set(), "val": set()}

    def loss(flow, x, condition, key):
        where = "val" if len(x) == 20 else "train"
        jax.debug.callback(lambda rows: seen[where].update(rows.tolist()), x[:, 0])
        return gf.train.maximum_likelihood(flow, x / 100, condition, key)

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
        return train.maximum_likelihood(flow, x, condition, key)

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
        value = train.maximum_likelihood(flow, x, condition, key)
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


def breaks_below(depth, sign=1):
    """A loss that is NaN for batches after ``depth`` steps; ``sign`` is that of the validation loss."""

    def loss(point, x, condition, key):
        value = height(point, x, condition, key)
        return jnp.where(value < 0.5 - depth, jnp.nan, value) if len(x) == 2 else sign * value

    return loss


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


def test_losses_of_steps_that_were_not_taken_are_not_shown():
    """Here the batches after a failure have a finite loss again, but no update follows."""

    def loss(point, x, condition, key):
        return jnp.where((jr.uniform(key) < 0.1) & (len(x) == 2), jnp.nan, point.at.sum())

    options = {"steps": 100, "batch_size": 2, "val_fraction": 3 / 8, "progress": False}
    start = lambda key: Point(jnp.zeros(1))
    many = gf.fit_many(jr.split(jr.key(0), 3), start, np.ones((8, 1)), loss=loss, **options)
    for i, failed in enumerate(many.failed_step):
        assert 0 <= failed < 90
        assert np.isfinite(many.train_loss[i, :failed]).all()
        assert np.isnan(many.train_loss[i, failed:]).all()
        assert many[i].train_loss.shape == (failed + 1,)


def test_a_result_of_many_is_indexed_by_key():
    """Each flow works by itself; the stacked one still does under ``vmap``."""
    keys, x = jr.split(jr.key(3), 3), np.linspace(0.1, 2, 50)[:, None]
    make = lambda key: HalfLine(jr.normal(key, (1,)))
    many = gf.fit_many(keys, make, x, steps=2, batch_size=8, progress=False)
    assert len(many) == len(list(many)) == 3
    stacked = eqx.filter_vmap(lambda flow: flow.log_prob(x))(many.flow)
    assert len(set(many.train_loss[:, 0])) == 3
    for i in range(-3, 3):
        np.testing.assert_allclose(many[i].flow.log_prob(x), stacked[i], rtol=1e-5)
        np.testing.assert_array_equal(many[i].train_loss, many.train_loss[i])
        assert isinstance(many[i].best_step, int)
    for i in (3, -4):
        with pytest.raises(IndexError, match=f"must lie between -3 and 2; got {i}"):
            many[i]
    with pytest.raises(TypeError, match="must be a whole number; got 'a'"):
        many["a"]
    one = fit_point()
    assert one
    for use in (len, lambda result: result[0], list):
        with pytest.raises(TypeError, match="Only a result of `fit_many`"):
            use(one)


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


def test_the_advice_of_a_failure_fits_its_cause():
    with pytest.raises(gf.NonFiniteLoss, match="Lower `learning_rate`"):  # a Point has no log_prob at all
        fit_point(steps=100, loss=breaks_below(25))
    with pytest.raises(gf.NonFiniteLoss, match="No update was made before, so look at the `loss`"):
        fit_point(loss=breaks_below(0))
    result = fit_point(steps=1)
    outside = (result, jr.key(0), HalfLine(jnp.zeros(1)), -np.ones((8, 1)), None)
    assert "8 of 8 rows" in reason(*outside, noise=False)
    assert "rows" not in reason(*outside, noise=True)  # distill's rows are noise


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

    def interrupted(data, state, chunk=train._chunk):
        chunk(data, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_chunk", interrupted)
    result = fit_point(Point(jnp.full(1, 7.0)))
    assert (result.stopped, result.best_step, result.train_loss.shape) == ("interrupted", 0, (0,))
    assert float(result.flow.at[0]) == 7


def test_interruption_returns_the_best_so_far(monkeypatch):
    calls = []

    def interrupted(data, state, chunk=train._chunk):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return chunk(data, state)

    monkeypatch.setattr(train, "_chunk", interrupted)
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
    settings = train._Settings(4, 1, 2, 1.0, 1 / 12, optax.sgd(1.0), height, None, "threefry2x32")
    state, notes = io.read(path, train._start(jr.key(0), Point(jnp.zeros(1)), settings, 8, None))
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
    assert "`batch_size` must divide by the mesh's 8 devices; got 60" in run.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((50, 2), int)}, "`x` must be floating point.*got dtype int64"),
        ({"x": np.ones((50, 3))}, r"`x` must have shape \(n, 2\) with n ≥ 2; got \(50, 3\)"),
        ({"x": np.full((50, 2), np.nan)}, "`x` must be finite; got NaN or infinity in 50 of 50 rows"),
        ({"x": np.array([[np.inf, 0.0], *[[0.0, 0.0]] * 49])}, "in 1 of 50 rows"),
        ({"x": np.ones((1, 2)), "batch_size": 1}, r"`x` must have shape.*n ≥ 2; got \(1, 2\)"),
        ({"batch_size": 46}, "`batch_size` must be at most the 45 training rows; got 46"),
        ({"batch_size": 0}, "`batch_size` must be a whole number ≥ 1"),
        ({"steps": 0}, "`steps` must be a whole number ≥ 1; got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"learning_rate": [1e-3, 1e-2]}, r"`learning_rate` must be one number; got \(2,\)"),
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
    monkeypatch.setattr(train, "_chunk", None)
    options = {"x": np.ones((50, 2)), "batch_size": 8, "steps": 3} | change
    with pytest.raises(ValueError, match=message):
        gf.fit(jr.key(0), small(), options.pop("x"), **options)


@pytest.mark.parametrize("loss", ["reverse_kl", "output"])
def test_distillation_brings_the_student_to_the_teacher(loss):
    """A Gaussian teacher, so that both divergences are known; the teacher is left alone."""
    shift = Affine(jnp.array([1.0, -2.0]), jnp.array([2.0, 0.5]))
    teacher = Transformed(Normal(jnp.zeros(2)), shift)
    before = [np.array(a) for a in leaves(teacher)]
    student = gf.iaf(jr.key(0), 2, layers=2, bijector=gf.Affine(), nn_width=8)
    options = {"steps": 400, "batch_size": 128, "n_noise": 2000, "progress": False}
    result = gf.distill(jr.key(1), teacher, student, loss=loss, **options)
    x = data(5000)
    kl = float((teacher.log_prob(x) - eqx.filter_jit(result.flow.log_prob)(x)).mean())
    assert -0.02 < kl < 0.05
    assert 0 <= result.val_loss[-1] + 0.02 < 0.1
    assert all((a == b).all() for a, b in zip(before, leaves(teacher), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "forward"}, "`loss` must be one of"),
        ({"teacher": gf.Affine()}, "`teacher` must be a flowjax Transformed; got Affine"),
        ({"student": gf.maf(jr.key(0), 3, layers=1, nn_width=4)}, r"`student` must have the teacher's shape"),
        ({"student": gf.maf(jr.key(0), 2, cond_dim=1, nn_width=4)}, "`student` must have no condition"),
        ({"condition": jnp.ones((2, 1))}, "`condition` must be left out"),
        ({"n_noise": 0}, "`n_noise` must be a whole number ≥ 2"),
    ],
)
def test_distill_refuses(change, message):
    arguments = {"teacher": small(), "student": small()} | change
    with pytest.raises(ValueError, match=message):
        gf.distill(jr.key(0), arguments.pop("teacher"), arguments.pop("student"), **arguments)


def test_a_new_coupling_flow_is_its_bijector_and_every_coordinate_has_its_turn():
    x = jr.normal(jr.key(1), (20, 3))
    new = gf.coupling_flow(jr.key(0), 3, layers=2, bijector=gf.Affine(), nn_width=8)
    np.testing.assert_allclose(jax.jit(jax.vmap(new.bijection.inverse))(x), x, atol=1e-5)
    network = gf.conditioners.mlp(8, 1, activation=jnp.tanh)
    options = {"layers": 3, "bijector": gf.Affine(), "conditioner": network}
    for mixing in ("lu", "flip"):  # before anything is trained
        loud = gf.coupling_flow(jr.key(0), 4, mixing=mixing, **options)
        assert jax.jit(jax.jacfwd(loud.bijection.inverse))(jnp.ones(4)).all()


@pytest.mark.nightly
def test_coupling_flow_mixings_and_refusals():
    for mixing in ("householder", "lu", "flip"):
        flow = gf.coupling_flow(jr.key(0), 3, layers=2, mixing=mixing, nn_width=8, actnorm=True)
        assert gf.check_bijection(flow.bijection.bijection, jr.normal(jr.key(1), (20, 3))).ok
        assert flow.sample(jr.key(2), (4,)).shape == (4, 3)
    for options, name in (({"layers": 0}, "layers"), ({"mixing": "stir"}, "mixing")):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            gf.coupling_flow(jr.key(0), 2, **options)
    with pytest.raises(ValueError, match="`dim` must be a whole number ≥ 2"):
        gf.coupling_flow(jr.key(0), 1)


# --- files --------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    path = tmp_path / "a file.npz"
    flow = small(jr.key(1))
    gf.save(path, flow)
    assert len(leaves(flow)) > 10  # a10 sorts before a2
    assert same(gf.load(path, small()), flow)
    assert not same(small(), flow)
    assert [p.name for p in tmp_path.iterdir()] == ["a file.npz"]


def test_load_says_what_is_wrong(tmp_path):
    path = tmp_path / "flow.npz"
    gf.save(path, small())
    with pytest.raises(ValueError, match=r"`like` must have the file's array .*float32\[2, 8, 1\].*got"):
        gf.load(path, gf.coupling_flow(jr.key(0), 2, layers=2, bijector=gf.Affine(), nn_width=16))
    with pytest.raises(ValueError, match="`like` must have"):
        gf.load(path, gf.Affine())
    whole = path.read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("foreign", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="`path` must be a whole file that gauss_flows saved"):
            gf.load(tmp_path / name, small())
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="`path` must be a whole file"):
        gf.load(tmp_path / "other.npz", small())
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="`path` must be a whole file"):
        gf.load(tmp_path / "pickled.npz", small())
    with pytest.raises(FileNotFoundError):
        gf.load(tmp_path / "none", small())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "flow.npz"
    gf.save(path, small(jr.key(1)))
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        gf.save(path, small(jr.key(2)))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_keys_of_any_implementation_train():
    x = jr.normal(jr.key(0), (60, 2))
    flow = gf.coupling_flow(jr.key(1), 2, layers=1, nn_width=4, bijector=gf.Affine())
    for key in (jr.key(0, impl="rbg"), jr.PRNGKey(0)):
        assert np.isfinite(gf.fit(key, flow, x, steps=2, batch_size=8, progress=False).val_loss).all()
