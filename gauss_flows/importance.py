"""Weigh the draws of a flow against a log-density: expectations, the evidence, and an exact sampler."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, PRNGKeyArray

from gauss_flows.compiling import compiled
from gauss_flows.information import Estimate, estimate
from gauss_flows.log_density import LogDensity, draw, expect_finite
from gauss_flows.validate import expect_key, expect_whole


@dataclass(frozen=True, eq=False)
class ImportanceSample:
    r"""Draws of a flow q with weights :math:`w_i \propto \tilde p(x_i) / q(x_i)`.

    Every number here is an estimate from the draws alone. Where the flow never draws, the weights know
    nothing: a mode that it leaves out is missing from all of them, and no number below shows it.

    Attributes:
        x: The draws, shape (n, \*flow.shape).
        log_ratios: :math:`\log \tilde p(x_i) - \log q(x_i)`, in nats, shape (n,), in double precision.
    """

    x: Array
    log_ratios: np.ndarray

    @cached_property
    def _log_sum(self) -> float:
        top = self.log_ratios.max()
        return float(top + np.log(np.exp(self.log_ratios - top).sum()))

    @property
    def log_weights(self) -> np.ndarray:
        """Logarithms of the normalized weights, shape (n,)."""
        return self.log_ratios - self._log_sum

    @property
    def weights(self) -> np.ndarray:
        """The normalized weights, shape (n,)."""
        return np.exp(self.log_weights)

    @property
    def effective_sample_size(self) -> float:
        r"""How many equally weighted draws would tell as much, :math:`1 / \sum_i w_i^2`; from 1 to n."""
        return float(1 / np.square(self.weights).sum())

    @property
    def log_evidence(self) -> Estimate:
        r"""An estimate of :math:`\log Z = \log \int \tilde p(x)\,dx` in nats, with its standard error.

        The mean of the unnormalized weights is an unbiased estimate of Z. The standard error is that of the
        mean divided by the mean; it can be trusted where ``pareto_k`` is below 0.7.
        """
        n = len(self.log_ratios)
        return Estimate(
            self._log_sum - float(np.log(n)), float(np.std(n * self.weights, ddof=1) / np.sqrt(n))
        )

    @property
    def elbo(self) -> Estimate:
        r"""The evidence lower bound :math:`E_q[\log \tilde p - \log q]` in nats, with its standard error."""
        return estimate(self.log_ratios)

    @cached_property
    def pareto_k(self) -> float:
        r"""The shape :math:`\hat k` of a Pareto tail fitted to the largest weights.

        Weights whose tail has shape k have moments up to the order 1/k. Below 0.7 estimates are reliable with
        the numbers of draws that one has; above, a few draws decide everything.

        Raises:
            ImportError: If arviz-stats is not installed (``pip install gauss_flows[inference]``).

        Source:
            Vehtari et al., "Pareto smoothed importance sampling" (JMLR 2024).
        """
        try:
            from arviz_stats.base import array_stats
        except ImportError as error:
            raise ImportError(
                "`pareto_k` needs arviz-stats: pip install 'gauss_flows[inference]'."
            ) from error
        with np.errstate(divide="ignore", invalid="ignore"):  # equal weights have no tail
            return float(array_stats.psislw(-self.log_ratios)[1])

    def mean(self, function: Callable[[Array], Array] | None = None) -> tuple[np.ndarray, np.ndarray]:
        r"""Return the weighted mean of a function of x, and its standard error.

        Args:
            function: Takes one draw to an array of any shape. Default: the draw itself.

        Returns:
            :math:`\mu = \sum_i w_i f(x_i)` and :math:`\sqrt{\sum_i w_i^2 (f(x_i) - \mu)^2}`, both of the
            function's shape.
        """
        values = np.asarray(self.x if function is None else jax.vmap(function)(self.x), float)
        w = self.weights.reshape(-1, *[1] * (values.ndim - 1))
        mean = np.where(w > 0, w * values, 0).sum(axis=0)
        return mean, np.sqrt((np.square(w) * np.square(values - mean)).sum(axis=0))

    def resample(self, key: PRNGKeyArray, n: int) -> Array:
        """Draw from the draws, each with the probability of its weight.

        Args:
            key: Random key.
            n: How many; some will be equal where the effective sample size is small.

        Returns:
            Shape (n, \\*flow.shape).
        """
        rows = jr.choice(
            expect_key(key), len(self.x), (expect_whole("n", n, 1),), p=jnp.asarray(self.weights)
        )
        return self.x[rows]

    def metropolis(self, key: PRNGKeyArray) -> tuple[Array, float]:
        r"""Take the draws in turn as proposals of a Metropolis chain, whose limit is p itself.

        A proposal x' replaces x with probability :math:`\min(1, w(x') / w(x))`. The first draw starts the
        chain, so leave out a first part of it, at least as long as the longest run of equal states.

        Args:
            key: Random key for the decisions.

        Returns:
            The states, shape (n, \*flow.shape), and the part of the proposals that were accepted.

        Source:
            Tierney, "Markov chains for exploring posterior distributions" (1994), section 2.3.3.
        """
        log_u = jnp.log(jr.uniform(expect_key(key), (len(self.x),), minval=1e-30))
        states = compiled(_chain, jnp.asarray(self.log_weights), log_u)
        return self.x[states], float((jnp.diff(states) != 0).mean())


def _chain(log_w, log_u):
    def step(state, i):
        state = jnp.where(log_u[i] < log_w[i] - log_w[state], i, state)
        return state, state

    return jax.lax.scan(step, jnp.zeros((), jnp.int32), jnp.arange(len(log_w), dtype=jnp.int32))[1]


def importance_sample(
    key: PRNGKeyArray, flow: AbstractDistribution, log_density: LogDensity, n: int
) -> ImportanceSample:
    r"""Draw from a flow, and weigh the draws against a density known up to a constant factor.

    Args:
        key: Random key.
        flow: q, a flowjax distribution without a condition.
        log_density: :math:`\log \tilde p`, as for :func:`~gauss_flows.fit_density`; −inf where the density
            is 0.
        n: Number of draws, at least 2.

    Returns:
        An :class:`~gauss_flows.ImportanceSample`: weights, effective sample size, log-evidence, ELBO, the
        reliability :math:`\hat k`, weighted means, and an independence Metropolis sampler.

    Raises:
        ValueError: If an argument does not fit; if the log-density of a draw is NaN or +inf, or of all draws
            −inf; if it differs between single and double precision, as for :func:`~gauss_flows.fit_density`.

    Source:
        Robert and Casella, "Monte Carlo statistical methods" (2004), sections 3.3 and 7.4.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> log_density = lambda x: -0.5 * jnp.sum((x / 0.8) ** 2)  # Z = 2π 0.8²
        >>> sample = gf.importance_sample(jr.key(0), gf.standard_normal(2), log_density, 10_000)
        >>> value, error = sample.log_evidence
        >>> bool(abs(value - jnp.log(2 * jnp.pi * 0.64)) < 4 * error)
        True
    """
    draws = draw(key, flow, log_density, n)
    expect_finite(draws, zero=True)
    log_q = np.asarray(draws.log_q, float)
    bad = int((~np.isfinite(log_q)).sum())
    if bad:
        raise ValueError(
            f"`flow` must have a finite log-density on its own draws; that of {bad} of {n} is not. Its "
            "parameters are too extreme for its arithmetic."
        )
    return ImportanceSample(draws.x, np.asarray(draws.log_p, float) - log_q)
