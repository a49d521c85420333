"""The first choice: which monotone map of the real line. Scalar bijections, shape ()."""

import math
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import scipy.special
from flowjax.bijections import Affine
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Float
from paramax import Parameterize

from gauss_flows.base import Bijection, expect, expect_whole
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


def soft_clip(raw: Array, bound: float) -> Array:
    r"""Bound a parameter smoothly on both sides, :math:`b \tanh(r / b)`, with slope 1 at zero."""
    return bound * jnp.tanh(raw / bound)


class MixtureGaussianCDF(Bijection):
    r"""The CDF of a Gaussian mixture, then the normal quantile function.

    .. math:: T(x) = \Phi^{-1}\Big(\sum_{k=1}^K \pi_k \, \Phi\big((x - \mu_k)/\sigma_k\big)\Big),
              \qquad \log T'(x) = \log \sum_k \frac{\pi_k}{\sigma_k}\,\varphi\Big(
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
        weights: Shape (K,), positive; scaled to sum to 1. Default: equal.
        means: Shape (K,). Default: spread over the normal quantiles.
        scales: Shape (K,), positive. Default: such that the mixture has variance 1.
        log_scale_bound: b > 0 keeps :math:`|\log\sigma_k| < b`, as :math:`b\tanh(r_k / b)`.

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

    shape: ClassVar[tuple[int, ...]] = ()  # type: ignore[misc]
    cond_shape: ClassVar[None] = None  # type: ignore[misc]
    logits: Float[Array, " K"]
    means: Float[Array, " K"]
    log_scales: Any  # Float[Array, " K"], wrapped: bounded whenever a method runs

    def __init__(
        self,
        n_components: int = 8,
        *,
        weights: ArrayLike | None = None,
        means: ArrayLike | None = None,
        scales: ArrayLike | None = None,
        log_scale_bound: float = 5.0,
    ):
        k = expect_whole("n_components", n_components, 1)
        expect(log_scale_bound > 0, "log_scale_bound", "be positive", log_scale_bound)
        if means is None:
            means = 0.8 * scipy.special.ndtri((np.arange(k) + 0.5) / k)
        if scales is None:
            scales = np.full(k, np.sqrt(max(1 - np.var(np.asarray(means)), 0.1)))
        if weights is None:
            weights = np.ones(k)
        weights, means, scales = (np.asarray(a, dtype=float) for a in (weights, means, scales))
        for name, value in (("weights", weights), ("means", means), ("scales", scales)):
            expect(value.shape == (k,), name, f"have shape ({k},), n_components", value.shape)
            expect(bool(np.isfinite(value).all()), name, "be finite", value)
            expect(name == "means" or bool((value > 0).all()), name, "be positive", value)
        fits = bool((np.abs(np.log(scales)) < log_scale_bound).all())
        expect(fits, "scales", f"lie within exp(±log_scale_bound), ±{log_scale_bound}", scales)
        self.logits = jnp.asarray(np.log(weights / weights.sum()), dtype=float)
        self.means = jnp.asarray(means, dtype=float)
        raw = log_scale_bound * np.arctanh(np.log(scales) / log_scale_bound)
        self.log_scales = Parameterize(soft_clip, jnp.asarray(raw, dtype=float), bound=float(log_scale_bound))

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

    def _solve(self, z):
        """The inverse and its number of steps, for use without derivatives.

        By symmetry the equation is put in the lower tail. Inside the loop all is relative to the
        largest term, so that nothing overflows, and one component costs two exponentials.
        """
        mirror = jnp.where(z < 0, 1.0, -1.0).astype(z.dtype)
        z, means = mirror * z, mirror * self.means
        scales = jnp.exp(self.log_scales)
        ends = means + scales * z
        lower, upper = ends.min(), ends.max()
        log_weights = self.logits - logsumexp(self.logits)

        def residual_and_slope(x):
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

        x, steps = solve_monotone(
            residual_and_slope,
            lower,
            upper,
            jnp.clip(jnp.sum(jnp.exp(log_weights) * ends), lower, upper),
            scale=scales.min(),
            tolerance=4 * jnp.finfo(z.dtype).eps * (1 - z),
        )
        return mirror * x, steps


__all__ = ["Affine", "MixtureGaussianCDF", "soft_clip"]
