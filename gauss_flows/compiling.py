"""Programs that are compiled once and found again, and loops inside ``jax.shard_map``.

A flow called without ``jax.jit`` would trace and compile its loops again at each call, 0.6 s in place of
0.7 ms. ``compiled`` is the one place that prevents it; every layer and every flow calls its formula
through it.
"""

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

_INSIDE = contextvars.ContextVar("_INSIDE", default=False)  # whether a program is being traced


def compiled(function: Callable, *args: PyTree) -> PyTree:
    """Return ``function(*args)``, computed by a program that the next such call finds again.

    JAX arrays are inputs of the program; all else (functions, numbers, NumPy arrays such as masks, static
    fields) is part of it. A second call with equal parts compiles nothing, inside ``jax.vmap`` and
    ``jax.grad`` too. What the function itself calls through here becomes part of the same program.

    Args:
        function: A function that exists once, not one made for this call.
        *args: Its arguments, any pytrees.
    """
    if _INSIDE.get():
        return function(*args)
    leaves, structure = jax.tree.flatten(args)
    arrays = [leaf if isinstance(leaf, jax.Array) else None for leaf in leaves]
    rest = [None if isinstance(leaf, jax.Array) else _constant(leaf) for leaf in leaves]
    static = (function, structure, tuple(rest))
    try:
        hash(static)
    except TypeError:  # a static field that cannot be hashed, such as a list: nothing can be found again
        return function(*args)
    return _program(static, arrays)


# Not inlined, so that a plain gradient finds the loops inside again and compiles nothing.
@functools.partial(jax.jit, static_argnums=0)
def _program(static, arrays):
    function, structure, rest = static
    rest = [leaf.array if isinstance(leaf, _Constant) else leaf for leaf in rest]
    leaves = [array if array is not None else leaf for array, leaf in zip(arrays, rest, strict=True)]
    token = _INSIDE.set(True)
    try:
        return function(*jax.tree.unflatten(structure, leaves))
    finally:
        _INSIDE.reset(token)


class _Constant:
    """A NumPy array or a number, to be compared and hashed: part of a program, not an input of it.

    Numbers are told apart by type and sign too: 0.0, -0.0, 0 and False are equal, but do not compute alike.
    """

    def __init__(self, array: np.ndarray | bool | int | float):
        self.array = array
        content = (
            (array.shape, array.dtype.str, array.tobytes())
            if isinstance(array, np.ndarray)
            else (repr(array),)
        )
        self.value = (type(array), content)

    def __eq__(self, other):
        return isinstance(other, _Constant) and self.value == other.value

    def __hash__(self):
        return hash(self.value)


def _constant(leaf):
    return _Constant(leaf) if isinstance(leaf, np.ndarray | bool | int | float) else leaf


def jit_once(function: Callable) -> Callable:
    """Compile a function that runs once, whose compilation is nearly all its time.

    On CPUs LLVM optimizes it less: drawing the weights of eight layers takes a third of the time so.
    """
    jit: Callable = eqx.filter_jit  # its annotations leave out the options that it passes on
    light, plain = jit(function, compiler_options={"xla_backend_optimization_level": 1}), jit(function)

    @functools.wraps(function)
    def run(*args):
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
            return function(*args)  # part of another program, which has options of its own
        return (light if jax.default_backend() == "cpu" else plain)(*args)

    return run


def varying_like(value: Array, *trees: PyTree) -> Array:
    """Return ``value``, marked inside ``jax.shard_map`` as varying over devices wherever the trees do.

    A loop's first carry must vary as later ones do; outside ``jax.shard_map`` nothing changes.
    """
    arrays = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array)]
    missing = tuple(frozenset().union(*map(_varying_axes, arrays)) - _varying_axes(value))
    if not missing:
        return value
    # JAX 0.8 has `pvary` alone; later versions have `pcast` in its place.
    if hasattr(lax, "pcast"):
        return lax.pcast(value, missing, to="varying")
    return lax.pvary(value, missing)  # type: ignore[attr-defined]


def _varying_axes(array: Array) -> frozenset:
    """The mesh axes over which an array varies inside ``jax.shard_map``."""
    # JAX 0.10 keeps them in `manual_axis_type`, versions before it in `vma`.
    kind: Any = jax.typeof(array)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
