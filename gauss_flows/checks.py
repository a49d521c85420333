"""The check that a map is a bijection with the log-determinant that it returns.

Each line shows a measured number after ``≈`` and, on the same line, the bound it must keep; a
broken bound raises. The number may differ between machines, the bound may not.
"""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from jaxtyping import Array, ArrayLike

from gauss_flows.check_report import CheckError, Line, Report, show_report
from gauss_flows.compiling import compiled
from gauss_flows.validate import Shape, as_floats

_JACOBIAN_ENTRIES = 2_000_000  # Jacobians are formed at as many points as this allows


def check_bijection(
    bijection: AbstractBijection,
    x: ArrayLike,
    condition: ArrayLike | None = None,
    *,
    atol: float | None = None,
    structure: Literal["diagonal", "triangular"] | None = None,
) -> Report:
    r"""Check on this machine that a map is a bijection, and print what was measured.

    It checks the round trip in both directions, the log-determinant against that of the autodiff
    Jacobian, the two directions' log-determinants against each other, and which entries of the
    Jacobian are not zero. A bijection with a ``mask`` is also held to it: passive coordinates must come
    through unchanged, to the last bit, and no active one may depend on another active one. In one with an
    ``order`` each element may depend only on itself and on elements of smaller rank.

    Without ``atol`` the bounds follow the type and the map, coordinate by coordinate, so that one
    steep coordinate excuses no other. With :math:`\epsilon` a hundred times the
    type's machine epsilon, and :math:`|J|` the Jacobian with absolute entries,

    .. math:: \delta z &= \epsilon\,(|z| + |J|(1 + |x|)), \qquad
              \delta x = \epsilon\,(1 + |x|) + |J^{-1}|\,\delta z, \\
              \delta\ell &= \epsilon\Big(1 + |\ell| + \sum_{ij} |J^{-1}|_{ji} |J|_{ij}\Big)
              + |\nabla_x \ell| \cdot \delta x

    are allowed for x after a round trip (:math:`\delta x`), for z (:math:`\epsilon(1 + |z|) + |J|\,\delta x`)
    and for the log-determinant :math:`\ell`. The line shows the largest error and the largest bound, rounded
    up to a power of ten. Where the coordinates' bounds differ by more than a factor of ten (both the largest
    over the points and the median), these two may belong to different coordinates, and the line shows the
    largest ratio of an error to its own bound instead, which must be at most 1. A bound above 1 % of the
    figure's own size fails: then this precision cannot tell.

    Args:
        bijection: Any flowjax bijection, your own included.
        x: One event, of the bijection's shape, or a batch with one leading axis.
        condition: One condition for all events, or one per event; for conditional bijections.
        atol: One absolute bound for every line, in place of those that follow the type.
        structure: None to report the Jacobian's structure; "diagonal" or "triangular" (after a
            permutation, if need be) to demand it.

    Returns:
        A report: ``.ok``, ``report["round trip x -> z -> x"]`` and the other figures by name,
        ``.permutation``, ``.pattern``. In a notebook the report is shown as a table.

    Raises:
        CheckError: If a bound is broken; the message says which and at which point.
        ValueError: If an argument does not fit, or x is neither in single nor in double precision.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> layer = gf.AffineCoupling(jr.key(0), shape=(4,))
        >>> report = gf.check_bijection(layer, jr.normal(jr.key(1), (4,)))  # doctest: +ELLIPSIS
        AffineCoupling, event (4,), 1 point, float32
          round trip x -> z -> x   ≈ ...  ≤ ...  ok
          ...
    """
    kind = type(bijection).__name__
    if not isinstance(bijection, AbstractBijection):
        raise ValueError(f"`bijection` must be a flowjax bijection; got {kind}.")
    known = structure in (None, "diagonal", "triangular")
    if not known:
        raise ValueError(f"`structure` must be None, 'diagonal' or 'triangular'; got {structure!r}.")
    if atol is not None and not atol > 0:
        raise ValueError(f"`atol` must be positive; got {atol}.")
    xs = _batch("x", x, bijection.shape, None)
    n, size = len(xs), math.prod(bijection.shape)
    cs = None
    if bijection.cond_shape is not None:
        if condition is None:
            raise ValueError(f"`condition` must have shape {bijection.cond_shape}; got None.")
        cs = _batch("condition", condition, bijection.cond_shape, n)

    m = max(1, min(n, _JACOBIAN_ENTRIES // size**2))
    found = {name: np.asarray(a) for name, a in compiled(_measure, bijection, xs, cs, m).items()}

    base = 100 * float(jnp.finfo(xs.dtype).eps)
    lines, worst = [], None
    for name, (errors, allowed, sizes) in _allowed(found, n, m, base, atol).items():
        clear = (allowed <= 1e-2 * (1 + sizes)) | (atol is not None)
        good = (errors <= allowed) & clear
        # Each coordinate's largest bound is what would be paired wrongly; its median tells a coordinate of
        # another scale from a few steep points.
        each = allowed.max(axis=0), np.median(allowed, axis=0)
        if good.all() and all(bounds.max() > 10 * bounds.min() for bounds in each):
            largest = float(errors.max())
            lines.append(Line(name, float((errors / allowed).max()), 1.0, True, largest))
            continue
        if good.all():
            value, bound = errors.max(), allowed.max()
        else:
            with np.errstate(invalid="ignore"):
                excess = np.where(good, -1.0, np.nan_to_num(errors / allowed, nan=np.inf))
            point, place = np.unravel_index(np.argmax(excess), excess.shape)
            value, bound = errors[point, place], allowed[point, place]
            why = "" if clear[point, place] else ", too ill-conditioned to tell in this precision"
            where = np.asarray(xs[point]).ravel()[:8]
            worst = worst or f"at point {point}{why}, x = {where}"
        lines.append(Line(name, float(value), float(_power_of_ten(bound)), bool(good.all())))

    pattern = (found["jacobian"] != 0).any(axis=0)
    order = _triangular_order(pattern)
    lines.append(_structure_line(pattern, order, structure))
    mask = getattr(bijection, "mask", None)
    if mask is not None and np.shape(mask) == bijection.shape:
        unchanged = (found["z"] == found["x"]).all(axis=0)
        lines.append(_mask_line(pattern, unchanged, np.asarray(mask).ravel()))

    ranks = getattr(bijection, "order", None)
    if ranks is not None and np.shape(ranks) == bijection.shape:
        lines.append(_order_line(pattern, np.asarray(ranks).ravel()))

    title = f"{kind}, event {bijection.shape}, "
    title += f"{n:,} point{'s' if n > 1 else ''}, {xs.dtype}"
    if m < n:
        title += f" (Jacobians at {m:,})"
    report = Report(title, tuple(lines), order, pattern)
    show_report(report)
    if not report.ok:
        failed = [str(line) for line in lines if not line.ok]
        error = CheckError("; ".join([title, *failed] + ([worst] if worst else [])))
        error.report = report
        raise error
    return report


def _batch(name: str, value: ArrayLike | None, shape: Shape, n: int | None) -> Array:
    """The value as a batch of n (or any number of) arrays of the shape."""
    if not eqx.is_array_like(value):
        raise ValueError(
            f"`{name}` must be an array of shape {shape} or a batch; got {type(value).__name__}."
        )
    array = as_floats(name, value)
    if array.dtype.itemsize < 4:
        raise ValueError(f"`{name}` must be in single or double precision; got {array.dtype}.")
    if not bool(jnp.isfinite(array).all()):
        raise ValueError(f"`{name}` must be finite; got NaN or infinity.")
    single, batched = array.shape == shape, array.shape[1:] == shape and array.ndim == len(shape) + 1
    if not (single or batched):
        raise ValueError(
            f"`{name}` must have shape {shape}, alone or with a leading axis for a batch; got {array.shape}."
        )
    if single:
        array = jnp.broadcast_to(array, (n or 1, *shape))
    if len(array) == 0 or n not in (None, len(array)):
        wanted = "at least one event" if n is None else f"one row per event, {n}"
        raise ValueError(f"`{name}` must have {wanted}; got {len(array)}.")
    return array


def _measure(bijection, xs, cs, m):
    """All figures in one compiled function, one row for each point."""
    axes = (0, None if cs is None else 0)
    size = math.prod(bijection.shape)
    flat = lambda a: a.reshape(len(a), -1)
    zs, log_det = jax.vmap(bijection.transform_and_log_det, axes)(xs, cs)
    back, inverse_log_det = jax.vmap(bijection.inverse_and_log_det, axes)(zs, cs)
    again = jax.vmap(bijection.transform, axes)(back, cs)
    derivatives = jax.vmap(jax.jacfwd(bijection.transform_and_log_det), axes)
    jacobian, bend = derivatives(xs[:m], None if cs is None else cs[:m])
    jacobian, bend = jacobian.reshape(m, size, size), bend.reshape(m, size)
    log_volume = jnp.linalg.slogdet(jacobian)[1]
    return {
        "x": flat(xs),
        "z": flat(zs),
        "log-det": log_det.reshape(len(xs)),
        "jacobian": jacobian,
        "inverse": jnp.linalg.inv(jacobian),
        "bend": bend,
        "round trip x -> z -> x": jnp.abs(flat(back) - flat(xs)),
        "round trip z -> x -> z": jnp.abs(flat(again) - flat(zs)),
        "log-det vs. autodiff": jnp.abs(log_volume - log_det[:m].reshape(m))[:, None],
        "log-det, both ways": jnp.abs(log_det + inverse_log_det).reshape(len(xs), 1),
    }


def _allowed(found, n, m, base, atol):
    """Errors, their bounds and the figures' sizes, shape (points, coordinates), by name."""
    # In double precision, where the bound of a number near the largest single one does not overflow.
    size = lambda name: np.abs(found[name].astype(np.float64))
    x, z, log_det = map(size, ("x", "z", "log-det"))
    own = [*map(size, ("jacobian", "inverse", "bend"))]
    # Points without a Jacobian of their own share the largest entries seen at those that have one.
    shared = [a.max(axis=0, keepdims=True) for a in own]

    def deltas(points, slope, inverse, bend):
        times = lambda matrix, vector: (matrix @ vector[..., None])[..., 0]
        dz = base * (z[points] + times(slope, 1 + x[points]))
        dx = base * (1 + x[points]) + times(inverse, dz)
        volume = np.einsum("nij,nji->n", inverse, slope)
        dl = base * (1 + log_det[points] + volume) + (bend * dx).sum(axis=1)
        return dx, base * (1 + z[points]) + times(slope, dx), dl

    with np.errstate(invalid="ignore", over="ignore"):
        parts = deltas(slice(0, m), *own), deltas(slice(m, n), *shared)
    dx, dz, dl = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    bounds = {
        "round trip x -> z -> x": (dx, x),
        "round trip z -> x -> z": (dz, z),
        "log-det vs. autodiff": (dl[:m, None], log_det[:m, None]),
        "log-det, both ways": (dl[:, None], log_det[:, None]),
    }
    return {
        name: (found[name], np.full_like(bound, atol) if atol else bound, size)
        for name, (bound, size) in bounds.items()
    }


def _power_of_ten(bound: float) -> float:
    """The power of ten at or above a bound; the bound itself where the map broke it."""
    usable = math.isfinite(bound) and bound > 0
    return float(f"1e{math.ceil(math.log10(bound) - 1e-9)}") if usable else bound


def _triangular_order(pattern: np.ndarray) -> tuple[int, ...] | None:
    """The coordinates by depth of dependence, then by index; None if two depend on each other."""
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
        found = "triangular after a permutation (see report.permutation)"
    ok = {None: True, "diagonal": diagonal, "triangular": order is not None}[demanded]
    return Line("Jacobian", found if ok else f"{found} (asked for: {demanded})", None, ok)


def _mask_line(pattern, unchanged, passive) -> Line:
    between = pattern[np.ix_(~passive, ~passive)] & ~np.eye((~passive).sum(), dtype=bool)
    copied, apart = bool(unchanged[passive].all()), not between.any()
    if copied and apart:
        return Line("mask", "passive copied; active depend on passive only", None, True)
    wrong = ([] if copied else ["a passive coordinate changed"]) + (
        [] if apart else ["an active coordinate depends on another"]
    )
    return Line("mask", " and ".join(wrong), None, False)


def _order_line(pattern, ranks) -> Line:
    allowed = (ranks[None, :] < ranks[:, None]) | np.eye(len(ranks), dtype=bool)
    later = pattern & ~allowed
    if not later.any():
        return Line("order", "each depends on itself and on smaller ranks only", None, True)
    i, j = np.argwhere(later)[0]
    return Line("order", f"element {i} depends on element {j}, which is not before it", None, False)
