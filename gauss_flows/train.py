"""Training: one compiled loop, judged on held-out points."""

import hashlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flowjax.distributions import Transformed
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, PRNGKeyArray
from paramax import unwrap
from tqdm import tqdm

from gauss_flows import io
from gauss_flows.base import expect, expect_data, expect_whole, jit_once, split_parameters
from gauss_flows.residual import estimate_log_prob, is_random


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient was not finite. ``result`` holds the best parameters before it."""

    result: "FitResult"


@dataclass(frozen=True)
class FitResult:
    """What training gave. After :func:`fit_many` every array has a leading axis, one entry a key.

    Attributes:
        flow: The flow with the (averaged) parameters of the lowest validation loss.
        train_loss: The loss of each step's batch, shape (steps,).
        val_loss: The validation loss after each chunk of steps, shape (chunks,).
        val_steps: The steps after which it was measured, shape (chunks,).
        best_step: The step whose parameters were kept.
        failed_step: The step whose loss was not finite, -1 if there was none.
        stopped: Why training ended: "steps", "patience", "interrupted" or "non-finite".
    """

    flow: Any
    train_loss: np.ndarray
    val_loss: np.ndarray
    val_steps: np.ndarray
    best_step: Any
    failed_step: Any
    stopped: str


class _Settings(NamedTuple):
    """What is compiled into the loop."""

    steps: int
    chunk: int
    batch_size: int
    clip_norm: float | None
    average: float
    optimizer: optax.GradientTransformation | None
    loss: Callable | None
    sharding: NamedSharding | None


class _State(NamedTuple):
    """What a checkpoint holds."""

    params: Any
    opt_state: Any
    average: Any
    best_params: Any
    best_loss: Array
    best_step: Array
    failed_step: Array
    step: Array
    key: Array  # key data
    rows: Array  # a permutation of the data: training rows, then validation rows


def maximum_likelihood(flow: Any, x: Array, condition: Array | None, key: PRNGKeyArray) -> Array:
    """The default loss: the mean of -log p(x), in nats; estimated where the flow can only be estimated."""
    if is_random(flow):
        return -estimate_log_prob(flow, x, key, condition).mean()
    return -flow.log_prob(x, condition).mean()


def fit(
    key: PRNGKeyArray,
    flow: Any,
    x: ArrayLike,
    *,
    condition: ArrayLike | None = None,
    steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    optimizer: optax.GradientTransformation | None = None,
    clip_norm: float | None = 1.0,
    average: float = 1 / 12,
    val_fraction: float = 0.1,
    patience: int | None = None,
    loss: Callable | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    sharding: Mesh | None = None,
) -> FitResult:
    r"""Train a flow, and keep the parameters that do best on held-out points.

    The steps run inside ``lax.scan``, in chunks, with one wait for the device a chunk; after each the
    validation loss is measured. Batches are drawn with replacement. By default: Adam on a one-cycle
    schedule, gradients clipped by their global norm, parameters averaged over about the
    last twelfth of the steps.

    Args:
        key: Random key for the split, the batches and the loss.
        flow: A flowjax distribution; parameters in ``paramax.NonTrainable`` stay as they are.
        x: Data, shape (n, \*flow.shape), floating point.
        condition: Shape (n, \*flow.cond_shape), for conditional flows.
        steps: Number of optimiser steps.
        batch_size: Rows a step; at most the number of training rows.
        learning_rate: Peak of the one-cycle schedule, which ends at half the peak (at zero without
            averaging). It is not compiled in: another costs no compilation.
        optimizer: An optax transformation in place of clipping, Adam and the schedule.
        clip_norm: Largest global norm of the gradient; None for no clipping.
        average: The parameters that are judged and kept are a moving average, over about this part of the
            steps so far; 0 for those of the last step.
        val_fraction: Part of the rows held out, in (0, 1); at least one row.
        patience: Stop when the validation loss has not improved for this many steps.
        loss: ``(flow, x, condition, key) -> scalar`` in place of the negative mean log-likelihood.
        progress: Show a bar, in a terminal or a notebook.
        checkpoint: A file that is written, whole or not at all, after each chunk. If it exists, training
            goes on from it, and ends bit for bit where an uninterrupted run ends.
        sharding: A mesh over whose first axis each batch is divided (data parallelism).

    Returns:
        A :class:`FitResult`.

    Raises:
        ValueError: Before the first step, if an argument does not fit or a checkpoint is of another run.
        NonFiniteLoss: If the loss or its gradient is not finite; ``.result`` keeps the best parameters.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> flow = gf.coupling_flow(jr.key(0), 2, layers=2, nn_width=8, bijector=gf.Affine())
        >>> x = 2 * jr.normal(jr.key(1), (500, 2))
        >>> result = gf.fit(jr.key(2), flow, x, steps=20, progress=False)
        >>> result.train_loss.shape
        (20,)
    """
    result = _run(
        key, flow, x, None, condition=condition, steps=steps, batch_size=batch_size, optimizer=optimizer,
        learning_rate=learning_rate, clip_norm=clip_norm, average=average, val_fraction=val_fraction,
        patience=patience, loss=loss, progress=progress, checkpoint=checkpoint, sharding=sharding,
    )  # fmt: skip
    if result.failed_step >= 0:
        error = NonFiniteLoss(
            f"the loss or its gradient was not finite at step {result.failed_step}; `.result` holds the "
            f"flow of step {result.best_step}. Lower `learning_rate`, bound the scales, or clip the gradient."
        )
        error.result = result
        raise error
    return result


def fit_many(
    keys: PRNGKeyArray, make: Callable[[PRNGKeyArray], Any], x: ArrayLike, **options: Any
) -> FitResult:
    """Train one flow a key, side by side under ``vmap``: five seeds cost one compilation.

    Args:
        keys: Random keys, shape (m,); each makes a flow, a split and its batches.
        make: key -> flow, the same structure for every key.
        x: As for :func:`fit`.
        **options: As for :func:`fit`: condition, steps, batch_size, … without patience, checkpoint and
            sharding; ``learning_rate`` is one peak for all, or one a key, shape (m,).

    Returns:
        A :class:`FitResult` with a leading axis of size m on every array, those of ``flow`` included. A
        key whose loss is not finite does not stop the others: see ``failed_step``.

    Raises:
        ValueError: As :func:`fit`.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> make = lambda key: gf.coupling_flow(key, 2, layers=2, nn_width=8, bijector=gf.Affine())
        >>> x = 2 * jr.normal(jr.key(1), (500, 2))
        >>> gf.fit_many(jr.split(jr.key(2), 3), make, x, steps=20, progress=False).train_loss.shape
        (3, 20)
    """
    for name in ("patience", "checkpoint", "sharding"):
        expect(options.get(name) is None, name, "be left out for many flows", options.get(name))
    both = jax.vmap(jr.split)(keys)
    flows = eqx.filter_vmap(make)(both[:, 0])
    return _run(both[:, 1], flows, x, len(keys), **{**(fit.__kwdefaults__ or {}), **options})


def distill(
    key: PRNGKeyArray,
    teacher: Transformed,
    student: Transformed,
    *,
    loss: str = "reverse_kl",
    n_noise: int = 2**15,
    **options: Any,
) -> FitResult:
    r"""Train a flow whose samples are cheap on one whose densities (or samples) are.

    With u from the student's base density, :math:`f_S, f_T` the maps from base to data:

    .. math:: \text{reverse_kl: } & E_u\big[\log q_S(f_S(u)) - \log p_T(f_S(u))\big], \\
              \text{output: } & E_u\,\|f_S(u) - f_T(u)\|^2.

    The first needs the teacher's density on the student's samples and no sample of the teacher's. It seeks
    modes: what the student never draws costs it nothing. The second ties the student to the teacher's own
    map point by point, so both need the same base density.

    Args:
        key: Random key for the noise and the training.
        teacher: A flowjax ``Transformed``; it stays as it is.
        student: A flowjax ``Transformed`` of the same shape, without a condition, as the teacher.
        loss: "reverse_kl" or "output".
        n_noise: Number of noise points, of which batches are drawn.
        **options: As for :func:`fit`: steps, batch_size, learning_rate, …

    Returns:
        A :class:`FitResult` with the student; its losses are those above, in nats or squared units.

    Raises:
        ValueError: If the two do not fit one another, or as :func:`fit`.
        NonFiniteLoss: As :func:`fit`.

    Source:
        Oord et al., "Parallel WaveNet" (ICML 2018), section 3, for the first; Huang et al., "Probability
        distillation: a caveat and alternatives" (UAI 2019) for the second.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> small = {"layers": 1, "nn_width": 4, "bijector": gf.Affine()}
        >>> teacher, student = gf.maf(jr.key(0), 2, **small), gf.iaf(jr.key(1), 2, **small)
        >>> gf.distill(jr.key(2), teacher, student, steps=5, progress=False).train_loss.shape
        (5,)
    """
    for name, flow in (("teacher", teacher), ("student", student)):
        expect(isinstance(flow, Transformed), name, "be a flowjax Transformed", type(flow).__name__)
        expect(flow.cond_shape is None, name, "have no condition", flow.cond_shape)
    same = teacher.shape == student.shape
    expect(same, "student", f"have the teacher's shape {teacher.shape}", student.shape)
    losses = {"reverse_kl": _reverse_kl, "output": _output_distance}
    expect(loss in losses, "loss", f"be one of {tuple(losses)}", repr(loss))
    expect("condition" not in options, "condition", "be left out: there is none", "one")
    noise_key, key = jr.split(key)
    n_noise = expect_whole("n_noise", n_noise, 2)
    noise = eqx.filter_jit(lambda flow: unwrap(flow).base_dist.sample(noise_key, (n_noise,)))(student)
    frozen = unwrap(teacher)
    objective = lambda flow, noise, condition, key: losses[loss](unwrap(flow), frozen, noise)
    return fit(key, student, noise, loss=objective, **options)


def _reverse_kl(student, teacher, noise):
    x, log_det = jax.vmap(student.bijection.transform_and_log_det)(noise)
    return (student.base_dist.log_prob(noise) - log_det - teacher.log_prob(x)).mean()


def _output_distance(student, teacher, noise):
    ours, theirs = (jax.vmap(flow.bijection.transform)(noise) for flow in (student, teacher))
    return jnp.square(ours - theirs).sum(axis=tuple(range(1, ours.ndim))).mean()


def _run(
    key, flow, x, many, *, condition, steps, batch_size, learning_rate, optimizer, clip_norm,
    average, val_fraction, patience, loss, progress, checkpoint, sharding,
):  # fmt: skip
    x, condition = expect_data(flow, x, condition)
    n_val = _held_out(len(x), batch_size, val_fraction)
    steps = expect_whole("steps", steps, 1)
    rate = np.asarray(learning_rate, float)
    expect(bool(np.isfinite(rate).all() and (rate > 0).all()), "learning_rate", "be positive", learning_rate)
    fits = rate.shape == () or (bool(many) and rate.shape == (many,))
    expect(fits, "learning_rate", f"have shape ({many},), one a key" if many else "be one number", rate.shape)
    expect(clip_norm is None or clip_norm > 0, "clip_norm", "be positive or None", clip_norm)
    expect(0 <= average < 1, "average", "lie in [0, 1)", average)
    expect(patience is None or patience >= 1, "patience", "be at least 1 or None", patience)
    chunk = math.ceil(steps / max(min(steps, 10), math.ceil(steps / 100)))
    named = None
    if sharding is not None:
        expect(isinstance(sharding, Mesh), "sharding", "be a jax.sharding.Mesh", type(sharding).__name__)
        parts = sharding.shape[sharding.axis_names[0]]
        expect(batch_size % parts == 0, "batch_size", f"divide by the mesh's {parts} devices", batch_size)
        sharding = Mesh(sharding.devices, sharding.axis_names)  # with the axes left to the compiler
        named = NamedSharding(sharding, PartitionSpec(sharding.axis_names[0]))
    settings = _Settings(steps, chunk, batch_size, clip_norm, float(average), optimizer, loss, named)

    params, static = split_parameters(flow)
    state = _start(key, params, settings, len(x), many)
    rates = jnp.asarray(np.broadcast_to(rate, (many,) if many else ()), float)
    data = (x, condition, rates, n_val, static, settings, many)
    if named is not None:
        everywhere = NamedSharding(sharding, PartitionSpec())
        put = lambda tree: jax.device_put(tree, everywhere)
        state, data = put(state), (*map(put, data[:3]), *data[3:])

    losses, val_losses = [], []
    if checkpoint is not None:
        mark = _fingerprint(flow, x, condition, rates, settings, val_fraction, key)
        if Path(checkpoint).exists():
            state, notes = io.read(checkpoint, state)
            ours = notes.get("run") == mark
            expect(ours, "checkpoint", "be of this run, its data and settings included", checkpoint)
            losses, val_losses = notes["losses"], notes["val_losses"]

    stopped = "steps"
    total = math.ceil(steps / chunk)
    bar = tqdm(total=steps, disable=not (progress and _watched()), leave=False, unit="step")
    try:
        bar.update(min(steps, len(val_losses) * chunk))
        for _ in range(len(val_losses), total):
            state, batch_losses, val_loss = _chunk(data, state)
            losses.append(np.asarray(batch_losses).tolist())
            val_losses.append(np.asarray(val_loss).tolist())
            best, failed = np.asarray(state.best_step), np.asarray(state.failed_step)
            if checkpoint is not None:
                io.write(checkpoint, state, {"run": mark, "losses": losses, "val_losses": val_losses})
            bar.update(min(chunk, steps - bar.n))
            bar.set_postfix(validation=f"{np.mean(val_loss):.3f}")
            if (failed >= 0).all():
                stopped = "non-finite"
                break
            if patience is not None and int(state.step) - int(best) >= patience:
                stopped = "patience"
                break
    except KeyboardInterrupt:
        stopped = "interrupted"
    finally:
        bar.close()

    size = (many,) if many else ()
    history = np.array(losses, float).reshape(-1, *size, chunk)
    history = np.moveaxis(history, 0, -2).reshape(*size, -1)[..., :steps]
    measured = np.moveaxis(np.array(val_losses, float).reshape(-1, *size), 0, -1)
    return FitResult(
        flow=eqx.combine(state.best_params, static),
        train_loss=history,
        val_loss=measured,
        val_steps=np.minimum(chunk * np.arange(1, len(val_losses) + 1), steps),
        best_step=np.asarray(state.best_step) if many else int(state.best_step),
        failed_step=np.asarray(state.failed_step) if many else int(state.failed_step),
        stopped=stopped,
    )


def _held_out(n, batch_size, val_fraction) -> int:
    """The number of rows held out of n, where enough are left to train on."""
    expect(0 < val_fraction < 1, "val_fraction", "lie between 0 and 1", val_fraction)
    n_val = max(1, round(val_fraction * n))
    expect(n > n_val, "val_fraction", f"leave one of the {n} rows to train on", val_fraction)
    fits = expect_whole("batch_size", batch_size, 1) <= n - n_val
    expect(fits, "batch_size", f"be at most the {n - n_val} training rows", batch_size)
    return n_val


def _optimizer(settings: _Settings, rate) -> optax.GradientTransformation:
    if settings.optimizer is not None:
        return settings.optimizer
    # Averaging does what annealing to zero does, and better from steps that still move.
    end = 0.5 if settings.average else 1e-6
    part = optax.cosine_onecycle_schedule(settings.steps, 1.0, final_div_factor=1 / (25 * end))
    schedule = lambda step: rate * part(step)
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    return optax.chain(clip, optax.adam(schedule))


def _moved(params, settings):
    """What the optimiser sees: one vector, whose update is a few kernels and not a few for each array.

    An optimiser of the caller's sees the tree, whose parts it may treat differently.
    """
    return params if settings.optimizer else ravel_pytree(params)[0]


@jit_once
def _start(key, params, settings, n, many):
    """The first state, with the types of the next ones (a weak one would compile the loop twice).

    Parameters are copied, since the loop gives its buffers away.
    """

    def start(key, params):
        rows_key, key = jr.split(key)
        copy = lambda tree: jax.tree.map(lambda a: jnp.array(a, a.dtype), tree)
        none = jnp.full((), -1, jnp.int32)
        opt_state = _optimizer(settings, 1.0).init(_moved(params, settings))
        state = _State(
            params, opt_state, params, params, jnp.full((), jnp.inf), none + 1, none, none + 1,
            jr.key_data(key), jr.permutation(rows_key, n),
        )  # fmt: skip
        return copy(state)

    return (eqx.filter_vmap(start) if many else start)(key, params)


@eqx.filter_jit(donate="all-except-first")
def _chunk(data, state):
    """Some steps, then one look at the validation rows."""
    x, condition, rates, n_val, static, settings, many = data
    run = lambda rate, static, state: _steps(x, condition, rate, n_val, static, settings, state)
    return (eqx.filter_vmap(run) if many else run)(rates, static, state)


def _steps(x, condition, rate, n_val, static, settings, state):
    optimizer, loss = _optimizer(settings, rate), settings.loss or maximum_likelihood
    key = jr.wrap_key_data(state.key)
    n_train = len(x) - n_val
    take = lambda rows: (x[rows], None if condition is None else condition[rows])
    whole = (lambda tree: tree) if settings.optimizer else ravel_pytree(state.params)[1]

    def step(carry, i):
        params, opt_state, average, failed = carry
        batch_key, loss_key = jr.split(jr.fold_in(key, i))
        rows = state.rows[jr.randint(batch_key, (settings.batch_size,), 0, n_train)]
        batch = take(rows)
        if settings.sharding is not None:
            batch = jax.lax.with_sharding_constraint(batch, settings.sharding)
        flow = lambda params: eqx.combine(whole(params), static)
        value, grads = jax.value_and_grad(lambda p: loss(flow(p), *batch, loss_key))(params)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        go = finite & (failed < 0) & (i < settings.steps)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(go, a, b), new, old)
        params = keep(optax.apply_updates(params, updates), params)
        opt_state = keep(new_opt_state, opt_state)
        part = jnp.where(go, 1 / (1 + settings.average * i), 0)  # of a memory that grows with the steps
        average = jax.tree.map(lambda a, p: a + part.astype(a.dtype) * (p - a), average, params)
        failed = jnp.where((failed < 0) & ~finite & (i < settings.steps), i, failed)
        return (params, opt_state, average, failed), value

    steps = state.step + jnp.arange(settings.chunk, dtype=jnp.int32)
    params, average = (_moved(tree, settings) for tree in (state.params, state.average))
    start = (params, state.opt_state, average, state.failed_step)
    (params, opt_state, average, failed), losses = jax.lax.scan(step, start, steps)
    params, average = whole(params), whole(average)
    held_out = take(state.rows[n_train:])
    value = loss(eqx.combine(average, static), *held_out, jr.fold_in(key, 2**31 - 1))
    better = value < state.best_loss
    done = jnp.minimum(state.step + settings.chunk, settings.steps).astype(jnp.int32)
    state = state._replace(
        params=params,
        opt_state=opt_state,
        average=average,
        best_params=jax.tree.map(lambda a, b: jnp.where(better, a, b), average, state.best_params),
        best_loss=jnp.where(better, value, state.best_loss).astype(state.best_loss.dtype),
        best_step=jnp.where(better, done, state.best_step),
        failed_step=failed,
        step=done,
    )
    return state, losses, value


def _watched() -> bool:
    """Whether somebody sees the bar: a terminal, or a notebook's kernel."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _fingerprint(flow, x, condition, rates, settings, val_fraction, key) -> str:
    """What a checkpoint must agree on: start, data, settings, key."""
    digest = hashlib.sha256()
    arrays = [*jax.tree.leaves(eqx.filter(flow, eqx.is_array)), x, condition, rates, jr.key_data(key)]
    for array in arrays:
        if array is not None:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.asarray(array).tobytes())
    plain = settings._replace(optimizer=None, loss=None, sharding=None)
    digest.update(repr((plain, val_fraction, settings.optimizer is None, settings.loss is None)).encode())
    return digest.hexdigest()
