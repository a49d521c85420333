"""What a column of a table is, and how its values become coordinates for a flow."""

import math
import re
from dataclasses import dataclass, field, replace

import numpy as np

from gauss_flows.supports import TURN

FEW = 10  # up to so many different values are taken for levels, such as grades or yes and no
_INDEX = re.compile(r"(^|[\W_])(id|idx|index|row|key|uuid|number|unnamed)([\W_0-9]|$)", re.IGNORECASE)
_TIME = re.compile(r"time|date|epoch|unix|second|since", re.IGNORECASE)
_FLOAT = np.dtype(float)
_GAP, _WIDTH = 0.2, 0.8  # of an atom's place beyond the other values, in standard deviations of theirs


@dataclass(frozen=True)
class Column:
    """One column: what kind it is, how it is mapped, and what is peculiar about it.

    Attributes:
        name: Its name in a data frame, or its number in an array.
        kind: "real", "positive", "fraction", "count", "levels", "angle", "time" or "constant".
        notes: What is peculiar about it, one phrase each.
        support: What its continuous value can take, an entry of :class:`~gauss_flows.Supports`.
        center: Subtracted from the free value, in double precision.
        scale: By which it is divided then.
        step: Width of the cell over which a value is spread, 0 for none: rounded values and counts.
        levels: The different values, where there are few.
        period: Of an angle.
        atoms: Single values with a probability of their own, each with the ends of the interval of
            coordinates over which it is spread.
        indicator: Whether the atoms have a coordinate of their own.
        inner: Quantiles of the values that are no atoms.
        value: Of a constant.
        dtype: In which the values came.
    """

    name: str | int
    kind: str
    notes: tuple[str, ...] = ()
    support: str | tuple = "real"
    center: float = 0.0
    scale: float = 1.0
    step: float = 0.0
    levels: tuple[float, ...] = ()
    period: float = 0.0
    atoms: tuple[tuple[float, float, float], ...] = ()
    indicator: bool = False
    inner: tuple[float, ...] = field(default=(), repr=False)
    value: float = 0.0
    dtype: np.dtype = _FLOAT

    @property
    def size(self) -> int:
        """The number of coordinates, which is 0 for a constant, 2 with an indicator, and else 1."""
        return 0 if self.kind == "constant" else 2 if self.indicator else 1

    @property
    def is_spread(self) -> bool:
        """Whether noise has a part in its coordinates."""
        return bool(self.step or self.levels or self.atoms)

    @property
    def supports(self) -> list[tuple | str]:
        """What each coordinate can take, for a flow's factory."""
        return ["angle" if self.kind == "angle" else "real"] * self.size

    def to_line(self, v: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates of shape (n, size), and the log of the derivative of the first one.

        Args:
            v: Values in double precision, shape (n,).
            noise: Numbers in (0, 1), shape (n, size); 1/2 is the middle of each cell.
        """
        if self.kind == "constant":
            return np.empty((len(v), 0)), np.where(v == self.value, 0, -np.inf)
        if self.levels:
            place = np.searchsorted(self.levels, v).clip(max=len(self.levels) - 1)
            y = np.where(np.take(self.levels, place) == v, place + noise[:, 0], np.nan)
        elif self.kind == "count":
            y = np.where(v == np.round(v), v + self.step * noise[:, 0], np.nan)
        else:
            y = v + self.step * (noise[:, 0] - 0.5)
        at = [v == value for value, _, _ in self.atoms]
        inside = ~np.any(at, axis=0) if at else np.ones(len(v), bool)
        safe = np.where(inside, y, self.inner[len(self.inner) // 2] if self.atoms else y)
        with np.errstate(all="ignore"):  # a value outside the support is NaN, and so is its density
            free, log_slope = _free(safe, self.support)
        u, log_slope = (free - self.center) / self.scale, log_slope - math.log(self.scale)
        if not self.atoms:
            return u[:, None], log_slope
        log_slope = np.where(inside, log_slope, 0)  # an atom has no units
        if self.indicator:
            drawn = _free(np.quantile(self.inner, noise[:, 0]), self.support)[0]
            drawn = (drawn - self.center) / self.scale
            which = sum((k + 1) * a for k, a in enumerate(at)) + noise[:, 1]
            return np.stack([np.where(inside, u, drawn), _logit(which / (1 + len(at)))], 1), log_slope
        for a, (_, low, high) in zip(at, self.atoms, strict=True):
            u = np.where(a, low + (high - low) * noise[:, 0], u)
        return u[:, None], log_slope

    def from_line(self, u: np.ndarray) -> np.ndarray:
        """Return the values of coordinates of shape (n, size); shape (n,)."""
        if self.kind == "constant":
            return np.full(len(u), self.value)
        y = _bound(self.center + self.scale * u[:, 0], self.support)
        if self.levels:
            return np.asarray(self.levels)[np.clip(np.floor(y), 0, len(self.levels) - 1).astype(int)]
        if self.step:
            y = self.step * (np.floor(y / self.step) if self.kind == "count" else np.round(y / self.step))
        if self.indicator:
            which = np.floor((1 + len(self.atoms)) / (1 + np.exp(-u[:, 1])))
            for k, (value, _, _) in enumerate(self.atoms):
                y = np.where(which == k + 1, value, y)
            return y
        for value, low, high in self.atoms:  # 0 is the lower end, 1 the upper one
            there = u[:, 0] < high + _GAP / 2 if value == 0 else u[:, 0] > low - _GAP / 2
            y = np.where(there, value, y)
        return y


def _logit(p):
    return np.log(p) - np.log1p(-p)


def _free(y, support):
    """The real number behind a value, and the log of the derivative."""
    if support == "real":
        return y, np.zeros_like(y)
    if support == "positive":
        return np.log(y), -np.log(y)
    first, second = support
    if first == "angle":
        return np.mod(y * (TURN / second), TURN), np.full_like(y, math.log(TURN / second))
    below, above = np.log(y - first), np.log(second - y)
    return below - above, math.log(second - first) - below - above


def _bound(free, support):
    """The inverse of :func:`_free`, never on an end."""
    if support == "real":
        return free
    if support == "positive":
        return np.clip(np.exp(np.clip(free, -700, 700)), np.finfo(float).tiny, None)
    first, second = support
    if first == "angle":
        return np.clip(np.mod(free, TURN) * (second / TURN), 0, np.nextafter(second, 0))
    part = 1 / (1 + np.exp(-np.clip(free, -700, 700)))
    return np.clip(first + (second - first) * part, np.nextafter(first, second), np.nextafter(second, first))


@dataclass(frozen=True)
class Choices:
    """What the caller says about columns by name; see :func:`~gauss_flows.prepare`."""

    atoms: str | None
    angles: dict
    counts: tuple
    continuous: tuple


def describe(name: str | int, v: np.ndarray, dtype: np.dtype, choices: Choices) -> Column:
    """Say what a column is.

    Args:
        name: Its name.
        v: Its values in double precision, finite, at least two.
        dtype: In which they came: a time (seconds since 1970 here), whole, floating point or yes and no.
        choices: What the caller says.

    Raises:
        ValueError: If there is no right default.
    """
    column = Column(name, "real", dtype=dtype)
    distinct, times = np.unique(v, return_counts=True)
    whole, tied = bool((v == np.round(v)).all()), times[times > 1].sum() / len(v)
    if len(distinct) == 1:
        notes = (f"always {v[0]:g}; comes back in samples",)
        return replace(column, kind="constant", value=float(v[0]), notes=notes)
    if name in choices.angles:
        period, notes = choices.angles[name], (f"a circle of {choices.angles[name]:g}",)
        return replace(column, kind="angle", support=("angle", period), period=period, notes=notes)
    if name in choices.counts and not (whole and v.min() >= 0):
        raise ValueError(f"`counts` must name columns of whole numbers of at least 0; {name!r} holds others.")
    if name in choices.continuous:
        return _scaled(column, v)
    if whole and len(distinct) == len(v) and _INDEX.search(str(name)):
        raise ValueError(
            f"`table` must not hold an index as a column; {name!r} has another whole number in each row, and "
            f"a name like one. Leave it out by `columns`, or say that it is none: continuous=[{name!r}]."
        )
    if len(distinct) <= FEW and len(distinct) < len(v) / 4 and name not in choices.counts:
        few = ", ".join(f"{d:g}" for d in distinct[:4]) + (", …" if len(distinct) > 4 else "")
        notes = (f"{len(distinct)} values, {few}: dequantized",)
        column = replace(column, kind="levels", levels=tuple(distinct.tolist()), notes=notes)
        column = replace(column, support=(0.0, float(len(distinct))))
        return _scaled(column, np.searchsorted(distinct, v) + 0.5)
    is_time = dtype.kind in "mM"
    if name in choices.counts or (whole and tied > 0.05 and v.min() >= 0 and not is_time):
        notes = (f"{v.min():g} to {v.max():g}: dequantized",)
        column = replace(column, kind="count", support="positive", step=1.0, notes=notes)
        return _scaled(column, v + 0.5)
    step = _rounding(distinct) if tied > 0.5 else 0.0
    if is_time or np.abs(np.median(v)) > 1e3 * (v.max() - v.min()):
        what = "a time by its name; " if _TIME.search(str(name)) and not is_time else ""
        note = f"{what}offset {np.median(v):.10g} is subtracted first"
        column = replace(column, kind="time" if is_time else "real", step=step, notes=(note,))
        return _scaled(column, v)
    return _with_ends(column, v, step, choices)


def _with_ends(column, v, step, choices) -> Column:
    """A column of numbers with a density, and perhaps with atoms at the ends of what it can take."""
    name, notes = column.name, []
    if v.min() >= 0:
        fraction = 0.9 < v.max() <= 1
        kind, support = ("fraction", (0.0, 1.0)) if fraction else ("positive", "positive")
        column = replace(column, kind=kind, support=support)
    at = {end: int((v == end).sum()) for end in _ENDS[column.kind] if (v == end).any()}
    inner = v[~np.isin(v, list(at))]
    found = " and ".join(f"{count} × {end:g}" for end, count in at.items())
    if at and choices.atoms is None:
        raise ValueError(
            "`atoms` must say what to do with single values that have a probability of their own; "
            f'{name!r} has {found}. Choose atoms="jitter", which spreads them over an interval beside the '
            'others, or atoms="indicator", which adds a coordinate that says where they are.'
        )
    if len(np.unique(inner)) < 2:
        raise ValueError(f"`table` must have other values beside the atoms of {name!r}; it has {found}.")
    column = _scaled(column, inner)
    if at:
        u = column.to_line(inner, np.full((len(inner), 1), 0.5))[0][:, 0]
        low, high = u.min() - _GAP - _WIDTH, u.max() + _GAP
        place = {0.0: (low, low + _WIDTH), 1.0: (high, high + _WIDTH)}
        column = replace(
            column,
            atoms=tuple((end, *place[end]) for end in at),
            indicator=choices.atoms == "indicator",
            inner=tuple(np.quantile(inner, np.linspace(0, 1, 65)).tolist()),
        )
        notes.append(f"atoms, {found}: {choices.atoms}")
    elif step and (column.support == "real" or v.min() > step / 2) and column.kind != "fraction":
        column = replace(column, step=step)
        notes.append(f"rounded to {step:g}: dequantized")
    low, middle, high = np.quantile(v, [0.25, 0.5, 0.75])
    far = np.abs(v - middle) > 20 * (high - low)
    if far.any() and high > low:
        notes.append(f"{far.sum()} far values, up to {v[np.abs(v - middle).argmax()]:g} (median {middle:g})")
    if v.min() >= 0 and v.min() < 60 and 300 < v.max() <= 360:
        notes.append(f"may be an angle in degrees: angles=[{name!r}]")
    return replace(column, notes=tuple(notes))


_ENDS: dict[str, tuple[float, ...]] = {"fraction": (0.0, 1.0), "positive": (0.0,), "real": ()}


def _scaled(column: Column, y: np.ndarray) -> Column:
    """The column with center and scale from the middle half of its values, which outliers do not move."""
    free = _free(y, column.support)[0]
    low, middle, high = np.quantile(free, [0.25, 0.5, 0.75])
    return replace(column, center=float(middle), scale=float((high - low) / 1.349 or free.std() or 1.0))


def _rounding(distinct) -> float:
    """The power of ten of which all values are multiples, or 0."""
    for digits in range(-3, 7):
        if np.allclose(distinct, np.round(distinct, digits), rtol=0, atol=1e-9 * 10.0**-digits):
            return 10.0**-digits
    return 0.0
