"""Tests of ``gauss_flows.information``."""

import flowjax.distributions as fd
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from data_support import sample
from network_support import KEY
from scipy.special import digamma
from scipy.stats import multivariate_normal

import gauss_flows as gf
from gauss_flows import targets

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_entropies_are_right_within_their_standard_errors():
    """Against closed forms: normal, uniform, exponential; correlated normals in two and three dimensions."""
    n = 20_000
    normal, uniform = jr.normal(jr.key(0), (n,)), jr.uniform(jr.key(1), (n,))
    for x, truth in (
        (3 * normal, np.log(3) + 1.41894),
        (uniform, 0.0),
        (jr.exponential(jr.key(2), (n,)), 1.0),
    ):
        value, error = gf.entropy(x)
        assert abs(float(value) - truth) <= 3 * float(error) + 2e-3  # the ends, where p is not constant
        assert 0 < float(error) <= 0.01  # a standard deviation of about 1, over sqrt(n)
    value, error = gf.negentropy(uniform)
    assert abs(float(value) - (1.41894 + 0.5 * np.log(1 / 12))) <= 3 * float(error) + 2e-3
    assert abs(float(gf.negentropy(normal).value)) <= 0.01
    matrix = jnp.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.5, 0.0, 0.5]])
    z = jr.normal(jr.key(3), (n, 3))
    x = z @ matrix.T
    covariance = np.asarray(matrix @ matrix.T)
    truth = 3 * 1.41894 + 0.5 * np.linalg.slogdet(covariance)[1]
    value, error = gf.entropy(x)
    assert abs(float(value) - truth) <= 3 * float(error) + 0.02  # neighbours, in three dimensions
    together = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    value, error = gf.total_correlation(x)
    assert abs(float(value) - together) <= 3 * float(error) + 0.02
    value, error = gf.total_correlation(x, joint_entropy=truth)
    assert abs(float(value) - together) <= 3 * float(error)
    assert abs(float(gf.negentropy(x).value)) <= 0.03
    assert abs(float(gf.total_correlation(z).value)) <= 0.03


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((4, 2, 2)), r"`x` must have shape \(n,\) or \(n, D\)"),
        (np.arange(20), "`x` must be floating point"),
        (np.ones(3), r"`x` must have shape \(n,\) with n ≥ 11"),
        (np.full(20, np.nan), "`x` must be finite"),
    ],
)
def test_samples_are_checked(x, message):
    for function in (gf.entropy, gf.negentropy, gf.total_correlation):
        with pytest.raises(ValueError, match=message):
            function(x)
    with pytest.raises(ValueError, match=r"`x` must have shape .* with D at least 2"):
        gf.total_correlation(np.random.default_rng(0).normal(size=50))


def test_kl_divergence_is_right_within_its_standard_error():
    p, q = targets.gaussian_mixture([[0.0, 0.0]], 1.0), fd.Normal(jnp.array([1.0, 0.0]), 2.0)
    assert gf.kl_divergence(p, p, jr.key(0), 1500) == (0, 0)
    value, error = gf.kl_divergence(p, q, jr.key(0), 20_500)
    exact = 2 * np.log(2) - 1 + (2 + 1) / 8
    assert abs(value - exact) < 4 * error < 0.03
    infinite = gf.kl_divergence(p, targets.checkerboard(), jr.key(0), 100)
    assert infinite == (np.inf, np.inf)


ULPS = (np.arange(2000) % 2).astype(np.float32)


def test_ties_are_refused_and_counted():
    x = sample(2000)
    repeated = x.copy()
    repeated[:100] = repeated[100:200]  # 10 % of the values
    rows = x.copy()
    rows[:20] = rows[20:40]  # 2 % of the rows
    label = np.column_stack([x[:, 0], (x[:, 1] > 0).astype(float)])
    for function, data, message in (
        (gf.entropy, np.round(x[:, 0], 1), r"few equal values.*; 99\.\d% of the values of `x` occur"),
        (gf.entropy, np.round(x, 1), "few equal values.* of column 0"),
        (gf.negentropy, np.repeat(x[:400], 5, axis=0), "few equal values.*100.0%"),
        (gf.entropy, np.repeat(x[:1000], 2, axis=0)[:, 0], "few equal values.*100.0%"),
        (gf.entropy, repeated[:, 0], "few equal values.*10.0%.*uniform noise of one rounding step"),
        (gf.entropy, rows, "few equal rows.*2.0%"),
        (gf.total_correlation, label, "of column 1 occur more than once"),
        (gf.total_correlation, np.column_stack([x[:, 0], np.full(2000, 0.1)]), "column 1 is constant"),
        (gf.entropy, np.float32(0.1) + np.float32(1e-8) * ULPS, "constant"),
        (gf.negentropy, np.column_stack([x[:, 0], x[:, 0]]), "linearly independent columns"),
        (gf.entropy, np.column_stack([x, x.sum(axis=1)]).astype(np.float32), "linearly independent columns"),
        (lambda x: gf.entropy(x, k=1), np.concatenate([x, x[:1]]), "few equal rows"),
        (gf.entropy, sample(14)[:12].repeat(7, axis=1), "n ≥ 15"),
    ):
        with pytest.raises(ValueError, match=f"`x` must (have|vary in every|have shape).*{message}"):
            function(data)
    for known in ("a", np.nan, [1.0, 2.0], 1j):
        with pytest.raises(ValueError, match="`joint_entropy` must be"):
            gf.total_correlation(x, joint_entropy=known)


def test_values_in_groups_of_four_are_refused_where_as_many_pairs_pass():
    """4 % of the values; of pairs 8 % may be repeated at this size."""
    x = sample(2000)[:, 0]
    pairs, fours = x.copy(), x.copy()
    pairs[:40] = pairs[40:80]
    fours[:60] = np.tile(fours[60:80], 3)
    assert np.isfinite(gf.entropy(pairs)).all()
    with pytest.raises(ValueError, match=r"`x` must have few equal values.*4\.0% of the values"):
        gf.entropy(fours)


def test_fewer_equal_rows_pass_where_the_neighbour_is_nearer():
    """Half a percent of the rows: 1 % may be equal for k = 4, a third of that for k = 2."""
    x = sample(2000)
    x[:5] = x[5:10]
    assert np.isfinite(gf.entropy(x)).all()
    with pytest.raises(ValueError, match=r"`x` must have few equal rows.*0\.5% of the rows"):
        gf.entropy(x, k=2)


@pytest.mark.parametrize("n", [2000, 20_000])
def test_ties_that_pass_change_less_than_a_standard_error(n):
    """Just below each threshold, where the error is smallest: a uniform density."""
    part = 3.7 / np.sqrt(n)

    def repeat(x, times):
        size = int(part * n / times)
        return np.concatenate([x[:size]] * times + [x[times * size :]])

    steps = n / 0.3  # 0.3 points a step
    ways = [lambda x: repeat(x, 2), lambda x: repeat(x, 3), lambda x: np.round(x * steps) / steps]
    for way in ways:
        changes = []
        for seed in range(8):
            x = np.random.default_rng(seed).uniform(size=n)
            value, error = gf.entropy(x)
            changes.append((gf.entropy(way(x)).value - value) / error)
        assert abs(np.mean(changes)) < 1.15  # and a standard error of that mean
    pairs = sample(n)
    few = pairs.copy()
    size = int(0.0095 * n / 2)
    few[:size] = few[size : 2 * size]
    value, error = gf.entropy(pairs)
    assert abs(gf.entropy(few).value - value) < error


def test_single_precision_numbers_pass():
    for draw in (jr.normal, jr.uniform, jr.exponential):
        x = np.asarray(draw(jr.key(0), (200_000,)))
        assert len(np.unique(x)) < len(x)  # some are equal
        gf.entropy(x)


def test_entropies_at_any_scale():
    x = sample(2000)
    h, j, tc = (function(x).value for function in (gf.entropy, gf.negentropy, gf.total_correlation))
    for scale in (1e-25, 2e30, np.array([1e-25, 2e30]), np.array([1e-280, 1e280])):
        moved = scale * (x + 3)
        assert gf.entropy(moved).value == pytest.approx(h + np.log(scale * np.ones(2)).sum(), abs=1e-6)
        assert gf.negentropy(moved).value == pytest.approx(j, abs=1e-6)
        assert gf.total_correlation(moved).value == pytest.approx(tc, abs=1e-6)
    assert gf.entropy(1e25 * x[:, 0].astype(np.float32)).value == pytest.approx(
        gf.entropy(x[:, 0]).value + 25 * np.log(10), abs=1e-5
    )


def test_entropies_of_strongly_correlated_columns_are_right():
    """Columns that differ by a thousandth, and ten columns mixed by a random matrix: Gaussian, so known."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 2))
    pair = np.column_stack([z[:, 0], z[:, 0] + 1e-3 * z[:, 1]])
    exact = np.log(2 * np.pi * np.e) + np.log(1e-3)
    value, error = gf.entropy(pair)
    assert abs(value - exact) < 4 * error
    value, error = gf.total_correlation(pair)
    assert abs(value - 0.5 * np.log(1 + 1e6)) < 4 * error
    mixing = rng.normal(size=(10, 10))
    x = rng.normal(size=(5000, 10)) @ mixing
    exact = 5 * np.log(2 * np.pi * np.e) + np.linalg.slogdet(mixing)[1]
    value, error = gf.entropy(x)
    assert abs(value - exact) < 0.1  # the bias that the docstring speaks of; without the map it is 2.0
    assert abs(gf.negentropy(x).value) < 0.1


def spacings(x):
    """Log-density at each point from eight order statistics to each side of it."""
    n, order = len(x), np.argsort(x)
    found = np.empty(n)
    for place, at in enumerate(order):
        low, high = max(place - 8, 0), min(place + 8, n - 1)
        found[at] = digamma(high - low) - digamma(n + 1) - np.log(x[order[high]] - x[order[low]])
    return found


def neighbours(x, k=4):
    """Log-density at each point of the plane from its k-th nearest neighbour among uncorrelated columns."""
    factor = np.linalg.cholesky(np.cov(x.T, bias=True))
    unit = x @ np.linalg.inv(factor).T
    distance = np.sort(np.linalg.norm(unit[:, None] - unit[None, :], axis=2), axis=1)[:, k]
    volume = np.log(np.pi) + 2 * np.log(distance) + np.log(np.diag(factor)).sum()
    return digamma(k) - digamma(len(x)) - volume


def test_entropies_follow_their_estimators_formulas():
    x = np.random.default_rng(0).normal(size=(40, 2)) @ [[1.0, 0.5], [0.0, 2.0]] + [3.0, -1.0]
    column, joint, closer = spacings(x[:, 0]), neighbours(x), neighbours(x, 2)
    marginals = column + spacings(x[:, 1])
    gaussian = lambda rows: multivariate_normal(rows.mean(axis=0), np.cov(rows.T, bias=True)).logpdf(rows)
    for estimate, terms in (
        (gf.entropy(x[:, 0]), -column),
        (gf.entropy(x[:, :1]), -column),
        (gf.entropy(x), -joint),
        (gf.entropy(x, k=2), -closer),
        (gf.negentropy(x[:, 0]), column - gaussian(x[:, :1])),
        (gf.negentropy(x), joint - gaussian(x)),
        (gf.negentropy(x, k=2), closer - gaussian(x)),
        (gf.total_correlation(x), joint - marginals),
        (gf.total_correlation(x, k=2), closer - marginals),
        (gf.total_correlation(x, joint_entropy=1.5), -marginals - 1.5),
    ):
        np.testing.assert_allclose(estimate, (terms.mean(), terms.std() / np.sqrt(40)), rtol=1e-6)


def test_the_divergence_draws_ten_thousand_samples():
    p = gf.targets.gaussian_mixture([[0.0, 0.0]], 1.0)
    q = gf.targets.gaussian_mixture([[1.0, 0.0]], 1.0)
    found = gf.kl_divergence(p, q, KEY)
    assert found == gf.kl_divergence(p, q, KEY, 10_000)
    assert found != gf.kl_divergence(p, q, KEY, 9_000)
    # log p - log q = 1/2 - x_1: its mean is 1/2, its deviation 1.
    np.testing.assert_allclose(found.standard_error, 0.01, rtol=0.05)
    assert abs(found.value - 0.5) < 4 * found.standard_error


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
def test_mutual_information_is_that_of_correlated_normals(rho):
    """-log(1 - rho²) / 2, in any units of y; a third variable that is independent adds nothing."""
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 4000))
    y = rho * x + np.sqrt(1 - rho**2) * noise
    truth = -0.5 * np.log(1 - rho**2)
    value, error = gf.mutual_information(x, 1e3 * y + 7)
    assert abs(value - truth) <= 4 * error + 0.01
    assert 0 < error < 0.03
    assert gf.mutual_information(y, x).value == pytest.approx(value, abs=1e-9)
    pair = np.stack([x, rng.standard_normal(4000)], axis=1)
    assert abs(gf.mutual_information(pair, y).value - truth) <= 0.05


def test_mutual_information_refuses():
    x = np.random.default_rng(0).standard_normal(100)
    with pytest.raises(ValueError, match="`y` must have one row for each of the 100 rows of `x`; got 99"):
        gf.mutual_information(x, x[1:])
    with pytest.raises(ValueError, match="`y` must have few equal values"):
        gf.mutual_information(x, np.round(x))
    with pytest.raises(ValueError, match="`y` must be finite"):
        gf.mutual_information(x, np.where(x > 1, np.nan, x))
    with pytest.raises(ValueError, match="`y` must be floating point"):
        gf.mutual_information(x, np.arange(100))
