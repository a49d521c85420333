"""The network of a continuous flow: a velocity that depends on the time, the point and a condition."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gauss_flows import conditioners
from gauss_flows.validate import Shape, expect_shape, expect_whole

FREQUENCIES = 3


def time_features(t: Float[Array, ""]) -> Float[Array, " T"]:
    r"""Return t and the sines and cosines of :math:`\pi k t` for k = 1, 2, 3."""
    angles = jnp.pi * jnp.arange(1, FREQUENCIES + 1, dtype=t.dtype) * t
    return jnp.concatenate([t[None], jnp.sin(angles), jnp.cos(angles)])


class Velocity(eqx.Module):
    r"""A velocity :math:`v_\phi(t, x, c)` computed by a network of the event, the time and a condition.

    The time enters as t, :math:`\sin \pi k t` and :math:`\cos \pi k t` for k = 1, 2, 3.

    Args:
        key: Random key for the network.
        shape: The event's shape.
        conditioner: A factory ``(in_size, out_size, *, key) -> network``, as those of
            ``gf.conditioners``. Default: an MLP with silu.
        cond_dim: Size of an external condition. Default: none.
        nn_width: Hidden units of the default network.
        nn_depth: Its hidden layers.

    Raises:
        ValueError: If an argument does not fit.

    Example:
        >>> import jax.numpy as jnp, jax.random as jr
        >>> velocity = Velocity(jr.key(0), (2,))
        >>> velocity(jnp.array(0.5), jnp.zeros(2), None).shape
        (2,)
    """

    network: PyTree
    shape: Shape = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        shape: Shape,
        *,
        conditioner: conditioners.ConditionerFactory | None = None,
        cond_dim: int | None = None,
        nn_width: int = 64,
        nn_depth: int = 3,
    ):
        self.shape = expect_shape(shape)
        size = math.prod(self.shape)
        if conditioner is None:
            conditioner = conditioners.mlp(nn_width, nn_depth, activation=jax.nn.silu)
        extra = 0 if cond_dim is None else expect_whole("cond_dim", cond_dim, 1)
        self.network = conditioners.make(conditioner, size + 1 + 2 * FREQUENCIES + extra, size, key=key)

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, "*shape"], condition: Float[Array, " C"] | None = None
    ) -> Float[Array, "*shape"]:
        """The velocity at one point."""
        inputs = [x.ravel(), time_features(jnp.asarray(t, x.dtype))]
        if condition is not None:
            inputs.append(condition.astype(x.dtype))
        return self.network(jnp.concatenate(inputs)).reshape(self.shape)
