"""Tests of ``gauss_flows.levels``."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy

import gauss_flows as gf
from gauss_flows.levels import PixelTable, expect_images

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = np.array([[0, 3], [1, 3], [1, 3], [2, 0]])

SHARES = np.array([[2, 3, 2, 1], [2, 1, 1, 4]]) / 8


def test_the_table_counts_each_level_of_each_pixel_and_one_more(dtype):
    table = PixelTable((2,), 4, IMAGES)
    np.testing.assert_array_equal(table.counts, 8 * SHARES)
    borders = scipy.special.ndtri(np.cumsum(SHARES, axis=1)[:, :-1])
    np.testing.assert_allclose(
        jax.jit(lambda: table.edges)(), borders, atol=1e-6 if dtype == "float32" else 1e-14
    )
    assert np.unique(PixelTable((2, 2), 5).counts).tolist() == [1]


def test_scores_are_quantiles_of_the_table(dtype):
    table = PixelTable((2,), 4, IMAGES)
    k, u = np.indices((4, 4)).reshape(2, 16).T, np.array([1e-6, 0.3, 0.5, 1 - 1e-6], dtype)
    found = jax.jit(jax.vmap(jax.vmap(table.scores, (None, 0, 0)), (0, None, None)))
    grid = jnp.asarray(np.stack([u, u], axis=1))
    v, log_share = found(jnp.asarray(k), jnp.log(grid), jnp.log1p(-grid))
    share = SHARES[np.arange(2), k][:, None]
    below = (np.cumsum(SHARES, axis=1) - SHARES)[np.arange(2), k][:, None]
    tolerance = 2e-5 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(
        v, scipy.special.ndtri(below + share * u.astype(float)[None, :, None]), atol=tolerance
    )
    np.testing.assert_allclose(log_share, np.broadcast_to(np.log(share), v.shape), rtol=1e-6)
    quantize = jax.jit(jax.vmap(jax.vmap(table.quantize)))
    np.testing.assert_array_equal(quantize(v), np.broadcast_to(k[:, None], v.shape))


def test_scores_stay_right_where_u_underflows():
    table = PixelTable((2,), 4, IMAGES)
    far = jnp.full(2, -400.0)
    scores = jax.jit(lambda *args: table.scores(*args))
    v, _ = scores(jnp.zeros(2, int), far, jnp.zeros(2))
    np.testing.assert_allclose(
        scipy.special.log_ndtr(np.asarray(v, float)), -400 + np.log([0.25, 0.25]), rtol=1e-6
    )
    v, _ = scores(jnp.full(2, 3), jnp.zeros(2), far)
    np.testing.assert_allclose(
        scipy.special.log_ndtr(-np.asarray(v, float)), -400 + np.log([0.125, 0.5]), rtol=1e-6
    )
    slope = jax.jit(jax.grad(lambda log_u: table.scores(jnp.zeros(2, int), log_u, jnp.zeros(2))[0].sum()))(
        far
    )
    assert np.isfinite(slope).all()
    assert (slope > 0).all()


def test_the_density_of_scores_is_their_derivative():
    table = PixelTable((2,), 4, IMAGES)
    k = jnp.array([2, 3])
    score = lambda u: table.scores(k, jnp.log(u), jnp.log1p(-u))
    u = jnp.array([0.2, 0.7])
    v, log_share = jax.jit(score)(u)
    slope = np.diag(jax.jit(jax.jacfwd(lambda u: score(u)[0]))(u))
    np.testing.assert_allclose(np.log(slope), log_share - scipy.stats.norm.logpdf(v), rtol=1e-4)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64, bool])
def test_whole_numbers_of_any_type_are_images(kind):
    found = expect_images(np.array([[0, 1], [1, 1]], kind), (2,), 2)
    assert found.dtype == np.int32
    assert found.tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            [[0.0, 1.5]],
            r"`images` must hold whole numbers from 0 to 3, one of 4 levels; got 1\.5, and 1 of 2",
        ),
        ([[0, 4]], "whole numbers from 0 to 3.*got 4"),
        ([[-1, 0]], "whole numbers from 0 to 3.*got -1"),
        ([[np.nan, 0]], "whole numbers from 0 to 3.*got nan"),
        ([[np.inf, 0]], "whole numbers from 0 to 3.*got inf"),
        ([[0, 1, 2]], r"`images` must have shape \(n, 2\) with n ≥ 1; got \(1, 3\)"),
        (np.zeros((0, 2), int), r"`images` must have shape \(n, 2\) with n ≥ 1; got \(0, 2\)"),
        (3, "`images` must have shape"),
        ([["a", "b"]], "`images` must be an array of real numbers"),
        (np.zeros((1, 2), complex), "`images` must be real-valued"),
    ],
)
def test_other_arrays_are_no_images(images, message):
    with pytest.raises(ValueError, match=message):
        expect_images(images, (2,), 4)


@pytest.mark.parametrize(
    ("levels", "message"),
    [(1, "whole number of at least 2"), (4.0, "whole number"), (2**17, "at most 65536; got 131072")],
)
def test_numbers_of_levels_are_checked(levels, message):
    with pytest.raises(ValueError, match=f"`levels` must be .*{message}"):
        PixelTable((2,), levels)


def test_bits_per_dim_is_the_mean_over_images_with_its_standard_error():
    shares = PixelTable((2,), 4, IMAGES)
    # Under a standard normal flow the weights are the shares of the levels, for any noise.
    flow = gf.Transformed(gf.standard_normal(2), gf.ActNorm((2,)))
    model = gf.Dequantize(flow, 4, images=IMAGES)
    each = -np.log2(SHARES[np.arange(2), IMAGES]).mean(axis=1)
    for draws in (1, 3):
        found = gf.bits_per_dim(model, IMAGES, jr.key(0), draws=draws)
        np.testing.assert_allclose(found.bits, each.mean(), rtol=1e-6)
        np.testing.assert_allclose(found.standard_error, each.std(ddof=1) / 2, rtol=1e-5)
    assert shares.counts.shape == (2, 4)


def test_arguments_of_bits_per_dim_are_checked():
    flow = gf.Transformed(gf.standard_normal(2), gf.ActNorm((2,)))
    model = gf.Dequantize(flow, 4)
    with pytest.raises(
        ValueError, match=r"`model` must be a model of images of whole numbers.*got Transformed"
    ):
        gf.bits_per_dim(flow, IMAGES, jr.key(0))
    with pytest.raises(ValueError, match="`key` must be a random key for the noise"):
        gf.bits_per_dim(model, IMAGES)
    with pytest.raises(ValueError, match="`key` must be a random key"):
        gf.bits_per_dim(model, IMAGES, 0)
    with pytest.raises(ValueError, match="`draws` must be a whole number of at least 1; got 0"):
        gf.bits_per_dim(model, IMAGES, jr.key(0), draws=0)
    with pytest.raises(ValueError, match=r"`images` must have shape \(n, 2\) with n ≥ 2"):
        gf.bits_per_dim(model, IMAGES[:1], jr.key(0))
    with pytest.raises(ValueError, match="`condition` must be None for a model without conditions"):
        gf.bits_per_dim(model, IMAGES, jr.key(0), condition=np.zeros((4, 1)))


def test_bits_per_dim_under_jit_names_what_to_use_there():
    layer = gf.MaskedAutoregressive(jr.key(0), (2,), bijector=gf.Affine(), nn_width=4)
    flow = gf.Transformed(gf.standard_normal(2), gf.ActNorm((2,)))
    for model, instead in (
        (gf.DiscreteAutoregressive(layer, 4), "log_prob`"),
        (gf.Dequantize(flow, 4), "log_prob_bound`"),
    ):
        with pytest.raises(ValueError, match=rf"at least one is traced\..* `model\.{instead}"):
            jax.jit(lambda key, model=model: gf.bits_per_dim(model, IMAGES, key).bits)(jr.key(0))
