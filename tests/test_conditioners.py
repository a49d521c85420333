"""Tests of ``gauss_flows.conditioners``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import KEY, built, hidden_sizes, lipschitz

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)], indirect=True
)
@pytest.mark.parametrize("name", ["mlp", "resnet", "shared_trunk", "attention"])
def test_conditioners_fit_any_coupling(name, dtype):
    """Each makes a bijection that listens to its input; a zeroed last layer leaves the given bijector."""
    factory = getattr(gf.conditioners, name)
    given = gf.Affine(0.5, 2.0)  # well-conditioned for any output of a network
    x, c = jr.normal(jr.key(1), (8, 5)), jr.normal(jr.key(2), (8, 2))
    options = {"shape": (5,), "bijector": given, "cond_dim": 2}
    layer = gf.Coupling(jr.key(0), conditioner=factory(16), **options)
    assert gf.check_bijection(layer, x, c).ok
    theta = jax.jit(jax.vmap(layer.theta))(x[:, :2], c)
    assert (theta.std(axis=0) > 1e-3).all()
    zero = gf.Coupling(jr.key(0), conditioner=factory(16, zero_last=True), **options)
    z = jax.jit(jax.vmap(zero.transform))(x, c)
    expected = jax.vmap(jax.vmap(given.transform))(x[:, 2:])
    np.testing.assert_allclose(z[:, 2:], expected, atol=1e-5 if dtype == "float32" else 1e-13)


def test_conditioners_are_what_their_formulas_say():
    """A gated block that says nothing lets through; a token knows its place."""
    net = gf.conditioners.resnet(8, 2)(3, 4, key=jr.key(0))
    quiet = eqx.tree_at(lambda n: [outer for _, outer in n.blocks], net, replace_fn=gf.conditioners._zeros)
    x = jr.normal(jr.key(1), (3,))
    np.testing.assert_allclose(quiet(x), net.last(jax.nn.relu(net.first(x))), rtol=1e-6)
    assert float(jnp.abs(net(x) - quiet(x)).max()) > 1e-3
    look = gf.conditioners.attention(8)(3, 4, key=jr.key(0))
    assert float(jnp.abs(look(x) - look(x[::-1])).max()) > 1e-3


def test_a_masked_network_is_no_conditioner_of_a_coupling():
    with pytest.raises(ValueError, match="`conditioner` must not be `made"):
        gf.AffineCoupling(jr.key(0), (4,), conditioner=gf.conditioners.made(8, 1))


def resnet(key, x):
    net = gf.conditioners.resnet(5, 2, activation=jnp.tanh)(3, 4, key=key)
    h = net.first(x)
    for inner, outer in net.blocks:
        change, gate = jnp.split(outer(jnp.tanh(inner(jnp.tanh(h)))), 2)
        h = h + change * jax.nn.sigmoid(gate)
    return net(x), net.last(jnp.tanh(h))


def shared_trunk(key, x):
    net = gf.conditioners.shared_trunk(5, 2, 3)(3, 4, key=key)
    (trunk, head), h = net.layers, x
    for layer in trunk.layers:  # after the narrow one too
        h = jax.nn.relu(layer(h))
    return net(x), head(h)


def attention(key, x):
    net = gf.conditioners.attention(4, 2, heads=2)(3, 5, key=key)
    tokens = x[:, None] * net.scale[None, :] + net.places
    for before, look, after, think in net.blocks:
        normal = jax.vmap(before)(tokens)
        tokens = tokens + look(normal, normal, normal)
        first, second = think.layers
        wide = jax.nn.gelu(jax.vmap(first)(jax.vmap(after)(tokens)))
        tokens = tokens + jax.vmap(second)(wide)
    return net(x), net.last(net.norm(tokens.mean(axis=0)))


def masked(key, x):
    degrees = ((0, 1, 2), (0, 1, 1, 0), (-1, 0, 1))
    net = gf.conditioners.MaskedMLP(degrees, activation=jnp.tanh, key=key)
    may_see = [[[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]], [[0] * 4, [1, 0, 0, 1], [1] * 4]]
    first, second = net.layers
    h = jnp.tanh((first.weight * np.array(may_see[0], np.float32)) @ x + first.bias)
    return net(x), (second.weight * np.array(may_see[1], np.float32)) @ h + second.bias


@pytest.mark.parametrize("both", [resnet, shared_trunk, attention, masked, lipschitz])
def test_networks_compute_what_their_formulas_say(both):
    """The network, and the same written out."""
    found, expected = jax.jit(both)(KEY, np.array([0.5, -1.5, 1.0], np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_networks_have_the_sizes_and_activations_of_their_defaults():
    make = lambda factory: built(lambda key: factory(3, 6, key=key))
    mlp, resnet = make(gf.conditioners.mlp()), make(gf.conditioners.resnet())
    trunk, head = make(gf.conditioners.shared_trunk()).layers
    attention = make(gf.conditioners.attention())
    made = built(lambda key: gf.conditioners.made()((0, 1), (-1, 0), key=key))
    ((_, look, _, think),) = attention.blocks
    assert hidden_sizes(mlp) == hidden_sizes(made) == hidden_sizes(trunk) == [64, 64]
    assert (len(resnet.blocks), resnet.first.out_features) == (2, 64)
    assert (head.in_features, head.out_features) == (8, 6)
    assert (attention.scale.size, look.num_heads, look.query_size) == (32, 4, 32)
    v = jnp.array([-0.5, 1.0])
    for network in (mlp, resnet, trunk, made):
        np.testing.assert_array_equal(network.activation(v), jax.nn.relu(v))
    np.testing.assert_allclose(think.activation(v), jax.nn.gelu(v), rtol=1e-6)
