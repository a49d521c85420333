"""What every layer shares: argument checks, and the words of their errors."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from flowjax.distributions import Normal
from jaxtyping import Array
from paramax import NonTrainable, non_trainable

Shape = tuple[int, ...]


def expect(ok: bool, name: str, expected: str, got: Any) -> None:
    """Raise a ``ValueError`` that names the argument, what was expected and what came.

    Args:
        ok: Whether the argument is as it should be.
        name: The argument's name, as the caller wrote it.
        expected: What it must be or have, after "must".
        got: What came.

    Raises:
        ValueError: If ``ok`` is false.
    """
    if not ok:
        raise ValueError(f"`{name}` must {expected}; got {got}")


def expect_shape(shape: Any) -> Shape:
    """Return an event's shape as a tuple, or say why it is not one."""
    try:
        sizes = tuple(int(s) for s in shape)
        good = all(s == t and s >= 1 for s, t in zip(sizes, shape, strict=True))
    except (TypeError, ValueError):
        good = False
    expect(good, "shape", "be a tuple of positive integers, such as (4,)", repr(shape))
    return sizes


def expect_whole(name: str, value: Any, at_least: int) -> int:
    """Return a whole number that is at least ``at_least``, or say why it is not one."""
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    expect(whole and int(value) >= at_least, name, f"be a whole number ≥ {at_least}", repr(value))
    return int(value)


def expect_concrete(name: str, value: Any, dtype: Any = None) -> np.ndarray:
    """Return a NumPy array, or say that there is none: a layer's structure is fixed when it is made."""
    try:
        return np.asarray(value, dtype)
    except Exception as error:
        raise ValueError(f"`{name}` must be a concrete array of numbers; got {value!r}") from error


def expect_rows(x: Any, shape: Shape, at_least: int) -> np.ndarray:
    """Return finite floating-point data, so many rows of the shape or more, or say why it is not that."""
    rows = np.asarray(x)
    floating = jnp.issubdtype(rows.dtype, jnp.floating)
    expect(floating, "x", "be floating point (dequantize integer data first)", f"dtype {rows.dtype}")
    fits = rows.ndim >= 1 and rows.shape[1:] == shape and len(rows) >= at_least
    wanted = str(("n", *shape)).replace("'", "")
    expect(fits, "x", f"have shape {wanted} with n ≥ {at_least}", rows.shape)
    bad = int((~np.isfinite(rows)).reshape(len(rows), -1).any(axis=1).sum())
    expect(bad == 0, "x", "be finite", f"NaN or infinity in {bad} of {len(rows)} rows")
    return rows


def expect_data(flow: Any, x: Any, condition: Any) -> tuple[Array, Array | None]:
    """Return what a flow learns from, two rows or more, and a condition for each where it takes one."""
    rows = expect_rows(x, flow.shape, 2)
    if flow.cond_shape is None:
        expect(condition is None, "condition", "be None for an unconditional flow", np.shape(condition))
        return jnp.asarray(rows), None
    wanted, got = (len(rows), *flow.cond_shape), None if condition is None else np.shape(condition)
    expect(got == wanted, "condition", f"have shape {wanted}", got)
    expect(bool(np.isfinite(np.asarray(condition)).all()), "condition", "be finite", "NaN or infinity")
    return jnp.asarray(rows), jnp.asarray(condition)


def split_parameters(tree: Any) -> tuple[Any, Any]:
    """What training moves, and the rest; whatever is in ``paramax.NonTrainable`` belongs to the rest."""
    return eqx.partition(tree, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable))


def jit_once(function: Callable) -> Callable:
    """``eqx.filter_jit`` for a program that runs once, whose compilation is nearly all its time.

    On CPUs LLVM optimises it less: drawing the weights of eight layers takes a third of the time so.
    """
    jit: Any = eqx.filter_jit  # its annotations leave out the options that it passes on
    light, plain = jit(function, compiler_options={"xla_backend_optimization_level": 1}), jit(function)

    @functools.wraps(function)
    def run(*args):
        try:
            return (light if jax.default_backend() == "cpu" else plain)(*args)
        except ValueError as error:  # inside another jit, whose options hold
            if "compiler_options" not in str(error):
                raise
            return plain(*args)

    return run


def run_jitted(function: Callable, *args: Any) -> Any:
    """``eqx.filter_jit``; but a mask kept as a NumPy array is meant as a constant, and stays one."""
    if not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(args)):
        return eqx.filter_jit(function)(*args)
    arrays, rest = eqx.partition(args, lambda leaf: isinstance(leaf, jax.Array))
    return jax.jit(lambda arrays: function(*eqx.combine(arrays, rest)))(arrays)


@jit_once  # one program in place of some forty operations, each compiled for its shape
def stack(keys: Array, layer: Callable) -> Any:
    """The layers that a function makes from keys, stacked along the first axis of every array."""
    return eqx.filter_vmap(lambda key: layer(key))(keys)


def standard_normal(dim: int) -> Normal:
    """The base density of every flow here, of D independent coordinates; training leaves it as it is."""
    return non_trainable(Normal(jnp.zeros(expect_whole("dim", dim, 2))))


class Bijection(AbstractBijection):
    """A flowjax bijection whose methods check their arguments first.

    Subclasses define ``shape``, ``cond_shape``, ``transform_and_log_det`` and
    ``inverse_and_log_det``, as for flowjax's ``AbstractBijection``. Integer input is cast to the
    default floating-point type; a condition given to an unconditional bijection is ignored.

    Raises:
        ValueError: From both methods, if the event or the condition has the wrong shape, is no
            real array, or is missing.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, argument in (("transform_and_log_det", "x"), ("inverse_and_log_det", "y")):
            if name in cls.__dict__:
                setattr(cls, name, _checked(cls.__dict__[name], argument))


def _checked(method: Callable, argument: str) -> Callable:
    @functools.wraps(method)
    def wrapper(self, event, condition=None):
        event = _as_real_array(argument, event, self.shape, "the event's shape")
        if self.cond_shape is None:
            condition = None
        else:
            expect(condition is not None, "condition", f"have shape {self.cond_shape}", None)
            condition = _as_real_array("condition", condition, self.cond_shape, "`cond_shape`")
        return method(self, event, condition)

    # Keyword calls use the documented name of the first argument: x or y.
    @functools.wraps(method)
    def named(self, *args, **kwargs):
        if argument in kwargs:
            args = (kwargs.pop(argument), *args)
        return wrapper(self, *args, **kwargs)

    return named


def _as_real_array(name: str, value: Any, shape: tuple[int, ...], what: str) -> Array:
    expect(eqx.is_array_like(value), name, f"be an array of shape {shape}, {what}", type(value).__name__)
    array = jnp.asarray(value)
    expect(not jnp.issubdtype(array.dtype, jnp.complexfloating), name, "be real-valued", array.dtype)
    expect(array.shape == shape, name, f"have shape {shape}, {what}", array.shape)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


class Scan(fb.Scan, Bijection):
    r"""flowjax's ``Scan``, with a gradient from data to latent that takes less memory and less time.

    That gradient needs what each layer computed on its way, many times its input and output. Here no more
    than the input is stored, and the rest is computed a second time: mostly quicker than to write and to read
    it. The inverse is flowjax's own, since a layer may find it by iteration.

    Args:
        bijection: A bijection whose arrays all have a leading axis, one entry a layer, as
            ``equinox.filter_vmap`` over keys makes it.

    Raises:
        ValueError: From the methods, as :class:`Bijection`.

    Source:
        Chen et al., "Training deep nets with sublinear memory cost" (2016); ``jax.checkpoint``.

    Example:
        >>> import equinox as eqx, gauss_flows as gf, jax.random as jr
        >>> keys = jr.split(jr.key(0), 3)
        >>> layers = eqx.filter_vmap(lambda key: gf.AffineCoupling(key, shape=(2,)))(keys)
        >>> gf.Scan(layers).shape
        (2,)
    """

    def __init__(self, bijection: AbstractBijection):
        super().__init__(bijection)

    def transform_and_log_det(self, x, condition=None):
        arrays, rest = eqx.partition(self.bijection, eqx.is_array)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def step(carry, arrays):
            x, log_det = carry
            x, change = eqx.combine(arrays, rest).transform_and_log_det(x, condition)
            return (x, log_det + change), None

        return jax.lax.scan(step, (x, jnp.zeros((), x.dtype)), arrays)[0]

    inverse_and_log_det = fb.Scan.inverse_and_log_det
