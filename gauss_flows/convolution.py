"""Convolutional networks: the parameters of each pixel depend on the pixels around it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from gauss_flows.validate import expect_whole


def conv(
    height: int,
    width: int,
    hidden: int = 32,
    *,
    activation: Callable[[Array], Array] = jax.nn.silu,
    cond_dim: int = 0,
    zero_last: bool = False,
) -> Callable[..., "ConvNet"]:
    """A factory of convolutional networks for couplings of channels: see :class:`ConvNet`.

    The vector of inputs is an image of shape (height, width, channels), flat in C order, as the passive part
    of a layer with the mask :func:`gauss_flows.masks.channel` is, and then the condition. The same holds for
    the vector of outputs. With a mask that differs between pixels the inputs would be taken for the wrong
    pixels.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        hidden: Channels of each hidden layer.
        activation: Applied after each hidden layer.
        cond_dim: Size of the condition, which has to be that of the layer.
        zero_last: Start the last layer at zero, so that the coupling starts as the bijector it was given.

    Returns:
        ``(in_size, out_size, *, key) -> ConvNet``. It raises a ``ValueError`` if a size is not a whole number
        of channels.

    Raises:
        ValueError: If a size is below 1, or ``cond_dim`` below 0.

    Example:
        >>> import jax
        >>> network = conv(4, 4)(4 * 4 * 2, 4 * 4 * 6, key=jax.random.key(0))
        >>> network(jax.numpy.zeros(32)).shape
        (96,)
    """
    sizes = {"height": height, "width": width, "hidden": hidden}
    height, width, hidden = (expect_whole(name, size, 1) for name, size in sizes.items())
    cond_dim = expect_whole("cond_dim", cond_dim, 0)

    def factory(in_size: int, out_size: int, *, key: PRNGKeyArray) -> ConvNet:
        pixels = height * width
        channels = _channels("inputs", in_size - cond_dim, pixels), _channels("outputs", out_size, pixels)
        return ConvNet((height, width), channels, hidden, activation, cond_dim, zero_last, key=key)

    return factory


def _channels(name: str, size: int, pixels: int) -> int:
    """The channels of an image that is given flat."""
    if size < 1 or size % pixels:
        raise ValueError(
            f"`conditioner` is a convolution over {pixels} pixels, so the number of its {name}, without the "
            f"condition, must be a positive multiple of {pixels}; got {size}."
        )
    return size // pixels


class ConvNet(eqx.Module):
    r"""A convolution over 3×3 pixels, one over 1×1, and one over 3×3 again.

    .. math:: h_1 = a(K_1 * x + p + V c), \qquad h_2 = a(K_2 h_1 + b_2), \qquad y = K_3 * h_2 + b_3.

    Zeros surround the image. The kernels are the same at every pixel, the bias p is not, so that pixels at
    the border and in the center can differ. The condition c acts on all pixels alike. V, p and all biases
    start at zero, the kernels as normal numbers with variance 1 / (number of inputs).

    Args:
        size: Height and width.
        channels: Channels of x and of y.
        hidden: Channels of :math:`h_1` and :math:`h_2`.
        activation: a.
        cond_dim: Size of c, 0 for none.
        zero_last: Start :math:`K_3` at zero.
        key: Random key.

    Source:
        Kingma and Dhariwal, "Glow" (NeurIPS 2018), section 4, with a bias for each pixel.

    Example:
        >>> import jax
        >>> network = ConvNet((4, 4), (2, 6), key=jax.random.key(0))
        >>> network(jax.numpy.zeros(32)).shape
        (96,)
    """

    enter: Float[Array, "3 3 I W"]
    place: Float[Array, "H W W"]
    condition: Float[Array, "C W"] | None
    mix: Float[Array, "W W"]
    mix_bias: Float[Array, " W"]
    leave: Float[Array, "3 3 W O"]
    leave_bias: Float[Array, " O"]
    activation: Callable

    def __init__(
        self,
        size: tuple[int, int],
        channels: tuple[int, int],
        hidden: int = 32,
        activation: Callable[[Array], Array] = jax.nn.silu,
        cond_dim: int = 0,
        zero_last: bool = False,
        *,
        key: PRNGKeyArray,
    ):
        inputs, outputs = channels
        sizes = 9 * inputs * hidden, hidden * hidden, 9 * hidden * outputs
        # One draw, which compiles in a third of the time of three.
        enter, mix, leave = jnp.split(jr.normal(key, (sum(sizes),)), [sizes[0], sizes[0] + sizes[1]])
        self.enter = enter.reshape(3, 3, inputs, hidden) / (9 * inputs) ** 0.5
        self.place = jnp.zeros((*size, hidden))
        self.condition = jnp.zeros((cond_dim, hidden)) if cond_dim else None
        self.mix = mix.reshape(hidden, hidden) / hidden**0.5
        self.mix_bias = jnp.zeros(hidden)
        leave = jnp.zeros_like(leave) if zero_last else leave / (9 * hidden) ** 0.5
        self.leave = leave.reshape(3, 3, hidden, outputs)
        self.leave_bias = jnp.zeros(outputs)
        self.activation = activation

    def __call__(self, inputs: Float[Array, " in"]) -> Float[Array, " out"]:
        height, width, _ = self.place.shape
        channels = self.enter.shape[2]
        image, condition = jnp.split(inputs, [height * width * channels])
        h = _convolve(self.enter, image.reshape(height, width, channels)) + self.place
        if self.condition is not None:
            h = h + (condition @ self.condition)[None, None, :]
        h = self.activation(self.activation(h) @ self.mix + self.mix_bias[None, None, :])
        return (_convolve(self.leave, h) + self.leave_bias[None, None, :]).ravel()


def _convolve(kernel: Float[Array, "3 3 I O"], image: Float[Array, "H W I"]) -> Float[Array, "H W O"]:
    """Return each pixel's 3×3 neighbors, zero outside the image, times the kernel.

    As a product of matrices, since XLA's own convolution has a slow gradient inside loops on CPUs: the
    gradient of a whole flow of 10 couplings on 8×8 pixels takes 2.5 times as long with it. What is moved nine
    times is the smaller one of inputs and outputs, since that costs more time than the products.
    """
    height, width, inputs = image.shape
    outputs = kernel.shape[3]
    places = [(i, j) for i in range(3) for j in range(3)]

    def moved(array, i, j):
        return array[i : i + height, j : j + width]

    pad = lambda array: jnp.pad(array, ((1, 1), (1, 1), (0, 0)))
    if inputs <= outputs:
        around = jnp.concatenate([moved(pad(image), i, j) for i, j in places], axis=-1)
        return around @ kernel.reshape(-1, outputs)
    terms = pad(image @ kernel.transpose(2, 0, 1, 3).reshape(inputs, -1))
    parts = jnp.split(terms, 9, axis=-1)
    return sum(moved(part, i, j) for part, (i, j) in zip(parts, places, strict=True))
