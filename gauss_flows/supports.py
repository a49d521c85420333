"""From the values that a coordinate can take to all real numbers: intervals, half-lines, simplex, circle."""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import Chain, Invert
from jaxtyping import Array

from gauss_flows.bijection import Bijection
from gauss_flows.transformed import Transformed
from gauss_flows.validate import Given, Shape, expect_whole

TURN = 2 * math.pi


class Support(NamedTuple):
    """What some coordinates can take: a kind, how many of them it covers, and its ends or its period."""

    kind: str  # "line", "simplex" or "circle"
    size: int
    low: float = -math.inf
    high: float = math.inf


class Supports(Bijection):
    r"""A bijection from mixed supports, coordinate by coordinate, to real numbers.

    ========================== ============================================= =============================
    support                    values                                        z
    ========================== ============================================= =============================
    ``"real"``                 all                                           x
    ``"positive"``             x > 0                                         log x
    ``(low, high)``            low < x < high; either end may be infinite    log(x − low) − log(high − x)
    ``("simplex", m)``         m coordinates > 0 with a sum below 1          log x − log(1 − Σ x)
    ``"angle"``                a circle, in radians, [0, 2π)                 x
    ``("angle", period)``      a circle, [0, period), such as 360 degrees    2π x / period
    ========================== ============================================= =============================

    A half-line keeps the one logarithm that it has. A point outside of a support, or on its boundary, has
    log-density −∞ under a flow with this bijection. Samples lie inside: what rounding would put on the
    boundary becomes the nearest number inside. Simplex: the last of the m + 1 parts is what is missing to 1.

    Angles stay angles, since no bijection makes a line of a circle. The layers and the base must respect
    that, as those of ``gf.coupling_flow(..., supports=...)`` do; x and x + period are the same point, and
    samples lie in [0, period).

    Args:
        supports: One entry per coordinate, as in the table; a simplex stands for m of them.

    Raises:
        ValueError: If an entry is none of these, or its low end is not below the high one.

    Source:
        Stan Reference Manual, "Constraint transforms"; Aitchison, "The statistical analysis of compositional
        data" (1982) for the simplex.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> supports = gf.Supports(["real", "positive", (0, 1)])
        >>> supports.transform(jnp.array([-2.0, 1.0, 0.5]))
        Array([-2.,  0.,  0.], dtype=float32)
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: ClassVar[None] = None  # type: ignore[misc]
    supports: tuple[Support, ...] = eqx.field(static=True)

    def __init__(self, supports: Sequence[Given]):
        if isinstance(supports, str) or not isinstance(supports, Sequence) or not len(supports):
            raise ValueError(
                '`supports` must be a list with one entry per coordinate, such as ["real", "positive", '
                f"(0, 1)]; got {supports!r}."
            )
        self.supports = tuple(_support(entry) for entry in supports)
        self.shape = (sum(support.size for support in self.supports),)

    @classmethod
    def of(cls, supports: "Sequence[Given] | Supports | None", dim: int, *, angles: bool = False):
        """Return the bijection for a flow of dim coordinates, or None for none.

        Raises:
            ValueError: If it does not fit, or has angles where there must be none.
        """
        if supports is None:
            return None
        made = supports if isinstance(supports, Supports) else cls(supports)
        if made.shape != (expect_whole("dim", dim, 1),):
            raise ValueError(f"`supports` must cover the {dim} coordinates; it covers {made.shape[0]}.")
        if made.angles and not angles:
            raise ValueError(
                f"`supports` must hold no angle here; coordinate {made.angles[0]} is one. Angles need layers "
                "that respect the circle: use gf.coupling_flow."
            )
        return made

    @property
    def angles(self) -> tuple[int, ...]:
        """The coordinates that are angles."""
        starts = np.cumsum([0, *(support.size for support in self.supports)])
        return tuple(int(i) for i, s in zip(starts, self.supports, strict=False) if s.kind == "circle")

    def transform_and_log_det(self, x, condition=None):
        return self._each(x, _to_line, _to_simplex_logits)

    def inverse_and_log_det(self, y, condition=None):
        return self._each(y, _from_line, _from_simplex_logits)

    def _each(self, event, of_line, of_simplex):
        """The event and the log-determinant: all lines at once, and each simplex alone."""
        starts = np.cumsum([0, *(support.size for support in self.supports)])
        out, log_det = event, jnp.zeros((), event.dtype)
        lines = [(i, s) for i, s in zip(starts, self.supports, strict=False) if s.kind != "simplex"]
        if lines:
            where = np.array([i for i, _ in lines])
            values, changes = of_line(event[where], [s for _, s in lines])
            out, log_det = out.at[where].set(values), log_det + changes.sum()
        for i, support in zip(starts, self.supports, strict=False):
            if support.kind == "simplex":
                values, change = of_simplex(event[i : i + support.size])
                out, log_det = out.at[i : i + support.size].set(values), log_det + change
        return out, log_det


def over(supports: Supports | None, flow: Transformed) -> Transformed:
    """Return the flow, followed by the map from real numbers to the supports, if there are any."""
    if supports is None:
        return flow
    return Transformed(flow.base_dist, Chain([flow.bijection, Invert(supports)]))


_NAMED = {
    "real": Support("line", 1),
    "positive": Support("line", 1, 0.0),
    "angle": Support("circle", 1, 0.0, TURN),
}


def _support(entry) -> Support:
    if isinstance(entry, Support):
        return entry
    if isinstance(entry, str) and entry in _NAMED:
        return _NAMED[entry]
    if isinstance(entry, tuple) and len(entry) == 2:
        first, second = entry
        if first == "simplex" and _is_number(second) and second == int(second) >= 1:
            return Support("simplex", int(second))
        if first == "angle" and _is_number(second) and 0 < second < math.inf:
            return Support("circle", 1, 0.0, float(second))
        if _is_number(first) and _is_number(second) and first < second:
            return Support("line", 1, float(first), float(second))
    raise ValueError(
        '`supports` must hold "real", "positive", "angle", (low, high) with low below high, '
        f'("angle", period) or ("simplex", m); got {entry!r}.'
    )


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _ends(supports, dtype):
    """Of each line or circle: its ends, infinite for none and for a circle, and the period of a circle."""
    rows = [
        (-math.inf, math.inf, s.high) if s.kind == "circle" else (s.low, s.high, math.nan) for s in supports
    ]
    return np.array(rows, dtype).T


def _to_line(x, supports):
    """The real numbers, and the log of each derivative."""
    low, high, period = _ends(supports, x.dtype)
    period = np.where(np.isnan(period), TURN, period).astype(x.dtype)
    below, above = np.isfinite(low), np.isfinite(high)
    # A number outside has no logarithm: NaN, which a flow's density reports as −inf.
    up = jnp.log(jnp.where(below, x - np.where(below, low, 0), 1))
    down = jnp.log(jnp.where(above, np.where(above, high, 0) - x, 1))
    width = np.subtract(high, low, where=below & above, out=np.ones_like(low))
    z = jnp.where(below | above, up - down, x * (TURN / period))
    return z, np.log(width * TURN / period) - up - down


def _from_line(z, supports):
    """The inverse of :func:`_to_line`."""
    low, high, period = _ends(supports, z.dtype)
    circle = ~np.isnan(period)
    period = np.where(circle, period, TURN).astype(z.dtype)
    below, above = np.isfinite(low), np.isfinite(high)
    a, b = np.where(below, low, 0).astype(z.dtype), np.where(above, high, 0).astype(z.dtype)
    both, one = below & above, below ^ above
    # From the nearer end, so that no digits are lost there.
    near = (b - a) * jax.nn.sigmoid(-jnp.abs(z))
    inner = jnp.where(z < 0, a + near, b - near)
    grown = jnp.exp(jnp.where(one, jnp.where(below, z, -z), 0))
    half = jnp.where(below, a + grown, b - grown)
    turned = jnp.where(circle, (z / TURN - jnp.floor(z / TURN)) * period, z)
    x = jnp.where(both, inner, jnp.where(one, half, turned))
    limit = np.where(one, np.finfo(z.dtype).max, np.inf).astype(z.dtype)
    least = np.where(circle, 0, np.where(below, _inside(a, 1), -limit))
    most = np.where(circle, np.nextafter(period, z.dtype.type(0)), np.where(above, _inside(b, -1), limit))
    widths = np.log(np.where(both, b - a, 1))
    log_slope = jnp.where(both, widths - jax.nn.softplus(z) - jax.nn.softplus(-z), 0)
    log_slope += jnp.where(one, jnp.where(below, z, -z), 0) - np.log(TURN / period)
    return jnp.clip(x, least, most), log_slope


def _inside(end, side):
    """The number next to an end, inside; XLA takes numbers below ``tiny`` for zero."""
    tiny = np.finfo(end.dtype).tiny
    inside = np.nextafter(end, end.dtype.type(side * np.inf))
    return np.where(np.abs(inside) < tiny, side * tiny, inside).astype(end.dtype)


def _to_simplex_logits(x) -> tuple[Array, Array]:
    logs, rest = jnp.log(x), jnp.log(1 - x.sum())
    return logs - rest, -logs.sum() - rest


def _from_simplex_logits(z) -> tuple[Array, Array]:
    logs = jax.nn.log_softmax(jnp.append(z, 0))
    x = jnp.exp(logs[:-1])
    # Rounding must leave something for the last part, and for each of the others.
    total, room = x.sum(), 1 - (len(z) + 1) * jnp.finfo(z.dtype).eps
    x = jnp.where(total < room, x, x * (room / total))
    return jnp.maximum(x, jnp.finfo(z.dtype).tiny), logs.sum()
