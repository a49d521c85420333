"""Checks of arguments: a ``ValueError`` names the argument, what it must be, and what it is."""

from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

Shape = tuple[int, ...]
Given: TypeAlias = Any  # what a caller passed, which may be anything


def expect_shape(shape: Given) -> Shape:
    """Return an event's shape as a tuple, or say why it is not one."""
    try:
        sizes = tuple(int(s) for s in shape)
        good = all(s == t and s >= 1 for s, t in zip(sizes, shape, strict=True))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"`shape` must be a tuple of positive integers, such as (4,); got {shape!r}.")
    return sizes


def expect_whole(name: str, value: Given, at_least: int) -> int:
    """Return a whole number that is at least ``at_least``, or say why it is not one."""
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not (whole and int(value) >= at_least):
        raise ValueError(f"`{name}` must be a whole number of at least {at_least}; got {value!r}.")
    return int(value)


def expect_key(key: Given) -> Array:
    """Return one random key, or say why it is none."""
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    # An old key, of `jax.random.PRNGKey`, is a vector of integers.
    one = typed and key.ndim == 0
    old = not typed and getattr(key, "ndim", 0) == 1 and jnp.issubdtype(key.dtype, jnp.unsignedinteger)
    if not (one or old):
        raise ValueError(f"`key` must be a random key, such as jax.random.key(0); got {key!r}.")
    return key


def expect_real(name: str, value: Given) -> None:
    """Refuse what cannot stand for real numbers without losing something; it also takes tracers.

    A masked array would lose its mask, a complex one its imaginary part, a long double its extra digits.
    Arrays of objects or of text hold no numbers that a layer could use. Booleans and integers pass.

    Args:
        name: The argument's name, as the caller wrote it.
        value: Anything array-like.

    Raises:
        ValueError: If the value is a masked array or contains one, or has one of the types above.
    """
    if _is_masked(value):
        raise ValueError(
            f"`{name}` must not be a masked array, because its mask would be lost; leave out or fill in what "
            "is masked, and pass a plain array"
        )
    try:
        dtype = np.dtype(value.dtype)
    except (AttributeError, TypeError):  # a list, a table, a random key, an array of another library
        try:
            dtype = np.asarray(value).dtype
        except Exception as error:
            raise ValueError(f"`{name}` must be an array of real numbers; got {_short(value)}") from error
    if np.issubdtype(dtype, np.complexfloating):
        raise ValueError(f"`{name}` must be real-valued; got dtype {dtype}")
    if dtype == np.longdouble and dtype.itemsize > 8:
        raise ValueError(f"`{name}` must be in double precision at most; got dtype {dtype}")
    if dtype.kind in "mM":
        raise ValueError(f"`{name}` must be an array of real numbers; got dtype {dtype}")
    numeric = any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if not numeric:
        raise ValueError(f"`{name}` must be an array of real numbers; got dtype {dtype}")


def _is_masked(value: Given) -> bool:
    """Whether a value is a masked array, or a list or tuple that holds one."""
    if isinstance(value, (list, tuple)):
        return any(_is_masked(item) for item in value)
    return isinstance(value, np.ma.MaskedArray)


def _short(value: Given) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def expect_concrete(name: str, value: Given, dtype: DTypeLike | None = None) -> np.ndarray:
    """Return a NumPy array, or refuse a traced one: a layer's structure is fixed when it is made."""
    expect_real(name, value)
    try:
        return np.asarray(value, dtype)
    except Exception as error:
        raise ValueError(f"`{name}` must be a concrete array of numbers; got {_short(value)}") from error


def expect_rows(
    x: Given, shape: Shape, at_least: int, dtype: DTypeLike | None = None, name: str = "x"
) -> np.ndarray:
    r"""Return floating-point data, cast once and checked after the cast, or say why it cannot be used.

    Args:
        x: The data, one row per event.
        shape: The event's shape.
        at_least: The least number of rows.
        dtype: The type to cast to. Default: JAX's floating-point type, float32 or, with x64, float64.
        name: The argument's name, as the caller wrote it.

    Returns:
        An array of that type, of shape (n, \*shape), finite; differences between its rows are finite too.

    Raises:
        ValueError: If the data are no real floating-point array of that shape, or are not finite, or if the
            cast would make them infinite or round away the spread of a column.
    """
    rows = expect_concrete(name, x)
    floating = jnp.issubdtype(rows.dtype, jnp.floating)
    if not floating:
        raise ValueError(
            f"`{name}` must be floating point (dequantize integer data first); got dtype {rows.dtype}."
        )
    fits = rows.ndim >= 1 and rows.shape[1:] == shape and len(rows) >= at_least
    wanted = str(("n", *shape)).replace("'", "")
    if not fits:
        raise ValueError(f"`{name}` must have shape {wanted} with n ≥ {at_least}; got {rows.shape}.")
    return _cast(name, rows, dtype)


def expect_data(flow: PyTree, x: Given, condition: Given, at_least: int = 2) -> tuple[Array, Array | None]:
    """Return what a flow learns from: so many rows or more, and a condition for each where it takes one."""
    known = hasattr(flow, "shape") and hasattr(flow, "cond_shape")
    if not known:
        raise ValueError(f"`flow` must be a flowjax distribution or bijection; got {type(flow).__name__}.")
    # A model of images takes whole numbers, and knows which.
    rows = (
        flow.images(x, at_least)
        if hasattr(flow, "training_log_prob")
        else expect_rows(x, flow.shape, at_least)
    )
    if flow.cond_shape is None:
        if condition is not None:
            raise ValueError(
                f"`condition` must be None for an unconditional flow; got {np.shape(condition)}."
            )
        return jnp.asarray(rows), None
    wanted = (len(rows), *flow.cond_shape)
    if condition is None:
        raise ValueError(f"`condition` must have shape {wanted}; got None.")
    conditions = expect_concrete("condition", condition)
    if conditions.shape != wanted:
        raise ValueError(f"`condition` must have shape {wanted}; got {conditions.shape}.")
    return jnp.asarray(rows), jnp.asarray(_cast("condition", conditions, None))


def _cast(name: str, rows: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    """Return the rows in a floating-point type, or say which columns that type cannot hold."""
    dtype = np.dtype(jnp.result_type(float) if dtype is None else dtype)
    bad = int((~np.isfinite(rows)).reshape(len(rows), -1).any(axis=1).sum())
    if bad != 0:
        raise ValueError(f"`{name}` must be finite; got NaN or infinity in {bad} of {len(rows)} rows.")
    if not len(rows):
        return rows.astype(dtype)
    double = ', or use double precision by jax.config.update("jax_enable_x64", True)'
    double = double if dtype.itemsize <= 4 else ""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = rows.astype(dtype)
    infinite = ~np.isfinite(cast).all(axis=0)
    if infinite.any():
        raise ValueError(
            f"`{name}` must be finite in {dtype}; {column_names(infinite)} would become infinite. Multiply "
            f"by a constant, leave out rows in which a large number stands for a missing value{double}"
        )
    limits = np.finfo(dtype)
    with np.errstate(over="ignore"):
        ends = cast.max(axis=0), cast.min(axis=0)
        span = ends[0] - ends[1]
    # A quarter of the largest number leaves room for the standard deviation and its inverse; below the least
    # one over epsilon, differences between rows are subnormal, which XLA replaces by zero.
    wide, narrow = span > limits.max / 4, (span > 0) & (span < limits.tiny / limits.eps)
    if wide.any() or narrow.any():
        raise ValueError(
            f"`{name}` must have a spread between {limits.tiny / limits.eps:.0e} and {limits.max / 4:.0e} in "
            f"{dtype}; that of {column_names(wide | narrow)} is not. Multiply by a constant{double}"
        )
    exact = jnp.issubdtype(rows.dtype, jnp.floating) and rows.dtype.itemsize <= dtype.itemsize
    lost = np.zeros(rows.shape[1:], bool) if exact else _lost(rows, cast)
    if lost.any():
        raise ValueError(
            f"`{name}` must keep its spread in {dtype}; that of {column_names(lost)} is lost to rounding. "
            f"Subtract an offset before the cast, multiply by a constant{double}"
        )
    return cast


def _lost(rows: np.ndarray, cast: np.ndarray) -> np.ndarray:
    """Whether the cast rounds away the spread of each column, of all its values or of their middle half.

    Spread is lost where the spacing of the numbers exceeds a tenth of it. A column that differs in the last
    digits of its own type alone is constant up to rounding, and loses nothing.
    """
    found = np.zeros(rows.shape[1:], bool)
    own = float(jnp.finfo(rows.dtype).eps) if jnp.issubdtype(rows.dtype, jnp.floating) else 0.0
    for place in np.argwhere((cast != rows).any(axis=0)):
        column = rows[(slice(None), *place)].astype(np.float64)
        size = np.abs(column).max()
        low, high = np.quantile(column, [0.25, 0.75])
        middle = max(abs(low), abs(high))
        # The largest deviation is divided out, since squares would over- or underflow.
        deviation = column - column[0]
        largest = np.abs(deviation).max()
        std = largest * (deviation / (largest or 1)).std()
        spacing = lambda value: float(np.spacing(cast.dtype.type(value)))
        spread = largest > 8 * own * size
        core = high - low > 8 * own * middle
        found[tuple(place)] = (spread and spacing(size) > std / 10) or (
            core and spacing(middle) > (high - low) / 13.5  # 1.35 standard deviations of a normal
        )
    return found


def column_names(which: np.ndarray) -> str:
    """The names of the marked columns of an event, as an error message lists them."""
    places = np.argwhere(which)
    if which.ndim == 0:
        return "the values"
    names = [str(int(p[0]) if which.ndim == 1 else tuple(int(i) for i in p)) for p in places[:5]]
    kind = "column" if which.ndim == 1 else "element"
    if len(places) > 5:
        return f"{kind}s {', '.join(names)}, …"
    if len(names) == 1:
        return f"{kind} {names[0]}"
    return f"{kind}s {', '.join(names[:-1])} and {names[-1]}"


def as_floats(name: str, value: Given) -> Array:
    """Return a real array of floating-point numbers; integers are cast to the default type."""
    if not eqx.is_array_like(value):
        raise ValueError(f"`{name}` must be an array of real numbers; got {type(value).__name__}.")
    expect_real(name, value)
    if not isinstance(value, jax.Array) and not hasattr(value, "__jax_array__"):
        value = np.asarray(value)
        if value.dtype.kind in "iub":  # before JAX cuts them to 32 bits
            value = value.astype(np.float64)
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):
        array = jnp.asarray(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.itemsize > array.dtype.itemsize:
        with np.errstate(over="ignore"):
            lost = int((np.isfinite(value) & ~np.isfinite(value.astype(array.dtype))).sum())
        if lost:
            raise ValueError(
                f"`{name}` must stay finite in {array.dtype}; {lost} of {value.size} values become infinite. "
                'Rescale it, or switch on double precision: jax.config.update("jax_enable_x64", True).'
            )
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
