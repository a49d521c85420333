"""Images on several scales: squeeze pixels into channels, and factor out half of the channels."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import AbstractBijection, Chain, Invert
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from paramax import unwrap

from gauss_flows import conditioners, masks
from gauss_flows.actnorm import ActNorm
from gauss_flows.bijection import Bijection, Scan, stack, standard_normal
from gauss_flows.bijectors import exp_affine
from gauss_flows.compiling import jit_once
from gauss_flows.coupling import Coupling
from gauss_flows.layer_walk import Rows
from gauss_flows.linear import Conv1x1
from gauss_flows.parametrize import Parametrized, limited, soft_clip
from gauss_flows.transformed import Transformed
from gauss_flows.validate import Given, Shape, expect_key, expect_shape, expect_whole

Image = TypeVar("Image", np.ndarray, Array)
ChannelMixing = Literal["conv1x1", "permutation"]


def squeeze(x: Image) -> Image:
    r"""Return an image with each 2×2 block of pixels as the channels of one pixel (space to depth).

    .. math:: y_{h,\, w,\, (2i + j)\, C + c} = x_{2h + i,\, 2w + j,\, c}.

    Args:
        x: A NumPy or JAX array of shape (H, W, C), also a mask.

    Returns:
        An array of shape (H/2, W/2, 4C).

    Raises:
        ValueError: If x has not three axes, or if H or W is odd.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), section 3.6.

    Example:
        >>> import jax.numpy as jnp
        >>> squeeze(jnp.arange(8).reshape(2, 4, 1)).tolist()
        [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    shape = np.shape(x)
    if len(shape) != 3 or shape[0] % 2 or shape[1] % 2:
        raise ValueError(f"`x` must have shape (H, W, C) with H and W even; got {shape}.")
    height, width, channels = shape
    blocks = x.reshape(height // 2, 2, width // 2, 2, channels).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(height // 2, width // 2, 4 * channels)


def unsqueeze(y: Image) -> Image:
    """Return the image of which :func:`squeeze` makes y.

    Args:
        y: A NumPy or JAX array of shape (H, W, 4C).

    Returns:
        An array of shape (2H, 2W, C).

    Raises:
        ValueError: If y has not three axes, or if 4 does not divide its channels.

    Example:
        >>> import jax.numpy as jnp
        >>> unsqueeze(jnp.arange(4).reshape(1, 1, 4))[:, :, 0].tolist()
        [[0, 1], [2, 3]]
    """
    shape = np.shape(y)
    if len(shape) != 3 or shape[2] % 4:
        raise ValueError(f"`y` must have shape (H, W, 4C), its channels in fours; got {shape}.")
    height, width, channels = shape
    blocks = y.reshape(height, width, 2, 2, channels // 4).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(2 * height, 2 * width, channels // 4)


class Squeeze(Bijection):
    r"""Let a bijection act on the squeezed image, whose pixels are the 2×2 blocks of the event.

    .. math:: z = S^{-1}\big(f(S(x))\big),

    where S, :func:`~gauss_flows.image.squeeze`, turns shape (H, W, C) into (H/2, W/2, 4C). It only permutes
    the elements, so the log-determinant is that of f. The event keeps its shape, and the event of f has four
    times as many channels, half of which a coupling can transform.

    Args:
        bijection: f, any bijection of shape (H/2, W/2, 4C).

    Raises:
        ValueError: If ``bijection`` is no bijection of three axes with channels in fours.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), section 3.6.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> gf.Squeeze(gf.Conv1x1(jr.key(0), (4, 4, 4))).shape
        (8, 8, 1)
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: Shape | None = eqx.field(static=True)
    bijection: AbstractBijection

    def __init__(self, bijection: AbstractBijection):
        height, width, channels = _image_shape(bijection)
        if channels % 4:
            raise ValueError(
                f"`bijection` must act on 4C channels, four for each channel of the image; it acts on "
                f"{channels}."
            )
        self.shape, self.cond_shape = (2 * height, 2 * width, channels // 4), bijection.cond_shape
        self.bijection = bijection

    def transform_and_log_det(self, x, condition=None):
        y, log_det = self.bijection.transform_and_log_det(squeeze(x), condition)
        return unsqueeze(y), log_det

    def inverse_and_log_det(self, y, condition=None):
        x, log_det = self.bijection.inverse_and_log_det(squeeze(y), condition)
        return unsqueeze(x), log_det

    def walk_inside(self, rows: Rows, forward: bool, go) -> tuple["Squeeze", Rows]:
        """Set the layers inside from data; see :func:`~gauss_flows.layer_walk.walk`."""
        bijection, rows = go(self.bijection, rows._replace(x=jax.vmap(squeeze)(rows.x)), forward)
        new = eqx.tree_at(lambda b: b.bijection, self, bijection)
        return new, rows._replace(x=jax.vmap(unsqueeze)(rows.x))


class Split(Bijection):
    r"""Model half of the channels as a Gaussian that depends on the other half, and transform the other half.

    .. math:: z_A = f(x_A), \qquad z_B = \frac{x_B - m(x_A)}{e^{s(x_A)}}, \qquad
              \log|\det J| = \log|\det J_f| - \sum_i s_i(x_A),

    where A is the first half of the channels and B the second, and a network computes m and r from x_A
    before f acts; :math:`s = 2 \tanh(r / 2)`. The Jacobian is block triangular. f is the rest of the flow on
    half of the numbers, so a flow on several scales costs little more than its first one.

    Args:
        key: Random key for the network.
        bijection: f, any bijection of shape (H, W, C/2); the event has shape (H, W, C).
        conditioner: Factory ``(in_size, out_size, *, key) -> callable``; the callable maps :math:`x_A` (then
            the condition), flat, to m and r, (H, W, C/2, 2) in C order. Default:
            :func:`~gauss_flows.conditioners.conv` with its last layer at zero, so that at first
            :math:`z_B = x_B`.
        cond_dim: Size of an external condition, on which m and s depend, and f if it takes one. Default: the
            size of the condition of f.

    Raises:
        ValueError: If an argument does not fit; the message says which and how.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), section 3.6, with the learned Gaussian
        of Kingma and Dhariwal, "Glow" (NeurIPS 2018).

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> rest = gf.Squeeze(gf.Conv1x1(jr.key(0), (2, 2, 8)))
        >>> gf.Split(jr.key(1), rest).shape
        (4, 4, 4)
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: Shape | None = eqx.field(static=True)
    bijection: AbstractBijection
    conditioner: Callable[[Array], Array]

    def __init__(
        self,
        key: PRNGKeyArray,
        bijection: AbstractBijection,
        *,
        conditioner: conditioners.ConditionerFactory | None = None,
        cond_dim: int | None = None,
    ):
        height, width, channels = inner = _image_shape(bijection)
        self.shape, self.bijection = (height, width, 2 * channels), bijection
        self.cond_shape = _cond_shape(bijection, cond_dim)
        n_conditions = self.cond_shape[0] if self.cond_shape else 0
        if conditioner is None:
            conditioner = conditioners.conv(height, width, cond_dim=n_conditions, zero_last=True)
        size = int(np.prod(inner))
        self.conditioner = conditioners.make(conditioner, size + n_conditions, 2 * size, key=key)

    def mean_and_log_std(
        self, kept: Float[Array, "H W A"], condition: Float[Array, " C"] | None = None
    ) -> tuple[Float[Array, "H W A"], Float[Array, "H W A"]]:
        """Return m and s, the Gaussian of the second half of the channels, given the first half.

        Args:
            kept: The first half of the channels, :math:`x_A`.
            condition: The external condition, where the layer has one.
        """
        inputs = kept.ravel() if condition is None else jnp.concatenate([kept.ravel(), condition])
        mean, raw = jnp.moveaxis(self.conditioner(inputs).reshape(*kept.shape, 2), -1, 0)
        return mean, soft_clip(raw, 2.0)

    def transform_and_log_det(self, x, condition=None):
        kept, leaving = jnp.split(x, 2, axis=-1)
        mean, log_std = self.mean_and_log_std(kept, condition)
        kept, log_det = self.bijection.transform_and_log_det(kept, condition)
        leaving = (leaving - mean) * jnp.exp(-log_std)
        return jnp.concatenate([kept, leaving], axis=-1), log_det - log_std.sum()

    def inverse_and_log_det(self, y, condition=None):
        kept, leaving = jnp.split(y, 2, axis=-1)
        kept, log_det = self.bijection.inverse_and_log_det(kept, condition)
        mean, log_std = self.mean_and_log_std(kept, condition)
        leaving = leaving * jnp.exp(log_std) + mean
        return jnp.concatenate([kept, leaving], axis=-1), log_det + log_std.sum()

    def walk_inside(self, rows: Rows, forward: bool, go) -> tuple["Split", Rows]:
        """Set the layers inside from data; see :func:`~gauss_flows.layer_walk.walk`."""
        kept, leaving = jnp.split(rows.x, 2, axis=-1)
        bijection, inside = go(self.bijection, rows._replace(x=kept), forward)
        condition = None if self.cond_shape is None else rows.condition
        gaussian = jax.vmap(unwrap(self).mean_and_log_std, (0, None if condition is None else 0))
        mean, log_std = gaussian(kept if forward else inside.x, condition)
        leaving = (leaving - mean) * jnp.exp(-log_std) if forward else leaving * jnp.exp(log_std) + mean
        new = eqx.tree_at(lambda b: b.bijection, self, bijection)
        return new, inside.moved_to(jnp.concatenate([inside.x, leaving], axis=-1))


def _image_shape(bijection: Given) -> Shape:
    if not isinstance(bijection, AbstractBijection):
        raise ValueError(f"`bijection` must be a flowjax bijection; got {type(bijection).__name__}.")
    if len(bijection.shape) != 3:
        raise ValueError(f"`bijection` must act on images (H, W, C); its shape is {bijection.shape}.")
    return bijection.shape


def _cond_shape(bijection: AbstractBijection, cond_dim: int | None) -> Shape | None:
    """The shape of the condition that a network and a bijection share."""
    given = None if cond_dim is None else (expect_whole("cond_dim", cond_dim, 1),)
    own = bijection.cond_shape
    if own is None:
        return given
    if len(own) != 1 or given not in (None, own):
        wanted = "(cond_dim,)" if given is None else str(given)
        raise ValueError(f"`bijection` must have a condition of shape {wanted}, or none; it has {own}.")
    return own


class _Shuffle(Bijection):
    """A fixed order of the channels at every pixel, drawn from a key."""

    shape: Shape = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    permutation: Int[Array, " C"]

    def __init__(self, key: PRNGKeyArray, shape: Shape):
        self.shape, self.cond_shape = shape, None
        self.permutation = jr.permutation(key, shape[-1])

    def transform_and_log_det(self, x, condition=None):
        return x[..., self.permutation], jnp.zeros((), x.dtype)

    def inverse_and_log_det(self, y, condition=None):
        return y[..., jnp.argsort(self.permutation)], jnp.zeros((), y.dtype)


def image_flow(
    key: PRNGKeyArray,
    shape: Shape,
    *,
    steps: Sequence[int] = (6, 4),
    bijector: AbstractBijection | Parametrized | None = None,
    conditioner: conditioners.ConditionerFactory | None = None,
    mixing: ChannelMixing = "conv1x1",
    actnorm: bool = True,
    nn_width: int = 32,
    cond_dim: int | None = None,
) -> Transformed:
    r"""A flow of convolutional couplings on several scales, over a standard normal base.

    Each level is :class:`~gauss_flows.Squeeze`, then its steps, then :class:`~gauss_flows.Split`, after which
    the next level acts on half of the channels; the last level has no split. A step is
    :class:`~gauss_flows.ActNorm` per channel, the mixing of the channels, and a
    :class:`~gauss_flows.Coupling` whose first half of the channels is passive. The steps of a level are
    stacked in a :class:`~gauss_flows.Scan`, so compilation does not grow with their number.

    Args:
        key: Random key.
        shape: (H, W, C), with H and W divisible by 2 to the power of the number of levels.
        steps: The number of steps of each level, the finest first.
        bijector: Any unconditional scalar bijection. Default: ``bijectors.exp_affine(2.0)``. Its parameters
            are limited as those of :func:`~gauss_flows.coupling_flow`.
        conditioner: Factory of the networks of couplings and splits, as for :class:`~gauss_flows.Coupling`.
            Default: :func:`~gauss_flows.conditioners.conv` with its last layer at zero, so that each coupling
            starts as ``bijector``.
        mixing: "conv1x1" (a trained :class:`~gauss_flows.Conv1x1`) or "permutation" (a random order of the
            channels, which stays fixed).
        actnorm: Put an :class:`~gauss_flows.ActNorm` first in each step; see :func:`~gauss_flows.data_init`.
        nn_width: Channels of the default conditioner's hidden layers.
        cond_dim: Size of an external condition. Default: none.

    Returns:
        A flowjax ``Transformed``; data to latent is ``flow.bijection.inverse``.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Kingma and Dhariwal, "Glow" (NeurIPS 2018), section 3.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> flow = gf.image_flow(jr.key(0), (4, 4, 1), steps=(2, 1), nn_width=8)
        >>> flow.log_prob(jnp.zeros((3, 4, 4, 1))).shape
        (3,)
    """
    expect_key(key)
    shape, steps = _expect_levels(shape, steps)
    nn_width = expect_whole("nn_width", nn_width, 1)
    cond_dim = None if cond_dim is None else expect_whole("cond_dim", cond_dim, 1)
    if mixing not in get_args(ChannelMixing):
        raise ValueError(f"`mixing` must be one of {get_args(ChannelMixing)}; got {mixing!r}.")
    bijector = limited(exp_affine(2.0) if bijector is None else bijector, sum(steps))
    network = {"conditioner": conditioner, "nn_width": nn_width, "cond_dim": cond_dim}
    options = {"bijector": bijector, "mixing": mixing, "actnorm": actnorm}
    levels = eqx.Partial(_levels, shape=shape, steps=steps, **network, **options)
    return Transformed(standard_normal(shape), Invert(_made(key, levels)))


def _expect_levels(shape: Given, steps: Given) -> tuple[Shape, tuple[int, ...]]:
    shape = expect_shape(shape)
    if len(shape) != 3:
        raise ValueError(f"`shape` must be that of an image, (H, W, C); got {shape}.")
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not len(steps):
        raise ValueError(f"`steps` must have one whole number for each level, such as (6, 4); got {steps!r}.")
    counts = tuple(expect_whole("steps", count, 1) for count in steps)
    divisor = 2 ** len(counts)
    if shape[0] % divisor or shape[1] % divisor:
        raise ValueError(
            f"`shape` must have a height and a width divisible by {divisor}, because each of {len(counts)} "
            f"levels halves them; got {shape}."
        )
    return shape, counts


@jit_once  # one program in place of one for each array of each level
def _made(key: PRNGKeyArray, make: PyTree) -> PyTree:
    return make(key)


def _levels(key, *, shape, steps, conditioner, nn_width, cond_dim, **options):
    """This level and all coarser ones, as one bijection."""
    height, width, channels = inside = shape[0] // 2, shape[1] // 2, 4 * shape[2]
    network = conditioner
    if network is None:
        network = conditioners.conv(height, width, nn_width, cond_dim=cond_dim or 0, zero_last=True)
    step_key, split_key, key = jr.split(key, 3)
    step = eqx.Partial(_step, shape=inside, conditioner=network, cond_dim=cond_dim, **options)
    here = Scan(stack(step_key, steps[0], step))
    if len(steps) == 1:
        return Squeeze(here)
    half = {"shape": (height, width, channels // 2), "steps": steps[1:]}
    rest = _levels(key, **half, conditioner=conditioner, nn_width=nn_width, cond_dim=cond_dim, **options)
    return Squeeze(Chain([here, Split(split_key, rest, conditioner=network, cond_dim=cond_dim)]))


def _step(key, *, shape, bijector, mixing, actnorm, **options):
    mix_key, key = jr.split(key)
    mix = Conv1x1 if mixing == "conv1x1" else _Shuffle
    coupling = Coupling(key, shape, bijector=bijector, mask=masks.channel(*shape), **options)
    first = [ActNorm(shape, per_channel=True)] if actnorm else []
    return Chain([*first, mix(mix_key, shape), coupling])
