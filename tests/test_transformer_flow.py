"""Tests of ``gauss_flows.transformer_flow``."""

import functools

import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from file_support import blank
from file_support import same as same_of_file
from network_support import KEY, built, find, in_precision_of_now, moved

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def made():
    with jax.enable_x64(True):
        return gf.transformer_flow(KEY, (4, 4, 1), layers=2, nn_width=8, cond_dim=2)


def small():
    """A new flow; in what ``moved`` makes of it no network is zero."""
    return in_precision_of_now(made())


def test_a_new_flow_is_normal_and_the_density_of_samples_is_theirs():
    with jax.enable_x64(True):
        flow = small()
        x, c = jr.normal(jr.key(1), (20, 4, 4, 1)), jr.normal(jr.key(2), (20, 2))
        normal = jax.scipy.stats.norm.logpdf(x).sum((1, 2, 3))
        np.testing.assert_allclose(flow.log_prob(x, c), normal, rtol=1e-12)
        flow = moved(flow, 3, 0.2)
        x, log_prob = flow.sample_and_log_prob(KEY, condition=c)
        np.testing.assert_allclose(flow.log_prob(x, c), log_prob, atol=1e-10)
        assert float(jnp.abs(flow.log_prob(x, 0 * c) - log_prob).max()) > 1e-3


def test_a_flow_has_the_parts_that_it_lists():
    flow = built(gf.transformer_flow, (4, 6))
    (scan,) = find(flow, fb.Scan)
    layer, flip = parts = find(scan, gf.MaskedAutoregressive, fb.Flip)
    assert [type(part).__name__ for part in parts] == ["MaskedAutoregressive", "Flip"]
    assert layer.order.tolist() == gf.masks.patch_order((4, 6), 2).tolist()
    assert (layer.inverse_method, flip.shape) == ("incremental", (4, 6))
    network = layer.conditioner
    assert (network.places.shape, len(network.blocks), network.head.weight.shape) == (
        (4, 6, 48),
        1,
        (4, 8, 48),
    )


def test_the_order_of_patches_is_reversed_in_every_other_layer():
    """After two layers all elements depend on all, but for those of the last patch on each other."""
    flow = moved(small(), 3, 0.2)
    forward = lambda x: flow.bijection.inverse(x.reshape(4, 4, 1), jnp.ones(2)).ravel()
    jacobian = np.asarray(jax.jit(jax.jacfwd(forward))(jr.normal(jr.key(1), (16,))))
    last = gf.masks.patch_order((4, 4), 2).ravel() == 3
    np.testing.assert_array_equal(jacobian != 0, ~np.outer(last, last) | np.eye(16, dtype=bool))


def test_a_flow_and_a_guided_flow_come_back_from_a_file(path):
    flow = moved(small(), 3, 0.2)
    for saved in (flow, gf.guided(flow, 2.0)):
        gf.save(path, saved)
        assert same_of_file(gf.load(path, blank(saved)), saved)
    with pytest.raises(ValueError, match="`like` must have the file's"):
        gf.load(path, flow)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5, 4), {}, "`patch` must divide the image's height and width, 5 × 4; got 2"),
        ((16,), {}, r"`shape` must be \(height, width\) or \(height, width, channels\); got \(16,\)"),
        ((4, 4), {"patch": 4}, "`patch` must leave at least two patches of 4 × 4 pixels; got 4"),
        ((4, 4), {"layers": 0}, "`layers` must be a whole number of at least 1; got 0"),
        ((4, 4), {"nn_width": 6}, "`nn_width` must be divisible by `heads` = 4; got 6"),
        ((4, 4), {"inverse": "newton"}, "`inverse` must be one of"),
    ],
)
def test_arguments_are_checked(shape, options, message):
    with pytest.raises(ValueError, match=message):
        gf.transformer_flow(KEY, shape, **options)
