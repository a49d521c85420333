"""Tests of ``gauss_flows.targets``."""

import copy
import pickle

import cloudpickle
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from cases import now
from scipy.special import i0e, logsumexp

import gauss_flows as gf
from gauss_flows import targets

UNEVEN = {"means": [[0.0, 1.0], [2.0, -1.0], [0.5, 0.0]], "scales": [[0.5, 0.8], [0.2, 0.4], [0.7, 0.3]]}

TARGETS = {
    "spiral": targets.spiral(),
    "two_moons": targets.two_moons(),
    "rings": targets.rings(),
    "wide ring": targets.rings([0.5], noise=0.6),
    "mixture": targets.gaussian_mixture(),
    "uneven mixture": targets.gaussian_mixture(**UNEVEN, weights=[1.0, 2.0, 5.0]),
    "mixture in 1-D": targets.gaussian_mixture([[-1.0], [1.0]], [0.5, 0.8]),
    "checkerboard": targets.checkerboard(),
    "funnel": targets.funnel(),
}

each = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


def log_prob64(target, x):
    with jax.enable_x64(True):
        in_batches = jax.jit(lambda x: jax.lax.map(target.log_prob, x, batch_size=4000))
        return np.asarray(in_batches(x))


@each
def test_density_has_mass_one_and_the_moments_and_the_entropy_it_says(target):
    axis = np.arange(-6.475, 6.5, 0.05)  # cells that fit the checkerboard's squares
    dim = target.shape[0]
    x = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    cell = 0.05**dim
    if target is TARGETS["funnel"]:  # on a grid in (v / 4, x exp(-v / 2))
        v = 4 * x[:, 0]
        x, cell = np.stack([v, x[:, 1] * np.exp(v / 2)], axis=1), 4 * cell * np.exp(v / 2)
    log_p = log_prob64(target, x)
    mass = np.exp(log_p) * cell
    assert abs(mass.sum() - 1) < 1e-8
    assert -mass @ np.where(mass > 0, log_p, 0) == pytest.approx(target.entropy, abs=1e-6)
    assert mass @ x == pytest.approx(target.mean, abs=1e-6)
    step_part = 0.05**2 / 12 if target is TARGETS["checkerboard"] else 0  # of a uniform cell
    assert np.sqrt(mass @ (x - target.mean) ** 2 + step_part) == pytest.approx(target.std, rel=1e-6)


CURVES = {  # start, stop, and the curves
    "spiral": (0.5, 3.5, lambda t: [(s * t * np.cos(2.5 * t), s * t * np.sin(2.5 * t)) for s in (1, -1)]),
    "two_moons": (0, np.pi, lambda a: [(np.cos(a), np.sin(a)), (1 - np.cos(a), 0.5 - np.sin(a))]),
    "rings": (0, 2 * np.pi, lambda a: [(r * np.cos(a), r * np.sin(a)) for r in (1, 2, 3)]),
}


@pytest.mark.parametrize(("name", "noise"), [("spiral", 0.08), ("two_moons", 0.1), ("rings", 0.1)])
def test_quadrature_agrees_with_a_rule_a_hundred_times_finer(name, noise):
    target, (start, stop, curves) = TARGETS[name], CURVES[name]
    points = np.stack(curves(np.linspace(start, stop, 40_001))).transpose(0, 2, 1)
    simpson = np.tile(np.r_[1, np.tile([4, 2], 20_000)[:-1], 1], len(points)) / (120_000 * len(points))
    points = points.reshape(-1, 2)
    rng = np.random.default_rng(0)
    away = noise * np.linspace(0, 8, 40)[:, None] * rng.choice([-0.7, 0.7], (40, 2))
    x = points[rng.integers(len(points), size=40)] + away  # as far as eight noise widths
    half_squares = ((x[:, None] - points) ** 2).sum(axis=2) / (2 * noise**2)
    finer = logsumexp(-half_squares, b=simpson, axis=1) - np.log(2 * np.pi * noise**2)
    assert np.abs(log_prob64(target, x) - finer).max() < 1e-6
    assert np.isfinite(log_prob64(target, 100 * x)).all()


@each
def test_samples_follow_the_density_standardized_or_not(target):
    n, standard = 20_000, target.standardized()
    draw = jax.jit(lambda key: [d.sample_and_log_prob(key, (n,)) for d in (target, standard)])
    for dtype in ("float64", "float32"):
        with jax.enable_x64(dtype == "float64"):
            shapes = [[(a.shape, a.dtype) for a in pair] for pair in jax.eval_shape(draw, jr.key(1))]
            assert shapes == [[((n, *target.shape), dtype), ((n,), dtype)]] * 2
    (x, log_p), (z, log_q) = jax.tree.map(lambda a: np.asarray(a, float), draw(jr.key(1)))
    assert z == pytest.approx((x - target.mean) / target.std, rel=1e-5, abs=1e-5)
    log_scale = np.log(target.std).sum()
    assert log_q == pytest.approx(log_p + log_scale, rel=2e-4, abs=2e-4)
    assert abs(-log_p.mean() - target.entropy) <= 4 * log_p.std() / np.sqrt(n) + 1e-6
    assert standard.entropy == pytest.approx(target.entropy - log_scale, abs=1e-12)
    assert not standard.mean.any()
    assert (standard.std == 1).all()
    z = z[:, :1] if target is TARGETS["funnel"] else z  # the other coordinate's tails are heavy
    assert (np.abs(z.mean(0)) <= 4 / np.sqrt(n)).all()
    assert (np.abs((z**2).mean(0) - 1) <= 4 * (z**2).std(0) / np.sqrt(n)).all()


def test_scores_are_finite_and_known_values_hold():
    for target in TARGETS.values():
        x = jnp.stack([jnp.zeros(target.shape), jnp.full(target.shape, 30.0)])
        assert jnp.isfinite(jax.jit(jax.vmap(jax.grad(target.log_density)))(x)).all()
    one = targets.gaussian_mixture([[1.0, 2.0, 3.0]], 2.0)  # closed form in any dimension
    assert one.entropy == pytest.approx(3 * (0.5 * np.log(2 * np.pi * np.e) + np.log(2)))
    log_ring = np.log(i0e(4 / 0.01) / (2 * np.pi * 0.01))
    assert targets.rings([2.0]).log_prob(np.array([0.0, 2.0])) == pytest.approx(log_ring, abs=1e-5)
    board = targets.checkerboard(2, 1.0)
    points = np.array([[-0.5, -0.5], [0.5, 0.5], [0.5, -0.5], [1.5, 1.5]])
    assert board.log_prob(points) == pytest.approx([-np.log(2), -np.log(2), -np.inf, -np.inf])


@each
def test_a_row_with_nan_has_no_log_density(target):
    """Not minus infinity, which would rank a broken row as the least likely one."""
    for distribution in (target, target.standardized()):
        log_prob = jax.jit(distribution.log_prob)
        for place in range(target.shape[0]):
            row = np.zeros((2, *target.shape))
            row[0, place] = np.nan
            found = np.asarray(log_prob(row))
            assert np.isnan(found[0])
            assert not np.isnan(found[1])


def test_a_scale_that_overflows_does_not_hide_a_zero(dtype):
    """The funnel at x_1 = 0, far down: finite, with a finite gradient, and the right curvature elsewhere."""
    funnel, v = targets.funnel(2), {"float32": -200.0, "float64": -1500.0}[dtype]
    x = jnp.array([v, 0.0])
    exact = -0.5 * ((v / 3) ** 2 + v) - np.log(3) - np.log(2 * np.pi)
    assert float(funnel.log_prob(x)) == pytest.approx(exact, rel=1e-6)
    assert jnp.isfinite(jax.grad(funnel.log_density)(x)).all()
    curvature = jax.hessian(funnel.log_density)(jnp.array([1.0, 0.0]))[1, 1]
    assert float(curvature) == pytest.approx(-np.exp(-1), rel=1e-5)


BAD = [
    (lambda: targets.spiral(0), "`noise` must be a finite positive number; got 0"),
    (lambda: targets.two_moons(0.001), "`noise` must be at least 0.02, .*; got 0.001"),
    (lambda: targets.rings(noise=float("nan")), "`noise` must be a finite positive number; got nan"),
    (lambda: targets.rings(()), r"`radii` must be one or more positive numbers; got \(\)"),
    (lambda: targets.checkerboard(3), "`squares` must be even; got 3"),
    (lambda: targets.checkerboard(half_width="2"), "`half_width` must be a finite positive .*; got '2'"),
    (lambda: targets.funnel(1), "`dim` must be a whole number of at least 2; got 1"),
    (lambda: targets.gaussian_mixture([1.0]), r"`means` must have shape \(K, D\); got \(1,\)"),
    (lambda: targets.gaussian_mixture(scales=[1.0, 2.0]), r"`scales` must .*; got \(2,\)"),
    (lambda: targets.gaussian_mixture(scales=0.0), "`scales` must be positive"),
    (lambda: targets.gaussian_mixture(weights=[1.0]), r"`weights` must have shape \(8,\).*; got \(1,\)"),
    (lambda: targets.gaussian_mixture(np.eye(3)).entropy, r"`means` must have .* two columns"),
    (lambda: gf.kl_divergence(TARGETS["rings"], targets.funnel(3), jr.key(0)), "`flow` must have shape"),
    (lambda: gf.kl_divergence(TARGETS["rings"], TARGETS["rings"], jr.key(0), 1), "`n` must be"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "name",
    now(("gaussian_mixture", "spiral", "two_moons", "rings", "checkerboard", "funnel"), "spiral", "rings"),
)
def test_equal_targets_share_their_programs(name):
    """A target made anew, its copy and its standardized form compile nothing a second time."""
    make, programs = getattr(gf.targets, name), gf.compiling._program._cache_size
    flow, key = gf.targets.gaussian_mixture([[0.0, 0.0]], 1.0), jax.random.key(0)
    measured = [gf.kl_divergence(target, flow, key, 10) for target in (make(), make().standardized())]
    before = programs()
    for twin in (make(), copy.deepcopy(make()), pickle.loads(cloudpickle.dumps(make()))):
        again = [gf.kl_divergence(target, flow, key, 10) for target in (twin, twin.standardized())]
        assert again == measured
        assert twin.entropy == make().entropy
    assert programs() == before
    other = gf.targets.gaussian_mixture([[1.0, 0.0]], 1.0)
    gf.kl_divergence(make(), other, key, 10)
    assert programs() == before + 1


DIFFERENT = {  # by two and two, of equal shape, mean and standard deviation
    "mixtures": lambda: (
        targets.gaussian_mixture([[0.0, 0.0]], 5.0),
        targets.gaussian_mixture([[3.0, 0.0], [-3.0, 0.0]], [[4.0, 5.0], [4.0, 5.0]]),
    ),
    "boards": lambda: (targets.checkerboard(2), targets.checkerboard(4)),
    "standardized": lambda: (targets.two_moons().standardized(), targets.rings().standardized()),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_targets_share_no_program(name):
    first, second = DIFFERENT[name]()
    assert (first.shape, first.moments) == (second.shape, second.moments)
    assert first != second
    x = first.sample(jr.key(0), (50,))
    run = eqx.filter_jit(lambda target, x: target.log_prob(x))
    for target in (first, second):
        np.testing.assert_allclose(run(target, x), jax.vmap(target.log_density)(x), rtol=1e-4, atol=1e-4)
    assert not np.allclose(run(first, x), run(second, x), rtol=1e-2)


@pytest.mark.parametrize("name", ["gaussian_mixture", "rings", "checkerboard", "funnel"])
def test_targets_name_points_that_do_not_fit(name):
    target = getattr(gf.targets, name)()
    for x in (np.ma.masked_equal(np.ones((3, 2)), 0), np.ones((3, 2)) * 1j, np.full((3, 2), 1e39), "text"):
        with pytest.raises(ValueError, match="`x` must"):
            target.log_prob(x)
