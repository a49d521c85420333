"""Networks and flows taken apart."""

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import gauss_flows as gf
from gauss_flows.bijection import partition

KEY = jr.key(0)

LOC = fb.Loc(jnp.zeros(()))  # z = x + its parameter


def fixed(weights):
    """A factory of linear conditioners whose weights are given."""
    return lambda in_size, out_size, *, key: lambda inputs: jnp.asarray(weights, float) @ inputs


def constant(output):
    """A factory of conditioners that always return the same output."""
    return lambda in_size, out_size, *, key: lambda inputs: jnp.asarray(output, float)


def find(tree, *kinds):
    """The nodes of these kinds, in the order in which data meets them."""
    wanted = lambda node: isinstance(node, kinds)
    return [node for node in jax.tree.leaves(tree, is_leaf=wanted) if wanted(node)]


def built(make, *args, **options):
    """What a function makes from a key, without its values: nothing is compiled."""
    return eqx.filter_eval_shape(lambda key: make(key, *args, **options), KEY)


def drawn(make, *args, **options):
    """What a function makes from a key, all of it parameters, with NumPy's numbers: nothing is compiled."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        assert jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(fill, built(make, *args, **options))


def moved(tree, seed, scale=0.3):
    """All trainable parameters moved at random, by NumPy too."""
    params, rest = partition(tree)
    rng = np.random.default_rng(seed)
    move = lambda a: jnp.asarray(np.asarray(a) + scale * rng.normal(size=a.shape), a.dtype)
    return eqx.combine(jax.tree.map(move, params), rest)


def in_precision_of_now(tree):
    """The same numbers in JAX's default precision, which may have changed since they were made."""
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), float) if eqx.is_inexact_array(a) else a, tree)


def hidden_sizes(network):
    """The numbers of units in a network's hidden layers."""
    return [layer.weight.shape[-2] for layer in network.layers[:-1]]


def lipschitz(key, x):
    """One hidden layer under a bound that is too wide to act; LipSwish begins with beta = 1/2."""
    net = gf.LipschitzMLP(key, in_size=3, out_size=2, lipschitz=0.99, nn_width=4, nn_depth=1, cond_dim=1)
    small = eqx.tree_at(lambda n: [w.args[0] for w in n.weights], net, replace_fn=lambda w: 0.1 * w)
    c, (first, second) = jnp.array([0.7]), (w.args[0] for w in small.weights)
    h = first @ x + net.biases[0] + net.cond_weight @ c
    return small(x, c), second @ (h * jax.nn.sigmoid(0.5 * h) / 1.1) + net.biases[1]


class Linear(gf.Bijection):
    """z = A x, plus the condition's sum; errors can be added to its inverse and its log-determinants."""

    matrix: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    inverse_error: float = eqx.field(static=True, default=0.0)
    log_det_error: float = eqx.field(static=True, default=0.0)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True, default=None)

    @property
    def shape(self):
        return (len(self.matrix),)

    def _parts(self, dtype, condition):
        log_det = np.linalg.slogdet(np.array(self.matrix))[1] + self.log_det_error
        return jnp.asarray(log_det, dtype), jnp.zeros(self.shape) if condition is None else condition.sum()

    def transform_and_log_det(self, x, condition=None):
        log_det, shift = self._parts(x.dtype, condition)
        return jnp.asarray(self.matrix, x.dtype) @ x + shift, log_det

    def inverse_and_log_det(self, y, condition=None):
        log_det, shift = self._parts(y.dtype, condition)
        inverse = np.linalg.inv(np.array(self.matrix))
        return jnp.asarray(inverse, y.dtype) @ (y - shift) + self.inverse_error, -log_det


DOUBLE = ((2.0, 0.0), (0.0, 2.0))
