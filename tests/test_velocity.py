"""Tests of ``gauss_flows.velocity``."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import built, constant, hidden_sizes

import gauss_flows as gf
from gauss_flows.velocity import Velocity, time_features

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_time_enters_as_itself_and_three_pairs_of_waves():
    t = 0.3
    angles = np.pi * t * np.arange(1, 4)
    expected = [t, *np.sin(angles), *np.cos(angles)]
    np.testing.assert_allclose(time_features(jnp.array(t)), expected, rtol=1e-5)


def test_the_network_takes_event_time_and_condition():
    given = lambda in_size, out_size, *, key: lambda inputs: jnp.resize(inputs, out_size)
    velocity = Velocity(jr.key(0), (2, 6), conditioner=given, cond_dim=3)
    x, c = jnp.arange(12.0).reshape(2, 6), jnp.array([20.0, 21, 22])
    np.testing.assert_array_equal(velocity(jnp.array(0.5), x, c), x)
    sizes = []
    remember = lambda in_size, out_size, *, key: (
        sizes.append((in_size, out_size)) or constant(jnp.zeros(12))(0, 0, key=0)
    )
    Velocity(jr.key(0), (2, 6), conditioner=remember, cond_dim=3)
    assert sizes == [(12 + 7 + 3, 12)]


def test_velocities_have_three_hidden_layers_of_sixty_four():
    velocity = built(Velocity, (2,))
    assert hidden_sizes(velocity.network) == [64, 64, 64]
    assert velocity.network.activation is jax.nn.silu


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cond_dim": 0}, "`cond_dim` must be a whole number of at least 1"),
        ({"nn_width": 0}, "`nn_width` must be a whole number"),
        ({"shape": (0,)}, "`shape` must be a tuple of positive integers"),
        ({"conditioner": gf.conditioners.mlp(4)(9, 2, key=jr.key(0))}, "`conditioner` must be a factory"),
    ],
)
def test_velocity_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Velocity(jr.key(0), **({"shape": (2,)} | options))
