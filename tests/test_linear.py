"""Tests of ``gauss_flows.linear``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import KEY, moved

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_linear_maps_refuse_what_is_no_vector():
    for make in (gf.LULinear, lambda shape: gf.HouseholderRotation(2, shape)):
        with pytest.raises(ValueError, match="`shape` must be that of a vector"):
            make((2, 2))
    with pytest.raises(ValueError, match="`n_reflections` must be a whole number"):
        gf.HouseholderRotation(0, (2,))


def test_householder_is_orthogonal_and_its_pairs_start_as_the_identity():
    with jax.enable_x64(True):
        turn = gf.HouseholderRotation(3, (4,), key=jr.key(0))
        matrix = jax.jacfwd(turn.transform)(jnp.zeros(4))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-14)
        np.testing.assert_allclose(jnp.linalg.det(matrix), -1, atol=1e-14)
        still = gf.HouseholderRotation(4, (3,))
        np.testing.assert_allclose(still.transform(jnp.arange(3.0)), np.arange(3.0), atol=1e-15)


def test_householder_takes_any_axes_up_to_their_signs():
    with jax.enable_x64(True):
        for key in jr.split(jr.key(0), 5):
            axes, _ = jnp.linalg.qr(jr.normal(key, (4, 4)))
            turn = gf.HouseholderRotation(4, (4,), key=key).with_axes(axes)
            matrix = jax.jacfwd(turn.transform)(jnp.zeros(4))
            np.testing.assert_allclose(jnp.abs(matrix @ axes.T), np.eye(4), atol=1e-14)
        turn = gf.HouseholderRotation(3, (3,)).with_axes(jnp.eye(3))
        np.testing.assert_allclose(jnp.abs(jax.jacfwd(turn.transform)(jnp.zeros(3))), np.eye(3), atol=1e-15)
        with pytest.raises(ValueError, match="`n_reflections` must be 3"):
            gf.HouseholderRotation(2, (3,)).with_axes(jnp.eye(3))


def test_a_key_draws_the_reflections_of_a_rotation():
    make = lambda key: gf.HouseholderRotation(2, (64,), key=key).params
    vectors = make(KEY)
    assert vectors.shape == (2, 64)
    assert bool((vectors != make(jr.key(1))).all())
    assert abs(float(vectors.mean())) < 0.3
    np.testing.assert_allclose(vectors.std(), 1, atol=0.2)


def test_the_product_of_reflections_begins_with_the_first():
    turn = gf.HouseholderRotation(2, (2,))
    turn = eqx.tree_at(lambda b: b.params, turn, jnp.array([[1.0, 0.0], [1.0, -1.0]]))
    # The first mirrors the first coordinate, the second exchanges the two.
    np.testing.assert_allclose(turn.transform(jnp.array([1.0, 2.0])), [2, -1], atol=1e-6)


def test_a_1x1_convolution_is_one_matrix_at_every_pixel():
    """Its log-determinant is height × width times that of the matrix."""
    with jax.enable_x64(True):
        layer = moved(gf.Conv1x1(KEY, (3, 2, 4)), 1)
        x = jr.normal(jr.key(2), (3, 2, 4))
        z, log_det = layer.transform_and_log_det(x)
        matrix = np.asarray(layer.matrix)
        np.testing.assert_allclose(z, np.einsum("dc,hwc->hwd", matrix, x), atol=1e-14)
        np.testing.assert_allclose(log_det, 6 * np.linalg.slogdet(matrix)[1], rtol=1e-12)
        lower = np.tril(layer.lower, -1) + np.eye(4)
        upper = np.triu(layer.upper, 1) + np.diag(layer.signs * np.exp(layer.log_diagonal))
        np.testing.assert_allclose(matrix, (lower @ upper)[layer.permutation], atol=1e-14)
        assert sorted(layer.permutation.tolist()) == [0, 1, 2, 3]
        rows = gf.Conv1x1(KEY, (5, 4))  # of any rank
        np.testing.assert_allclose(rows.transform(jnp.eye(5, 4)), np.eye(5, 4) @ rows.matrix.T, atol=1e-14)


def test_a_1x1_convolution_starts_as_a_random_orthogonal_matrix():
    with jax.enable_x64(True):
        draw = jax.jit(jax.vmap(lambda key: gf.Conv1x1(key, (2, 3)).matrix))
        matrices = np.asarray(draw(jr.split(KEY, 400)))
        squares = matrices @ matrices.swapaxes(1, 2)
        np.testing.assert_allclose(squares, np.tile(np.eye(3), (400, 1, 1)), atol=1e-13)
        # Every entry has mean 0 and mean square 1/3, as for the uniform distribution.
        np.testing.assert_allclose(matrices.mean(axis=0), 0, atol=0.15)
        np.testing.assert_allclose((matrices**2).mean(axis=0), 1 / 3, atol=0.08)


def test_a_1x1_convolution_refuses_what_has_no_channels():
    with pytest.raises(ValueError, match=r"`shape` must have at least two axes.*; got \(4,\)"):
        gf.Conv1x1(KEY, (4,))
    with pytest.raises(ValueError, match=r"`key` must be a random key.*got 0"):
        gf.Conv1x1(0, (4, 4, 3))
