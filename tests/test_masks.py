"""Tests of ``gauss_flows.masks``."""

import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")

FAMILIES = {
    "half": [gf.masks.half((8,)), gf.masks.flip(gf.masks.half((8,)))],
    "half, fixed": [gf.masks.half((8,))] * 3,
    "alternating": [gf.masks.alternating((8,)), gf.masks.flip(gf.masks.alternating((8,)))],
    "random": [gf.masks.random(jr.key(i), (8,)) for i in range(3)],
    "checkerboard": [gf.masks.checkerboard(2, 4), gf.masks.flip(gf.masks.checkerboard(2, 4))],
    "channel": [gf.masks.channel(2, 2, 2), gf.masks.checkerboard(2, 2, 2)],
    "rotation": [gf.masks.half((8,)), None, gf.masks.half((8,))],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_reachability_is_the_pattern_of_the_jacobian(family):
    """Exactly: what the masks forbid is zero to the last bit, what they allow is not zero."""
    masks = FAMILIES[family]
    shape = next(m.shape for m in masks if m is not None)
    smooth = gf.conditioners.mlp(16, 1, activation=jnp.tanh)
    layers = [
        gf.HouseholderRotation(8, (8,), key=k)
        if m is None
        else gf.AffineCoupling(k, m.shape, mask=m, conditioner=smooth)
        for m, k in zip(masks, jr.split(jr.key(0), len(masks)), strict=True)
    ]
    for depth in range(1, len(layers) + 1):
        run = lambda v, depth=depth: fb.Chain(layers[:depth]).transform(v.reshape(shape)).ravel()
        jacobian = np.asarray(jax.jit(jax.jacfwd(run))(jr.normal(jr.key(1), (8,))))
        np.testing.assert_array_equal(jacobian != 0, gf.reachability(masks[:depth]))


def test_masks_say_who_is_passive():
    assert gf.masks.alternating((2, 3)).tolist() == [[True, False, True], [False, True, False]]
    assert gf.masks.random(jr.key(3), (7,)).sum() == 3
    assert (gf.masks.random(jr.key(3), (40,)) != gf.masks.random(jr.key(4), (40,))).any()
    board = gf.masks.checkerboard(3, 4, 2)
    assert board.shape == (3, 4, 2)
    assert all(board[i, j, c] == ((i + j) % 2 == 0) for i in range(3) for j in range(4) for c in range(2))
    assert gf.masks.channel(3, 4, 5).sum(axis=2).tolist() == [[2] * 4] * 3
    assert (gf.masks.flip(board) == ~board).all()


def test_interlaced_ranks_go_from_a_coarse_grid_to_the_pixels_between():
    ranks = gf.masks.interlaced(8, 8)
    assert np.bincount(ranks.ravel()).tolist() == [1, 1, 2, 4, 8, 16, 32]
    assert gf.masks.interlaced(3, 5).tolist() == [[0, 5, 3, 5, 1], [5, 4, 5, 4, 5], [3, 5, 2, 5, 3]]
    inner = ranks[1:-1, 1:-1]
    last = inner == 6
    around = (ranks[:-2, 1:-1], ranks[2:, 1:-1], ranks[1:-1, :-2], ranks[1:-1, 2:])
    assert all((side[last] < 6).all() for side in around)  # each lies between four known neighbors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gf.masks.interlaced(1, 1), "`shape` must hold at least two elements"),
        (lambda: gf.masks.interlaced(0, 4), "`height` must be a whole number of at least 1; got 0"),
        (lambda: gf.masks.alternating((1,)), r"`shape` must hold at least two elements.*got \(1,\)"),
        (lambda: gf.masks.checkerboard(1, 1, 3), "`height` × `width` must be at least 2 pixels"),
        (lambda: gf.masks.checkerboard(0, 4), "`height` must be a whole number of at least 1; got 0"),
        (lambda: gf.masks.channel(2, 2, 1), "`channels` must be a whole number of at least 2; got 1"),
        (lambda: gf.masks.flip(np.ones(3)), "`mask` must be a boolean array"),
        (lambda: gf.masks.patch_order((4, 6), 4), "`patch` must divide .*, 4 × 6; got 4"),
        (lambda: gf.masks.patch_order((4, 4), 4), "`patch` must leave at least two patches of 4 × 4 pixels"),
        (lambda: gf.masks.patch_order((4,), 2), r"`shape` must be \(height, width\) or .*got \(4,\)"),
        (
            lambda: jax.jit(lambda k: gf.masks.random(k, (4,)).sum())(jr.key(0)),
            "`key` must be a concrete random key",
        ),
        (lambda: gf.reachability([None]), "`masks` must hold at least one mask"),
        (
            lambda: gf.reachability([gf.masks.half((4,)), gf.masks.half((5,))]),
            r"`masks` must hold .* of one shape; got \[\(4,\), \(5,\)\]",
        ),
        (lambda: gf.conditioners.attention(30), "`nn_width` must be divisible by `heads` = 4; got 30"),
        (lambda: gf.conditioners.resnet(depth=0), "`nn_depth` must be a whole number of at least 1; got 0"),
        (
            lambda: gf.conditioners.shared_trunk(head_width=0),
            "`head_width` must be a whole number of at least 1",
        ),
        (lambda: gf.AffineCoupling(jr.key(0), (2,), log_scale_bound=0.0), "`log_scale_bound` must be pos"),
    ],
)
def test_masks_and_conditioners_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_order_of_patches_goes_row_by_row():
    order = gf.masks.patch_order((4, 6, 2), 2)
    assert order.shape == (4, 6, 2)
    assert all(order[i, j, c] == 3 * (i // 2) + j // 2 for i in range(4) for j in range(6) for c in range(2))
    assert gf.masks.patch_order((2, 4), 2).tolist() == [[0, 0, 1, 1]] * 2


def test_masks_half():
    assert gf.masks.half((5,)).tolist() == [True, True, False, False, False]
    assert gf.masks.half((2, 2)).tolist() == [[True, True], [False, False]]
    with pytest.raises(ValueError, match="`shape` must hold at least two"):
        gf.masks.half((1,))
    with pytest.raises(ValueError, match="`mask` must be a concrete"):
        jax.jit(lambda m: gf.masks.as_mask(m, (4,)))(jnp.ones(4, bool))
