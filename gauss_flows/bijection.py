"""The base class of every layer, the stack of layers that runs as a loop, and the base density."""

import functools
from collections.abc import Callable

import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
from flowjax.bijections import AbstractBijection
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree
from paramax import NonTrainable, non_trainable, unwrap

from gauss_flows.compiling import compiled, jit_once, varying_like
from gauss_flows.validate import Shape, as_floats, expect_key, expect_shape, expect_whole


def partition(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Return the trainable parameters and the static rest, two trees that ``eqx.combine`` joins again.

    Trainable are all floating-point arrays outside of ``paramax.NonTrainable``.
    """
    return eqx.partition(tree, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable))


def stack(key: PRNGKeyArray, n: int, layer: Callable) -> PyTree:
    """Return n layers, which a function makes from parts of a key, stacked along the first axis of arrays."""
    return _stacked(jr.split(expect_key(key), n), layer)


@jit_once  # one program in place of some forty operations, each compiled for its shape
def _stacked(keys: Array, layer: Callable) -> PyTree:
    return eqx.filter_vmap(lambda key: layer(key))(keys)


def standard_normal(dim: int | Shape) -> fd.Normal:
    """The base density of every flow here, of D independent coordinates; training leaves it as it is.

    For an event that is no vector, such as an image, ``dim`` is its shape.
    """
    shape = expect_shape(dim) if isinstance(dim, tuple) else (expect_whole("dim", dim, 1),)
    return non_trainable(fd.Normal(jnp.zeros(shape)))


def base_density(base: fd.AbstractDistribution | None, dim: int) -> fd.AbstractDistribution:
    """Return the base of a flow of dim coordinates: the one given, or a standard normal.

    Raises:
        ValueError: If it is no unconditional flowjax distribution of shape (dim,).
    """
    if base is None:
        return standard_normal(dim)
    if not isinstance(base, fd.AbstractDistribution):
        raise ValueError(f"`base` must be a flowjax distribution; got {type(base).__name__}.")
    shape = (expect_whole("dim", dim, 1),)
    if base.shape != shape or base.cond_shape is not None:
        condition = "" if base.cond_shape is None else f" and a condition of shape {base.cond_shape}"
        raise ValueError(
            f"`base` must have shape {shape} and no condition; got shape {base.shape}{condition}."
        )
    return base


def copied(tree):
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

    def __init_subclass__(cls, **kwargs: object) -> None:
        # In place of flowjax's own wrapper, which casts less and compiles nothing.
        super(AbstractBijection, cls).__init_subclass__(**kwargs)
        for name, wrap in (("transform_and_log_det", _forward), ("inverse_and_log_det", _backward)):
            if name in cls.__dict__:
                setattr(cls, name, wrap(cls.__dict__[name]))

    def __deepcopy__(self, memo):
        return copied(self)


def _forward(method):
    """The method ``transform_and_log_det`` with checked arguments, as one compiled program."""

    def formula(bijection, x, condition):
        return method(unwrap(bijection), x, condition)

    @functools.wraps(method)
    def transform_and_log_det(self, x, condition=None):
        return compiled(formula, self, _expect_array("x", x, self.shape), _condition(self, condition))

    return transform_and_log_det


def _backward(method):
    """The method ``inverse_and_log_det`` with checked arguments, as one compiled program."""

    def formula(bijection, y, condition):
        return method(unwrap(bijection), y, condition)

    @functools.wraps(method)
    def inverse_and_log_det(self, y, condition=None):
        return compiled(formula, self, _expect_array("y", y, self.shape), _condition(self, condition))

    return inverse_and_log_det


def _expect_array(name, value, shape):
    array = as_floats(name, value)
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}; got {array.shape}.")
    return array


def _condition(bijection, value):
    if bijection.cond_shape is None:
        return None
    if value is None:
        raise ValueError(f"`condition` must have shape {bijection.cond_shape}; got None.")
    return _expect_array("condition", value, bijection.cond_shape)


class Scan(fb.Scan, Bijection):
    r"""A stack of layers that runs as a loop: flowjax's ``Scan``, with a gradient that needs less memory.

    That gradient needs what each layer computed on its way, many times its input and output. Here no more
    than the input is stored, and the rest is computed a second time, which is mostly faster than to write it
    to memory and read it back. The inverse stores everything, since a layer may find it by iteration.

    Args:
        bijection: A bijection whose arrays all have a leading axis, one entry per layer, as
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
