"""The first choice: which monotone map of the real line. Scalar bijections, shape ()."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load when first used
from flowjax.bijections import AbstractBijection
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Float
from paramax import NonTrainable, Parameterize, unwrap
from paramax.utils import inv_softplus

from gauss_flows.base import Bijection, Shape, expect, expect_concrete, expect_whole, split_parameters
from gauss_flows.numerics import (
    LOG_HALF,
    LOG_SQRT_2PI,
    implicit_root,
    mills_ratio,
    ndtri_exp,
    normal_quantile,
    normal_tails,
    solve_monotone,
)


@dataclass(frozen=True, eq=False)
class Structure:
    """The structure of a pytree as a static value that can be compared, hashed, copied and pickled.

    JAX's own ``PyTreeDef`` can be neither copied nor pickled where it holds modules.
    """

    tree: Any

    def __post_init__(self):
        object.__setattr__(self, "tree", jax.tree.map(lambda _: 0, self.tree))

    def __reduce__(self):
        return Structure, (self.tree,)

    @cached_property
    def _definition(self) -> Any:
        return jax.tree.structure(self.tree)

    def unflatten(self, leaves: list[Any]) -> Any:
        """Return the tree with these leaves."""
        return jax.tree.unflatten(self._definition, leaves)

    def __eq__(self, other):
        return isinstance(other, Structure) and self._definition == other._definition

    def __hash__(self):
        return hash(self._definition)


class Family(eqx.Module):
    r"""All maps that a scalar bijector becomes when its P parameters are set from outside.

    This is what a conditioner steers: its output is added to the parameters of the bijector as given.
    Parameters in ``paramax.NonTrainable`` stay as they are.

    With limits, far outputs are bounded smoothly, so that no output, however extreme, makes the map steeper
    than :math:`e^{b}`, flatter than :math:`e^{-b}`, or shifts by more than a few t. Up to three quarters of a
    limit the output stays exactly as it is. The limits hold for the bijectors of this package and for
    flowjax's ``Affine``, ``Loc`` and ``Scale``; the parameters of other bijectors are not limited.

    Args:
        bijector: Any unconditional scalar bijection, shape ().
        max_log_scale: b, positive. Default: no limits.
        max_shift: t, positive, in units of the data.

    Raises:
        ValueError: If ``bijector`` is not an unconditional scalar bijection.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> family = gf.bijectors.Family(gf.Affine())
        >>> family.size, family.theta(jnp.zeros((3, 2))).shape
        (2, (3, 2))
    """

    # In pieces, which no optimiser and no unwrapping touches before the bijector is rebuilt.
    _theta: Any  # Float[Array, " P"], in NonTrainable
    _rest: list[Any]
    _parameters: Structure = eqx.field(static=True)
    _shapes: tuple[Shape, ...] = eqx.field(static=True)
    _others: Structure = eqx.field(static=True)
    _limits: tuple[tuple[float, float], ...] | None = eqx.field(static=True)

    def __init__(
        self,
        bijector: AbstractBijection,
        *,
        max_log_scale: float | None = None,
        max_shift: float = 1e6,
    ):
        kind = type(bijector).__name__
        expect(isinstance(bijector, AbstractBijection), "bijector", "be a flowjax bijection", kind)
        expect(bijector.shape == (), "bijector", "be scalar, of shape ()", bijector.shape)
        expect(bijector.cond_shape is None, "bijector", "be unconditional", bijector.cond_shape)
        in_force = lambda a: jnp.asarray(a, float) if eqx.is_inexact_array(a) else a
        theta, rest = split_parameters(jax.tree.map(in_force, bijector))  # in any precision
        parts = jax.tree.leaves(theta)
        self._theta = NonTrainable(ravel_pytree(theta)[0])
        self._rest = [NonTrainable(a) if eqx.is_array(a) else a for a in jax.tree.leaves(rest)]
        self._parameters, self._others = Structure(theta), Structure(rest)
        self._shapes = tuple(jnp.shape(part) for part in parts)
        self._limits = None
        if max_log_scale is not None:
            self._limits = _limits_in_order(bijector, theta, max_log_scale, max_shift)

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return unwrap(self._theta).shape[-1]

    def theta(self, out: Float[Array, "B P"]) -> Float[Array, "B P"]:
        """Parameters from a network's output: for zeros, those of the bijector as given."""
        if self._limits is not None:
            low, high = (jnp.asarray(end, out.dtype)[None, :] for end in np.array(self._limits).T)
            out = soft_limit(out, low, high)
        return out + unwrap(self._theta)[None, :]

    def flatten(self, bijector: AbstractBijection) -> Float[Array, " P"]:
        """The parameters of a bijector of the family's kind, as ``__call__`` takes them."""
        return ravel_pytree(split_parameters(bijector)[0])[0]

    def __call__(self, theta: Float[Array, " P"]) -> AbstractBijection:
        """The bijector with parameters ``theta``."""
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])
        pieces = zip(jnp.split(theta, ends[:-1]), self._shapes, strict=True)
        parameters = self._parameters.unflatten([part.reshape(shape) for part, shape in pieces])
        return eqx.combine(parameters, self._others.unflatten(unwrap(self._rest)))  # in theta's own precision

    def apply(
        self, method: str, theta: Float[Array, "B P"], x: Float[Array, " B"]
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """``transform_and_log_det`` or ``inverse_and_log_det`` of B numbers, each with its own map."""
        return jax.vmap(lambda p, v: getattr(self(p), method)(v))(theta, x)


def as_family(bijector: AbstractBijection | Family, *, at_least: int = 0) -> Family:
    """Return the family of a bijector, or the family itself, with at least so many parameters."""
    family = bijector if isinstance(bijector, Family) else Family(bijector)
    if family.size < at_least:
        raise ValueError(
            "`bijector` must have a parameter for the network to set; it has none, or only NonTrainable ones."
        )
    return family


_UNLIMITED = 1e30  # in place of infinity, whose differences are NaN


def _limits_in_order(bijector, theta, max_log_scale, max_shift):
    """The lower and upper limit of each parameter, in the order of ``Family.theta``."""
    if isinstance(bijector, Affine | fb.Affine | fb.Loc | fb.Scale):
        named = {"loc": (-max_shift, max_shift), "scale": (-max_log_scale, math.exp(max_log_scale))}
        if isinstance(bijector, Affine) and bijector.scale.link == "exp":
            named["scale"] = (-max_log_scale, max_log_scale)
    else:
        named = bijector.limits(max_log_scale, max_shift) if isinstance(bijector, _Mixture) else {}
    limits = []
    for path, part in jax.tree_util.tree_flatten_with_path(theta)[0]:
        ends = named.get(path[0].name, (-_UNLIMITED, _UNLIMITED))
        low, high = (np.broadcast_to(end, part.shape).ravel() for end in ends)
        limits += list(zip(low.tolist(), high.tolist(), strict=True))
    return tuple(limits) if any(limit != (-_UNLIMITED, _UNLIMITED) for limit in limits) else None


def soft_limit(value: Array, low: Array, high: Array) -> Array:
    """Bound a number smoothly between ``low`` < 0 < ``high``.

    Up to three quarters of a limit it stays exactly as it is. Beyond, the rest of the way is a tanh, so that
    the value and its first two derivatives are continuous.
    """
    inner_low, inner_high = 0.75 * low, 0.75 * high
    kept = jnp.where(value > inner_high, inner_high, jnp.where(value < inner_low, inner_low, value))
    room = 0.25 * jnp.where(value > 0, high, -low)
    beyond = kept + room * jnp.tanh((value - kept) / room)
    # Selected, not added: backward, a cotangent times the room of an unlimited parameter would overflow.
    return jnp.where(value == kept, value, beyond)


def soft_clip(raw: Array, bound: float) -> Array:
    r"""Bound a parameter smoothly on both sides, :math:`b \tanh(r / b)`, with slope 1 at zero."""
    return bound * jnp.tanh(raw / bound)


class PositiveScale(eqx.Module):
    r"""A positive number s from a free one r, with its logarithm right where s itself underflows.

    .. math:: s = \mathrm{softplus}(r) \quad\text{or}\quad s = e^{r} \quad\text{or}\quad
              s = e^{b \tanh(r / b)}.

    Attributes:
        args: The free parameter r, in a tuple.
        link: "softplus" or "exp".
        bound: b, infinity for none; of the exponential alone.
    """

    args: tuple[Array]
    link: Literal["softplus", "exp"] = eqx.field(static=True)
    bound: float = eqx.field(static=True)

    @property
    def value(self) -> Array:
        """The scale s."""
        return jax.nn.softplus(self.args[0]) if self.link == "softplus" else jnp.exp(self.log)

    @property
    def log(self) -> Array:
        """The logarithm of s."""
        (raw,) = self.args
        if self.link == "exp":
            return raw if math.isinf(self.bound) else soft_clip(raw, self.bound)
        # Far below zero softplus(r) is exp(r) (1 - exp(r) / 2), whose logarithm does not underflow.
        far = raw < -20
        near = jnp.log(jax.nn.softplus(jnp.where(far, 0, raw)))
        return jnp.where(far, raw - 0.5 * jnp.exp(jnp.where(far, raw, 0)), near)


class Affine(Bijection):
    r"""The affine map :math:`T(x) = s x + t` of each element, with s > 0.

    The scale is the softplus of a free parameter r. The log-determinant is computed from r, so it is right
    also where s is too small for a floating-point number: :math:`\log\mathrm{softplus}(r) \approx r`.

    Args:
        loc: The shift t; it and ``scale`` broadcast to the event's shape.
        scale: The scale s, positive.

    Raises:
        ValueError: If an argument is not finite, or ``scale`` is not positive.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), with a softplus for the exponential.

    Example:
        >>> import gauss_flows as gf
        >>> float(gf.Affine(1.0, 2.0).transform(3.0))
        7.0
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: ClassVar[None] = None  # type: ignore[misc]
    loc: Float[Array, "*shape"]
    scale: PositiveScale

    def __init__(self, loc: ArrayLike = 0, scale: ArrayLike = 1):
        loc, scale = jnp.broadcast_arrays(jnp.asarray(loc, float), jnp.asarray(scale, float))
        for name, value, good in (("loc", loc, jnp.isfinite(loc)), ("scale", scale, scale > 0)):
            if not isinstance(value, jax.core.Tracer) and not bool((good & jnp.isfinite(value)).all()):
                kind = "finite" if name == "loc" else "positive and finite"
                raise ValueError(f"`{name}` must be {kind}; it is {value}.")
        self.loc, self.shape = loc, scale.shape
        self.scale = PositiveScale((inv_softplus(scale),), "softplus", math.inf)

    def transform_and_log_det(self, x, condition=None):
        return x * self.scale.value + self.loc, self.scale.log.sum()

    def inverse_and_log_det(self, y, condition=None):
        return (y - self.loc) / self.scale.value, -self.scale.log.sum()


def exp_affine(log_scale_bound: float = math.inf) -> Affine:
    r"""An affine bijector whose scale is an exponential, :math:`T(x) = e^{s} x + t`.

    Without a bound :math:`s = r` is a free parameter, as in Real NVP; with one, :math:`s = b\tanh(r / b)`
    stays within :math:`\pm b`. (``Affine`` has a softplus in place of the exponential.)

    Args:
        log_scale_bound: b > 0; infinity for none.

    Raises:
        ValueError: If ``log_scale_bound`` is not positive.

    Example:
        >>> import gauss_flows as gf
        >>> float(gf.bijectors.exp_affine(2.0).transform(3.0))
        3.0
    """
    positive = isinstance(log_scale_bound, (int, float)) and log_scale_bound > 0
    expect(positive, "log_scale_bound", "be positive", repr(log_scale_bound))
    scale = PositiveScale((jnp.zeros(()),), "exp", float(log_scale_bound))
    return eqx.tree_at(lambda a: a.scale, Affine(), scale)


class _Mixture(Bijection):
    """What the two CDFs of mixtures share: their components, and the solver of their inverse."""

    shape: ClassVar[Shape] = ()  # type: ignore[misc]
    cond_shape: ClassVar[None] = None  # type: ignore[misc]
    logits: Float[Array, " K"]
    means: Float[Array, " K"]
    log_scales: Any  # Float[Array, " K"], wrapped: bounded whenever a method runs

    def __init__(
        self, n_components, log_scale_bound, quantile, variance, *, weights=None, means=None, scales=None
    ):
        """By default the components lie at quantiles, and have what ``variance`` that leaves them."""
        k = expect_whole("n_components", n_components, 1)
        bounded = isinstance(log_scale_bound, (int, float)) and 0 < log_scale_bound < math.inf
        expect(bounded, "log_scale_bound", "be positive and finite", repr(log_scale_bound))
        weights = np.ones(k) if weights is None else weights
        means = quantile((np.arange(k) + 0.5) / k) if means is None else means
        if scales is None:
            scales = np.full(
                k, np.sqrt(max(1 - np.var(expect_concrete("means", means, float)) / variance, 0.1))
            )
        names = ("weights", "means", "scales")
        weights, means, scales = map(expect_concrete, names, (weights, means, scales), [float] * 3)
        for name, value in zip(names, (weights, means, scales), strict=True):
            expect(value.shape == (k,), name, f"have shape ({k},), n_components", value.shape)
            expect(bool(np.isfinite(value).all()), name, "be finite", value)
            expect(name == "means" or bool((value > 0).all()), name, "be positive", value)
        fits = bool((np.abs(np.log(scales)) < log_scale_bound).all())
        expect(fits, "scales", f"lie within exp(±log_scale_bound), ±{log_scale_bound}", scales)
        raw = jnp.asarray(log_scale_bound * np.arctanh(np.log(scales) / log_scale_bound), float)
        self.logits = jnp.asarray(np.log(weights / weights.sum()), float)
        self.means = jnp.asarray(means, float)
        self.log_scales = Parameterize(soft_clip, raw, bound=float(log_scale_bound))

    def with_components(
        self, log_weights: Float[Array, " K"], means: Float[Array, " K"], scales: Float[Array, " K"]
    ) -> Self:
        """The same bijector with other components; scales beyond the bound are moved inside it.

        Args:
            log_weights: Logarithms of the weights, up to a constant.
            means: The components' means.
            scales: Their standard deviations, positive.
        """
        bound = self.log_scales.kwargs["bound"]
        raw = bound * jnp.arctanh(jnp.clip(jnp.log(scales) / bound, -0.999, 0.999))
        where = lambda b: (b.logits, b.means, b.log_scales.args[0])
        return eqx.tree_at(where, self, (log_weights, means, raw))

    def limits(self, max_log_scale: float, max_shift: float) -> dict[str, Any]:
        """The limits of what is added to each parameter, for :class:`Family`.

        The first component alone keeps its scale from vanishing: it is then wide enough for both tails, and
        the others may be as narrow as the data ask for.
        """
        bound = self.log_scales.kwargs["bound"]
        free = max_log_scale >= 0.99 * bound
        high = _UNLIMITED if free else bound * math.atanh(max_log_scale / bound)
        low = np.full(self.logits.shape, -_UNLIMITED)
        low[0] = -high
        shift = (-max_shift, max_shift)
        return {"logits": shift, "means": shift, "log_scales": (low, high)}

    @staticmethod
    @abstractmethod
    def _equation(x, z, log_weights, means, scales):
        """T(x) - z and its slope, for z at most 0; in the lower tail, so that nothing cancels."""

    def _solve(self, z):
        """The x with T(x) = z, and the number of steps, by Newton inside the components' exact bracket.

        By symmetry the equation is put in the lower tail, where z is not positive. Without derivatives.
        """
        mirror = jnp.where(z < 0, 1.0, -1.0).astype(z.dtype)
        z, means = mirror * z, mirror * self.means
        scales = jnp.exp(self.log_scales)
        log_weights = self.logits - logsumexp(self.logits)
        ends = means + scales * z
        lower, upper = ends.min(), ends.max()
        x, steps = solve_monotone(
            lambda x: self._equation(x, z, log_weights, means, scales),
            lower,
            upper,
            jnp.clip(jnp.sum(jnp.exp(log_weights) * ends), lower, upper),
            scale=scales.min(),
            tolerance=4 * jnp.finfo(z.dtype).eps * (1 - z),
        )
        return mirror * x, steps


class MixtureGaussianCDF(_Mixture):
    r"""The CDF of a Gaussian mixture, then the normal quantile function.

    .. math:: T(x) &= \Phi^{-1}\Big(\sum_{k=1}^K \pi_k \, \Phi\big((x - \mu_k)/\sigma_k\big)\Big), \\
              \log T'(x) &= \log \sum_k \frac{\pi_k}{\sigma_k}\,\varphi\Big(
              \frac{x - \mu_k}{\sigma_k}\Big) - \log\varphi(T(x)).

    If x follows the mixture, T(x) is standard normal. One standard component is the identity. All
    is computed with logarithms of the smaller tail, so the map stays increasing and right far
    beyond the point where the CDF itself rounds to 0 or 1. The inverse has no closed form, but it
    has an exact bracket, :math:`x \in [\min_k (\mu_k + \sigma_k z), \max_k (\mu_k + \sigma_k z)]`,
    inside which a few Newton steps on z reach rounding error; its derivatives are those of the
    implicit function theorem.

    By default the components are spread over the normal quantiles, and the mixture has mean 0 and
    variance 1, so that T starts near the identity. (Equal components would have equal gradients
    and never separate.)

    Args:
        n_components: K, at least 1.
        log_scale_bound: b > 0 keeps :math:`|\log\sigma_k| < b`, as :math:`b\tanh(r_k / b)`.
        **components: ``weights``, shape (K,), positive, scaled to sum to 1; default equal.
            ``means``, shape (K,); default spread over the normal quantiles.
            ``scales``, shape (K,), positive; default equal, such that the mixture has variance 1 (where the
            means leave room for that).

    Raises:
        ValueError: If ``n_components`` is not a whole number of at least 1, an array has not shape
            (n_components,) or a forbidden value, or ``log_scale_bound`` is not positive.

    Source:
        Meng et al., "Gaussianization flows" (AISTATS 2020), section 3.1.

    Example:
        >>> import gauss_flows as gf
        >>> standard = gf.MixtureGaussianCDF(n_components=1)
        >>> print(f"{standard.transform(30.0):.4f}")
        30.0000
    """

    def __init__(self, n_components: int = 8, *, log_scale_bound: float = 5.0, **components: ArrayLike):
        quantile = lambda p: 0.8 * scipy.special.ndtri(p)
        super().__init__(n_components, log_scale_bound, quantile, 1.0, **components)

    def transform_and_log_det(self, x, condition=None):
        tails = normal_tails((x - self.means) * jnp.exp(-self.log_scales))
        log_weights = self.logits - logsumexp(self.logits)
        z = normal_quantile(logsumexp(log_weights + tails.lower), logsumexp(log_weights + tails.upper))
        return z, self._log_slope(tails, z)

    def inverse_and_log_det(self, y, condition=None):
        x = implicit_root(self.transform, y, lambda: self._solve(y)[0])
        tails = normal_tails((x - self.means) * jnp.exp(-self.log_scales))
        return x, -self._log_slope(tails, y)

    def _log_slope(self, tails, z):
        """Log T'(x) from the components' tails at x: the mixture's hazard over the normal's.

        The difference of two log-densities would cancel far out; the components' hazards, weighed
        by their shares of the smaller tail, do not.
        """
        lower = z < 0
        log_tail = self.logits + jnp.where(lower, tails.lower, tails.upper)
        log_share = log_tail - logsumexp(log_tail)
        hazards = jnp.where(lower, tails.lower_hazard, tails.upper_hazard)
        own = normal_tails(jnp.where(lower, z, -z)).lower_hazard
        return logsumexp(log_share + hazards - self.log_scales) - own

    @staticmethod
    def _equation(x, z, log_weights, means, scales):
        """T(x) - z in the lower tail, and its slope; relative to the largest term, so nothing overflows."""
        u = (x - means) / scales
        negative = u < 0
        bell = -0.5 * u * u
        log_size = log_weights + jnp.where(negative, bell, 0)
        top = log_size.max()
        size, bell = jnp.exp(log_size - top), jnp.exp(bell)
        mills = mills_ratio(jnp.abs(u))
        tail = jnp.sum(size * jnp.where(negative, mills, 1 - bell * mills))
        density = jnp.sum(size * jnp.where(negative, 1, bell) / scales)
        # log F is nearly quadratic in x, but T is nearly linear: take the residual on z.
        # Above the median, where log F flattens, z goes on along its tangent.
        log_f = top + jnp.log(tail)
        current = ndtri_exp(jnp.minimum(log_f, LOG_HALF))
        mills = mills_ratio(jnp.maximum(-current, 0))
        current += jnp.maximum(log_f - LOG_HALF, 0) * math.exp(LOG_SQRT_2PI) * mills
        return current - z, density / tail * mills


class DeepSigmoid(_Mixture):
    r"""The CDF of a mixture of logistic distributions, then the logit, which maps back to the line.

    .. math:: T(x) &= \mathrm{logit} \sum_{k=1}^K \pi_k\, \sigma(t_k), \qquad t_k = (x - \mu_k)/s_k, \\
              T'(x) &= \sum_k \frac1{s_k} \big( p_k\, \sigma(-t_k) + q_k\, \sigma(t_k) \big),

    where :math:`p_k` and :math:`q_k` are the components' shares of the lower and the upper tail. No two
    terms cancel, so both are right far out. In its tails T is a straight line of slope 1/s, s the
    largest scale. The inverse is solved as that of :class:`MixtureGaussianCDF`, inside the bracket
    :math:`[\min_k (\mu_k + s_k y), \max_k (\mu_k + s_k y)]`. One component of scale 1 is the identity.

    Args:
        n_components: K, at least 1.
        log_scale_bound: b > 0 keeps :math:`|\log s_k| < b`, as :math:`b\tanh(r_k / b)`.
        **components: ``weights``, shape (K,), positive, scaled to sum to 1; default equal.
            ``means``, shape (K,); default spread over the logistic quantiles.
            ``scales``, shape (K,), positive; default equal, such that T starts near the identity.

    Raises:
        ValueError: As :class:`MixtureGaussianCDF`.

    Source:
        Huang et al., "Neural autoregressive flows" (ICML 2018), section 3.1.

    Example:
        >>> import gauss_flows as gf
        >>> standard = gf.DeepSigmoid(n_components=1)
        >>> print(f"{standard.transform(30.0):.4f}")
        30.0000
    """

    def __init__(self, n_components: int = 8, *, log_scale_bound: float = 5.0, **components: ArrayLike):
        quantile = lambda p: 0.6 * scipy.special.logit(p)
        super().__init__(n_components, log_scale_bound, quantile, math.pi**2 / 3, **components)

    def transform_and_log_det(self, x, condition=None):
        return self._value_and_log_slope(x)

    def inverse_and_log_det(self, y, condition=None):
        x = implicit_root(self.transform, y, lambda: self._solve(y)[0])
        return x, -self._value_and_log_slope(x)[1]

    def _value_and_log_slope(self, x):
        t = (x - self.means) * jnp.exp(-self.log_scales)
        lower = self.logits + jax.nn.log_sigmoid(t)
        upper = self.logits + jax.nn.log_sigmoid(-t)
        below, above = logsumexp(lower), logsumexp(upper)
        # Logarithms throughout: between two distant components the slope itself underflows.
        terms = jnp.logaddexp(lower - below + jax.nn.log_sigmoid(-t), upper - above + jax.nn.log_sigmoid(t))
        return below - above, logsumexp(terms - self.log_scales)

    @staticmethod
    def _equation(x, y, log_weights, means, scales):
        """T(x) - y and its slope, in the lower tail and relative to the largest term."""
        t = (x - means) / scales
        negative, small = t < 0, jnp.exp(-jnp.abs(t))
        large = 1 / (1 + small)
        log_size = log_weights + jnp.where(negative, t, 0)
        top = log_size.max()
        below = jnp.exp(log_size - top) * large
        other = jnp.where(negative, large, small * large)
        total = below.sum()
        above = jnp.maximum(jnp.sum(jnp.exp(log_weights) * other), jnp.finfo(y.dtype).tiny)
        residual = top + jnp.log(total) - jnp.log(above) - y
        return residual, jnp.sum(below * other / scales) / (total * above)


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
    xi = 2 * c / (-b - root)
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

    Between neighbouring knots :math:`(x_k, y_k), (x_{k+1}, y_{k+1})` with slopes
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
        expect(interval > 0 and math.isfinite(interval), "interval", "be positive", interval)
        expect(0 < min_width < 1 / k, "min_width", f"lie between 0 and 1 / n_bins = {1 / k:g}", min_width)
        expect(0 < min_slope < 1, "min_slope", "lie between 0 and 1", min_slope)
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
        unit = math.log(math.expm1(1 - self.min_slope))  # where a slope is 1
        slope = lambda raw: self.min_slope + jax.nn.softplus(unit + soft_clip(raw, 1 / self.min_slope))
        d0 = jnp.where(i > 0, slope(_entry(self.slopes, i - 1)), 1) if k > 1 else 1.0
        d1 = jnp.where(i < k - 1, slope(_entry(self.slopes, i)), 1) if k > 1 else 1.0
        return x0, dx, y0, dy, d0, d1

    def transform_and_log_det(self, x, condition=None):
        inside = jnp.abs(x) < self.interval
        safe = jnp.where(inside, x, 0)  # so that the untaken branch has finite gradients
        x0, dx, y0, dy, d0, d1 = self._bin(safe, 0)
        xi, s = (safe - x0) / dx, dy / dx
        between, below, top = _bin_terms(xi, s, d0, d1)
        y = y0 + dy * (s * xi * xi + d0 * between) / below
        log_slope = self._log_slope(s, below, top)
        return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0)

    def inverse_and_log_det(self, y, condition=None):
        inside = jnp.abs(y) < self.interval
        safe = jnp.where(inside, y, 0)
        x0, dx, y0, dy, d0, d1 = self._bin(safe, 1)
        eta, s = (safe - y0) / dy, dy / dx
        d0, d1 = (jnp.asarray(d, s.dtype) for d in (d0, d1))
        xi = _bin_root(eta, s, d0, d1)
        _, below, top = _bin_terms(xi, s, d0, d1)
        log_slope = self._log_slope(s, below, top)
        return jnp.where(inside, x0 + xi * dx, y), jnp.where(inside, -log_slope, 0)

    def _log_slope(self, s, below, top):
        return 2 * jnp.log(s / below) + jnp.log(top)
