"""The menu of scalar bijectors: increasing maps of the real line, of shape ()."""

import math
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float
from paramax.utils import inv_softplus

from gauss_flows.bijection import Bijection
from gauss_flows.deprecated import moved
from gauss_flows.parametrize import soft_clip, softplus_limits
from gauss_flows.validate import Shape


class PositiveScale(eqx.Module):
    r"""A positive number s from a free one r, with its logarithm right where s itself underflows.

    .. math:: s = \mathrm{softplus}(r) \quad\text{or}\quad s = e^{r} \quad\text{or}\quad
              s = e^{b \tanh(r / b)}.

    Attributes:
        args: The free parameter r, in a tuple.
        link: "softplus" or "exp".
        bound: b, infinity for none; of the exponential alone.
    """

    args: tuple[Array]
    link: Literal["softplus", "exp"] = eqx.field(static=True)
    bound: float = eqx.field(static=True)

    @property
    def value(self) -> Array:
        """The scale s."""
        return jax.nn.softplus(self.args[0]) if self.link == "softplus" else jnp.exp(self.log)

    @property
    def log(self) -> Array:
        """The logarithm of s."""
        (raw,) = self.args
        if self.link == "exp":
            return raw if math.isinf(self.bound) else soft_clip(raw, self.bound)
        # Far below zero softplus(r) is exp(r) (1 - exp(r) / 2), whose logarithm does not underflow.
        far = raw < -20
        near = jnp.log(jax.nn.softplus(jnp.where(far, 0, raw)))
        return jnp.where(far, raw - 0.5 * jnp.exp(jnp.where(far, raw, 0)), near)


class Affine(Bijection):
    r"""The affine map :math:`T(x) = s x + b` of each element, with s > 0.

    The scale is the softplus of a free parameter r. The log-determinant is computed from r, so it is right
    also where s is too small for a floating-point number: :math:`\log\mathrm{softplus}(r) \approx r`.

    Args:
        loc: The shift t; it and ``scale`` broadcast to the event's shape.
        scale: The scale s, positive.

    Raises:
        ValueError: If an argument is not finite, or ``scale`` is not positive.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), with a softplus for the exponential.

    Example:
        >>> import gauss_flows as gf
        >>> float(gf.Affine(1.0, 2.0).transform(3.0))
        7.0
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: ClassVar[None] = None  # type: ignore[misc]
    loc: Float[Array, "*shape"]
    scale: PositiveScale

    def __init__(self, loc: ArrayLike = 0, scale: ArrayLike = 1):
        loc, scale = jnp.broadcast_arrays(jnp.asarray(loc, float), jnp.asarray(scale, float))
        for name, value, good in (("loc", loc, jnp.isfinite(loc)), ("scale", scale, scale > 0)):
            if not isinstance(value, jax.core.Tracer) and not bool((good & jnp.isfinite(value)).all()):
                kind = "finite" if name == "loc" else "positive and finite"
                raise ValueError(f"`{name}` must be {kind}; it is {value}.")
        self.loc, self.shape = loc, scale.shape
        self.scale = PositiveScale((inv_softplus(scale),), "softplus", math.inf)

    def limits(self, max_log_scale: float, max_shift: float) -> dict[str, tuple[float, float]]:
        """Return the limits of what is added to each parameter, for :class:`Parametrized`."""
        if self.scale.link == "exp":
            return {"loc": (-max_shift, max_shift), "scale": (-max_log_scale, max_log_scale)}
        return softplus_limits(max_log_scale, max_shift)

    def transform_and_log_det(self, x, condition=None):
        return x * self.scale.value + self.loc, self.scale.log.sum()

    def inverse_and_log_det(self, y, condition=None):
        return (y - self.loc) / self.scale.value, -self.scale.log.sum()


def exp_affine(log_scale_bound: float = math.inf) -> Affine:
    r"""An affine bijector whose scale is an exponential, :math:`T(x) = e^{a} x + b`.

    Without a bound the log-scale :math:`a` is a free parameter, as in Real NVP. With a bound :math:`m`, it is
    :math:`a = m\tanh(\theta_1 / m)` of a free parameter :math:`\theta_1`, and stays within :math:`\pm m`.
    (``Affine`` has a softplus in place of the exponential.)

    Args:
        log_scale_bound: The bound m > 0 of the log-scale; infinity for none.

    Raises:
        ValueError: If ``log_scale_bound`` is not positive.

    Example:
        >>> import gauss_flows as gf
        >>> float(gf.bijectors.exp_affine(2.0).transform(3.0))
        3.0
    """
    positive = isinstance(log_scale_bound, (int, float)) and log_scale_bound > 0
    if not positive:
        raise ValueError(f"`log_scale_bound` must be positive; got {log_scale_bound!r}.")
    scale = PositiveScale((jnp.zeros(()),), "exp", float(log_scale_bound))
    return eqx.tree_at(lambda a: a.scale, Affine(), scale)


__getattr__ = moved(__name__)
