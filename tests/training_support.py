"""Small models whose training is known in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optax.contrib

import gauss_flows as gf


def small(key=None, **options):
    key = jr.key(0) if key is None else key
    return gf.coupling_flow(key, 2, layers=2, bijector=gf.Affine(), nn_width=8, **options)


def data(n=600):
    return jnp.array([[1.0, -2.0]]) + jnp.array([[2.0, 0.5]]) * jr.normal(jr.key(9), (n, 2))


class Point(eqx.Module):
    """A model of a few numbers, whose path is known in closed form; compiling it costs next to nothing."""

    at: jax.Array
    shape: tuple[int, ...] = eqx.field(static=True, default=(1,))
    cond_shape: None = eqx.field(static=True, default=None)


class HalfLine(Point):
    """An exponential density, whose support is x > 0."""

    def log_prob(self, x, condition=None):
        rate = jnp.exp(self.at)[0]
        return jnp.where(x[..., 0] > 0, jnp.log(rate) - rate * x[..., 0], -jnp.inf)


def height(point, x, condition, key):
    """A loss of gradient 1, so that an update is the learning rate, and a loss says where the model is."""
    return point.at.sum()


def fit_point(point=None, x=None, key=None, **options):
    """Forty steps in chunks of four, by default plain steps of size 1 downhill."""
    defaults = {
        "steps": 40, "batch_size": 2, "progress": False, "optimizer": optax.sgd(1.0), "loss": height
    }  # fmt: skip
    point = Point(jnp.zeros(1)) if point is None else point
    return gf.fit(
        jr.key(0) if key is None else key, point, np.ones((8, 1)) if x is None else x, **defaults | options
    )


def leaves(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def same(a, b):
    return all(bool((x == y).all()) for x, y in zip(leaves(a), leaves(b), strict=True))


def breaks_below(depth, sign=1):
    """A loss that is NaN for batches after ``depth`` steps; ``sign`` is that of the validation loss."""

    def loss(point, x, condition, key):
        value = height(point, x, condition, key)
        return jnp.where(value < 0.5 - depth, jnp.nan, value) if len(x) == 2 else sign * value

    return loss
