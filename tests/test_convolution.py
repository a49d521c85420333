"""Tests of ``gauss_flows.convolution``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import KEY, built, moved

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


def around(image):
    """The 3×3 neighbors of each pixel, zeros outside, pixel by pixel."""
    height, width, channels = image.shape
    found = np.zeros((height, width, 3, 3, channels))
    for i, j, di, dj in np.ndindex(height, width, 3, 3):
        if 0 <= i + di - 1 < height and 0 <= j + dj - 1 < width:
            found[i, j, di, dj] = image[i + di - 1, j + dj - 1]
    return found


def test_a_convolutional_network_computes_what_its_formula_says():
    factory = gf.conditioners.conv(3, 4, 5, activation=jnp.tanh, cond_dim=2)
    net = moved(factory(3 * 4 * 2 + 2, 3 * 4 * 6, key=KEY), 1)
    image, c = np.asarray(jr.normal(jr.key(2), (3, 4, 2))), np.array([0.5, -1.0], np.float32)
    arrays = jax.tree.map(lambda a: np.asarray(a) if eqx.is_array(a) else a, net)
    start = arrays.place + c @ arrays.condition
    h = np.tanh(np.einsum("hwijc,ijco->hwo", around(image), arrays.enter) + start)
    h = np.tanh(h @ arrays.mix + arrays.mix_bias)
    expected = np.einsum("hwijc,ijco->hwo", around(h), arrays.leave) + arrays.leave_bias
    found = eqx.filter_jit(net)(jnp.concatenate([image.ravel(), c]))
    np.testing.assert_allclose(found.reshape(3, 4, 6), expected, rtol=1e-4, atol=1e-5)


def test_a_pixel_depends_on_the_pixels_at_most_two_away():
    net = moved(gf.conditioners.conv(5, 1, 4)(5, 10, key=KEY), 1)
    jacobian = jax.jit(jax.jacfwd(lambda x: net(x)))(jnp.ones(5)).reshape(5, 2, 5)
    near = np.abs(np.subtract.outer(range(5), range(5))) <= 2
    np.testing.assert_array_equal((jacobian != 0).all(axis=1), near)


def test_a_new_network_has_kernels_of_unit_gain_and_zero_biases():
    net = built(lambda key: gf.conditioners.conv(2, 3, cond_dim=4)(16, 12, key=key))
    sizes = [net.enter.shape, net.place.shape, net.condition.shape, net.mix.shape, net.leave.shape]
    assert sizes == [(3, 3, 2, 32), (2, 3, 32), (4, 32), (32, 32), (3, 3, 32, 2)]
    v = jnp.array([-0.5, 1.0])
    np.testing.assert_allclose(net.activation(v), jax.nn.silu(v), rtol=1e-6)
    make = lambda key, **options: gf.conditioners.conv(2, 2, 64, cond_dim=1, **options)(65, 64, key=key)
    net, quiet = jax.jit(lambda key: eqx.filter((make(key), make(key, zero_last=True)), eqx.is_array))(KEY)
    for kernel, fan_in in ((net.enter, 144), (net.mix, 64), (net.leave, 576)):
        np.testing.assert_allclose(kernel.std() * fan_in**0.5, 1, atol=0.05)
    assert not any(a.any() for a in (net.place, net.condition, net.mix_bias, net.leave_bias, quiet.leave))
    np.testing.assert_array_equal(net.enter, quiet.enter)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gf.conditioners.conv(0, 2), "`height` must be a whole number of at least 1; got 0"),
        (lambda: gf.conditioners.conv(2, 2.5), "`width` must be a whole number of at least 1; got 2.5"),
        (lambda: gf.conditioners.conv(2, 2, 0), "`hidden` must be a whole number of at least 1; got 0"),
        (lambda: gf.conditioners.conv(2, 2, cond_dim=-1), "`cond_dim` must be a whole number of at least 0"),
        (lambda: gf.conditioners.conv(2, 2)(9, 8, key=KEY), "number of its inputs.* multiple of 4; got 9"),
        (lambda: gf.conditioners.conv(2, 2)(8, 6, key=KEY), "number of its outputs.* multiple of 4; got 6"),
        (
            lambda: gf.conditioners.conv(2, 2, cond_dim=4)(4, 4, key=KEY),
            "number of its inputs, without the condition, must be a positive multiple of 4; got 0",
        ),
        (  # the layer has a condition of which the network was not told
            lambda: gf.Coupling(
                KEY,
                (2, 2, 2),
                bijector=gf.Affine(),
                mask=gf.masks.channel(2, 2, 2),
                cond_dim=1,
                conditioner=gf.conditioners.conv(2, 2),
            ),
            "multiple of 4; got 5",
        ),
        (
            lambda: gf.conditioners.set_constant(gf.conditioners.conv(2, 2)(4, 4, key=KEY), jnp.ones(4)),
            "`conditioner` must end in a dense layer with a bias; got ConvNet",
        ),
    ],
)
def test_what_is_no_image_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
