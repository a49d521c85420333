"""The compiled training loop: its state, its steps, and what a checkpoint holds."""

import functools
import inspect
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree

from gauss_flows.bijection import partition
from gauss_flows.checkpoint import fingerprint
from gauss_flows.compiling import jit_once
from gauss_flows.fit_options import FitOptions
from gauss_flows.log_det import log_prob
from gauss_flows.structure import Json


class Settings(NamedTuple):
    """What is compiled into the loop."""

    steps: int
    chunk: int  # steps between two looks at the held-out rows
    batch_size: int
    clip_norm: float | None
    average: float
    optimizer: optax.GradientTransformation | None
    loss: Callable | None
    sharding: NamedSharding | None
    key_impl: str  # which random bits the keys make

    @classmethod
    def of(cls, options: FitOptions, key: PRNGKeyArray) -> "Settings":
        """Return the part of the options that is compiled."""
        steps, mesh = int(options.steps), options.sharding
        return cls(
            steps=steps,
            chunk=math.ceil(steps / max(min(steps, 10), math.ceil(steps / 100))),
            batch_size=int(options.batch_size),
            clip_norm=None if options.clip_norm is None else float(options.clip_norm),
            average=float(options.average),
            optimizer=options.optimizer,
            loss=options.loss,
            sharding=None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])),
            key_impl=str(jr.key_impl(key)),
        )


class State(NamedTuple):
    """What a checkpoint holds."""

    params: PyTree
    opt_state: PyTree
    average: PyTree
    best_params: PyTree
    best_loss: Array
    best_step: Array
    failed_step: Array
    step: Array
    key: Array  # key data
    rows: Array  # a permutation of the data: training rows, then validation rows


def ended(state: State, n_chunks: int, settings: Settings, patience: int | None) -> str | None:
    """Return why training has ended, or None; the same for a run that is resumed where it ended."""
    if (np.asarray(state.failed_step) >= 0).all():
        return "non-finite"
    if patience is not None and n_chunks and int(state.step) - int(state.best_step) >= patience:
        return "patience"
    return "steps" if n_chunks * settings.chunk >= settings.steps else None


def maximum_likelihood(flow: PyTree, x: Array, condition: Array | None, key: PRNGKeyArray) -> Array:
    """Return the default loss, the mean of -log p(x) in nats; estimated where the flow needs a key."""
    return -log_prob(flow, x, condition, key).mean()


# Optax mixes types of numbers, which a user's strict promotion would refuse.
_OPTAX_PROMOTES = functools.partial(jax.numpy_dtype_promotion, "standard")


def _optimizer(settings: Settings, rate) -> PyTree:
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
    """What the optimizer sees: one vector, whose update is a few kernels and not a few for each array.

    An optimizer of the caller's sees the tree, whose parts it may treat differently.
    """
    return params if settings.optimizer else ravel_pytree(params)[0]


@jit_once
def start(key, params, settings, n, many):
    """The first state, of one flow or of many."""
    first = lambda key, params: _first_state(key, params, settings, n)
    return (eqx.filter_vmap(first) if many else first)(key, params)


def _first_state(key, params, settings, n) -> State:
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
    state = State(
        params, opt_state, params, params, worst, none + 1, none, none + 1,
        jr.key_data(key), jr.permutation(rows_key, n),
    )  # fmt: skip
    return jax.tree.map(lambda a: jnp.array(a, a.dtype), state)


@eqx.filter_jit(donate="all-except-first")
def run_chunk(data, state):
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
        # A loss that changes over the run says so, and is told which part of it is done.
        done = (i.astype(float) / settings.steps,) if getattr(loss, "takes_progress", False) else ()
        value_fn = lambda params: loss(eqx.combine(whole(params), static), *batch, loss_key, *done)
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
        # A moving average whose memory grows with the steps.
        part = jnp.where(go, 1 / (1 + settings.average * i.astype(float)), 0)
        average = jax.tree.map(lambda a, p: a + part.astype(a.dtype) * (p - a), average, params)
        failed = jnp.where((failed < 0) & ~finite & (i < settings.steps), i, failed)
        return (params, opt_state, average, failed), value

    steps = state.step + jnp.arange(settings.chunk, dtype=jnp.int32)
    params, average = (_moved(tree, settings) for tree in (state.params, state.average))
    carry = (params, state.opt_state, average, state.failed_step)
    (params, opt_state, average, failed), losses = jax.lax.scan(step, carry, steps)
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


def is_watched() -> bool:
    """Return whether a progress bar can be seen: in a terminal, or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def on_every_device(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return the tree with a copy of every array on each device."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec())), rest)


def run_fingerprint(key, flow, x, condition, rates, settings, n_val) -> dict[str, Json]:
    """Return what a checkpoint of this run records; :class:`FitOptions` says what it covers."""
    plain = settings._replace(sharding=None)
    arrays, rest = eqx.partition((key, flow, x, condition, rates), eqx.is_array)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)  # wherever they lie

    def program(arrays):
        key, flow, x, condition, rate = eqx.combine(arrays, rest)
        params, static = partition(flow)
        state = _first_state(key, params, plain, len(x))
        return _steps(x, condition, rate, n_val, static, plain, state)

    compared = {
        "the start parameters": jax.tree.leaves(eqx.filter(flow, eqx.is_array)),
        "the data": [x, condition],
        "the key": jr.key_data(key),
        "the settings": [repr((plain._replace(optimizer=None, loss=None), n_val)), rates],
    }
    return fingerprint(compared, jax.make_jaxpr(program)(shapes))
