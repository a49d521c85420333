"""Entropy, negentropy and total correlation of samples, each with its estimator's name and standard error."""

import math
from typing import NamedTuple

import jax
import jax.random as jr
import numpy as np
import scipy
from flowjax.distributions import AbstractDistribution
from jaxtyping import ArrayLike, PRNGKeyArray

from gauss_flows.compiling import compiled
from gauss_flows.moments import mean_and_std
from gauss_flows.validate import column_names, expect_concrete, expect_key, expect_rows, expect_whole

_WINDOW = 8  # wider gains little variance, and blurs the ends of the sample

# The largest parts of a sample that may be tied. What passes changes the mean by less than a standard error.
# - Rounding to steps of d moves each end of a window of width w by up to d / 2, and changes the mean of log w
#   by -(d / w)^2 / 12. With g points per step the window of 16 spacings is 16 / g steps wide: -g^2 / 3072. A
#   part of 1 % in groups of four or more means g of about 0.4, a change of 5e-5. (Random numbers in single
#   precision are tied in this way, with g = n / 2^23.)
# - Repeated values do more harm. If all points came twice, 16 spacings would be 8, in a sample of n / 2, and
#   the entropy would be psi(16) - psi(8) - log 2 = 0.032 too small; if all came three times, about 0.066. A
#   part p that is repeated changes it by 0.066 p at most. The standard error is 0.25 / sqrt(n) or more (that
#   much for a uniform density, whose log is constant), hence p below 3.8 / sqrt(n). `_is_rounded` tells
#   rounding from repetition.
# - Among neighbors an equal row makes the k-th one the (k-1)-th, a change of 1 / (k - 1) or less in the
#   log-density of that row, and in those that have the pair among their neighbors: 1 % of such rows change
#   the mean by 0.003 for k = 4; a smaller k allows fewer.
_TIED_FOUR = 0.01
_REPEATED = 3.8
_TIED_ROWS = 0.01


class Estimate(NamedTuple):
    """A mean over a sample, and its standard error; both in nats."""

    value: float
    standard_error: float


def entropy(x: ArrayLike, *, k: int = 4) -> Estimate:
    r"""The differential entropy :math:`-E \log p(x)` of the density that x was drawn from.

    In one dimension from spacings: eight order statistics to each side of each point. In more dimensions from
    the distance to the k-th nearest neighbor (Kozachenko and Leonenko), after a linear map that makes the
    columns uncorrelated with standard deviation 1. Both are free of bias where the density is constant over
    the window; the second one's bias grows with the dimension. Arithmetic is in double precision.

    Rounded and repeated values are refused, since they have no density, where they would change the entropy
    by a standard error: if in any column more than 1 % of the values occur four times or more, or a part of
    more than :math:`3.8/\sqrt n` is repeated; and if more than 1 % of the rows are equal to another (fewer
    for k below 4). Random numbers in single precision have some equal values, which are too few to matter.

    Args:
        x: Sample, shape (n,) or (n, D), floating point and finite, without ties beyond those. Rows must be
            more than ten, than k and than D, and no column constant or a linear combination of others.
        k: The neighbor whose distance is taken, where D > 1.

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
    return estimate(-_log_density(_sample(x, k), k))


def negentropy(x: ArrayLike, *, k: int = 4) -> Estimate:
    r"""The entropy below that of a Gaussian, :math:`H(N(m, \Sigma)) - H(x)`; 0 only for a Gaussian.

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
    sample = _sample(x, k)  # J is the same for standardized columns
    mean, std, _ = mean_and_std(sample)
    sample = (sample - mean) / std
    rows = sample.reshape(len(sample), -1)
    covariance = rows.T @ rows / len(rows)
    scaled = np.linalg.solve(covariance, rows.T).T
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    gaussian = -0.5 * (np.sum(rows * scaled, axis=1) + log_det)
    return estimate(_log_density(sample, k) - gaussian)


def total_correlation(x: ArrayLike, *, joint_entropy: float | None = None, k: int = 4) -> Estimate:
    r"""The information that the coordinates share, :math:`\sum_i H(x_i) - H(x)`; 0 if they are independent.

    The marginal entropies are estimated from spacings. The joint one is, unless it is given, estimated from
    neighbors, and then limits how small a correlation can be seen.

    Args:
        x: Sample, shape (n, D) with D at least 2.
        joint_entropy: H(x) in nats, where it is known: after an invertible map of data of known entropy it is
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
    if sample.ndim != 2:
        raise ValueError(f"`x` must have shape (n, D) with D at least 2; got {np.shape(x)}.")
    if joint_entropy is not None:
        known = expect_concrete("joint_entropy", joint_entropy, float)
        if not (known.size == 1 and np.isfinite(known).all()):
            raise ValueError(f"`joint_entropy` must be a finite number; got {known}.")
    marginal = sum(_log_density(column, k) for column in sample.T)
    if joint_entropy is None:
        return estimate(_log_density(sample, k) - marginal)
    value, error = estimate(-marginal)
    return Estimate(value - float(known.reshape(())), error)


def mutual_information(x: ArrayLike, y: ArrayLike, *, k: int = 4) -> Estimate:
    r"""The information that two variables share, :math:`I(x; y) = H(x) + H(y) - H(x, y)`; 0 if independent.

    Estimated from neighbors. The distance to the k-th neighbor in (x, y) is taken in each of the two, and
    the neighbors within it are counted there: so the errors of the three entropies nearly cancel. With few
    points for the dimension, or a strong dependence, the estimate is too small. The standard error leaves out
    that neighbors depend on one another; it was 10 % too small for correlated normal points.

    Args:
        x: Sample, shape (n,) or (n, D), as for :func:`entropy`.
        y: One row for each row of x, shape (n,) or (n, E).
        k: The neighbor whose distance is taken; more lowers the variance and raises the bias.

    Returns:
        An :class:`~gauss_flows.information.Estimate`.

    Raises:
        ValueError: If x or y is no such sample, or they differ in length.

    Source:
        Kraskov et al., "Estimating mutual information" (2004), equation 8.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> x, noise = jr.normal(jr.key(0), (2, 4000))
        >>> value, error = gf.mutual_information(x, 0.6 * x + 0.8 * noise)  # exactly 0.223 nats
        >>> bool(abs(value - 0.223) < 4 * error)
        True
    """
    parts = [_sample(x, k), _sample(y, k, "y")]
    n = len(parts[0])
    if len(parts[1]) != n:
        raise ValueError(f"`y` must have one row for each of the {n} rows of `x`; got {len(parts[1])}.")
    scaled = []
    for part in parts:
        part = part.reshape(n, -1)
        mean, std, _ = mean_and_std(part)
        scaled.append((part - mean) / std)
    radius = scipy.spatial.KDTree(np.hstack(scaled)).query(np.hstack(scaled), k + 1, p=np.inf)[0][:, -1]
    within = np.nextafter(radius, 0)  # strictly nearer ones are counted
    counts = [
        scipy.spatial.KDTree(part).query_ball_point(part, within, p=np.inf, return_length=True)
        for part in scaled
    ]
    digamma = scipy.special.digamma  # each count holds the point itself
    return estimate(digamma(k) + digamma(n) - digamma(counts[0]) - digamma(counts[1]))


def _sample(x, k, name="x") -> np.ndarray:
    """The sample in double precision, shape (n,) or (n, D) with D > 1, or why it has no density."""
    array = expect_concrete(name, x)
    fits = array.ndim in (1, 2) and array.shape[1:] != (0,)
    if not fits:
        raise ValueError(f"`{name}` must have shape (n,) or (n, D); got {array.shape}.")
    dim = 1 if array.ndim == 1 else array.shape[1]
    sample = expect_rows(array, array.shape[1:], 1 + max(10, expect_whole("k", k, 1), dim), np.float64, name)
    columns = sample.reshape(len(sample), dim)
    # Rounding is that of the type that came; for less than single precision the ties are enough to tell.
    eps = float(np.finfo(np.float32 if array.dtype == np.float32 else np.float64).eps)
    mean, std, constant = mean_and_std(columns, eps)
    if constant.any():
        raise ValueError(
            f"`{name}` must vary in every column; {column_names(constant)} is constant up to rounding and "
            "has no density"
        )
    for i in range(dim):
        _expect_few_ties(columns[:, i], name, f"column {i}" if dim > 1 else f"`{name}`")
    if dim == 1:
        return columns[:, 0]
    counts = np.unique(columns, axis=0, return_counts=True)[1]
    tied = counts[counts > 1].sum() / len(columns)
    if tied > _TIED_ROWS * min(1, (k - 1) / 3) or counts.max() > k:
        raise ValueError(
            f"`{name}` must have few equal rows, or it has no density; {tied:.1%} of the rows have an equal "
            "one. Drop repeated rows, or add uniform noise of one rounding step"
        )
    unit = (columns - mean) / std
    smallest = np.linalg.eigvalsh(unit.T @ unit / len(unit))[0]
    if smallest <= max(8 * dim * np.finfo(np.float64).eps, (8 * eps) ** 2):
        raise ValueError(
            f"`{name}` must have linearly independent columns, or it has no density; the least eigenvalue of "
            f"its correlations is {smallest:.0e}. Drop a column that the others determine"
        )
    return columns


def _expect_few_ties(column, name, where) -> None:
    counts = np.unique(column, return_counts=True)[1]
    n = len(column)
    many, tied = counts[counts >= 4].sum() / n, counts[counts > 1].sum() / n
    refused = many > _TIED_FOUR or counts.max() > _WINDOW
    if refused or (tied > _REPEATED / math.sqrt(n) and not _is_rounded(np.sort(column))):
        raise ValueError(
            f"`{name}` must have few equal values, or it has no density; {tied:.1%} of the values of {where} "
            "occur more than once. Drop repeated rows, or add uniform noise of one rounding step"
        )


def _is_rounded(column) -> bool:
    """Whether equal values in a sorted column come from rounding, and not from repetition.

    If a part t of the gaps is zero by rounding, the step is about t mean gaps of the surroundings, and hardly
    a gap is smaller and not zero. Where values are repeated, the gaps between different ones are those of a
    continuous density: a part 1 - t of all, exponential, with 1 / (1 - t) times the mean. The border is half
    as many gaps below t / 2 times the mean as there would then be.
    """
    n, place = len(column), np.arange(len(column) - 1)
    gaps = np.diff(column)
    tied = np.mean(gaps == 0)
    low, high = np.maximum(place - _WINDOW, 0), np.minimum(place + 1 + _WINDOW, n - 1)
    around = (column[high] - column[low]) / (high - low)
    small = np.mean((gaps > 0) & (gaps < tied / 2 * around))
    return bool(small < 0.5 * (1 - tied) * -np.expm1(-0.5 * tied * (1 - tied)))


def estimate(terms: np.ndarray) -> Estimate:
    """Return the mean of independent terms and its standard error."""
    return Estimate(float(terms.mean()), float(terms.std() / math.sqrt(len(terms))))


def _log_density(x, k):
    """An estimate of log p at each point, free of bias where p is constant around it."""
    n, digamma = len(x), scipy.special.digamma
    # Nothing is subtracted: next to an outlier that would round the other points away.
    scale = mean_and_std(x)[1]
    x = x / scale
    if x.ndim == 1:
        order, place = np.argsort(x), np.arange(n)
        low, high = np.maximum(place - _WINDOW, 0), np.minimum(place + _WINDOW, n - 1)
        width = x[order][high] - x[order][low]
        found = np.empty(n)
        found[order] = digamma(high - low) - digamma(n + 1) - np.log(width)
        return found - np.log(scale)
    dim = x.shape[1]
    # Neighbors are sought where the columns are uncorrelated: along a narrow ridge the density would change
    # within the distance to a neighbor. The map is linear, so its log-determinant is all that it changes.
    factor = np.linalg.cholesky(np.atleast_2d(np.cov(x.T, bias=True)))
    x = scipy.linalg.solve_triangular(factor, x.T, lower=True).T
    scale = scale * np.diag(factor)
    radius = scipy.spatial.KDTree(x).query(x, k + 1)[0][:, -1]  # the point itself is the nearest
    log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return digamma(k) - digamma(n) - log_ball - dim * np.log(radius) - np.log(scale).sum()


def kl_divergence(
    target: AbstractDistribution, flow: AbstractDistribution, key: PRNGKeyArray, n: int = 10_000
) -> Estimate:
    r"""Estimate the Kullback-Leibler divergence of a flow q from a target p, in nats.

    .. math:: \mathrm{KL}(p \,\|\, q) = E_p[\log p(x) - \log q(x)] \approx
              \frac1n \sum_{i=1}^n \log p(x_i) - \log q(x_i), \qquad x_i \sim p.

    Args:
        target: p, any unconditional flowjax distribution.
        flow: q, any unconditional flowjax distribution of the same shape.
        key: For the fresh samples; they are drawn and judged in batches.
        n: How many samples, at least 2.

    Returns:
        An :class:`~gauss_flows.information.Estimate`; its entries are infinite if q is 0 at a sample.

    Raises:
        ValueError: If a distribution is conditional, the shapes differ, or n is too small.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> moons = gf.targets.two_moons()
        >>> print(gf.kl_divergence(moons, moons, jr.key(0), 100).value)
        0.0
    """
    expect_whole("n", n, 2)
    for name, distribution in (("target", target), ("flow", flow)):
        if distribution.cond_shape is not None:
            raise ValueError(
                f"`{name}` must be unconditional; its condition has shape {distribution.cond_shape}."
            )
    if flow.shape != target.shape:
        raise ValueError(f"`flow` must have shape {target.shape}, the target's; got {flow.shape}.")
    ratios = np.asarray(compiled(_log_ratios, target, flow, jr.split(expect_key(key), n)), dtype=float)
    finite = bool(np.isfinite(ratios).all())
    return Estimate(float(ratios.mean()), float(ratios.std(ddof=1) / n**0.5) if finite else float("inf"))


def _log_ratios(p, q, keys):
    log_ratio = lambda x: p.log_prob(x) - q.log_prob(x)
    return jax.lax.map(lambda key: log_ratio(p.sample(key)), keys, batch_size=1_000)
