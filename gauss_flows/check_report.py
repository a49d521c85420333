"""What a check prints: each measured number stands beside the bound that it must keep."""

import math
from dataclasses import dataclass, field
from html import escape

import numpy as np
from jaxtyping import ArrayLike

from gauss_flows.validate import expect_real


class CheckError(AssertionError):
    """A bound was broken. ``report`` holds what was measured, where there is a report."""

    report: "Report | None" = None


@dataclass(frozen=True)
class Line:
    """One property, as it is printed.

    Attributes:
        name: The property.
        value: What was measured: the largest error or, where ``error`` is given, the largest ratio of an
            error to its own bound. For a property without a number, the finding in words.
        bound: What the value must not exceed: 1 for a ratio, None where there is no number.
        ok: Whether the property holds.
        error: The largest error, where the value is a ratio.
    """

    name: str
    value: float | str
    bound: float | None
    ok: bool
    error: float | None = None

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return f"{self.name:<24} {self.value}  {'ok' if self.ok else 'FAILED'}"
        digits, unit = (".1e", "") if self.error is None else (".1g", "of the bound")
        return f"{self.name:<24} {measured(self.value, digits, at_most=self.bound, unit=unit, ok=self.ok)}"


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`check_bijection` found.

    Attributes:
        title: The bijection, its event's shape, the number of points and the type.
        lines: One :class:`Line` a property.
        permutation: An order of the (flat) coordinates in which the Jacobian is lower triangular,
            or None if there is none. Printed up to 12 coordinates.
        pattern: Which entries of the (flat) Jacobian are not zero at every point, shape (size, size).
    """

    title: str
    lines: tuple[Line, ...]
    permutation: tuple[int, ...] | None
    pattern: np.ndarray = field(compare=False)

    @property
    def ok(self) -> bool:
        """Whether every property holds."""
        return all(line.ok for line in self.lines)

    def __getitem__(self, name: str) -> float | str:
        """The figure of the property of that name; the absolute error, also where its line is a ratio."""
        for line in self.lines:
            if line.name == name:
                return line.value if line.error is None else line.error
        raise KeyError(f"no property {name!r}; there are {[line.name for line in self.lines]}")

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in self.lines)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(line.name)}</td><td>{escape(str(line)[25:])}</td></tr>" for line in self.lines
        )
        return f"<table><caption>{escape(self.title)}</caption>{rows}</table>"


def check(
    label: str,
    value: ArrayLike,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    unit: str = "",
    digits: str = ".1e",
) -> None:
    """Print one measured number beside its bound, and raise if the bound is broken.

    Args:
        label: What was measured.
        value: One number.
        at_most: Upper bound, inclusive.
        at_least: Lower bound, inclusive. At least one of the two must be given.
        unit: Printed after the number.
        digits: Format of the number.

    Raises:
        CheckError: If the value breaks its bound or is not finite.
        ValueError: If there is no bound, or the value is not one number.

    Example:
        >>> import gauss_flows as gf
        >>> gf.check("1/3 + 2/3 - 1", 1/3 + 2/3 - 1, at_most=1e-15, digits=".0f")
        1/3 + 2/3 - 1            ≈ 0  ≤ 1e-15  ok
    """
    if at_most is None and at_least is None:
        raise ValueError("Either `at_most` or `at_least` must be given.")
    expect_real("value", value)
    if np.size(value) != 1:
        raise ValueError(f"`value` must be one number; got shape {np.shape(value)}.")
    number = float(np.asarray(value).reshape(()))
    ok = math.isfinite(number)
    ok = ok and (at_most is None or number <= at_most) and (at_least is None or number >= at_least)
    text = measured(number, digits, at_most=at_most, at_least=at_least, unit=unit, ok=ok)
    print(f"{label:<24} {text}")
    if not ok:
        raise CheckError(f"{label}: {text}")


def measured(
    value: float,
    digits: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    unit: str = "",
    ok: bool,
) -> str:
    """Return a number with its bounds and the verdict, as it is printed."""
    bounds = ([] if at_least is None else [f"≥ {at_least:g}"]) + (
        [] if at_most is None else [f"≤ {at_most:g}"]
    )
    number = f"{value + 0.0:{digits}}{' ' + unit if unit else ''}"
    return f"≈ {number}  {', '.join(bounds)}  {'ok' if ok else 'FAILED'}"
