"""What every layer and flow shares: argument checks, compiled calls, and the base classes."""

import contextlib
import contextvars
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from jax import lax
from jaxtyping import Array
from paramax import NonTrainable, non_trainable, unwrap

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


def expect_real(name: str, value: Any) -> None:
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


def _is_masked(value: Any) -> bool:
    """Whether a value is a masked array, or a list or tuple that holds one."""
    if isinstance(value, (list, tuple)):
        return any(_is_masked(item) for item in value)
    return isinstance(value, np.ma.MaskedArray)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def expect_concrete(name: str, value: Any, dtype: Any = None) -> np.ndarray:
    """Return a NumPy array, or say that there is none: a layer's structure is fixed when it is made."""
    expect_real(name, value)
    try:
        return np.asarray(value, dtype)
    except Exception as error:
        raise ValueError(f"`{name}` must be a concrete array of numbers; got {_short(value)}") from error


def expect_rows(x: Any, shape: Shape, at_least: int, dtype: Any = None) -> np.ndarray:
    r"""Return floating-point data, cast once and checked after the cast, or say why it cannot be used.

    Args:
        x: The data, one row per event.
        shape: The event's shape.
        at_least: The least number of rows.
        dtype: The type to cast to. Default: JAX's floating-point type, float32 or, with x64, float64.

    Returns:
        An array of that type, of shape (n, \*shape), finite; differences between its rows are finite too.

    Raises:
        ValueError: If the data are no real floating-point array of that shape, or are not finite, or if the
            cast would make them infinite or round away the spread of a column.
    """
    rows = expect_concrete("x", x)
    floating = jnp.issubdtype(rows.dtype, jnp.floating)
    expect(floating, "x", "be floating point (dequantize integer data first)", f"dtype {rows.dtype}")
    fits = rows.ndim >= 1 and rows.shape[1:] == shape and len(rows) >= at_least
    wanted = str(("n", *shape)).replace("'", "")
    expect(fits, "x", f"have shape {wanted} with n ≥ {at_least}", rows.shape)
    return _cast("x", rows, dtype)


def expect_data(flow: Any, x: Any, condition: Any) -> tuple[Array, Array | None]:
    """Return what a flow learns from: two rows or more, and a condition for each where it takes one."""
    known = hasattr(flow, "shape") and hasattr(flow, "cond_shape")
    expect(known, "flow", "be a flowjax distribution or bijection", type(flow).__name__)
    rows = expect_rows(x, flow.shape, 2)
    if flow.cond_shape is None:
        expect(condition is None, "condition", "be None for an unconditional flow", np.shape(condition))
        return jnp.asarray(rows), None
    wanted = (len(rows), *flow.cond_shape)
    expect(condition is not None, "condition", f"have shape {wanted}", None)
    conditions = expect_concrete("condition", condition)
    expect(conditions.shape == wanted, "condition", f"have shape {wanted}", conditions.shape)
    return jnp.asarray(rows), jnp.asarray(_cast("condition", conditions, None))


def _cast(name: str, rows: np.ndarray, dtype: Any) -> np.ndarray:
    """Return the rows in a floating-point type, or say which columns that type cannot hold."""
    dtype = np.dtype(jnp.result_type(float) if dtype is None else dtype)
    bad = int((~np.isfinite(rows)).reshape(len(rows), -1).any(axis=1).sum())
    expect(bad == 0, name, "be finite", f"NaN or infinity in {bad} of {len(rows)} rows")
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


def mean_and_std(x: Any, eps: float | None = None) -> tuple[Any, Any, Any]:
    """Return the mean and the standard deviation of each column, for any scale and offset.

    Deviations from the first row are divided by the largest of them before anything is squared, so that no
    square over- or underflows. A column whose deviations are nothing but rounding, within eight units in the
    last place, counts as constant. Its standard deviation is 1, since rounding must not be magnified, or the
    true one where that is larger.

    Args:
        x: Rows along the first axis, a NumPy or a JAX array.
        eps: The machine epsilon of the data's type, if that was narrower than the type of x.

    Returns:
        Means, standard deviations, and whether each column is constant; each of shape ``x.shape[1:]``.
    """
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    origin = x[:1]
    largest = xp.abs(x - origin).max(axis=0)
    unit = xp.where(largest > 0, largest, 1).astype(x.dtype)
    deviations = (x - origin) / unit[None]
    mean, std = origin[0] + unit * deviations.mean(axis=0), unit * deviations.std(axis=0)
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    constant = largest <= 8 * eps * xp.abs(x).max(axis=0)
    return mean, xp.where(constant, xp.maximum(std, 1), std).astype(x.dtype), constant


def split_parameters(tree: Any) -> tuple[Any, Any]:
    """What training moves, and the rest; anything in ``paramax.NonTrainable`` belongs to the rest."""
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


_ANEW = contextvars.ContextVar("_ANEW", default=False)


@contextlib.contextmanager
def traced_anew():
    """Let the layers' Python code run at each call, so that a check sees a state hidden in it."""
    token = _ANEW.set(True)
    try:
        yield
    finally:
        _ANEW.reset(token)


class _Constant:
    """A NumPy array or a number, to be compared and hashed: part of a program, not an input of it.

    Numbers are told apart by type and sign too: 0.0, -0.0, 0 and False are equal, but do not compute alike.
    """

    def __init__(self, array: Any):
        self.array = array
        is_array = isinstance(array, np.ndarray)
        text: Any = (array.shape, array.dtype.str, array.tobytes()) if is_array else repr(array)
        self.value = (type(array), text)

    def __eq__(self, other):
        return isinstance(other, _Constant) and self.value == other.value

    def __hash__(self):
        return hash(self.value)


# Not inlined, so that a plain gradient finds the loops inside again and compiles nothing.
@functools.partial(jax.jit, static_argnums=0)
def _program(static, arrays):
    function, structure, rest = static
    rest = [leaf.array if isinstance(leaf, _Constant) else leaf for leaf in rest]
    leaves = [array if array is not None else leaf for array, leaf in zip(arrays, rest, strict=True)]
    return function(*jax.tree.unflatten(structure, leaves))


def compiled(function: Callable, *args: Any) -> Any:
    """Return ``function(*args)``, computed by a program that the next such call finds again.

    JAX arrays are inputs of the program; all else (functions, numbers, NumPy arrays such as masks, static
    fields) is part of it. A second call with equal parts compiles nothing, inside ``jax.vmap`` too, where a
    loop that is traced anew at each call would be compiled anew. Inside another program it adds nothing.

    Args:
        function: A function that exists once, not one made for this call.
        *args: Its arguments, any pytrees.
    """
    if _ANEW.get():
        return function(*args)
    leaves, structure = jax.tree.flatten(args)
    arrays = [leaf if isinstance(leaf, jax.Array) else None for leaf in leaves]
    rest = [
        None
        if isinstance(leaf, jax.Array)
        else _Constant(leaf)
        if isinstance(leaf, np.ndarray | bool | int | float)
        else leaf
        for leaf in leaves
    ]
    static = (function, structure, tuple(rest))
    try:
        hash(static)
    except TypeError:  # a static field that cannot be hashed, such as a list: nothing can be found again
        return function(*args)
    return _program(static, arrays)


def varying_like(value: Array, *trees: Any) -> Array:
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


@jit_once  # one program in place of some forty operations, each compiled for its shape
def stack(keys: Array, layer: Callable) -> Any:
    """The layers that a function makes from keys, stacked along the first axis of every array."""
    return eqx.filter_vmap(lambda key: layer(key))(keys)


def standard_normal(dim: int) -> fd.Normal:
    """The base density of every flow here, of D independent coordinates; training leaves it as it is."""
    return non_trainable(fd.Normal(jnp.zeros(expect_whole("dim", dim, 1))))


def _copied(tree):
    """A deep copy: new arrays, and the same functions, of which a copy would compile everything again."""
    return jax.tree.map(
        lambda leaf: leaf.copy() if eqx.is_array_like(leaf) and hasattr(leaf, "copy") else leaf, tree
    )


class Bijection(AbstractBijection):
    """A flowjax bijection whose methods check their arguments and run as one compiled program.

    Subclasses define ``shape``, ``cond_shape``, ``transform_and_log_det`` and
    ``inverse_and_log_det``, as for flowjax's ``AbstractBijection``. Integer input is cast to the
    default floating-point type; a condition given to an unconditional bijection is ignored. The two
    methods are traced, as under ``jax.jit``, so their Python code runs once for each shape and type.

    Raises:
        ValueError: From both methods, if the event or the condition has the wrong shape, is no
            real array, or is missing.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # In place of flowjax's own wrapper, which casts less and compiles nothing.
        super(AbstractBijection, cls).__init_subclass__(**kwargs)
        for name, wrap in (("transform_and_log_det", _forward), ("inverse_and_log_det", _backward)):
            if name in cls.__dict__:
                setattr(cls, name, wrap(cls.__dict__[name]))

    def __deepcopy__(self, memo):
        return _copied(self)


def _forward(method):
    @functools.wraps(method)
    def transform_and_log_det(self, x, condition=None):
        return _call(method, self, "x", x, condition)

    return transform_and_log_det


def _backward(method):
    @functools.wraps(method)
    def inverse_and_log_det(self, y, condition=None):
        return _call(method, self, "y", y, condition)

    return inverse_and_log_det


def _call(method, bijection, name, event, condition):
    event = _as_real_array(name, event, bijection.shape, "the event's shape")
    if bijection.cond_shape is None:
        condition = None
    else:
        expect(condition is not None, "condition", f"have shape {bijection.cond_shape}", None)
        condition = _as_real_array("condition", condition, bijection.cond_shape, "`cond_shape`")
    return compiled(_unwrapped, method, bijection, event, condition)


def _unwrapped(method, bijection, event, condition):
    return method(unwrap(bijection), event, condition)


def _as_real_array(name: str, value: Any, shape: tuple[int, ...], what: str) -> Array:
    array = as_floats(name, value)
    expect(array.shape == shape, name, f"have shape {shape}, {what}", array.shape)
    return array


def as_floats(name: str, value: Any) -> Array:
    """Return a real array of floating-point numbers; integers are cast to the default type."""
    expect(eqx.is_array_like(value), name, "be an array of real numbers", type(value).__name__)
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


class Scan(fb.Scan, Bijection):
    r"""flowjax's ``Scan``, with a gradient from data to latent that takes less memory and less time.

    That gradient needs what each layer computed on its way, many times its input and output. Here no more
    than the input is stored, and the rest is computed a second time: mostly quicker than to write and to read
    it. The inverse stores everything, since a layer may find it by iteration.

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
        step = lambda layer, x: layer.transform_and_log_det(x, condition)
        return self._run(step, x, condition, wrap=functools.partial(jax.checkpoint, prevent_cse=False))

    def inverse_and_log_det(self, y, condition=None):
        step = lambda layer, y: layer.inverse_and_log_det(y, condition)
        return self._run(step, y, condition, reverse=True)

    def _run(self, step, event, condition, *, wrap=lambda f: f, reverse=False):
        arrays, rest = eqx.partition(self.bijection, eqx.is_array)

        @wrap
        def one(carry, arrays):
            event, log_det = carry
            event, change = step(eqx.combine(arrays, rest), event)
            return (event, log_det + change), None

        start = (event, jnp.zeros((), event.dtype))
        start = jax.tree.map(lambda a: varying_like(a, event, condition, arrays), start)
        return lax.scan(one, start, arrays, reverse=reverse)[0]


class Transformed(fd.Transformed):
    r"""flowjax's ``Transformed``, whose plain calls are compiled once and whose NaN stays NaN.

    ``flow.log_prob(x)`` and ``flow.sample(key, (n,))`` run as one program, which later calls with the same
    shapes find again. Where a row of x holds NaN its log-density is NaN; flowjax's own class gives
    :math:`-\infty`, which ranks a broken row as the least likely of all.

    Args:
        base_dist: The density of the latent variable, a flowjax distribution.
        bijection: A flowjax bijection from latent to data, such as ``Invert`` of a layer of this package.

    Raises:
        ValueError: From the methods, if x, the key or the condition does not fit.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> from flowjax.bijections import Invert
        >>> layer = gf.AffineCoupling(jr.key(0), shape=(2,))
        >>> flow = gf.Transformed(gf.base.standard_normal(2), Invert(layer))
        >>> flow.log_prob(jnp.array([0.0, jnp.nan]))
        Array(nan, dtype=float32)
    """

    def __init__(self, base_dist: fd.AbstractDistribution, bijection: AbstractBijection):
        super().__init__(base_dist, bijection)

    def log_prob(self, x, condition=None):
        x = self._batch("x", x, self.shape)
        return compiled(fd.Transformed.log_prob, self, x, self._condition(condition))

    def sample(self, key, sample_shape=(), condition=None):
        return self._draw(fd.Transformed.sample, key, sample_shape, condition)

    def sample_and_log_prob(self, key, sample_shape=(), condition=None):
        return self._draw(fd.Transformed.sample_and_log_prob, key, sample_shape, condition)

    def __deepcopy__(self, memo):
        return _copied(self)

    def _log_prob(self, x, condition=None):
        log_prob = super()._log_prob(x, condition)
        broken = jnp.isnan(x).any()
        # A flow with NaN among its parameters gives no density either, wherever the point is.
        for array in (condition, *jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array))):
            if array is not None:
                broken |= jnp.isnan(array).any()
        return jnp.where(broken, jnp.nan, log_prob)

    def expect_single(self) -> None:
        """Raise a ``ValueError`` if this is a stack of flows, as ``fit_many`` makes one."""
        base = unwrap(self.base_dist)
        if isinstance(base, fd.Normal) and jnp.ndim(base.loc) > len(self.shape):
            raise ValueError(
                "This is a stack of flows, one for each key, and must be used one at a time: take "
                "`result[i].flow` of what `fit_many` returned, or map over the stack with `eqx.filter_vmap`."
            )

    def _draw(self, method, key, sample_shape, condition):
        self.expect_single()
        typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if not typed or key.shape != ():
            raise ValueError(f"`key` must be one random key, such as jax.random.key(0); it is {key!r}.")
        try:
            sizes = tuple(expect_whole("sample_shape", size, 0) for size in sample_shape)
        except TypeError as error:
            raise ValueError(
                f"`sample_shape` must be a tuple of whole numbers, such as (100,); it is {sample_shape!r}."
            ) from error
        return compiled(method, self, key, sizes, self._condition(condition))

    def _condition(self, condition):
        return None if self.cond_shape is None else self._batch("condition", condition, self.cond_shape)

    def _batch(self, name, value, shape):
        """The argument as a floating-point array whose last axes are ``shape``."""
        self.expect_single()
        if value is None:
            raise ValueError(f"`{name}` must be given, with shape {shape} or a batch of such arrays.")
        array = as_floats(name, value)
        if array.shape[array.ndim - len(shape) :] != shape or array.ndim < len(shape):
            raise ValueError(
                f"The last axes of `{name}` must have shape {shape}; its shape is {array.shape}."
            )
        return array
