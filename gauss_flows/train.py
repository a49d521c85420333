"""Training: one compiled loop, judged on held-out points."""

import contextlib
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, PRNGKeyArray
from paramax import unwrap
from tqdm import tqdm

from gauss_flows import io
from gauss_flows.base import expect, expect_data, expect_whole, jit_once, split_parameters
from gauss_flows.checkpoint import expect_same_run, fingerprint
from gauss_flows.residual import estimate_log_prob, is_random
from gauss_flows.result import FitResult, NonFiniteLoss, log_densities, of_one_flow, reason


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
    key_impl: str  # which random bits the keys make


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
        optimizer: An optax transformation, such as ``optax.adam(1e-3)``, in place of clipping, Adam and the
            schedule. Transformations that take ``value``, ``grad`` and ``value_fn``, such as
            ``optax.lbfgs()`` and ``optax.contrib.reduce_on_plateau()``, receive those of the step's batch.
        clip_norm: Largest global norm of the gradient; None for no clipping.
        average: The parameters that are judged and kept are a moving average, over about this part of the
            steps so far; 0 for those of the last step.
        val_fraction: Part of the rows held out, in (0, 1); at least one row.
        patience: Stop when the validation loss has not improved for this many steps.
        loss: ``(flow, x, condition, key) -> scalar`` in place of the negative mean log-likelihood.
        progress: Show a bar, in a terminal or a notebook.
        checkpoint: A file that is written, whole or not at all, after each chunk. If it exists, training
            goes on from it, and ends bit for bit where an uninterrupted run ends. It must be of the same
            run: the start parameters, the data, the key, the settings, the flow's structure, the loss and the
            optimizer are compared. Of the last three that is the program that JAX traces for one chunk of
            steps, with its constants; what a callback does on the host is not seen. The program depends on
            the versions of JAX and the other packages, so that under other versions the file may be
            refused, and the error names them. Files of gauss_flows 0.1.0 lack this record and are refused.
            ``patience``, ``progress`` and ``sharding`` may change.
        sharding: A mesh over whose first axis each batch is divided (data parallelism).

    Returns:
        A :class:`FitResult`.

    Raises:
        ValueError: Before the first step, if an argument does not fit or a checkpoint is of another run.
        NonFiniteLoss: If the loss or its gradient is not finite, or no validation loss is. Rows whose
            log-density under the start flow is −inf or NaN are then counted and named. ``.result`` keeps
            the best parameters.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> flow = gf.coupling_flow(jr.key(0), 2, layers=2, nn_width=8, bijector=gf.Affine())
        >>> x = 2 * jr.normal(jr.key(1), (500, 2))
        >>> result = gf.fit(jr.key(2), flow, x, steps=20, progress=False)
        >>> result.train_loss.shape
        (20,)
    """
    context: Any = contextlib.nullcontext()
    theirs = sharding
    if isinstance(theirs, Mesh):  # with the axes left to the compiler, also where the caller's are explicit
        auto = (AxisType.Auto,) * len(theirs.axis_names)
        sharding = Mesh(theirs.devices, theirs.axis_names, axis_types=auto)
        context = jax.set_mesh(sharding)
    with context:
        result = _run(
            key, flow, x, None, condition=condition, steps=steps, batch_size=batch_size, optimizer=optimizer,
            learning_rate=learning_rate, clip_norm=clip_norm, average=average, val_fraction=val_fraction,
            patience=patience, loss=loss, progress=progress, checkpoint=checkpoint, sharding=sharding,
        )  # fmt: skip
    if isinstance(theirs, Mesh) and AxisType.Explicit in theirs.axis_types:  # works with the caller's arrays
        result = replace(result, flow=_everywhere(theirs, result.flow))
    lost = len(result.val_loss) > 0 and not np.isfinite(result.val_loss).any()
    if result.failed_step >= 0 or (lost and result.stopped != "interrupted"):
        error = NonFiniteLoss(reason(result, key, flow, x, condition, noise=isinstance(loss, _Distillation)))
        error.result = result
        raise error
    return result


def fit_many(
    keys: PRNGKeyArray, make: Callable[[PRNGKeyArray], Any], x: ArrayLike, **options: Any
) -> FitResult:
    """Train one flow per key, side by side under ``vmap``: five seeds cost one compilation.

    Args:
        keys: Random keys, shape (m,) with m ≥ 1; each makes a flow, a split and its batches.
        make: key -> flow, the same structure for every key.
        x: As for :func:`fit`.
        **options: As for :func:`fit`: condition, steps, batch_size, … without patience, checkpoint and
            sharding; ``learning_rate`` is one peak for all, or one a key, shape (m,).

    Returns:
        A :class:`FitResult` with a leading axis of size m on every array, those of ``flow`` included:
        ``result[i]`` is that of key i, and ``result[i].flow`` its flow. A key whose loss is not finite does
        not stop the others: see ``failed_step``.

    Raises:
        ValueError: As :func:`fit`.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> make = lambda key: gf.coupling_flow(key, 2, layers=2, nn_width=8, bijector=gf.Affine())
        >>> x = 2 * jr.normal(jr.key(1), (500, 2))
        >>> gf.fit_many(jr.split(jr.key(2), 3), make, x, steps=20, progress=False).train_loss.shape
        (3, 20)
    """
    typed = jnp.issubdtype(getattr(keys, "dtype", np.dtype(object)), jax.dtypes.prng_key)
    shape = np.shape(keys) if typed else np.shape(keys)[:-1]
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(
            f"`keys` must be an array of random keys, one per flow, such as `jr.split(key, 5)`; got {keys!r}."
        )
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
    return fit(key, student, noise, loss=_Distillation(losses[loss], frozen), **options)


@dataclass(frozen=True, eq=False)
class _Distillation:
    """The loss of :func:`distill`, whose rows are noise and not data."""

    distance: Callable
    teacher: Any

    def __call__(self, student, noise, condition, key):
        return self.distance(unwrap(student), self.teacher, noise)


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
    _expect_optimizer(optimizer)
    expect(clip_norm is None or clip_norm > 0, "clip_norm", "be positive or None", clip_norm)
    expect(0 <= average < 1, "average", "lie in [0, 1)", average)
    expect(patience is None or patience >= 1, "patience", "be at least 1 or None", patience)
    chunk = math.ceil(steps / max(min(steps, 10), math.ceil(steps / 100)))
    named = None
    if sharding is not None:
        expect(isinstance(sharding, Mesh), "sharding", "be a jax.sharding.Mesh", type(sharding).__name__)
        parts = sharding.shape[sharding.axis_names[0]]
        expect(batch_size % parts == 0, "batch_size", f"divide by the mesh's {parts} devices", batch_size)
        named = NamedSharding(sharding, PartitionSpec(sharding.axis_names[0]))
    clip_norm = None if clip_norm is None else float(clip_norm)
    settings = _Settings(
        steps,
        chunk,
        int(batch_size),
        clip_norm,
        float(average),
        optimizer,
        loss,
        named,
        str(jr.key_impl(key)),
    )

    rates = jnp.asarray(np.broadcast_to(rate, (many,) if many else ()), float)
    mark = {} if checkpoint is None else _run_mark(key, flow, x, condition, rates, settings, n_val)
    if named is not None:
        key, flow, x, condition, rates = _everywhere(sharding, (key, flow, x, condition, rates))
    params, static = split_parameters(flow)
    state = _start(key, params, settings, len(x), many)
    data = (x, condition, rates, n_val, static, settings, many)

    chunks: list[tuple[Any, Any]] = []  # the losses of each chunk's steps, and its validation loss
    if checkpoint is not None and Path(checkpoint).exists():
        try:
            state, notes = io.read(checkpoint, state)
        except ValueError as error:
            raise ValueError(f"`checkpoint` must be of this run; {checkpoint}: {error}") from error
        expect_same_run(checkpoint, notes, mark)
        chunks = list(zip(notes["losses"], notes["val_losses"], strict=True))

    total = math.ceil(steps / chunk)
    bar = tqdm(total=steps, disable=not (progress and _watched()), leave=False, unit="step")
    try:
        bar.update(min(steps, len(chunks) * chunk))
        while (stopped := _ended(state, chunks, total, patience)) is None:
            # A bad row that is held out spoils every validation loss: do not wait for the others.
            unjudged = len(chunks) == 1 and not many and loss is None and not np.isfinite(chunks[0][1])
            if unjudged and not np.isfinite(log_densities(key, flow, x, condition)).all():
                stopped = "non-finite"
                break
            new = _chunk(data, state)  # gives the buffers of the old state away
            # No call stands between these two: an interruption finds a state and its losses, or neither.
            state = new[0]
            chunks += [new[1:]]
            if checkpoint is not None:
                steps_losses, val_losses = (
                    [np.asarray(a).tolist() for a in c] for c in zip(*chunks, strict=True)
                )
                io.write(checkpoint, state, {"run": mark, "losses": steps_losses, "val_losses": val_losses})
            bar.update(min(chunk, steps - bar.n))
            bar.set_postfix(validation=f"{np.mean(new[2]):.3f}")
    except KeyboardInterrupt:
        stopped = "interrupted"
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):  # it came while a chunk was started
            if chunks:
                raise
            state = _start(key, params, settings, len(x), many)
    finally:
        bar.close()

    size = (many,) if many else ()
    gather = lambda part: np.array([np.asarray(c[part]) for c in chunks], float)
    history = np.moveaxis(gather(0).reshape(-1, *size, chunk), 0, -2).reshape(*size, -1)[..., :steps]
    measured = np.moveaxis(gather(1).reshape(-1, *size), 0, -1)
    failed, best = np.asarray(state.failed_step)[..., None], np.asarray(state.best_step)
    val_steps = np.minimum(chunk * np.arange(1, len(chunks) + 1), steps)
    result = {
        "flow": eqx.combine(state.best_params, static),
        "train_loss": np.where((failed >= 0) & (np.arange(history.shape[-1]) > failed), np.nan, history),
        "val_loss": measured,
        "val_steps": np.where(failed >= 0, np.minimum(val_steps, failed), val_steps),
        "stopped": stopped,
    }
    if many:
        return FitResult(**result, best_step=best, failed_step=failed[:, 0])
    return of_one_flow(**result, best_step=int(best), failed_step=int(failed[0]))


def _ended(state, chunks, total, patience) -> str | None:
    """Why training has ended, None if it has not; the same for a run that is resumed where it ended."""
    if (np.asarray(state.failed_step) >= 0).all():
        return "non-finite"
    if patience is not None and chunks and int(state.step) - int(state.best_step) >= patience:
        return "patience"
    return "steps" if len(chunks) >= total else None


def _expect_optimizer(optimizer) -> None:
    methods = (getattr(optimizer, name, None) for name in ("init", "update"))
    if optimizer is None or (not isinstance(optimizer, type) and all(map(callable, methods))):
        return
    name = getattr(optimizer, "__name__", None)
    called = f"; call it first, as in `{name}(...)`" if name else "; if it is a function, call it first"
    raise ValueError(
        "`optimizer` must be an optax transformation with `init` and `update`, such as `optax.adam(1e-3)`; "
        f"got {name or repr(optimizer)}{called if callable(optimizer) else ''}."
    )


def _held_out(n, batch_size, val_fraction) -> int:
    """The number of rows held out of n, where enough are left to train on."""
    expect(0 < val_fraction < 1, "val_fraction", "lie between 0 and 1", val_fraction)
    n_val = max(1, round(val_fraction * n))
    expect(n > n_val, "val_fraction", f"leave one of the {n} rows to train on", val_fraction)
    fits = expect_whole("batch_size", batch_size, 1) <= n - n_val
    expect(fits, "batch_size", f"be at most the {n - n_val} training rows", batch_size)
    return n_val


# Optax mixes types of numbers, which a user's strict promotion would refuse.
_OPTAX_PROMOTES = functools.partial(jax.numpy_dtype_promotion, "standard")


def _optimizer(settings: _Settings, rate) -> Any:
    if settings.optimizer is not None:
        return settings.optimizer
    # Averaging does what annealing to zero does, and better from steps that still move.
    end = 0.5 if settings.average else 1e-6
    part = optax.cosine_onecycle_schedule(settings.steps, 1.0, final_div_factor=1 / (25 * end))
    schedule = lambda step: rate * part(step)
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    return optax.chain(clip, optax.adam(schedule))


def _update(optimizer, grads, opt_state, params, **more):
    """One update; of ``value``, ``grad`` and ``value_fn`` the optimizer receives those that it takes."""
    update = optax.with_extra_args_support(optimizer).update
    taken = inspect.signature(update).parameters
    if all(p.kind is not p.VAR_KEYWORD for p in taken.values()):
        more = {name: more[name] for name in more if name in taken}
    return update(grads, opt_state, params, **more)


def _moved(params, settings):
    """What the optimiser sees: one vector, whose update is a few kernels and not a few for each array.

    An optimiser of the caller's sees the tree, whose parts it may treat differently.
    """
    return params if settings.optimizer else ravel_pytree(params)[0]


@jit_once
def _start(key, params, settings, n, many):
    """The first state, of one flow or of many."""
    start = lambda key, params: _first_state(key, params, settings, n)
    return (eqx.filter_vmap(start) if many else start)(key, params)


def _first_state(key, params, settings, n) -> _State:
    """The first state, with the types of the next ones (a weak one would compile the loop twice).

    Parameters are copied, since the loop gives its buffers away. The best loss is finite, since an infinite
    one would stop a user who asks JAX to report infinities.
    """
    rows_key, key = jr.split(key)
    none = jnp.full((), -1, jnp.int32)
    loss_type = jnp.zeros(()).dtype
    worst = jnp.full((), jnp.finfo(loss_type).max, loss_type)
    with _OPTAX_PROMOTES():
        opt_state = _optimizer(settings, 1.0).init(_moved(params, settings))
    state = _State(
        params, opt_state, params, params, worst, none + 1, none, none + 1,
        jr.key_data(key), jr.permutation(rows_key, n),
    )  # fmt: skip
    return jax.tree.map(lambda a: jnp.array(a, a.dtype), state)


@eqx.filter_jit(donate="all-except-first")
def _chunk(data, state):
    """Some steps, then one look at the validation rows."""
    x, condition, rates, n_val, static, settings, many = data
    run = lambda rate, static, state: _steps(x, condition, rate, n_val, static, settings, state)
    return (eqx.filter_vmap(run) if many else run)(rates, static, state)


def _steps(x, condition, rate, n_val, static, settings, state):
    optimizer, loss = _optimizer(settings, rate), settings.loss or maximum_likelihood
    key = jr.wrap_key_data(state.key, impl=settings.key_impl)
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
        value_fn = lambda params: loss(eqx.combine(whole(params), static), *batch, loss_key)
        value, grads = jax.value_and_grad(value_fn)(params)
        more = {"value": value, "grad": grads, "value_fn": value_fn}
        with _OPTAX_PROMOTES():
            updates, new_opt_state = _update(optimizer, grads, opt_state, params, **more)
            new_params = optax.apply_updates(params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        go = finite & (failed < 0) & (i < settings.steps)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(go, a, b), new, old)
        params = keep(new_params, params)
        opt_state = keep(new_opt_state, opt_state)
        part = jnp.where(
            go, 1 / (1 + settings.average * i.astype(float)), 0
        )  # of a memory that grows with the steps
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
    judged = jnp.asarray(value, state.best_loss.dtype)
    better = jnp.isfinite(judged) & (judged < state.best_loss)
    done = jnp.minimum(state.step + settings.chunk, settings.steps).astype(jnp.int32)
    taken = jnp.where(failed < 0, done, failed)  # the step that failed was not taken, nor any after it
    state = state._replace(
        params=params,
        opt_state=opt_state,
        average=average,
        best_params=jax.tree.map(lambda a, b: jnp.where(better, a, b), average, state.best_params),
        best_loss=jnp.where(better, judged, state.best_loss),
        best_step=jnp.where(better, taken, state.best_step),
        failed_step=failed,
        step=done,
    )
    return state, losses, value


def _watched() -> bool:
    """Whether the bar can be seen: a terminal, or a notebook's kernel."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _everywhere(mesh: Mesh, tree: Any) -> Any:
    """The tree with a copy of every array on each device."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec())), rest)


def _run_mark(key, flow, x, condition, rates, settings, n_val) -> dict[str, Any]:
    """What a checkpoint of this run records; see :func:`fit` for what it covers."""
    plain = settings._replace(sharding=None)
    arrays, rest = eqx.partition((key, flow, x, condition, rates), eqx.is_array)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)  # wherever they lie

    def program(arrays):
        key, flow, x, condition, rate = eqx.combine(arrays, rest)
        params, static = split_parameters(flow)
        state = _first_state(key, params, plain, len(x))
        return _steps(x, condition, rate, n_val, static, plain, state)

    compared = {
        "the start parameters": jax.tree.leaves(eqx.filter(flow, eqx.is_array)),
        "the data": [x, condition],
        "the key": jr.key_data(key),
        "the settings": [repr((plain._replace(optimizer=None, loss=None), n_val)), rates],
    }
    return fingerprint(compared, jax.make_jaxpr(program)(shapes))
