"""The printed proof: what readers, notebooks and tests run to see that a bijection is one.

Each line shows a measured number after ``≈`` and, on the same line, the bound it must keep; a
broken bound raises. The number may differ between machines, the bound may not.
"""

import math
from dataclasses import dataclass
from html import escape

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from jaxtyping import Array, ArrayLike

from gauss_flows.base import expect

_JACOBIAN_ENTRIES = 2_000_000  # Jacobians are formed at as many points as this allows


class CheckError(AssertionError):
    """A bound was broken. ``report`` holds what was measured, where there is a report."""

    report: "Report | None" = None


@dataclass(frozen=True)
class Line:
    """One property: its name, what was measured, its bound, and whether it holds."""

    name: str
    value: float | str
    bound: float | None
    ok: bool

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return f"{self.name:<24} {self.value}  {'ok' if self.ok else 'FAILED'}"
        return f"{self.name:<24} {_measured(self.value, '.1e', at_most=self.bound, ok=self.ok)}"


@dataclass(frozen=True)
class Report:
    """What :func:`check_bijection` found.

    Attributes:
        title: The bijection, its event's shape, the number of points and the type.
        lines: One :class:`Line` a property.
        permutation: An order of the (flat) coordinates in which the Jacobian is lower triangular,
            or None if there is none.
    """

    title: str
    lines: tuple[Line, ...]
    permutation: tuple[int, ...] | None

    @property
    def ok(self) -> bool:
        """Whether every property holds."""
        return all(line.ok for line in self.lines)

    def __getitem__(self, name: str) -> float | str:
        """The figure of the property of that name."""
        for line in self.lines:
            if line.name == name:
                return line.value
        raise KeyError(f"no property {name!r}; there are {[line.name for line in self.lines]}")

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in self.lines)])

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
    expect(at_most is not None or at_least is not None, "at_most", "or `at_least` be given", None)
    expect(np.size(value) == 1, "value", "be one number", f"shape {np.shape(value)}")
    number = float(np.asarray(value).reshape(()))
    ok = math.isfinite(number)
    ok = ok and (at_most is None or number <= at_most) and (at_least is None or number >= at_least)
    text = _measured(number, digits, at_most=at_most, at_least=at_least, unit=unit, ok=ok)
    print(f"{label:<24} {text}")
    if not ok:
        raise CheckError(f"{label}: {text}")


def _measured(value, digits, *, at_most=None, at_least=None, unit="", ok) -> str:
    bounds = ([] if at_least is None else [f"≥ {at_least:g}"]) + (
        [] if at_most is None else [f"≤ {at_most:g}"]
    )
    number = f"{value + 0.0:{digits}}{' ' + unit if unit else ''}"
    return f"≈ {number}  {', '.join(bounds)}  {'ok' if ok else 'FAILED'}"


def check_bijection(
    bijection: AbstractBijection,
    x: ArrayLike,
    condition: ArrayLike | None = None,
    *,
    atol: float | None = None,
    structure: str | None = None,
) -> Report:
    r"""Prove on this machine that a bijection is one, and print the proof.

    It checks the round trip in both directions, the log-determinant against the determinant of the
    autodiff Jacobian, the two directions' log-determinants against each other, and which entries of
    the Jacobian are not zero. A bijection with a ``mask`` is also held to it: passive coordinates
    must come through unchanged, to the last bit, and no active one may read another.

    Without ``atol`` the bounds follow the type and the map. The base is :math:`10^{-13}` in double
    and :math:`10^{-5}` in single precision, some hundred rounding errors each; it is multiplied by
    the factor, rounded up to a power of ten, by which the map turns a relative rounding error into
    an error of the figure:
    :math:`\|J^{-1}\|(1+\|z\|)` and :math:`\|J\|(1+\|x\|)` for the round trips, with
    :math:`\|J\|\,\|J^{-1}\|` and :math:`(1+\|x\|)(1+\|z\|)` for the log-determinants. Each point must
    keep its own bound; the line shows the largest of each.

    Args:
        bijection: Any flowjax bijection, your own included.
        x: One event, of the bijection's shape, or a batch with one leading axis.
        condition: One condition for all, or one an event; for conditional bijections.
        atol: One absolute bound for every line, in place of those that follow the type.
        structure: None to report the Jacobian's structure; "diagonal" or "triangular" (after a
            permutation, if need be) to demand it.

    Returns:
        A report: ``.ok``, ``report["round trip x"]`` and the other figures by name,
        ``.permutation``.

    Raises:
        CheckError: If a bound is broken; the message says which and at which point.
        ValueError: If an argument does not fit.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> layer = gf.AffineCoupling(jr.key(0), shape=(4,))
        >>> report = gf.check_bijection(layer, jr.normal(jr.key(1), (4,)))  # doctest: +ELLIPSIS
        AffineCoupling, event (4,), 1 point, float32
          round trip x -> z -> x   ≈ ...  ≤ 0.0001  ok
          ...
    """
    expect(isinstance(bijection, AbstractBijection), "bijection", "be a flowjax bijection",
           type(bijection).__name__)  # fmt: skip
    expect(structure in (None, "diagonal", "triangular"), "structure",
           "be None, 'diagonal' or 'triangular'", repr(structure))  # fmt: skip
    expect(atol is None or atol > 0, "atol", "be positive", atol)
    xs = _batch("x", x, bijection.shape, None)
    n, size = len(xs), math.prod(bijection.shape)
    cs = None
    if bijection.cond_shape is not None:
        expect(condition is not None, "condition", f"have shape {bijection.cond_shape}", None)
        cs = _batch("condition", condition, bijection.cond_shape, n)

    m = max(1, min(n, _JACOBIAN_ENTRIES // size**2))
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(bijection)):
        # A mask kept as a NumPy array is meant as a constant; as an argument it would be traced.
        found = jax.jit(lambda xs, cs: _measure(bijection, xs, cs, m))(xs, cs)
    else:
        found = eqx.filter_jit(_measure)(bijection, xs, cs, m)
    found = {name: np.asarray(value) for name, value in found.items()}

    dtype = xs.dtype
    base = 1e-13 if dtype.itemsize == 8 else 1e-5
    x_size, z_size = 1 + found["x size"], 1 + found["z size"]
    slope, inverse_slope = (_spread(found[k], n) for k in ("slope", "inverse slope"))
    growth = {
        "round trip x -> z -> x": inverse_slope * z_size,
        "round trip z -> x -> z": slope * x_size,
        "log-det vs. autodiff": (slope * inverse_slope + x_size * z_size)[:m],
        "log-det, both ways": slope * inverse_slope + x_size * z_size,
    }
    lines, worst = [], None
    for name, factor in growth.items():
        values = found[name]
        bounds = np.full(len(values), atol) if atol else base * _power_of_ten(factor)
        good = np.isfinite(values) & (values <= bounds)
        point = int(np.argmax(np.where(good, -1.0, np.nan_to_num(values, nan=np.inf, posinf=np.inf))))
        if good.all():
            value, bound = values.max(), bounds.max()
        else:
            value, bound = values[point], bounds[point]
            worst = worst or f"at point {point}, x = {np.asarray(xs[point]).ravel()[:8]}"
        lines.append(Line(name, float(value), float(bound), bool(good.all())))

    pattern = found["pattern"]
    order = _triangular_order(pattern)
    lines.append(_structure_line(pattern, order, structure))
    mask = getattr(bijection, "mask", None)
    if mask is not None and np.shape(mask) == bijection.shape:
        lines.append(_mask_line(pattern, found["unchanged"], np.asarray(mask).ravel()))

    title = f"{type(bijection).__name__}, event {bijection.shape}, "
    title += f"{n:,} point{'s' if n > 1 else ''}, {dtype}"
    if m < n:
        title += f" (Jacobians at {m:,})"
    report = Report(title, tuple(lines), order)
    print(report)
    if not report.ok:
        failed = [str(line) for line in lines if not line.ok]
        error = CheckError("; ".join([title, *failed] + ([worst] if worst else [])))
        error.report = report
        raise error
    return report


def _batch(name: str, value: ArrayLike | None, shape: tuple[int, ...], n: int | None) -> Array:
    """The value as a batch of n (or any number of) arrays of the shape."""
    array = jnp.asarray(value)
    array = array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
    single, batched = array.shape == shape, array.shape[1:] == shape and array.ndim == len(shape) + 1
    many = "a batch" if n is None else f"{n}"
    expect(single or batched, name, f"have shape {shape}, or {many} of them with a leading axis",
           array.shape)  # fmt: skip
    if single:
        array = jnp.broadcast_to(array, (n or 1, *shape))
    expect(len(array) > 0 and n in (None, len(array)), name, f"hold {n or 'at least one'}", len(array))
    return array


def _measure(bijection, xs, cs, m):
    """All figures in one compiled function, a vector over the points each."""
    axes = (0, None if cs is None else 0)
    zs, log_det = jax.vmap(bijection.transform_and_log_det, axes)(xs, cs)
    back, inverse_log_det = jax.vmap(bijection.inverse_and_log_det, axes)(zs, cs)
    again = jax.vmap(bijection.transform, axes)(back, cs)
    jacobian = jax.vmap(jax.jacfwd(bijection.transform), axes)(xs[:m], None if cs is None else cs[:m])
    size = math.prod(bijection.shape)
    jacobian = jacobian.reshape(m, size, size)
    sign_log = jnp.linalg.slogdet(jacobian)[1]

    flat = lambda a: a.reshape(len(a), -1)
    largest = lambda a: jnp.max(jnp.abs(flat(a)), axis=1)
    row_sum = lambda a: jnp.max(jnp.sum(jnp.abs(a), axis=-1), axis=-1)
    return {
        "x size": largest(xs),
        "z size": largest(zs),
        "slope": row_sum(jacobian),
        "inverse slope": row_sum(jnp.linalg.inv(jacobian)),
        "round trip x -> z -> x": largest(back - xs),
        "round trip z -> x -> z": largest(again - zs),
        "log-det vs. autodiff": jnp.abs(sign_log - log_det[:m].reshape(m)),
        "log-det, both ways": jnp.abs(log_det + inverse_log_det).reshape(len(xs)),
        "pattern": jnp.any(jacobian != 0, axis=0),
        "unchanged": jnp.all(flat(zs) == flat(xs), axis=0),
    }


def _spread(values: np.ndarray, n: int) -> np.ndarray:
    """Figures of the first points, and their largest for the points without a Jacobian."""
    return np.concatenate([values, np.full(n - len(values), values.max())])


def _power_of_ten(factor: np.ndarray) -> np.ndarray:
    """The power of ten at or above a factor, at least 1; where the map broke, 1."""
    factor = np.clip(np.nan_to_num(factor, nan=1.0, posinf=1.0), 1.0, None)
    return 10.0 ** np.ceil(np.log10(factor))


def _triangular_order(pattern: np.ndarray) -> tuple[int, ...] | None:
    """The coordinates by depth of dependence, then by index; None if two read each other."""
    reads = pattern & ~np.eye(len(pattern), dtype=bool)
    depth = np.full(len(pattern), -1)
    level = 0
    while (depth < 0).any():
        waits = (reads & (depth < 0)[None, :]).any(axis=1)
        free = (depth < 0) & ~waits
        if not free.any():
            return None
        depth[free] = level
        level += 1
    return tuple(np.argsort(depth, kind="stable").tolist())


def _structure_line(pattern, order, demanded) -> Line:
    off_diagonal = pattern & ~np.eye(len(pattern), dtype=bool)
    diagonal, lower, upper = (
        not part.any() for part in (off_diagonal, np.triu(pattern, 1), np.tril(pattern, -1))
    )
    if diagonal:
        found = "diagonal"
    elif lower or upper:
        found = f"{'lower' if lower else 'upper'} triangular"
    elif order is None:
        found = "not triangular under any permutation"
    elif len(order) <= 12:
        found = f"triangular after the permutation {list(order)}"
    else:
        found = "triangular after a permutation"
    ok = {None: True, "diagonal": diagonal, "triangular": order is not None}[demanded]
    return Line("Jacobian", found if ok else f"{found} (asked for: {demanded})", None, ok)


def _mask_line(pattern, unchanged, passive) -> Line:
    between = pattern[np.ix_(~passive, ~passive)] & ~np.eye((~passive).sum(), dtype=bool)
    copied, apart = bool(unchanged[passive].all()), not between.any()
    if copied and apart:
        return Line("mask", "passive copied, active read passive only", None, True)
    wrong = ([] if copied else ["a passive coordinate changed"]) + (
        [] if apart else ["an active coordinate reads another"]
    )
    return Line("mask", " and ".join(wrong), None, False)


__all__ = ["CheckError", "Line", "Report", "check", "check_bijection"]
