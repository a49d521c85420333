"""The first choice: which monotone map of the real line. Scalar bijections, shape ()."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load when first used
from flowjax.bijections import AbstractBijection, Affine
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Float
from paramax import NonTrainable, Parameterize, unwrap

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


class Family(eqx.Module):
    r"""All maps that a scalar bijector becomes when its P parameters are set from outside.

    This is what a conditioner steers. Parameters in ``paramax.NonTrainable`` stay as they are.

    Args:
        bijector: Any unconditional scalar bijection, shape ().

    Raises:
        ValueError: If it is none.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> family = gf.bijectors.Family(gf.Affine())
        >>> family.size, family.theta(jnp.zeros((3, 2))).shape
        (2, (3, 2))
    """

    # In pieces, which no optimiser and no unwrapping touches before the bijector is rebuilt.
    _theta: Any  # Float[Array, " P"], in NonTrainable
    _rest: list[Any]
    _rebuild: tuple[Any, ...] = eqx.field(static=True)

    def __init__(self, bijector: AbstractBijection):
        kind = type(bijector).__name__
        expect(isinstance(bijector, AbstractBijection), "bijector", "be a flowjax bijection", kind)
        expect(bijector.shape == (), "bijector", "be scalar, of shape ()", bijector.shape)
        expect(bijector.cond_shape is None, "bijector", "be unconditional", bijector.cond_shape)
        in_force = lambda a: jnp.asarray(a, float) if eqx.is_inexact_array(a) else a
        theta, rest = split_parameters(jax.tree.map(in_force, bijector))  # whatever precision it came in
        parts, parameters = jax.tree.flatten(theta)
        self._theta = NonTrainable(ravel_pytree(theta)[0])
        leaves, structure = jax.tree.flatten(rest)
        self._rest = [NonTrainable(a) if eqx.is_array(a) else a for a in leaves]
        self._rebuild = (parameters, tuple(jnp.shape(part) for part in parts), structure)

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return unwrap(self._theta).shape[-1]

    def theta(self, out: Float[Array, "B P"]) -> Float[Array, "B P"]:
        """Parameters from a network's output: for zeros, those of the bijector as given."""
        return out + unwrap(self._theta)[None, :]

    def flatten(self, bijector: AbstractBijection) -> Float[Array, " P"]:
        """The parameters of a bijector of the family's kind, as ``__call__`` takes them."""
        return ravel_pytree(split_parameters(bijector)[0])[0]

    def __call__(self, theta: Float[Array, " P"]) -> AbstractBijection:
        """The bijector with parameters ``theta``."""
        parameters, shapes, structure = self._rebuild
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        parts = [part.reshape(s) for part, s in zip(jnp.split(theta, ends[:-1]), shapes, strict=True)]
        rest = jax.tree.unflatten(structure, unwrap(self._rest))
        return eqx.combine(jax.tree.unflatten(parameters, parts), rest)  # in theta's own precision

    def apply(
        self, method: str, theta: Float[Array, "B P"], x: Float[Array, " B"]
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """``transform_and_log_det`` or ``inverse_and_log_det`` of B numbers, each with its own map."""
        return jax.vmap(lambda p, v: getattr(self(p), method)(v))(theta, x)


def soft_clip(raw: Array, bound: float) -> Array:
    r"""Bound a parameter smoothly on both sides, :math:`b \tanh(r / b)`, with slope 1 at zero."""
    return bound * jnp.tanh(raw / bound)


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
    bound = float(log_scale_bound)
    function, options = (jnp.exp, {}) if math.isinf(bound) else (_soft_exp, {"bound": bound})
    scale: Any = Parameterize(function, jnp.zeros(()), **options)
    return eqx.tree_at(lambda a: a.scale, Affine(), scale)


def _soft_exp(raw: Array, bound: float) -> Array:
    return jnp.exp(soft_clip(raw, bound))


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
        y, slope = self._value_and_slope(x)
        return y, jnp.log(slope)

    def inverse_and_log_det(self, y, condition=None):
        x = implicit_root(self.transform, y, lambda: self._solve(y)[0])
        return x, -jnp.log(self._value_and_slope(x)[1])

    def _value_and_slope(self, x):
        rates = jnp.exp(-self.log_scales)
        t = (x - self.means) * rates
        lower = self.logits + jax.nn.log_sigmoid(t)
        upper = self.logits + jax.nn.log_sigmoid(-t)
        shares = jax.nn.softmax(lower) * jax.nn.sigmoid(-t) + jax.nn.softmax(upper) * jax.nn.sigmoid(t)
        return logsumexp(lower) - logsumexp(upper), jnp.sum(rates * shares)

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
