"""A scalar bijector as a function of a vector of numbers, which a conditioner predicts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PyTree
from paramax import NonTrainable, unwrap

from gauss_flows.bijection import partition
from gauss_flows.validate import Shape


@dataclass(frozen=True, eq=False)
class Structure:
    """The structure of a pytree as a static value that can be compared, hashed, copied and pickled.

    JAX's own ``PyTreeDef`` can be neither copied nor pickled where it holds modules.
    """

    tree: PyTree

    def __post_init__(self):
        object.__setattr__(self, "tree", jax.tree.map(lambda _: 0, self.tree))

    def __reduce__(self):
        return Structure, (self.tree,)

    @cached_property
    def _definition(self) -> PyTree:
        return jax.tree.structure(self.tree)

    def unflatten(self, leaves: list[PyTree]) -> PyTree:
        """Return the tree with these leaves."""
        return jax.tree.unflatten(self._definition, leaves)

    def __eq__(self, other):
        return isinstance(other, Structure) and self._definition == other._definition

    def __hash__(self):
        return hash(self._definition)


class Parametrized(eqx.Module):
    r"""A scalar bijector :math:`T_\theta` as a function of its P parameters.

    A conditioner predicts these parameters: its output is added to those of the bijector as given.
    Parameters in ``paramax.NonTrainable`` stay as they are.

    With limits, far outputs are bounded smoothly, so that no output, however extreme, makes the map steeper
    than :math:`e^{b}`, flatter than :math:`e^{-b}`, or shifts by more than a few t. Up to three quarters of a
    limit the output stays exactly as it is. The limits hold for the bijectors of this package and for
    flowjax's ``Affine``, ``Loc`` and ``Scale``; the parameters of other bijectors are not limited.

    Args:
        bijector: Any unconditional scalar bijection, shape ().
        max_log_scale: b, positive. Default: no limits.
        max_shift: t, positive, in units of the data.

    Raises:
        ValueError: If ``bijector`` is not an unconditional scalar bijection.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> affine = gf.Parametrized(gf.Affine())
        >>> affine.size, affine.theta(jnp.zeros((3, 2))).shape
        (2, (3, 2))
    """

    # In pieces, which no optimizer and no unwrapping touches before the bijector is rebuilt.
    _theta: PyTree  # Float[Array, " P"], in NonTrainable
    _rest: list[PyTree]
    _parameters: Structure = eqx.field(static=True)
    _shapes: tuple[Shape, ...] = eqx.field(static=True)
    _others: Structure = eqx.field(static=True)
    _limits: tuple[tuple[float, float], ...] | None = eqx.field(static=True)

    def __init__(
        self,
        bijector: AbstractBijection,
        *,
        max_log_scale: float | None = None,
        max_shift: float = 1e6,
    ):
        kind = type(bijector).__name__
        if not isinstance(bijector, AbstractBijection):
            raise ValueError(f"`bijector` must be a flowjax bijection; got {kind}.")
        if bijector.shape != ():
            raise ValueError(f"`bijector` must be scalar, of shape (); got {bijector.shape}.")
        if bijector.cond_shape is not None:
            raise ValueError(
                f"`bijector` must be unconditional; its condition has shape {bijector.cond_shape}."
            )
        in_force = lambda a: jnp.asarray(a, float) if eqx.is_inexact_array(a) else a
        theta, rest = partition(jax.tree.map(in_force, bijector))  # in any precision
        parts = jax.tree.leaves(theta)
        self._theta = NonTrainable(ravel_pytree(theta)[0])
        self._rest = [NonTrainable(a) if eqx.is_array(a) else a for a in jax.tree.leaves(rest)]
        self._parameters, self._others = Structure(theta), Structure(rest)
        self._shapes = tuple(jnp.shape(part) for part in parts)
        self._limits = None
        if max_log_scale is not None:
            self._limits = _limits_in_order(bijector, theta, max_log_scale, max_shift)

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return unwrap(self._theta).shape[-1]

    def theta(self, out: Float[Array, "B P"]) -> Float[Array, "B P"]:
        """Parameters from a network's output: for zeros, those of the bijector as given."""
        if self._limits is not None:
            low, high = (jnp.asarray(end, out.dtype)[None, :] for end in np.array(self._limits).T)
            out = soft_limit(out, low, high)
        return out + unwrap(self._theta)[None, :]

    def flatten(self, bijector: AbstractBijection) -> Float[Array, " P"]:
        """Return the parameters of a bijector of the same kind, as ``__call__`` takes them."""
        return ravel_pytree(partition(bijector)[0])[0]

    def __call__(self, theta: Float[Array, " P"]) -> AbstractBijection:
        """Return the bijector with parameters ``theta``."""
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])
        parts = jnp.split(theta, ends[:-1]) if self._shapes else []  # splitting nothing gives one part
        pieces = [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        parameters = self._parameters.unflatten(pieces)
        return eqx.combine(parameters, self._others.unflatten(unwrap(self._rest)))  # in theta's own precision

    def transform(
        self, theta: Float[Array, "B P"], x: Float[Array, " B"]
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Return :math:`T_\theta(x)` and the log of its slope for B numbers, each with its own parameters."""
        return jax.vmap(lambda theta, x: self(theta).transform_and_log_det(x))(theta, x)

    def inverse(
        self, theta: Float[Array, "B P"], y: Float[Array, " B"]
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Return the x with :math:`T_\theta(x) = y`, and minus the log of the slope there."""
        return jax.vmap(lambda theta, y: self(theta).inverse_and_log_det(y))(theta, y)


def parametrize(bijector: AbstractBijection | Parametrized, *, at_least: int = 0) -> Parametrized:
    """Return the bijector as a function of its parameters, of which it must have at least so many."""
    parametrized = bijector if isinstance(bijector, Parametrized) else Parametrized(bijector)
    if parametrized.size < at_least:
        raise ValueError(
            "`bijector` must have a trainable parameter for the network to set, a floating-point array not in"
            " NonTrainable; it has none."
        )
    return parametrized


def limited(bijector: AbstractBijection | Parametrized, layers: int) -> Parametrized:
    """Return the bijector with limits such that no weights of the networks make a stack of layers overflow.

    A standard normal log-density is finite in single precision up to |z| = 1.8e19. From |x| = 1e6 that
    leaves a factor of e^30 for all layers together, of which e^6 is left to the linear maps between them. A
    :class:`Parametrized` is returned as it is.
    """
    if isinstance(bijector, Parametrized):
        return bijector
    return Parametrized(bijector, max_log_scale=24 / layers)


UNLIMITED = 1e30  # in place of infinity, whose differences are NaN


def _limits_in_order(bijector, theta, max_log_scale, max_shift):
    """The lower and upper limit of each parameter, in the order of ``Parametrized.theta``."""
    named: Mapping[str, tuple[ArrayLike, ArrayLike]] = {}
    if isinstance(bijector, fb.Affine | fb.Loc | fb.Scale):
        named = softplus_limits(max_log_scale, max_shift)
    elif hasattr(bijector, "limits"):
        named = bijector.limits(max_log_scale, max_shift)
    limits = []
    for path, part in jax.tree_util.tree_flatten_with_path(theta)[0]:
        ends = named.get(path[0].name, (-UNLIMITED, UNLIMITED))
        low, high = (np.broadcast_to(end, part.shape).ravel() for end in ends)
        limits += list(zip(low.tolist(), high.tolist(), strict=True))
    return tuple(limits) if any(limit != (-UNLIMITED, UNLIMITED) for limit in limits) else None


def softplus_limits(max_log_scale: float, max_shift: float) -> dict[str, tuple[float, float]]:
    """Return the limits of what is added to an affine map's shift and to the free parameter of its scale."""
    return {"loc": (-max_shift, max_shift), "scale": (-max_log_scale, math.exp(max_log_scale))}


def soft_limit(value: Array, low: Array | float, high: Array | float) -> Array:
    """Bound a number smoothly between ``low`` < 0 < ``high``.

    Up to three quarters of a limit it stays exactly as it is. Beyond, the rest of the way is a tanh, so that
    the value and its first two derivatives are continuous.
    """
    inner_low, inner_high = 0.75 * low, 0.75 * high
    kept = jnp.where(value > inner_high, inner_high, jnp.where(value < inner_low, inner_low, value))
    room = 0.25 * jnp.where(value > 0, high, -low)
    beyond = kept + room * jnp.tanh((value - kept) / room)
    # Selected, not added: backward, a cotangent times the room of an unlimited parameter would overflow.
    return jnp.where(value == kept, value, beyond)


def soft_clip(raw: Array, bound: float) -> Array:
    r"""Bound a parameter smoothly on both sides, :math:`b \tanh(r / b)`, with slope 1 at zero."""
    return bound * jnp.tanh(raw / bound)
