"""The rational-quadratic spline."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gauss_flows.bijection import Bijection
from gauss_flows.parametrize import soft_clip
from gauss_flows.validate import Shape, expect_whole


@jax.custom_jvp
def _entry(array: Array, i: Array) -> Array:
    """array[i], cut to the array's range.

    Its derivative is a sum over a mask: that of an index would be a scatter, which is slow on every device.
    """
    return lax.dynamic_index_in_dim(array, i, keepdims=False)


@_entry.defjvp
def _entry_jvp(primals, tangents):
    array, i = primals
    here = jnp.arange(len(array)) == jnp.clip(i, 0, len(array) - 1)
    return _entry(array, i), jnp.sum(jnp.where(here, tangents[0], 0))


@jax.custom_jvp
def _bin_root(eta: Array, s: Array, d0: Array, d1: Array) -> Array:
    r"""Return the :math:`\xi` in [0, 1] at which a bin of mean slope s has risen by the part :math:`\eta`.

    Its derivatives are those of the implicit function theorem, of any order. Those of the formula below are
    halved by the clip at the knots, and lost where rounding leaves no discriminant.
    """
    bend = eta * (d0 + d1 - 2 * s)
    a, b, c = s - d0 + bend, d0 - bend, -s * eta
    # Rounding must not push the discriminant below zero, where it has no root.
    root = jnp.sqrt(jnp.maximum(b * b - 4 * a * c, jnp.finfo(eta.dtype).tiny))
    # Of the two forms of the root, the one that adds numbers of the same sign: where b < 0, a > s > 0.
    xi = jnp.where(b < 0, root - b, 2 * c) / jnp.where(b < 0, 2 * a, -b - root)
    # Inside a scan JAX can forget the rule below; then a clip would halve the derivative at the knots.
    return xi + lax.stop_gradient(jnp.clip(xi, 0, 1) - xi)


@_bin_root.defjvp
def _bin_root_jvp(primals, tangents):
    r"""Differentiate :math:`s \xi^2 + d_0 \xi (1 - \xi) = \eta\,[s + (d_0 + d_1 - 2s)\,\xi (1 - \xi)]`."""
    eta, s, d0, d1 = primals
    d_eta, d_s, d_d0, d_d1 = tangents
    xi = _bin_root(eta, s, d0, d1)
    between, below, top = _bin_terms(xi, s, d0, d1)
    rate = below / (s * top)  # one factor for each tangent, so that reverse mode keeps four numbers
    by_s, by_d0, by_d1 = eta * (1 - 2 * between) - xi * xi, (eta - 1) * between, eta * between
    return xi, rate * below * d_eta + rate * by_s * d_s + rate * by_d0 * d_d0 + rate * by_d1 * d_d1


def _bin_terms(xi: Array, s: Array, d0: Array, d1: Array) -> tuple[Array, Array, Array]:
    r"""Return :math:`\xi (1 - \xi)`, and of a bin's slope :math:`s^2 u / v^2` the two terms v and u."""
    between = xi * (1 - xi)
    below = s + (d0 + d1 - 2 * s) * between
    return between, below, d1 * xi * xi + 2 * s * between + d0 * (1 - xi) ** 2


class RQSpline(Bijection):
    r"""A rational-quadratic spline inside an interval, the identity outside it.

    Between neighboring knots :math:`(x_k, y_k), (x_{k+1}, y_{k+1})` with slopes
    :math:`d_k, d_{k+1}` and :math:`s = (y_{k+1} - y_k)/(x_{k+1} - x_k)`,

    .. math:: T(x) = y_k + \frac{(y_{k+1} - y_k)\,[s\,\xi^2 + d_k\,\xi(1-\xi)]}
              {s + (d_k + d_{k+1} - 2s)\,\xi(1-\xi)}, \qquad \xi = \frac{x - x_k}{x_{k+1} - x_k}.

    The K bins have K widths, K heights and K - 1 inner slopes: 3K - 1 parameters; the two outer slopes
    are 1, so that T meets the identity smoothly. The inverse solves a quadratic in :math:`\xi`. It
    starts as the identity. Widths, heights and slopes are bounded on both sides: far from the data a
    network's outputs are extreme, and a map steeper than rounding allows would not be invertible there.

    Args:
        n_bins: K, at least 1.
        interval: B > 0; the spline acts on [-B, B].
        min_width: Least width and height of a bin, as a part of 2B; below 1/K.
        min_slope: Least slope at an inner knot; the greatest is about its inverse.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Durkan et al., "Neural spline flows" (NeurIPS 2019), section 3.1.

    Example:
        >>> import gauss_flows as gf
        >>> spline = gf.RQSpline(n_bins=8, interval=4.0)
        >>> float(spline.transform(5.0))
        5.0
    """

    shape: ClassVar[Shape] = ()  # type: ignore[misc]
    cond_shape: ClassVar[None] = None  # type: ignore[misc]
    widths: Float[Array, " K"]
    heights: Float[Array, " K"]
    slopes: Float[Array, " K-1"]
    interval: float = eqx.field(static=True)
    min_width: float = eqx.field(static=True)
    min_slope: float = eqx.field(static=True)

    def __init__(
        self, n_bins: int = 8, interval: float = 4.0, *, min_width: float = 1e-2, min_slope: float = 0.1
    ):
        k = expect_whole("n_bins", n_bins, 1)
        if not (interval > 0 and math.isfinite(interval)):
            raise ValueError(f"`interval` must be positive and finite; got {interval}.")
        if not 0 < min_width < 1 / k:
            raise ValueError(f"`min_width` must lie between 0 and 1 / n_bins = {1 / k:g}; got {min_width}.")
        if not 0 < min_slope < 1:
            raise ValueError(f"`min_slope` must lie between 0 and 1; got {min_slope}.")
        self.widths, self.heights, self.slopes = jnp.zeros(k), jnp.zeros(k), jnp.zeros(k - 1)
        self.interval, self.min_width, self.min_slope = float(interval), float(min_width), float(min_slope)

    def _bin(self, value, searched):
        """Of the bin that holds the value: left edge and size in x and in y, slopes at its ends.

        Everything that all bins need not have, the softmax's division too, is done for this one alone.
        """
        k, width, free = len(self.widths), 2 * self.interval, 1 - len(self.widths) * self.min_width
        before = jnp.tril(jnp.ones((k, k), self.widths.dtype), -1)  # a product, not a slow cumsum
        sizes = [jnp.exp(raw - lax.stop_gradient(raw.max())) for raw in (self.widths, self.heights)]
        axes = [(before @ size, size, size.sum()) for size in sizes]
        edge = lambda i, part: width * (self.min_width * i.astype(part.dtype) + free * part) - self.interval
        left, _, total = axes[searched]
        i = jnp.sum(value >= edge(jnp.arange(k), left / total)) - 1

        x0, y0 = (edge(i, _entry(left, i) / total) for left, _, total in axes)
        dx, dy = (width * (self.min_width + free * _entry(size, i) / total) for _, size, total in axes)
        return x0, dx, y0, dy, *self._ends(i)

    def _slope(self, raw):
        unit = math.log(math.expm1(1 - self.min_slope))  # where a slope is 1
        return self.min_slope + jax.nn.softplus(unit + soft_clip(raw, 1 / self.min_slope))

    def _ends(self, i):
        """The slopes at the ends of a bin."""
        k = len(self.widths)
        if k == 1:
            return 1.0, 1.0
        d0 = jnp.where(i > 0, self._slope(_entry(self.slopes, i - 1)), 1)
        return d0, jnp.where(i < k - 1, self._slope(_entry(self.slopes, i)), 1)

    def _rise(self, x):
        """The spline and the log of its slope at a point of the interval."""
        x0, dx, y0, dy, d0, d1 = self._bin(x, 0)
        xi, s = (x - x0) / dx, dy / dx
        between, below, top = _bin_terms(xi, s, d0, d1)
        return y0 + dy * (s * xi * xi + d0 * between) / below, self._log_slope(s, below, top)

    def _root(self, y):
        """The point of the interval that the spline takes to y, and the log of the slope there."""
        x0, dx, y0, dy, d0, d1 = self._bin(y, 1)
        eta, s = (y - y0) / dy, dy / dx
        d0, d1 = (jnp.asarray(d, s.dtype) for d in (d0, d1))
        xi = _bin_root(eta, s, d0, d1)
        _, below, top = _bin_terms(xi, s, d0, d1)
        return x0 + xi * dx, self._log_slope(s, below, top)

    def transform_and_log_det(self, x, condition=None):
        inside = jnp.abs(x) < self.interval
        y, log_slope = self._rise(jnp.where(inside, x, 0))  # so that the untaken branch has finite gradients
        return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0)

    def inverse_and_log_det(self, y, condition=None):
        inside = jnp.abs(y) < self.interval
        x, log_slope = self._root(jnp.where(inside, y, 0))
        return jnp.where(inside, x, y), jnp.where(inside, -log_slope, 0)

    def _log_slope(self, s, below, top):
        return 2 * jnp.log(s / below) + jnp.log(top)
