r"""Logarithms of the normal CDF and of its inverse, accurate in the tails.

Everything here rests on one smooth function, Mills' ratio scaled to the unit interval. With
:math:`t = c / (c + v)`, :math:`v \ge 0`,

.. math:: \Phi(-v) = e^{-v^2/2} \, t \, M(t),

and :math:`M` is so smooth on :math:`[0, 1]` that a short polynomial gives it to rounding.
No branch, no underflow, no loss in the tails: :math:`\log\Phi(-v) = -v^2/2 + \log(t M(t))`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float
from numpy.polynomial import Chebyshev, Polynomial

LOG_HALF = float(np.log(0.5))

LOG_SQRT_2PI = float(0.5 * np.log(2 * np.pi))

_SQRT_2PI = float(np.sqrt(2 * np.pi))

_C = 4.0  # where the series is centered: t = 1/2 at v = c

_R0 = float(np.sqrt(-2 * LOG_HALF))


def _series(function: Callable[[np.ndarray], np.ndarray], degree: int) -> np.ndarray:
    """Polynomial coefficients, highest first, of the Chebyshev series of a function on (-1, 1).

    Written out, because ``Chebyshev.interpolate`` loses two digits to its recurrence.
    """
    angles = np.pi * (np.arange(64) + 0.5) / 64
    basis = np.cos(np.outer(np.arange(degree + 1), angles))
    coefficients = basis @ function(np.cos(angles)) / 32
    coefficients[0] /= 2
    return Chebyshev(coefficients).convert(kind=Polynomial).coef[::-1]


def _horner(coefficients: np.ndarray, s: Array) -> Array:
    value = jnp.full_like(s, coefficients[0])
    for c in coefficients[1:]:
        value = value * s + s.dtype.type(c)
    return value


def _scaled_mills(s: np.ndarray) -> np.ndarray:
    """M(t) at t = (s + 1) / 2."""
    t = (s + 1) / 2
    return scipy.special.erfcx(_C * (1 - t) / t / np.sqrt(2)) / (2 * t)


def _scaled_quantile(s: np.ndarray) -> np.ndarray:
    """Z / r for log Phi(z) = -r^2 / 2, with r = r0 + 2 (1 - t) / t at t = (s + 1) / 2."""
    t = (s + 1) / 2
    r = _R0 + 2 * (1 - t) / t
    return scipy.special.ndtri_exp(-(r**2) / 2) / r


@functools.cache
def _mills_series(itemsize: int) -> np.ndarray:
    """By item size: the degree at which the series' remainder falls below the type's rounding."""
    return _series(_scaled_mills, {4: 10, 8: 24}[itemsize])


@functools.cache
def _quantile_series() -> np.ndarray:
    """Good to 1e-5: where Halley's iteration starts."""
    return _series(_scaled_quantile, 9)


def mills_ratio(v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Mills' ratio without its constant, :math:`e^{v^2/2}\,\Phi(-v)`, for :math:`v \ge 0`.

    Args:
        v: Any shape, not negative. Half precision is computed in single.

    Returns:
        Values in :math:`(0, 1/2]`, of v's shape and type, to rounding error for every v.
    """
    if v.dtype.itemsize < 4:
        return mills_ratio(v.astype(jnp.float32)).astype(v.dtype)
    t = _C / (_C + v)
    return t * _horner(_mills_series(v.dtype.itemsize), 2 * t - 1)


class NormalTails(NamedTuple):
    """Both tails of the standard normal at u, and their hazard rates, as logarithms."""

    lower: Array  # log Phi(u)
    upper: Array  # log Phi(-u)
    lower_hazard: Array  # log (phi(u) / Phi(u)), phi the density
    upper_hazard: Array  # log (phi(u) / Phi(-u))


@jax.custom_jvp
def normal_tails(u: Float[Array, "*shape"]) -> NormalTails:
    r"""Both tails of the standard normal, and their hazard rates, as logarithms.

    Each is right to rounding at any u, and so are their derivatives; ``log(ndtr(u))`` is
    :math:`-\infty` from u = -14 on in single precision.

    Args:
        u: Any shape.

    Returns:
        Four arrays of u's shape: :math:`\log\Phi(u)`, :math:`\log\Phi(-u)`,
        :math:`\log(\varphi(u)/\Phi(u))`, :math:`\log(\varphi(u)/\Phi(-u))`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{normal_tails(jnp.array(-100.0)).lower:.2f}")
        -5005.52
    """
    negative = u < 0
    v = jnp.where(negative, -u, u)  # the derivative of abs would be 0 at 0
    half_square = 0.5 * v * v
    log_mills = jnp.log(mills_ratio(v))
    near = log_mills - half_square
    far = jnp.log1p(-jnp.exp(near))
    near_hazard = -log_mills - LOG_SQRT_2PI  # the difference log phi - log Phi would cancel
    far_hazard = -half_square - LOG_SQRT_2PI - far
    return NormalTails(
        jnp.where(negative, near, far),
        jnp.where(negative, far, near),
        jnp.where(negative, near_hazard, far_hazard),
        jnp.where(negative, far_hazard, near_hazard),
    )


@normal_tails.defjvp
def _normal_tails_jvp(primals, tangents):
    (u,), (du,) = primals, tangents
    tails = normal_tails(u)
    below, above = jnp.exp(tails.lower_hazard), jnp.exp(tails.upper_hazard)
    return tails, NormalTails(below * du, -above * du, -(u + below) * du, (above - u) * du)


@jax.custom_jvp
def ndtri_exp(log_p: Array) -> Array:
    r"""Return the z with :math:`\log\Phi(z)` = ``log_p``, for ``log_p`` up to :math:`\log\tfrac12`.

    Above that the upper tail is the one to work with: see :func:`normal_quantile`.
    """
    r = jnp.sqrt(-2 * log_p)
    z = r * _horner(_quantile_series(), 4 / (2 + r - _R0) - 1)
    for _ in range(2 if log_p.dtype.itemsize == 8 else 1):  # Halley: the error is cubed
        mills = mills_ratio(-z)
        newton = (jnp.log(mills) - 0.5 * z * z - log_p) * mills * _SQRT_2PI
        # phi / Phi + z lies between 0 and -1/z; far out the difference is nothing but rounding.
        bend = jnp.clip(z + 1 / (mills * _SQRT_2PI), 0, 1 / jnp.maximum(-z, 1e-3))
        z = z - newton / (1 + 0.5 * newton * bend)
    return z


@ndtri_exp.defjvp
def _ndtri_exp_jvp(primals, tangents):
    z = ndtri_exp(*primals)
    # Rounding can leave z a little above 0, where the ratio goes on smoothly; a clip at 0 would halve the
    # second derivative at the median.
    return z, _SQRT_2PI * mills_ratio(-z) * tangents[0]


def normal_quantile(log_cdf: Array, log_sf: Array) -> Array:
    r"""Return the z with :math:`\log\Phi(z)` = ``log_cdf`` and :math:`\log\Phi(-z)` = ``log_sf``.

    It works in the smaller of the two tails, so nothing is lost on either side.

    Args:
        log_cdf: The log of the mass below z, any shape.
        log_sf: The log of the mass above z, same shape: of one minus the CDF.

    Example:
        >>> import jax.numpy as jnp
        >>> tails = normal_tails(jnp.array(30.0))
        >>> print(f"{normal_quantile(tails.lower, tails.upper):.3f}")
        30.000
    """
    lower = log_cdf < log_sf
    z = ndtri_exp(jnp.where(lower, log_cdf, log_sf))
    return jnp.where(lower, z, -z)
