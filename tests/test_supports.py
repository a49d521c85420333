"""Tests of ``gauss_flows.supports``; round trips and log-determinants are part of the contract."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")

INF = float("inf")


@pytest.mark.parametrize(
    ("support", "density"),
    [
        ("positive", scipy.stats.lognorm(1)),
        ((0, 1), None),
        ((-2.0, INF), scipy.stats.lognorm(1, loc=-2)),
        ((10, 14), None),
    ],
)
def test_a_normal_behind_a_support_is_the_distribution_that_the_books_name(support, density):
    """The lognormal and the logit-normal, in double precision."""
    with jax.enable_x64(True):
        flow = gf.iaf(jr.key(0), 1, layers=1, nn_width=4, bijector=gf.Affine(), supports=[support])
        if density is None:
            low, high = support
            x = np.linspace(low, high, 101)[1:-1]
            part = (x - low) / (high - low)
            wanted = scipy.stats.norm.logpdf(scipy.special.logit(part)) - np.log(part * (1 - part))
            wanted -= np.log(high - low)
        else:
            x = np.linspace(*density.interval(0.999), 99)
            wanted = density.logpdf(x)
        np.testing.assert_allclose(flow.log_prob(x[:, None]), wanted, rtol=1e-10)


def test_a_half_line_to_the_left_mirrors_one_to_the_right():
    left, right = gf.Supports([(-INF, 2.0)]), gf.Supports([(-2.0, INF)])
    x = jnp.array([-3.0])
    z, log_det = left.transform_and_log_det(x)
    mirrored, same = right.transform_and_log_det(-x)
    assert (float(z[0]), float(log_det)) == (-float(mirrored[0]), float(same))


def test_the_simplex_is_the_logistic_normal():
    """log of each part over the last, Aitchison (1982); the density is 1 / product of all parts more."""
    x = np.array([0.2, 0.5])
    z, log_det = gf.Supports([("simplex", 2)]).transform_and_log_det(x)
    np.testing.assert_allclose(z, np.log([0.2 / 0.3, 0.5 / 0.3]), rtol=1e-6)
    np.testing.assert_allclose(log_det, -np.log(0.2 * 0.5 * 0.3), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_number_is_mapped_onto_or_beyond_an_end(dtype):
    """Rounding would put sigmoid(40) on 1 and exp(-200) on 0."""
    with jax.enable_x64(dtype == "float64"):
        supports = gf.Supports(
            [
                (0, 1),
                (1000, 1001),
                (5, INF),
                (-INF, 5),
                ("simplex", 3),
                ("angle", 360),
                (-1e-3, 0),
                "positive",
            ]
        )
        z = jnp.array([-800.0, -90.0, -40.0, -17.0, 0.0, 17.0, 40.0, 80.0])
        z = jnp.tile(z[:, None], (1, 10))
        x = np.asarray(jax.vmap(supports.inverse)(z))
        assert x.dtype == dtype
        low = np.array([0, 1000, 5, -INF, 0, 0, 0, -1e-9, -1e-3, 0])
        high = np.array([1, 1001, INF, 5, 1, 1, 1, 360, 0, INF])
        assert ((x > low) & (x < high)).all()
        assert (x[:, 4:7].sum(axis=1) < 1).all()
        assert (x[:, 7] >= 0).all()
        assert np.isfinite(jax.vmap(supports.transform)(x)).all()


def test_a_point_outside_or_on_an_end_has_no_density():
    flow = gf.coupling_flow(jr.key(0), 3, layers=1, nn_width=4, supports=[(0, 1), "positive", "real"])
    inside = [0.5, 1.0, 0.0]
    rows = jnp.array([inside, [1.5, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.5, -1.0, 0.0]])
    assert np.isfinite(flow.log_prob(rows)).tolist() == [True, False, False, False, False]
    assert bool((flow.log_prob(rows)[1:] == -jnp.inf).all())
    x = jnp.tile(jnp.array(inside), (100, 1)).at[7, 0].set(1.0)
    with pytest.raises(gf.NonFiniteLoss, match="1 of 100 rows of `x` has log-density −inf: row 7"):
        gf.fit(jr.key(1), flow, x, steps=5, batch_size=50, progress=False)


def test_an_angle_is_a_point_of_the_circle():
    supports = gf.Supports([("angle", 360.0)])
    z, log_det = supports.transform_and_log_det(jnp.array([90.0]))
    np.testing.assert_allclose([z[0], log_det], [np.pi / 2, np.log(2 * np.pi / 360)], rtol=1e-6)
    np.testing.assert_allclose(supports.inverse(z - 2 * np.pi), [90.0], rtol=1e-5)
    assert supports.angles == (0,)


@pytest.mark.parametrize(
    "make", [gf.maf, gf.iaf, gf.residual_flow, gf.gaussianization_flow], ids=lambda make: make.__name__
)
def test_every_factory_takes_supports_and_a_base(make):
    options = {"layers": 1} | ({} if make is gf.gaussianization_flow else {"nn_width": 4})
    flow = make(jr.key(0), 2, supports=["positive", (0, 1)], base=gf.standard_normal(2), **options)
    x = flow.sample(jr.key(1), (50,))
    assert bool((x > 0).all() & (x[:, 1] < 1).all() & jnp.isfinite(flow.log_prob(x)).all())
    with pytest.raises(ValueError, match="`supports` must hold no angle here; coordinate 1 is one"):
        make(jr.key(0), 2, supports=["real", "angle"], **options)
    with pytest.raises(ValueError, match=r"`base` must have shape \(2,\) and no condition; got shape \(3,\)"):
        make(jr.key(0), 2, base=gf.standard_normal(3), **options)


@pytest.mark.parametrize(
    ("supports", "message"),
    [
        ("positive", r"`supports` must be a list with one entry per coordinate, .* got 'positive'"),
        ([], "`supports` must be a list"),
        (["positiv"], r"`supports` must hold .*; got 'positiv'"),
        ([(1, 0)], r"got \(1, 0\)"),
        ([(0, float("nan"))], r"got \(0, nan\)"),
        ([("simplex", 0)], r"got \('simplex', 0\)"),
        ([("angle", -1.0)], r"got \('angle', -1.0\)"),
        ([("angle", INF)], r"got \('angle', inf\)"),
        (["real"], "`supports` must cover the 2 coordinates; it covers 1"),
        ([("simplex", 3)], "`supports` must cover the 2 coordinates; it covers 3"),
    ],
)
def test_supports_refuses(supports, message):
    with pytest.raises(ValueError, match=message):
        gf.coupling_flow(jr.key(0), 2, supports=supports)
