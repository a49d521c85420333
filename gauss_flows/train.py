"""Training: steps in a compiled loop, judged on held-out points."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import ArrayLike, PRNGKeyArray, PyTree
from tqdm import tqdm

from gauss_flows import io
from gauss_flows.bijection import partition
from gauss_flows.checkpoint import expect_same_run
from gauss_flows.continuous import density_error, is_continuous
from gauss_flows.fit_loop import (
    Settings,
    ended,
    is_watched,
    on_every_device,
    run_chunk,
    run_fingerprint,
    start,
)
from gauss_flows.fit_options import FitOptions
from gauss_flows.fit_result import FitResult, NonFiniteLoss, log_densities, of_one_flow, reason
from gauss_flows.log_det import is_random
from gauss_flows.validate import expect_data, expect_key

LARGE_DENSITY_ERROR = 1e-3  # nats: what `fit` warns of


def fit(
    key: PRNGKeyArray,
    flow: PyTree,
    x: ArrayLike,
    *,
    condition: ArrayLike | None = None,
    options: FitOptions | None = None,
    **changes: Any,
) -> FitResult:
    r"""Train a flow, and return the parameters that are best on held-out points.

    By default Adam minimizes the negative mean log-likelihood with a one-cycle schedule of the learning rate
    and with gradients clipped by their global norm; the parameters that are kept are an average over about
    the last twelfth of the steps. With the default options ``fit`` computes, faster, what this loop does::

        rows_key, key = jr.split(key)
        rows, n_val = jr.permutation(rows_key, len(x)), max(1, round(val_fraction * len(x)))
        training, held_out = x[rows[:-n_val]], x[rows[-n_val:]]
        schedule = optax.cosine_onecycle_schedule(steps, learning_rate, final_div_factor=1 / 12.5)
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(schedule))
        params, static = partition(flow)
        opt_state, mean, best_loss = optimizer.init(params), params, jnp.inf
        negative_log_likelihood = lambda params, x: -eqx.combine(params, static).log_prob(x).mean()
        chunk = math.ceil(steps / max(min(steps, 10), math.ceil(steps / 100)))
        for i in range(steps):
            batch_key, _ = jr.split(jr.fold_in(key, i))
            batch = training[jr.randint(batch_key, (batch_size,), 0, len(training))]
            grads = jax.grad(negative_log_likelihood)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            mean = jax.tree.map(lambda m, p: m + (p - m) / (1 + average * i), mean, params)
            if (i + 1) % chunk == 0 or i + 1 == steps:
                loss = negative_log_likelihood(mean, held_out)
                if loss < best_loss:
                    best_loss, best = loss, eqx.combine(mean, static)

    Args:
        key: Random key for the split, the batches and the loss.
        flow: A flowjax distribution; parameters in ``paramax.NonTrainable`` stay as they are. Or a model of
            images of whole numbers, :class:`Dequantize` or :class:`DiscreteAutoregressive`.
        x: Data, shape (n, \*flow.shape), floating point; whole numbers for a model of images.
        condition: Shape (n, \*flow.cond_shape), for conditional flows.
        options: The options of the run. Default: ``FitOptions()``.
        **changes: Options that differ from these: steps, batch_size, learning_rate, … of
            :class:`FitOptions`.

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
    expect_key(key)
    options = (options or FitOptions()).changed(changes)
    mesh = options.sharding
    if mesh is None:
        result = _train(key, flow, x, condition, options)
    else:
        with _automatic(mesh) as automatic:
            result = _train(key, flow, x, condition, replace(options, sharding=automatic))
        if AxisType.Explicit in mesh.axis_types:  # the flow must work with the caller's arrays
            result = replace(result, flow=on_every_device(mesh, result.flow))
    lost = len(result.val_loss) > 0 and not np.isfinite(result.val_loss).any()
    if result.failed_step >= 0 or (lost and result.stopped != "interrupted"):
        error = NonFiniteLoss(reason(result, key, flow, x, condition, options.loss))
        error.result = result
        raise error
    return with_density_error(result, x, condition)


def fit_many(
    keys: PRNGKeyArray,
    make: Callable[[PRNGKeyArray], PyTree],
    x: ArrayLike,
    *,
    condition: ArrayLike | None = None,
    options: FitOptions | None = None,
    **changes: Any,
) -> FitResult:
    """Train one flow per key at the same time, so that five seeds need one compilation.

    Args:
        keys: Random keys, shape (m,) with m ≥ 1; each makes a flow, a split and its batches.
        make: key -> flow, the same structure for every key.
        x: As for :func:`fit`.
        condition: As for :func:`fit`.
        options: As for :func:`fit`, without patience, checkpoint and sharding; ``learning_rate`` is one peak
            for all keys, or one per key, shape (m,).
        **changes: Options that differ from these.

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
    options = (options or FitOptions()).changed(changes)
    for name in ("patience", "checkpoint", "sharding"):
        value = getattr(options, name)
        if value is not None:
            raise ValueError(f"`{name}` must be left out of `fit_many`; got {value}.")
    both = jax.vmap(jr.split)(keys)
    flows = eqx.filter_vmap(make)(both[:, 0])
    return with_density_error(_train(both[:, 1], flows, x, condition, options, many=len(keys)), x, condition)


def with_density_error(result: FitResult, x: ArrayLike, condition: ArrayLike | None) -> FitResult:
    """Return the result together with the error that the solver of a continuous flow leaves in log p.

    Args:
        result: The result of a training run.
        x: Data, of which at most 256 rows are used.
        condition: One row per row of ``x``, for conditional flows.

    Raises:
        UserWarning: If the mean error exceeds a thousandth of a nat. What a coarse solver reports is not a
            density, and is mostly too large.
    """
    flow = result.flow
    if not (isinstance(flow, fd.AbstractDistribution) and is_continuous(flow)) or is_random(flow):
        return result
    rows = np.asarray(x)[:256], None if condition is None else np.asarray(condition)[:256]
    flows = [flow] if np.ndim(result.best_step) == 0 else [result[i].flow for i in range(len(result))]
    errors = np.array([np.abs(density_error(flow, *rows)).mean() for flow in flows])
    if not errors.max() <= LARGE_DENSITY_ERROR:  # NaN too
        warnings.warn(
            f"The solver of this continuous flow is too coarse: log p has a mean absolute error of "
            f"{errors.max():.1e} nats on the data, and what log_prob gives is not a normalized density. Use "
            "more steps.",
            stacklevel=3,
        )
    single = np.ndim(result.best_step) == 0
    return replace(result, density_error=float(errors[0]) if single else errors)


def _train(key, flow, x, condition, options: FitOptions, many: int | None = None) -> FitResult:
    """Train one flow, or ``many`` whose keys and parameters are stacked."""
    x, condition = expect_data(flow, x, condition)
    n_val = options.held_out(len(x))
    rates = _rates(options.learning_rate, many)
    settings = Settings.of(options, key)
    file = None if options.checkpoint is None else Path(options.checkpoint)
    run = {} if file is None else run_fingerprint(key, flow, x, condition, rates, settings, n_val)
    if options.sharding is not None:
        key, flow, x, condition, rates = on_every_device(options.sharding, (key, flow, x, condition, rates))
    params, static = partition(flow)
    state = start(key, params, settings, len(x), many)
    data = (x, condition, rates, n_val, static, settings, many)

    # The losses of each chunk's steps, and its validation loss.
    chunks: list[tuple[ArrayLike, ArrayLike]] = []
    if file is not None and file.exists():
        state, chunks = _resumed(file, state, run)
    hidden = not (options.progress and is_watched())
    bar = tqdm(total=settings.steps, disable=hidden, leave=False, unit="step")
    try:
        bar.update(min(settings.steps, len(chunks) * settings.chunk))
        while (stopped := ended(state, len(chunks), settings, options.patience)) is None:
            # A bad row that is held out spoils every validation loss: do not wait for the others.
            unjudged = len(chunks) == 1 and not many and not options.loss and not np.isfinite(chunks[0][1])
            if unjudged and not np.isfinite(log_densities(key, flow, x, condition)).all():
                stopped = "non-finite"
                break
            new = run_chunk(data, state)  # gives the buffers of the old state away
            # No call stands between these two: an interruption finds a state and its losses, or neither.
            state = new[0]
            chunks += [new[1:]]
            if file is not None:
                _write(file, state, chunks, run)
            bar.update(min(settings.chunk, settings.steps - bar.n))
            bar.set_postfix(validation=f"{np.mean(new[2]):.3f}")
    except KeyboardInterrupt:
        stopped = "interrupted"
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):  # it came while a chunk was started
            if chunks:
                raise
            state = start(key, params, settings, len(x), many)
    finally:
        bar.close()
    return _result(state, chunks, static, settings, stopped, many)


def _rates(learning_rate, many):
    rates = np.asarray(learning_rate, float)
    if rates.shape != () and not (many and rates.shape == (many,)):
        wanted = f"have shape ({many},), one rate per key" if many else "be one number"
        raise ValueError(f"`learning_rate` must {wanted}; got shape {rates.shape}.")
    return jnp.asarray(np.broadcast_to(rates, (many,) if many else ()), float)


def _resumed(file, state, run):
    """The state in the file, and the losses of its chunks."""
    try:
        state, notes = io.read(file, state)
    except ValueError as error:
        raise ValueError(f"`checkpoint` must be of this run; {file}: {error}") from error
    expect_same_run(file, notes, run)
    return state, list(zip(notes["losses"], notes["val_losses"], strict=True))


def _write(file, state, chunks, run):
    losses, val_losses = ([np.asarray(a).tolist() for a in part] for part in zip(*chunks, strict=True))
    io.write(file, state, {"run": run, "losses": losses, "val_losses": val_losses})


def _result(state, chunks, static, settings, stopped, many) -> FitResult:
    size = (many,) if many else ()
    gather = lambda part: np.array([np.asarray(c[part]) for c in chunks], float)
    history = np.moveaxis(gather(0).reshape(-1, *size, settings.chunk), 0, -2).reshape(*size, -1)
    history = history[..., : settings.steps]
    measured = np.moveaxis(gather(1).reshape(-1, *size), 0, -1)
    failed, best = np.asarray(state.failed_step)[..., None], np.asarray(state.best_step)
    val_steps = np.minimum(settings.chunk * np.arange(1, len(chunks) + 1), settings.steps)
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


@contextlib.contextmanager
def _automatic(mesh: Mesh):
    """The mesh with its axes left to the compiler, also where the caller's are explicit."""
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    with jax.set_mesh(automatic):
        yield automatic
