"""Walk through the layers of a flow in the order in which the data meets them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution, AbstractTransformed
from jaxtyping import Array, PyTree
from paramax import NonTrainable, unwrap

from gauss_flows.moments import mean_and_std


class Rows(NamedTuple):
    """What passes through a flow: events, conditions, which rows were lost first, whether all layers fit."""

    x: Array
    condition: Array | None
    lost: Array
    fit: Array

    @classmethod
    def start(cls, x: Array, condition: Array | None) -> "Rows":
        return cls(x, condition, jnp.zeros(len(x), bool), jnp.array(True))

    def moved_to(self, x: Array) -> "Rows":
        """The rows after a map to x; those that are not finite there are lost."""
        lost = ~jnp.isfinite(x).reshape(len(x), -1).all(axis=1)
        # Only the first rows that are lost count: a layer set from them would lose all others.
        return self._replace(x=x, lost=jnp.where(self.lost.any(), self.lost, lost))


def set_layers(
    flow: PyTree, x: Array, condition: Array | None, change: Callable, kinds: tuple[type, ...]
) -> PyTree:
    """Return the flow with its layers of some kinds set from the data that reaches them.

    Args:
        flow: A distribution, or a bijection that takes data to latent.
        x: Checked data, one row per event.
        condition: One row for each row of x, or none.
        change: As for :func:`~gauss_flows.layer_walk.walk`; equal functions share a compiled program.
        kinds: The types of the layers.

    Raises:
        ValueError: As :func:`~gauss_flows.layer_walk.walk`; or if a row has no finite image.
    """
    new, rows = (_walk_compiled if _compiles(flow) else _walk_all)(flow, x, condition, change, kinds)
    if isinstance(rows.lost, jax.core.Tracer):  # the flow is one of many under `vmap`
        return new
    if not rows.fit:
        raise ValueError(
            "`x` must reach each layer with standard deviations within the bounds of its bijectors' scales; "
            "standardize the data, or put an ActNorm before the layer"
        )
    if not rows.lost.any():
        return new
    rows = np.flatnonzero(rows.lost)
    raise ValueError(
        f"`x` must have a finite image under the flow; {len(rows)} of {len(x)} rows have none, the first of "
        f"them row {rows[0]}. They lie outside the support of the flow, or too far out"
    )


def _compiles(flow) -> bool:
    """Whether a flow can be the argument of a compiled program.

    What is no array must have a hash then, which a slice in ``Indexed`` has from Python 3.12 on; and a NumPy
    array would become an argument, while a layer that keeps one may mean a constant, such as a mask.
    """
    arrays, rest = eqx.partition(flow, eqx.is_array)
    leaves, structure = jax.tree.flatten(rest)
    try:
        hash((tuple(leaves), structure))
    except TypeError:
        return False
    return not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(arrays))


def _walk_all(flow, x, condition, change, kinds):
    # Rounding that is not magnified passes as the constant it stands for, or the next layer would magnify it.
    _, std, constant = mean_and_std(x)
    x = jnp.where((constant & (std == 1))[None], x[:1], x)
    return _walk(flow, Rows.start(x, condition), change, kinds, True)


_walk_compiled = eqx.filter_jit(_walk_all)


def walk(
    flow: PyTree,
    x: Array,
    condition: Array | None,
    change: Callable,
    kinds: tuple[type, ...],
    *,
    forward: bool = True,
) -> tuple[PyTree, Array]:
    """Change a flow's layers of some kinds, in the order in which the data meets them.

    The pass enters distributions and their base distributions; flowjax's ``Chain``, ``Scan``, ``Invert``,
    ``Concatenate``, ``Stack``, ``Reshape``, ``Indexed``, ``EmbedCondition``, ``Vmap`` (whose parameters are
    all mapped, or all shared), ``Sandwich`` and, in its direction ``transform``, ``NumericalInverse``; and
    paramax's ``NonTrainable``, inside which arrays stay wrapped; and what has a method ``walk_inside(rows,
    forward, go)``, such as :class:`~gauss_flows.Squeeze` and :class:`~gauss_flows.Split`, which calls
    ``go(bijection, rows, forward)`` for the bijection inside it and returns itself with the new one, and the
    rows that leave it. What holds no such layer is applied as it is.

    Args:
        flow: A distribution, or any flowjax bijection.
        x: Data, one row per event.
        condition: One row for each row of x, or none.
        change: ``(layer, x, condition, forward) -> (layer, fits)``, a layer of the same structure, and
            whether it could be fitted to x, which is what reaches it.
        kinds: The types of the layers.
        forward: Whether the data goes through ``transform``.

    Returns:
        The changed flow, and the data that leaves its bijections.

    Raises:
        ValueError: If a layer is inside a container that the pass cannot enter.
    """
    new, rows = _walk(flow, Rows.start(x, condition), change, kinds, forward)
    return new, rows.x


def _walk(part, rows, change, kinds, forward):
    """As :func:`~gauss_flows.layer_walk.walk`, for a batch of rows."""
    go = lambda inner, rows, forward: _walk(inner, rows, change, kinds, forward)
    if isinstance(part, kinds):
        part, fits = _change_unwrapped(part, rows, change, forward)
        return part, _apply(part, rows._replace(fit=rows.fit & fits), forward)
    if not holds(part, kinds):
        return part, rows if isinstance(part, AbstractDistribution) else _apply(part, rows, forward)
    if hasattr(part, "walk_inside"):
        return part.walk_inside(rows, forward, go)
    for container, enter in _CONTAINERS:
        if isinstance(part, container):
            found = enter(part, rows, forward, go)
            if found is not None:
                return found
    inside = next(kind.__name__ for kind in kinds if holds(part, (kind,)))
    raise ValueError(
        f"`flow` must hold its layers where they can be set from data; {type(part).__name__} holds "
        f"{inside}, and the data that reaches it there is not known"
    )


def holds(tree: PyTree, kinds: tuple[type, ...]) -> bool:
    """Return whether a tree is, or has inside it, a node of one of the types."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, kinds) for node in nodes)


def _change_unwrapped(part, rows, change, forward):
    """The changed layer, in which what was marked as not trainable is so still."""
    frozen = lambda node: isinstance(node, NonTrainable)
    plain = jax.tree.map(lambda node: node.tree if frozen(node) else node, part, is_leaf=frozen)
    new, fits = change(plain, rows.x, rows.condition, forward)
    wrap = lambda old, new: NonTrainable(new) if frozen(old) else new
    return jax.tree.map(wrap, part, new, is_leaf=frozen), fits


def _apply(bijection, rows, forward):
    bijection = unwrap(bijection)
    method = bijection.transform if forward else bijection.inverse
    return rows.moved_to(jax.vmap(method, (0, None if rows.condition is None else 0))(rows.x, rows.condition))


def _with(part, **fields):
    """The module with other values of some fields."""
    return eqx.tree_at(lambda p: [getattr(p, name) for name in fields], part, list(fields.values()))


def _transformed(part, rows, forward, go):
    # A distribution takes data to latent by the inverse, and hands it on to its base.
    bijection, rows = go(part.bijection, rows, False)
    base, rows = go(part.base_dist, rows, True)
    return _with(part, bijection=bijection, base_dist=base), rows


def _invert(part, rows, forward, go):
    inner, rows = go(part.bijection, rows, not forward)
    return _with(part, bijection=inner), rows


def _non_trainable(part, rows, forward, go):
    inner, rows = go(part.tree, rows, forward)
    return _with(part, tree=inner), rows


def _chain(part, rows, forward, go):
    parts = list(part.bijections)
    for i in range(len(parts)) if forward else reversed(range(len(parts))):
        parts[i], rows = go(parts[i], rows, forward)
    return _with(part, bijections=tuple(parts)), rows


def _scan(part, rows, forward, go):
    arrays, static = eqx.partition(part.bijection, eqx.is_array)

    def step(carry, arrays):
        x, lost, fit = carry
        layer, new = go(eqx.combine(arrays, static), rows._replace(x=x, lost=lost, fit=fit), forward)
        return (new.x.astype(x.dtype), new.lost, new.fit), eqx.filter(layer, eqx.is_array)

    (x, lost, fit), arrays = jax.lax.scan(step, (rows.x, rows.lost, rows.fit), arrays, reverse=not forward)
    return _with(part, bijection=eqx.combine(arrays, static)), rows._replace(x=x, lost=lost, fit=fit)


def _side_by_side(part, pieces, join, rows, forward, go):
    """Bijections that act on pieces of the event."""
    found = [
        go(inner, rows._replace(x=piece), forward)
        for inner, piece in zip(part.bijections, pieces, strict=True)
    ]
    inner, outs = zip(*found, strict=True)
    lost = functools.reduce(jnp.logical_or, [out.lost for out in outs])
    fit = functools.reduce(jnp.logical_and, [out.fit for out in outs])
    rows = rows._replace(x=join([out.x for out in outs]), lost=lost, fit=fit)
    return _with(part, bijections=type(part.bijections)(inner)), rows


def _concatenate(part, rows, forward, go):
    axis = part.axis % len(part.shape) + 1
    pieces = jnp.split(rows.x, list(part.split_idxs), axis=axis)
    return _side_by_side(part, pieces, lambda xs: jnp.concatenate(xs, axis=axis), rows, forward, go)


def _stack(part, rows, forward, go):
    axis = part.axis % len(part.shape) + 1
    pieces = [jnp.take(rows.x, i, axis=axis) for i in range(len(part.bijections))]
    return _side_by_side(part, pieces, lambda xs: jnp.stack(xs, axis=axis), rows, forward, go)


def _reshape(part, rows, forward, go):
    n, condition, inner = len(rows.x), rows.condition, unwrap(part.bijection)
    if part.cond_shape is not None and condition is not None:
        condition = condition.reshape(n, *inner.cond_shape)
    inside = rows._replace(x=rows.x.reshape(n, *inner.shape), condition=condition)
    bijection, inside = go(part.bijection, inside, forward)
    x = inside.x.reshape(n, *part.shape)
    return _with(part, bijection=bijection), inside._replace(x=x, condition=rows.condition)


def _indexed(part, rows, forward, go):
    inner, inside = go(part.bijection, rows._replace(x=jax.vmap(lambda x: x[part.idxs])(rows.x)), forward)
    x = jax.vmap(lambda x, y: x.at[part.idxs].set(y))(rows.x, inside.x)
    return _with(part, bijection=inner), inside._replace(x=x)


def _embed_condition(part, rows, forward, go):
    embedded = jax.vmap(unwrap(part.embedding_net))(rows.condition)
    inner, inside = go(part.bijection, rows._replace(condition=embedded), forward)
    return _with(part, bijection=inner), inside._replace(condition=rows.condition)


def _sandwich(part, rows, forward, go):
    outer, rows = go(part.outer, rows, True)  # both directions begin with the outer map as it stands
    inner, rows = go(part.inner, rows, forward)
    return _with(part, outer=outer, inner=inner), _apply(outer, rows, False)


def _numerical_inverse(part, rows, forward, go):
    if not forward:
        return None
    inner, rows = go(part.bijection, rows, True)
    return _with(part, bijection=inner), rows


def _vmap(part, rows, forward, go):
    in_axes, _, condition_axis = part.in_axes
    arrays, static = eqx.partition(part.bijection, eqx.is_array)
    if in_axes is not None and not callable(in_axes) and not isinstance(in_axes, int):
        return None  # a tree for the unwrapped bijection, which this one need not match
    axes = {in_axes(a) if callable(in_axes) else in_axes for a in jax.tree.leaves(arrays)}
    if axes == {None}:  # one layer for all places, which sees the data of all
        n, k = rows.x.shape[:2]
        repeat = lambda a: jnp.repeat(a, k, axis=0)
        condition = rows.condition
        if condition is not None and condition_axis is not None:
            inner_shape = unwrap(part.bijection).cond_shape
            condition = jnp.moveaxis(condition, condition_axis + 1, 1).reshape(n * k, *inner_shape)
        elif condition is not None:
            condition = repeat(condition)
        inside = Rows(rows.x.reshape(n * k, *rows.x.shape[2:]), condition, repeat(rows.lost), rows.fit)
        inner, inside = go(part.bijection, inside, forward)
        x, lost = inside.x.reshape(n, k, *inside.x.shape[1:]), inside.lost.reshape(n, k).any(axis=1)
        return _with(part, bijection=inner), rows._replace(x=x, lost=lost, fit=inside.fit)
    if len(axes) > 1:
        return None
    (axis,) = axes
    move = lambda tree, a, b: jax.tree.map(lambda leaf: jnp.moveaxis(leaf, a, b), tree)

    def one(arrays, x, condition):
        inner, new = go(eqx.combine(arrays, static), rows._replace(x=x, condition=condition), forward)
        return eqx.filter(inner, eqx.is_array), new.x, new.lost, new.fit

    mapped = None if rows.condition is None or condition_axis is None else condition_axis + 1
    out = jax.vmap(one, (0, 1, mapped), (0, 1, 0, 0))(move(arrays, axis, 0), rows.x, rows.condition)
    inner = eqx.combine(move(out[0], 0, axis), static)
    rows = rows._replace(x=out[1], lost=out[2].any(axis=0), fit=out[3].all())
    return _with(part, bijection=inner), rows


_CONTAINERS: tuple[tuple[type, Callable], ...] = (
    (AbstractTransformed, _transformed),
    (NonTrainable, _non_trainable),
    (fb.Invert, _invert),
    (fb.Chain, _chain),
    (fb.Scan, _scan),
    (fb.Concatenate, _concatenate),
    (fb.Stack, _stack),
    (fb.Reshape, _reshape),
    (fb.Indexed, _indexed),
    (fb.EmbedCondition, _embed_condition),
    (fb.Sandwich, _sandwich),
    (fb.NumericalInverse, _numerical_inverse),
    (fb.Vmap, _vmap),
)
