"""What a check shows: each measured number stands beside the bound that it must keep."""

import contextlib
import contextvars
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

import numpy as np
from jaxtyping import ArrayLike

from gauss_flows.validate import expect_real


class CheckError(AssertionError):
    """The error of a check whose bound is broken; ``report`` holds what :func:`check_bijection` measured."""

    report: "Report | None" = None


@dataclass(frozen=True)
class Row:
    """One claim as it is shown: what was measured, what is required, and the verdict."""

    claim: str
    measured: str
    required: str
    ok: bool

    @property
    def verdict(self) -> str:
        """The word that ends the row."""
        return "ok" if self.ok else "FAILED"

    def __str__(self) -> str:
        parts = (f"{self.claim:<24} {self.measured}", self.required, self.verdict)
        return "  ".join(part for part in parts if part)

    def html(self) -> str:
        """The row of an HTML table; a finding in words takes the place of two columns."""
        cells = [self.measured, self.required] if self.required else [self.measured]
        opening = ["<td>", "<td>"] if self.required else ['<td colspan="2">']
        middle = "".join(f"{tag}{escape(cell)}</td>" for tag, cell in zip(opening, cells, strict=True))
        kind = "" if self.ok else ' class="failed"'
        claim = f'<th scope="row">{escape(self.claim)}</th>'
        return f"<tr{kind}>{claim}{middle}<td>{self.verdict}</td></tr>"


@dataclass(frozen=True)
class Line:
    """One property of a bijection, as ``check_bijection`` found it.

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

    @property
    def row(self) -> Row:
        """The line as it is shown."""
        if isinstance(self.value, str):
            return Row(self.name, self.value, "", self.ok)
        digits, unit = (".1e", "") if self.error is None else (".1g", "of the bound")
        return Row(self.name, number(self.value, digits, unit), bounds(None, self.bound), self.ok)

    def __str__(self) -> str:
        return str(self.row)


@dataclass(frozen=True, repr=False)
class Report:
    """The findings of :func:`check_bijection`, one line per property.

    Attributes:
        title: The bijection, its event's shape, the number of points and the type.
        lines: One :class:`Line` per property.
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

    @property
    def table(self) -> "Table":
        """The report as it is shown."""
        return Table([(self.title, [line.row for line in self.lines])])

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


class Table:
    """Rows in groups, each with a title; the title of rows that belong to no bijection is empty."""

    def __init__(self, groups: list[tuple[str, list[Row]]]):
        self.groups = groups

    def add(self, title: str, rows: list[Row]) -> None:
        """Append rows, to the last group if it has the same title."""
        if not self.groups or title or self.groups[-1][0]:
            self.groups.append((title, []))
        self.groups[-1][1].extend(rows)

    def __str__(self) -> str:
        lines = []
        for title, rows in self.groups:
            lines += [title] if title else []
            lines += [f"  {row}" if title else str(row) for row in rows]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "<tr><th>claim</th><th>measured</th><th>required</th><th>verdict</th></tr>"
        lines = ['<table class="checks">', f"<thead>{head}</thead>"]
        for title, rows in self.groups:
            lines.append("<tbody>")
            if title:
                lines.append(f'<tr><th scope="rowgroup" colspan="4">{escape(title)}</th></tr>')
            lines += [row.html() for row in rows]
            lines.append("</tbody>")
        return "\n".join([*lines, "</table>"])


_OPEN: contextvars.ContextVar[Table | None] = contextvars.ContextVar("_OPEN", default=None)


@contextlib.contextmanager
def check_table() -> Iterator[None]:
    """Show the checks of a ``with`` block together, as one table.

    In a notebook the table has four columns: the claim, what was measured, what is required, and the verdict.
    Elsewhere it is printed as text. Reports of :func:`check_bijection` keep their title above their rows. A
    broken bound raises, as it does outside; the table then ends with it.

    Example:
        >>> import gauss_flows as gf
        >>> with gf.check_table():
        ...     gf.check("half of one", 1 / 2, at_most=0.6, digits=".1f")
        ...     gf.check("a third of one", 1 / 3, at_least=0.3, digits=".1f")
        half of one              ≈ 0.5  ≤ 0.6  ok
        a third of one           ≈ 0.3  ≥ 0.3  ok
    """
    if _OPEN.get() is not None:  # the table around this one shows everything
        yield
        return
    table = Table([])
    token = _OPEN.set(table)
    try:
        yield
    finally:
        _OPEN.reset(token)
        if table.groups:
            _show(table)


def show_report(report: Report) -> None:
    """Show a report, in the open table if there is one."""
    table = _OPEN.get()
    if table is None:
        _show(report)
    else:
        table.add(report.title, [line.row for line in report.lines])


def _show(shown: Table | Report) -> None:
    """Display in a notebook, where there are tables, and print elsewhere."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        sys.modules["IPython"].display.display(shown)
    else:
        print(shown)


def check(
    label: str,
    value: ArrayLike,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    unit: str = "",
    digits: str = ".1e",
) -> None:
    """Show one measured number beside its bound, and raise an error if the bound is broken.

    It is printed, or in a notebook displayed as a table; :func:`check_table` shows several in one.

    Args:
        label: What was measured.
        value: One number.
        at_most: Upper bound, inclusive.
        at_least: Lower bound, inclusive. At least one of the two must be given.
        unit: Shown after the number.
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
    measured = float(np.asarray(value).reshape(()))
    ok = math.isfinite(measured)
    ok = ok and (at_most is None or measured <= at_most) and (at_least is None or measured >= at_least)
    row = Row(label, number(measured, digits, unit), bounds(at_least, at_most), ok)
    table = _OPEN.get()
    if table is None:
        _show(Table([("", [row])]))
    else:
        table.add("", [row])
    if not ok:
        raise CheckError(f"{label}: {row.measured}  {row.required}  {row.verdict}")


def number(value: float, digits: str, unit: str = "") -> str:
    """Return a measured number as it is shown, after the sign that marks it."""
    return f"≈ {value + 0.0:{digits}}{' ' + unit if unit else ''}"


def bounds(at_least: float | None, at_most: float | None) -> str:
    """Return the bounds of a number as they are shown."""
    return ", ".join(
        f"{sign} {bound:g}" for sign, bound in (("≥", at_least), ("≤", at_most)) if bound is not None
    )
