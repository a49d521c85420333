"""Tests of ``gauss_flows.spline``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from cases import CASES
from network_support import KEY, constant

import gauss_flows as gf
from gauss_flows.spline import _bin_root

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_spline_is_smooth_at_its_ends_and_finite_beyond(dtype):
    b = CASES["RQSpline, bent"].make(jr.key(0))
    ends = jnp.array([-3.0, 3.0])
    np.testing.assert_allclose(jax.vmap(b.transform)(ends), ends)
    inside = jax.vmap(jax.grad(b.transform))(ends * (1 - 1e-6))
    np.testing.assert_allclose(inside, 1, atol=1e-3)
    grads = jax.vmap(lambda x: eqx.filter_grad(lambda b: sum(b.transform_and_log_det(x)))(b))(
        jnp.array([-1e4, -3.0, 0.0, 3.0, 1e4])
    )
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_spline_has_the_bins_it_says():
    b = gf.RQSpline(n_bins=6)
    assert (b.widths.size, b.heights.size, b.slopes.size) == (6, 6, 5)
    assert gf.RQSplineCoupling(jr.key(0), (2,), n_bins=6).conditioner.out_size == 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_bins": 0}, "`n_bins` must be a whole number"),
        ({"interval": 0.0}, "`interval` must be positive"),
        ({"n_bins": 4, "min_width": 0.3}, "`min_width` must lie between"),
        ({"min_slope": 1.0}, "`min_slope` must lie between"),
    ],
)
def test_spline_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        gf.RQSpline(**arguments)


def test_splines_are_the_identity_at_first_with_eight_bins_on_four():
    x = np.linspace(-5, 5, 21).astype(np.float32)
    for spline in (gf.RQSpline(), gf.RQSpline(3, 2.0, min_width=0.2, min_slope=0.5)):
        z, log_det = jax.jit(jax.vmap(spline.transform_and_log_det))(x)
        np.testing.assert_allclose(z, x, atol=2e-6)
        np.testing.assert_allclose(log_det, 0, atol=2e-6)
    layer = gf.RQSplineCoupling(KEY, (2,), conditioner=constant(np.zeros(23)))  # 3 * 8 - 1 numbers
    for spline in (gf.RQSpline(), layer.bijector(jnp.zeros(23))):
        bent = eqx.tree_at(lambda s: s.heights, spline, jnp.arange(8.0))
        z = jax.jit(jax.vmap(bent.transform))(np.array([-4.1, -3.9, 3.9, 4.0, 4.1], np.float32))
        np.testing.assert_array_equal(np.asarray(z)[[0, 3, 4]], np.array([-4.1, 4.0, 4.1], np.float32))
        assert z[1] < -3.91
        assert z[2] < 3.89


def test_bins_of_a_spline_have_a_least_size_and_slopes_lie_between_a_number_and_its_inverse():
    narrow = jnp.array([-60.0, 0, 0, 0])
    first = -4 + 8 * 0.01  # where the first bin ends: a hundredth of the interval from its beginning

    @jax.jit
    def values(raw):
        wide = eqx.tree_at(lambda s: s.widths, gf.RQSpline(4), narrow)
        low = eqx.tree_at(lambda s: s.heights, gf.RQSpline(4), narrow)
        steep = lambda raw: eqx.tree_at(lambda s: s.slopes, gf.RQSpline(2), raw[None])
        slopes = jax.vmap(lambda raw: steep(raw).transform_and_log_det(jnp.zeros(()))[1])(raw)
        return wide.transform(first), low.inverse(first), slopes

    wide, low, slopes = values(jnp.array([-1e3, 0.0, 1e3]))
    np.testing.assert_allclose([wide, low], -2, atol=1e-4)
    np.testing.assert_allclose(np.exp(slopes), [0.1, 1, 10.48], rtol=1e-3)


def test_the_inverse_of_a_bin_loses_no_digits_to_cancellation():
    """Put back into its equation, the root has an error of few units of rounding.

    Slopes lie between 0.1 and 10. A rounded coefficient of the equation therefore counts up to a hundred
    times; a root computed as a difference of nearly equal numbers had an error seven times as large.
    """
    rng = np.random.default_rng(0)
    s, d0, d1 = np.exp(rng.uniform(-np.log(10), np.log(10), (3, 100_000))).astype(np.float32)
    eta = rng.uniform(0, 1, 100_000).astype(np.float32)
    xi = np.asarray(jax.vmap(_bin_root)(eta, s, d0, d1), float)
    between = xi * (1 - xi)
    found = (s * xi**2 + d0 * between) / (s + (d0.astype(float) + d1 - 2.0 * s) * between)
    assert np.abs(found - eta).max() <= 100 * np.finfo(np.float32).eps
