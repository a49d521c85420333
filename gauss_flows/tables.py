"""Tables as people have them: described column by column, and made into coordinates for a flow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import AbstractBijection, Chain, Invert
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, PRNGKeyArray

from gauss_flows.bijectors import Affine
from gauss_flows.columns import Choices, Column, describe
from gauss_flows.frames import Name, as_given, columns_of, frame_of, listed, numbers
from gauss_flows.supports import Supports
from gauss_flows.validate import Given, expect_key

Atoms = Literal["jitter", "indicator"]
_COLLINEAR, _DEPENDENT = 0.999, 1 - 1e-12  # parts of a column's variance that the others explain


@dataclass(frozen=True, eq=False)
class Prepared:
    """A table made ready for a flow, and the way back. ``print`` shows what each column is.

    Attributes:
        columns: What each column is.
        rows: The numbers of the rows that are used, shape (n,); others had missing values.
        array: The rows as coordinates for a flow, shape (n, dim): real numbers in units of about one standard
            deviation, and angles. Values that are spread over a cell lie in its middle; see
            :meth:`dequantize`.
    """

    columns: tuple[Column, ...]
    rows: np.ndarray
    array: Array
    _values: tuple[np.ndarray, ...]
    _backend: Any  # of the data frame; None for an array
    _notes: tuple[str, ...]

    @property
    def dim(self) -> int:
        """D, the number of coordinates."""
        return sum(column.size for column in self.columns)

    @property
    def supports(self) -> list:
        """Supports of the coordinates, for ``gf.coupling_flow(..., supports=...)``."""
        return [entry for column in self.columns for entry in column.supports]

    @property
    def bijection(self) -> AbstractBijection:
        """The bijection from coordinates to continuous values in the columns' own units.

        It stands after a trained flow: ``gf.Transformed(flow.base_dist, gf.Chain([flow.bijection, this]))``
        has the density of the continuous values. A large offset needs double precision here, which
        :meth:`log_prob` and :meth:`to_frame` have anyway. An indicator's coordinate comes as a number from 0
        to the number of atoms plus one.
        """
        supports, centers, scales = [], [], []
        for column in self.columns:
            if column.size:
                supports.append(column.support)
                centers.append(column.center)
                scales.append(column.scale)
            if column.indicator:
                supports.append((0.0, 1.0 + len(column.atoms)))
                centers.append(0.0)
                scales.append(1.0)
        return Chain([Affine(jnp.array(centers), jnp.array(scales)), Invert(Supports(supports))])

    def dequantize(self, key: PRNGKeyArray) -> Array:
        """Return the array with counts, rounded values and atoms spread at random over their cells.

        A flow needs that: it would describe repeated values by ever narrower peaks.

        Args:
            key: Random key.

        Returns:
            Shape (n, dim).
        """
        return _rounded(self._coordinates(self._values, key)[0])

    def transform(self, table: Given, key: PRNGKeyArray | None = None) -> Array:
        """Return the coordinates of other rows with the same columns, such as test rows.

        Args:
            table: As for :func:`prepare`, without missing values.
            key: Random key for what is spread over cells. Default: the middle of each cell.

        Returns:
            Shape (n, dim). A row outside of what a column can take has NaN.

        Raises:
            ValueError: If a column is missing or does not hold numbers.
        """
        return _rounded(self._coordinates(self._read(table), key)[0])

    def log_prob(
        self, flow: AbstractDistribution, table: Given, key: PRNGKeyArray | None = None
    ) -> np.ndarray:
        """Return log p of rows in the columns' own units, in nats.

        For columns with a density it is the density's logarithm. What was spread over cells enters by the
        density of the spread value: that of a count k over [k, k + 1) is its probability, if the density is
        constant there; the density of an atom is one over its interval of coordinates, without units.

        Args:
            flow: A flow that was trained on the coordinates.
            table: As for :meth:`transform`.
            key: As for :meth:`transform`.

        Returns:
            Shape (n,), in double precision; −inf for a row outside of what a column can take.
        """
        u, log_det = self._coordinates(self._read(table), key)
        good = np.isfinite(u).all(axis=1) & np.isfinite(log_det)
        log_q = np.asarray(flow.log_prob(_rounded(np.where(good[:, None], u, 0))), float)
        return np.where(good, log_q + np.where(good, log_det, 0), -np.inf)

    def to_frame(self, samples: Given) -> Any:
        """Return samples of a flow as a table like the one that was given, constants and all.

        Args:
            samples: Coordinates, shape (n, dim).

        Returns:
            A data frame of the same library, or an array.

        Raises:
            ValueError: If the samples have another shape or are not finite.
        """
        u = np.asarray(samples, float)
        if u.ndim != 2 or u.shape[1] != self.dim:
            raise ValueError(f"`samples` must have shape (n, {self.dim}); got {u.shape}.")
        if not np.isfinite(u).all():
            raise ValueError("`samples` must be finite; some are NaN or infinite.")
        ends = np.cumsum([column.size for column in self.columns])
        pieces = np.split(u, ends[:-1], axis=1)
        values = {
            column.name: as_given(column.from_line(piece), column.dtype)
            for column, piece in zip(self.columns, pieces, strict=True)
        }
        return frame_of(values, self._backend)

    def _coordinates(self, values, key):
        """Coordinates in double precision, and the log-determinant of each row."""
        n = len(values[0])
        noise = np.full((n, self.dim), 0.5)
        if key is not None:
            noise = np.asarray(
                jr.uniform(expect_key(key), (n, self.dim), minval=1e-6, maxval=1 - 1e-6), float
            )
        ends = np.cumsum([column.size for column in self.columns])
        pieces = np.split(noise, ends[:-1], axis=1)
        lines = [c.to_line(v, piece) for c, v, piece in zip(self.columns, values, pieces, strict=True)]
        return np.concatenate([u for u, _ in lines], axis=1), sum(log_det for _, log_det in lines)

    def _read(self, table):
        named, _ = columns_of(table)
        lacking = [c.name for c in self.columns if c.name not in named]
        if lacking:
            raise ValueError(f"`table` must have the column {lacking[0]!r}; it has {listed(named)}.")
        values = tuple(numbers(c.name, named[c.name])[0] for c in self.columns)
        bad = int(np.any([~np.isfinite(v) for v in values], axis=0).sum())
        if bad:
            raise ValueError(f"`table` must have no missing or infinite values here; {bad} of its rows do.")
        return values

    def __repr__(self) -> str:
        return "\n".join(
            [*self._notes, *_aligned([(str(c.name), c.kind, "; ".join(c.notes)) for c in self.columns])]
        )


def prepare(
    table: Given,
    columns: Sequence[Name] | None = None,
    *,
    missing: Literal["drop"] | None = None,
    atoms: Atoms | None = None,
    angles: Sequence[Name] | Mapping[Name, float] = (),
    counts: Sequence[Name] = (),
    continuous: Sequence[Name] = (),
) -> Prepared:
    r"""Describe the columns of a table, and make it ready for a flow.

    Positive columns become logarithms, fractions log-odds, and all are centered and scaled by their middle
    half, in double precision. Counts, columns of few values, and values that are rounded so much that most
    of them are repeated are spread over cells (:meth:`Prepared.dequantize`). A constant column is left out,
    and comes back in samples. ``print`` of the result says all this, column by column.

    Where no default is right, an error names the choices.

    Args:
        table: A data frame (pandas, polars, or any other that narwhals reads; extra ``tables``), or an array
            of shape (n, D), whose columns are called 0, 1, …
        columns: The names of those to use. Default: all.
        missing: "drop": use the rows without missing values.
        atoms: What to do with exact zeros of a column that is positive otherwise, and exact zeros and ones
            of a fraction: "jitter" spreads each over an interval of coordinates beside the other values;
            "indicator" adds a coordinate that says which values are atoms.
        angles: Names of columns that are angles; a dictionary gives their periods. Default of a list: 2π
            where no value is larger, else 360.
        counts: Names of columns that are counts, where it does not show.
        continuous: Names of columns that can take all real numbers, in place of what their values suggest.

    Returns:
        A :class:`Prepared`.

    Raises:
        ValueError: If the table is empty or has two columns of one name; if a column holds text, infinite
            or, without ``missing``, missing values, or looks like an index; if there are atoms and no choice;
            or if a column is a linear function of others, or of their logarithms, up to rounding.
        ImportError: If the table is a data frame and narwhals is not installed.

    Example:
        >>> import gauss_flows as gf, numpy as np
        >>> number = np.arange(200)
        >>> table = np.stack([np.exp(number / 100), number % 20, np.ones(200)], axis=1)
        >>> print(gf.prepare(table))
        200 rows, 3 columns -> 2 coordinates
        0  positive
        1  count     0 to 19: dequantized
        2  constant  always 1; comes back in samples
    """
    named, backend = columns_of(table)
    groups: dict[str, Any] = {"angles": angles, "counts": counts, "continuous": continuous}
    groups["columns"] = list(named) if columns is None else columns
    for given, group in groups.items():
        if isinstance(group, str):
            raise ValueError(f"`{given}` must be a list of names, such as [{group!r}]; got {group!r}.")
        unknown = [name for name in group if name not in named]
        if unknown:
            raise ValueError(
                f"`{given}` must name columns of the table, {listed(named)}; got {unknown[0]!r}."
            )
    names = list(groups["columns"])
    if len(set(names)) < len(names):
        raise ValueError(f"`columns` must name each column once; got {listed(names)}.")
    for given, value, known in (("missing", missing, ("drop",)), ("atoms", atoms, get_args(Atoms))):
        if value is not None and value not in known:
            raise ValueError(f"`{given}` must be {' or '.join(map(repr, known))} or None; got {value!r}.")
    if not names or not len(named[names[0]]):
        raise ValueError(f"`table` must have rows and columns; got {len(names)} columns.")
    read = {name: numbers(name, named[name]) for name in names}
    kept, lost = _complete(read, missing)
    values = {name: v[kept] for name, (v, _) in read.items()}
    if len(kept) < 2:
        raise ValueError(f"`table` must have two rows or more without missing values; got {len(kept)}.")
    choices = Choices(atoms, _periods(angles, values), tuple(counts), tuple(continuous))
    described = [describe(name, v, read[name][1], choices) for name, v in values.items()]
    described = _with_dependence(described, values)
    size = sum(column.size for column in described)
    if not size:
        raise ValueError("`table` must have a column that is not constant.")
    dropped = f" (of {len(kept) + lost}; {lost} with missing values are dropped)" if lost else ""
    note = f"{len(kept):,} rows{dropped}, {len(names)} columns -> {size} coordinates"
    prepared = Prepared(tuple(described), kept, jnp.zeros(0), tuple(values.values()), backend, (note,))
    array = _rounded(prepared._coordinates(prepared._values, None)[0])
    return Prepared(tuple(described), kept, array, tuple(values.values()), backend, (note,))


def _complete(read, missing) -> tuple[np.ndarray, int]:
    """The numbers of the rows without missing values, and how many others there are."""
    infinite = {name: int(np.isinf(v).sum()) for name, (v, _) in read.items() if np.isinf(v).any()}
    if infinite:
        name, count = next(iter(infinite.items()))
        raise ValueError(f"`table` must be finite; {name!r} has {count} infinite values.")
    absent = {name: np.isnan(v) for name, (v, _) in read.items()}
    any_absent = np.any(list(absent.values()), axis=0)
    lost = int(any_absent.sum())
    if lost and missing is None:
        found = ", ".join(f"{name!r} {a.sum()}" for name, a in absent.items() if a.any())
        raise ValueError(
            f"`missing` must be given, since {lost} of {len(any_absent)} rows have missing values: {found}. "
            'Choose missing="drop", which leaves these rows out; or name other `columns`; or fill them in '
            "yourself, and the flow learns your guesses."
        )
    return np.flatnonzero(~any_absent), lost


def _periods(angles, values) -> dict[Name, float]:
    periods = dict(angles) if isinstance(angles, Mapping) else {}
    for name in angles:
        if name in values and name not in periods:
            periods[name] = 360.0 if np.abs(values[name]).max() > 2 * np.pi + 1e-6 else 2 * np.pi
        if name in periods and not 0 < periods[name] < np.inf:
            raise ValueError(f"`angles` must have positive periods; that of {name!r} is {periods[name]}.")
    return {name: float(period) for name, period in periods.items()}


def _with_dependence(columns, values) -> list[Column]:
    """The columns, with a note where one is nearly a linear function of others, of values or coordinates."""
    used = [c for c in columns if c.size and c.kind != "angle" and not c.levels]
    n = len(next(iter(values.values())))
    if len(used) < 2 or n <= len(used) + 1:
        return columns
    own = np.stack([values[c.name] for c in used])
    lines = np.stack([c.to_line(values[c.name], np.full((n, c.size), 0.5))[0][:, 0] for c in used])
    notes = {}
    for rows in (own / np.abs(own).max(axis=1, keepdims=True), lines):  # so that no square overflows
        rows = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
        for i, column in enumerate(used):
            others = np.delete(rows, i, axis=0)
            weights, *_ = np.linalg.lstsq(others.T, rows[i], rcond=None)
            explained = 1 - np.square(rows[i] - weights @ others).mean()
            nearest = [c.name for c in used if c is not column][int(np.abs(weights).argmax())]
            if explained > _DEPENDENT:
                raise ValueError(
                    "`table` must have no column that others determine, or the rows have no density; "
                    f"{column.name!r} is a linear function of {nearest!r} and others, or of their "
                    "logarithms, up to rounding. Leave one out by `columns`."
                )
            if explained > _COLLINEAR:
                notes[column.name] = f"nearly a linear function of {nearest!r} and others"
    return [replace(c, notes=(*c.notes, notes[c.name])) if c.name in notes else c for c in columns]


def _rounded(u) -> Array:
    return jnp.asarray(u, float)


def _aligned(rows) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
