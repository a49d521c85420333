"""Bijectors made of the CDF of a mixture, and the fit of their components to data."""

import math
from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Float, PyTree
from paramax import Parameterize

from gauss_flows.bijection import Bijection
from gauss_flows.moments import mean_and_std
from gauss_flows.normal import LOG_HALF, LOG_SQRT_2PI, mills_ratio, ndtri_exp, normal_quantile, normal_tails
from gauss_flows.parametrize import UNLIMITED, soft_clip
from gauss_flows.rootfinding import implicit_root, solve_monotone
from gauss_flows.validate import Given, Shape, expect_concrete, expect_whole


class _Mixture(Bijection):
    """What the two CDFs of mixtures share: their components, and the solver of their inverse."""

    shape: ClassVar[Shape] = ()  # type: ignore[misc]
    cond_shape: ClassVar[None] = None  # type: ignore[misc]
    logits: Float[Array, " K"]
    means: Float[Array, " K"]
    log_scales: PyTree  # Float[Array, " K"], wrapped: bounded whenever a method runs

    def __init__(
        self, n_components, log_scale_bound, quantile, variance, *, weights=None, means=None, scales=None
    ):
        """By default the components lie at quantiles, and have what ``variance`` that leaves them."""
        k = expect_whole("n_components", n_components, 1)
        bounded = isinstance(log_scale_bound, (int, float)) and 0 < log_scale_bound < math.inf
        if not bounded:
            raise ValueError(f"`log_scale_bound` must be positive and finite; got {log_scale_bound!r}.")
        weights = np.ones(k) if weights is None else weights
        means = quantile((np.arange(k) + 0.5) / k) if means is None else means
        if scales is None:
            scales = np.full(
                k, np.sqrt(max(1 - np.var(expect_concrete("means", means, float)) / variance, 0.1))
            )
        names = ("weights", "means", "scales")
        weights, means, scales = map(expect_concrete, names, (weights, means, scales), [float] * 3)
        for name, value in zip(names, (weights, means, scales), strict=True):
            if value.shape != (k,):
                raise ValueError(f"`{name}` must have shape ({k},), one per component; got {value.shape}.")
            if not bool(np.isfinite(value).all()):
                raise ValueError(f"`{name}` must be finite; got {value}.")
            if name != "means" and not (value > 0).all():
                raise ValueError(f"`{name}` must be positive; got {value}.")
        fits = bool((np.abs(np.log(scales)) < log_scale_bound).all())
        if not fits:
            raise ValueError(
                f"`scales` must lie between exp(-b) and exp(b), where b is `log_scale_bound` = "
                f"{log_scale_bound}; got {scales}."
            )
        raw = jnp.asarray(log_scale_bound * np.arctanh(np.log(scales) / log_scale_bound), float)
        self.logits = jnp.asarray(np.log(weights / weights.sum()), float)
        self.means = jnp.asarray(means, float)
        self.log_scales = Parameterize(soft_clip, raw, bound=float(log_scale_bound))

    def with_components(
        self, log_weights: Float[Array, " K"], means: Float[Array, " K"], scales: Float[Array, " K"]
    ) -> "_Mixture":
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

    def limits(self, max_log_scale: float, max_shift: float) -> dict[str, tuple[ArrayLike, ArrayLike]]:
        """The limits of what is added to each parameter, for :class:`Parametrized`.

        The first component alone keeps its scale from vanishing: it is then wide enough for both tails, and
        the others may be as narrow as the data ask for.
        """
        bound = self.log_scales.kwargs["bound"]
        free = max_log_scale >= 0.99 * bound
        high = UNLIMITED if free else bound * math.atanh(max_log_scale / bound)
        low = np.full(self.logits.shape, -UNLIMITED)
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

    def __init__(self, n_components: int = 8, *, log_scale_bound: float = 5.0, **components: Given):
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

    def __init__(self, n_components: int = 8, *, log_scale_bound: float = 5.0, **components: Given):
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


_BACKGROUND = 0.01  # least weight of a mixture's widest component, which keeps its tails near the identity


def fit_mixture(
    x: Float[Array, " n"], n_components: int, *, steps: int = 50, min_scale: float = 0.02
) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, " K"]]:
    """A mixture of Gaussians fitted to numbers by expectation maximization.

    The first component keeps the sample's mean and standard deviation and a weight of 0.01 at least: without
    it the tails are those of the widest component, narrower than the sample, and many layers of such tails
    throw held-out points ever farther out.

    Args:
        x: The sample.
        n_components: K, at least 2.
        steps: Steps of expectation maximization, from quantiles.
        min_scale: Least scale, in standard deviations of the sample.

    Returns:
        Log-weights, means and scales, shape (K,) each.

    Raises:
        ValueError: If ``n_components`` is below 2.

    Source:
        Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm" (1977).
    """
    k = expect_whole("n_components", n_components, 2)
    mean, std, _ = mean_and_std(x)
    unit = ((x - mean) / std)[:, None]

    def background(weights, means, scales):
        weights = weights.at[0].set(jnp.maximum(weights[0], _BACKGROUND))
        return weights / weights.sum(), means.at[0].set(0), scales.at[0].set(1)

    def step(state, _):
        weights, means, scales = state
        bells = -0.5 * jnp.square((unit - means[None, :]) / scales[None, :])
        shares = jax.nn.softmax((jnp.log(weights) - jnp.log(scales))[None, :] + bells, axis=1)
        count = shares.sum(axis=0) + 1e-3
        means = (shares * unit).sum(axis=0) / count
        spread = jnp.sqrt((shares * jnp.square(unit - means[None, :])).sum(axis=0) / count)
        return background(count / count.sum(), means, jnp.maximum(spread, min_scale)), None

    quantiles = jnp.quantile(unit[:, 0], (jnp.arange(k, dtype=x.dtype) + 0.5) / k)
    equal = jnp.full(k, 1 / k, x.dtype)
    start = background(equal, quantiles, jnp.full(k, k**-0.5, x.dtype))
    (weights, means, scales), _ = jax.lax.scan(step, start, length=expect_whole("steps", steps, 1))
    return jnp.log(weights), mean + std * means, std * scales
