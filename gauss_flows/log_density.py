"""A log-density as an argument: what it must be, and its values on draws of a flow."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, PRNGKeyArray
from paramax import unwrap

from gauss_flows.compiling import compiled
from gauss_flows.log_det import is_random
from gauss_flows.transformed import Transformed
from gauss_flows.validate import expect_key, expect_whole

LogDensity = Callable[[Array], Array]

_LOOKED_AT = 256  # draws on which a log-density is looked at first
_ROUNDING = 0.01  # the part of its spread, and of a nat, that rounding may change


class Draws(NamedTuple):
    """Draws of a flow and their log-densities under both: shapes (n, \\*shape), (n,) and (n,)."""

    x: Array
    log_q: Array
    log_p: Array


@dataclass(frozen=True, eq=False)
class Static:
    """A function that is equal to itself alone, and a method to that of the same object.

    So a second call compiles nothing, whether or not the function's own class can be compared.
    """

    function: Callable

    def __call__(self, x):
        return self.function(x)

    @property
    def _identity(self):
        f = self.function
        return (id(f.__self__), id(f.__func__)) if isinstance(f, MethodType) else (id(f),)

    def __eq__(self, other):
        return isinstance(other, Static) and self._identity == other._identity

    def __hash__(self):
        return hash(self._identity)


def draw(key: PRNGKeyArray, flow: AbstractDistribution, log_density: LogDensity, n: int) -> Draws:
    """Return n draws of a flow with both log-densities.

    Args:
        key: Random key.
        flow: A flowjax distribution without a condition.
        log_density: Takes one point to one number.
        n: How many, at least 2.

    Raises:
        ValueError: If an argument does not fit; if the log-density returns anything but one real number, or
            differs between single and double precision by more than a hundredth of a nat and of its spread.
    """
    n = expect_whole("n", n, 2)
    _expect_drawable(flow)
    _expect_one_number(flow, log_density)
    draws = Draws(*compiled(_draw, flow, Static(log_density), expect_key(key), n))
    _expect_precision(draws, Static(log_density))
    return draws


def _draw(flow, log_density, key, n):
    x, log_q = unwrap(flow).sample_and_log_prob(key, (n,))
    return x, log_q, _values(log_density, x)


def _values(log_density, x):
    return jax.vmap(log_density)(x)


def _expect_drawable(flow) -> None:
    if not isinstance(flow, AbstractDistribution):
        raise ValueError(f"`flow` must be a flowjax distribution; got {type(flow).__name__}.")
    if flow.cond_shape is not None:
        raise ValueError(f"`flow` must be unconditional; its condition has shape {flow.cond_shape}.")
    if isinstance(flow, Transformed):
        flow.expect_single()
    if is_random(flow):
        raise ValueError(
            '`flow` must have an exact log-determinant, such as `gf.with_log_det(flow, "exact")` gives it; '
            "that of one of its layers is an estimate."
        )


def _expect_one_number(flow, log_density) -> None:
    if not callable(log_density):
        raise ValueError(
            f"`log_density` must be a function of one point of shape {flow.shape}; got "
            f"{type(log_density).__name__}."
        )
    out = jax.eval_shape(log_density, jax.ShapeDtypeStruct(flow.shape, jnp.result_type(float)))
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = type(out).__name__ if shape is None else f"shape {shape} and dtype {dtype}"
        raise ValueError(
            f"`log_density` must take one point of shape {flow.shape} to one real number, of shape (); it "
            f"returned {got}. To join the terms of one point, use jnp.sum; the points of a batch are mapped "
            "over for you."
        )


def _expect_precision(draws, log_density) -> None:
    """Refuse a log-density that rounding makes wrong: one that differs much in double precision."""
    if jnp.result_type(float) == jnp.float64:
        return
    few = Draws(*(a[:_LOOKED_AT] for a in draws))
    with jax.enable_x64(True):
        try:
            exact = compiled(_values, log_density, jnp.asarray(np.asarray(few.x, float)))
        except Exception:  # some functions are written for single precision only; they cannot be compared
            return
        exact = np.asarray(exact, float)
    rounded = np.asarray(few.log_p, float)
    lost = int((np.isfinite(exact) & ~np.isfinite(rounded)).sum())
    both = np.isfinite(exact) & np.isfinite(rounded)
    exact, rounded = exact[both], rounded[both]
    error, spread = (float(v.std()) if both.any() else 0.0 for v in (rounded - exact, exact))
    if lost or error > _ROUNDING * (1 + spread):
        what = f"single precision changes its values by {error:.2g} nats"
        if lost:
            what = f"{lost} of {len(both)} values are finite there alone"
        raise ValueError(
            f"`log_density` needs double precision: {what}. Subtract large offsets with NumPy first, or "
            'switch it on: jax.config.update("jax_enable_x64", True).'
        )


def expect_finite(draws: Draws, *, zero: bool) -> None:
    """Refuse draws on which a log-density is NaN or +inf, or, unless ``zero``, −inf.

    Raises:
        ValueError: If there are any; the message says how many, and gives one of them.
    """
    log_p = np.asarray(draws.log_p, float)
    advice = "It must be a number, or −inf where the density is 0."
    outside = (
        "The flow draws where the density is 0, so that their KL divergence is infinite: map its samples "
        "into the density's support, as `supports=` does."
    )
    kinds = [("NaN", np.isnan(log_p), advice), ("+inf", np.isposinf(log_p), advice)]
    for name, which, hint in kinds + ([] if zero else [("−inf", np.isneginf(log_p), outside)]):
        if which.any():
            first = np.asarray(draws.x[int(np.flatnonzero(which)[0])])
            point = np.array2string(first, precision=4, threshold=8)
            raise ValueError(
                f"`log_density` must be finite on the draws of the flow; it is {name} at {which.sum()} of "
                f"{len(log_p)} of them, such as x = {point}. {hint}"
            )
    if zero and not (log_p > -np.inf).any():
        raise ValueError(f"`log_density` must not be −inf at all {len(log_p)} draws of the flow.")
