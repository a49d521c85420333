"""Training and files: what fit promises, kept."""

import os
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
import pytest
from flowjax.bijections import Affine
from flowjax.distributions import Normal, Transformed
from paramax import unwrap

import gauss_flows as gf
from gauss_flows import train

pytestmark = pytest.mark.usefixtures("quick_compilation")


def small(key=None, **options):
    key = jr.key(0) if key is None else key
    return gf.coupling_flow(key, 2, layers=2, bijector=gf.Affine(), nn_width=8, **options)


def data(n=600):
    return jnp.array([[1.0, -2.0]]) + jnp.array([[2.0, 0.5]]) * jr.normal(jr.key(9), (n, 2))


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

    class Point(eqx.Module):
        at: jax.Array
        shape: tuple[int, ...] = eqx.field(static=True, default=(1,))
        cond_shape: None = eqx.field(static=True, default=None)

    options = {
        "steps": 40, "batch_size": 2, "progress": False, "optimizer": optax.sgd(1.0),
        "loss": lambda point, x, condition, key: point.at.sum(),
    }  # fmt: skip
    run = lambda **more: gf.fit(jr.key(0), Point(jnp.zeros(1)), np.ones((8, 1)), **options, **more)
    for memory in (0.25, 0.5):
        average = 0.0
        for i in range(40):
            average += (-(i + 1) - average) / (1 + memory * i)
        np.testing.assert_allclose(run(average=memory).flow.at, average, rtol=1e-5)
    np.testing.assert_allclose(run(average=0).flow.at, -40)


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
import sys, pathlib, gauss_flows as gf, jax.random as jr
sys.path.insert(0, {tests!r})
from test_train import small, data
result = gf.fit(jr.key(1), small(), data(), steps=2000, batch_size=64, progress=False, checkpoint={path!r})
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
