"""Flows of angles: a spline on the circle, and layers in which lines and circles stand side by side."""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import AbstractBijection, Chain, Concatenate, Flip
from flowjax.distributions import AbstractDistribution
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from gauss_flows.conditioners import ConditionerFactory
from gauss_flows.coupling import Coupling
from gauss_flows.normal import LOG_SQRT_2PI
from gauss_flows.parametrize import Parametrized
from gauss_flows.spline import RQSpline, _entry
from gauss_flows.supports import TURN
from gauss_flows.validate import Shape


class CircularSpline(RQSpline):
    r"""A rational-quadratic spline that turns the circle into itself: :math:`T(x + 2\pi) = T(x) + 2\pi`.

    :class:`~gauss_flows.RQSpline` on one turn, with equal slopes at both ends and then a shift, so that a
    density that it carries is continuous at the seam. As a map of the real line it repeats itself, and
    angles need no reduction to [0, 2π) between layers. It starts as the identity.

    Args:
        n_bins: K, at least 1.
        min_width: Least width and height of a bin, as a part of 2π; below 1/K.
        min_slope: Least slope at a knot; the greatest is about its inverse.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Rezende et al., "Normalizing flows on tori and spheres" (ICML 2020), section 2.1.

    Example:
        >>> import gauss_flows as gf
        >>> float(gf.CircularSpline(n_bins=8).transform(1.0))
        1.0
    """

    shift: Float[Array, ""]

    def __init__(self, n_bins: int = 8, *, min_width: float = 1e-2, min_slope: float = 0.1):
        super().__init__(n_bins, math.pi, min_width=min_width, min_slope=min_slope)
        self.slopes, self.shift = jnp.zeros(n_bins), jnp.zeros(())

    def _ends(self, i):
        k = len(self.widths)
        return tuple(self._slope(_entry(self.slopes, j % k)) for j in (i, i + 1))

    def transform_and_log_det(self, x, condition=None):
        rest = _in_one_turn(x)
        y, log_slope = self._rise(rest)
        return x + (y - rest) + self.shift, log_slope  # a displacement, which repeats itself

    def inverse_and_log_det(self, y, condition=None):
        y = y - self.shift
        rest = _in_one_turn(y)
        x, log_slope = self._root(rest)
        return y + (x - rest), -log_slope


def _in_one_turn(x):
    """The angle from −π to π that lies whole turns from x − π."""
    rest = x - TURN * jnp.floor(x / TURN) - math.pi
    # Rounding must not leave the interval. A clip alone would halve the derivative at the ends.
    return jnp.where(jnp.abs(rest) <= math.pi, rest, lax.stop_gradient(jnp.clip(rest, -math.pi, math.pi)))


class LinesAndCircles(AbstractDistribution):
    """The base of a flow with angles: standard normal lines, then uniform circles.

    On a circle the density is that of a point in one turn, whichever turn x lies in.
    """

    shape: Shape = eqx.field(static=True)
    lines: int = eqx.field(static=True)
    cond_shape: ClassVar[None] = None  # type: ignore[misc]

    def __init__(self, lines: int, circles: int):
        self.shape, self.lines = (lines + circles,), lines

    def _log_prob(self, x, condition=None):
        lines, circles = x[: self.lines], x[self.lines :]
        return (-0.5 * lines**2 - LOG_SQRT_2PI).sum() + (0 * circles - math.log(TURN)).sum()

    def _sample(self, key, condition=None):
        line_key, circle_key = jr.split(key)
        circles = jr.uniform(circle_key, (self.shape[0] - self.lines,), maxval=TURN)
        return jnp.concatenate([jr.normal(line_key, (self.lines,)), circles])


class _Periodic(eqx.Module):
    """A network that is given the cosine and sine of some inputs in their place."""

    network: Callable
    start: int = eqx.field(static=True)
    stop: int = eqx.field(static=True)

    def __call__(self, inputs):
        angles = inputs[self.start : self.stop]
        parts = inputs[: self.start], jnp.cos(angles), jnp.sin(angles), inputs[self.stop :]
        return self.network(jnp.concatenate(parts))


def _periodic(factory, start, stop):
    def make(in_size, out_size, *, key):
        return _Periodic(factory(in_size + stop - start, out_size, key=key), start, stop)

    return make


def lines_and_circles_layer(
    key: PRNGKeyArray,
    lines: int,
    circles: int,
    mixing: AbstractBijection | None,
    *,
    bijector: AbstractBijection | Parametrized,
    conditioner: ConditionerFactory,
    cond_dim: int | None,
) -> Chain:
    """Return one layer: the lines given the circles and half of the lines, then the circles likewise.

    Args:
        key: Random key.
        lines: How many coordinates are lines; they come first.
        circles: How many are angles, at least 1; together at least 2.
        mixing: What mixes the lines among themselves, of shape (lines,).
        bijector: As for :class:`~gauss_flows.Coupling`, for the lines; circles have a
            :class:`~gauss_flows.CircularSpline`.
        conditioner: A factory of networks, which are given cosines and sines of the angles.
        cond_dim: Size of an external condition.
    """
    line_key, circle_key = jr.split(key)
    place = np.arange(lines + circles)
    # Half of the circles are passive, and change places from layer to layer.
    turn: AbstractBijection = Flip((circles,))  # type: ignore[call-arg]
    mixed = ([] if mixing is None else [mixing]) + [turn]
    parts: list[AbstractBijection] = [Concatenate(mixed) if lines else turn]
    couple = partial(Coupling, shape=(lines + circles,), cond_dim=cond_dim)
    if lines:
        mask = (place < lines // 2) | (place >= lines)
        network = _periodic(conditioner, lines // 2, lines // 2 + circles)
        parts.append(couple(line_key, bijector=bijector, mask=mask, conditioner=network))
    mask = place < lines + circles // 2
    network = _periodic(conditioner, lines, lines + circles // 2)
    parts.append(couple(circle_key, bijector=CircularSpline(), mask=mask, conditioner=network))
    return Chain(parts)
