"""Entropy, negentropy and total correlation of samples, each with its estimator's name and standard error."""

import math
from typing import NamedTuple

import numpy as np
import scipy  # its parts load when first used
from jaxtyping import ArrayLike

from gauss_flows.base import expect, expect_rows, expect_whole

_WINDOW = 8  # wider gains little variance, and blurs the ends of the sample


class Estimate(NamedTuple):
    """A mean over a sample, and its standard error; both in nats."""

    value: float
    standard_error: float


def entropy(x: ArrayLike, *, k: int = 4) -> Estimate:
    r"""The differential entropy :math:`-E \log p(x)` of the density that x was drawn from.

    In one dimension from spacings: eight order statistics to each side of each point. In more dimensions from
    the distance to the k-th nearest neighbour (Kozachenko and Leonenko). Both are free of bias where the
    density is constant over the window; the second one's bias grows with the dimension.

    Args:
        x: Sample, shape (n,) or (n, D), finite, without ties.
        k: The neighbour whose distance is taken, where D > 1.

    Returns:
        An :class:`~gauss_flows.information.Estimate`.

    Raises:
        ValueError: If x is no such sample.

    Source:
        Vasicek, "A test for normality based on sample entropy" (1976), corrected for bias as in Kraskov et
        al., "Estimating mutual information" (2004), equation 20, which is also the one for D > 1.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> value, error = gf.entropy(jr.normal(jr.key(0), (5000,)))
        >>> bool(abs(value - 1.4189) < 3 * error)
        True
    """
    return _mean(-_log_density(_sample(x, k), k))


def negentropy(x: ArrayLike, *, k: int = 4) -> Estimate:
    r"""How far a sample is from Gaussian: :math:`J = h(N(m, \Sigma)) - h(x)`, 0 for a Gaussian alone.

    m and :math:`\Sigma` are the sample's. J is the KL divergence of the density from its best Gaussian.

    Args:
        x: As for :func:`entropy`.
        k: As for :func:`entropy`.

    Returns:
        An :class:`~gauss_flows.information.Estimate`; in its standard error the errors of the two entropies
        partly cancel.

    Raises:
        ValueError: As :func:`entropy`.

    Source:
        Comon, "Independent component analysis, a new concept?" (1994), section 2.3; :func:`entropy`.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> bool(gf.negentropy(jr.uniform(jr.key(0), (5000,))).value > 0.1)  # exactly 0.176
        True
    """
    sample = _sample(x, k)
    rows = sample.reshape(len(sample), -1)
    centred = rows - rows.mean(axis=0, keepdims=True)
    covariance = centred.T @ centred / len(rows)
    scaled = np.linalg.solve(covariance, centred.T).T
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    gaussian = -0.5 * (np.sum(centred * scaled, axis=1) + log_det)
    return _mean(_log_density(sample, k) - gaussian)


def total_correlation(x: ArrayLike, *, joint_entropy: float | None = None, k: int = 4) -> Estimate:
    r"""What the coordinates tell of one another: :math:`\sum_i h(x_i) - h(x)`, 0 for independent ones alone.

    The marginal entropies are estimated from spacings. The joint one is, unless it is given, estimated from
    neighbours, and then limits how small a correlation can be seen.

    Args:
        x: Sample, shape (n, D) with D at least 2.
        joint_entropy: h(x) in nats, where it is known: after an invertible map of data of known entropy it is
            that entropy plus the mean log-determinant. The standard error then leaves out what is uncertain
            about that mean.
        k: As for :func:`entropy`.

    Returns:
        An :class:`~gauss_flows.information.Estimate`.

    Raises:
        ValueError: As :func:`entropy`.

    Source:
        Watanabe, "Information theoretical analysis of multivariate correlation" (1960); :func:`entropy`.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> z = jr.normal(jr.key(0), (4000, 2))
        >>> x = z @ jnp.array([[1.0, 0.6], [0.0, 0.8]])  # correlation 0.6: exactly 0.223 nats
        >>> bool(abs(gf.total_correlation(x).value - 0.223) < 0.05)
        True
    """
    sample = _sample(x, k)
    expect(sample.ndim == 2, "x", "have shape (n, D) with D at least 2", np.shape(x))
    marginal = sum(_log_density(column, k) for column in sample.T)
    if joint_entropy is None:
        return _mean(_log_density(sample, k) - marginal)
    value, error = _mean(-marginal)
    return Estimate(value - joint_entropy, error)


def _sample(x, k) -> np.ndarray:
    expect(np.ndim(x) in (1, 2), "x", "have shape (n,) or (n, D)", np.shape(x))
    array = expect_rows(x, np.shape(x)[1:], 1 + max(10, expect_whole("k", k, 1)))
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    return array.astype(np.float64)


def _mean(terms) -> Estimate:
    return Estimate(float(terms.mean()), float(terms.std() / math.sqrt(len(terms))))


def _log_density(x, k):
    """An estimate of log p at each point, free of bias where p is constant around it."""
    n, smallest, digamma = len(x), np.finfo(np.float64).tiny, scipy.special.digamma
    if x.ndim == 1:
        order, place = np.argsort(x), np.arange(n)
        low, high = np.maximum(place - _WINDOW, 0), np.minimum(place + _WINDOW, n - 1)
        width = np.maximum(x[order][high] - x[order][low], smallest)
        found = np.empty(n)
        found[order] = digamma(high - low) - digamma(n + 1) - np.log(width)
        return found
    dim = x.shape[1]
    radius = scipy.spatial.KDTree(x).query(x, k + 1)[0][:, -1]  # the point itself is the nearest
    log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return digamma(k) - digamma(n) - log_ball - dim * np.log(np.maximum(radius, smallest))
