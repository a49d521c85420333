"""ActNorm: an affine map of each coordinate or channel, set once from the data that reaches it."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from gauss_flows.bijection import Bijection
from gauss_flows.moments import mean_and_std
from gauss_flows.validate import Shape, expect_shape


class ActNorm(Bijection):
    r"""Scale and shift each coordinate, :math:`z = e^{s} \odot x + b`; it starts as the identity.

    Use :func:`data_init` to set s and b so that the data that reaches the layer leaves it with mean 0
    and standard deviation 1. Without that the layer only adds two parameters per coordinate. Images share
    the parameters of a channel between pixels, :math:`z_{hwc} = e^{s_c} x_{hwc} + b_c`; then the mean and the
    standard deviation of a channel are those over all pixels of all images.

    Args:
        shape: The event's shape.
        per_channel: One scale and one shift per channel, which is a place in the last axis. Default: one per
            coordinate.

    Raises:
        ValueError: If ``per_channel`` is asked for and the shape has no axis.

    Source:
        Kingma and Dhariwal, "Glow" (NeurIPS 2018), section 3.1.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
        >>> layer = gf.data_init(gf.ActNorm((2,)), x)
        >>> layer.transform(x[0])
        Array([-1., -1.], dtype=float32)
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    log_scale: Float[Array, "*sizes"]  # of the event's shape, or (1, …, 1, C)
    bias: Float[Array, "*sizes"]

    def __init__(self, shape: Shape, *, per_channel: bool = False):
        self.shape, self.cond_shape = expect_shape(shape), None
        if per_channel and not self.shape:
            raise ValueError("`shape` must have at least one axis, the last of which holds channels; got ().")
        sizes = (*[1] * (len(self.shape) - 1), self.shape[-1]) if per_channel else self.shape
        self.log_scale, self.bias = jnp.zeros(sizes), jnp.zeros(sizes)

    def _log_det(self):
        return math.prod(self.shape) // self.log_scale.size * self.log_scale.sum()

    def transform_and_log_det(self, x, condition=None):
        return x * jnp.exp(self.log_scale) + self.bias, self._log_det()

    def inverse_and_log_det(self, y, condition=None):
        return (y - self.bias) * jnp.exp(-self.log_scale), -self._log_det()


ActNorm1D = ActNorm  # the name in the source documents


def standardize(layer: ActNorm, x: Float[Array, "n *shape"], *, forward: bool = True) -> ActNorm:
    """Return the layer set so that what leaves it, in that direction, has mean 0 and standard deviation 1."""
    sizes = layer.log_scale.shape
    if sizes != x.shape[1:]:  # per channel: each pixel is a row
        x = x.reshape(-1, x.shape[-1])
    mean, std, _ = mean_and_std(x)
    log_scale, bias = jnp.log(std), mean
    if forward:
        log_scale = 0 - log_scale  # -0.0 would print its sign
        # The scale's rounding error is multiplied by the offset; where that is large, take the mean of what
        # the rounded scale makes of x, so that the error cancels.
        scaled = x * jnp.exp(log_scale)[None]
        exact = scaled[0] + (scaled - scaled[:1]).mean(axis=0)
        bias = -jnp.where(jnp.abs(mean) > 10 * std, exact, mean / std)
    new = (log_scale.reshape(sizes), bias.reshape(sizes))
    return eqx.tree_at(lambda b: (b.log_scale, b.bias), layer, new)
