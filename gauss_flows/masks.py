"""The menu of masks, True where a coordinate is passive, and orders of pixels for autoregressive layers."""

import math
from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import Bool, Int, PRNGKeyArray

from gauss_flows.validate import Given, Shape, expect_concrete, expect_key, expect_shape, expect_whole

Mask = Bool[np.ndarray, "*shape"]


def half(shape: Shape) -> Mask:
    """The first half of the event, in C order, is passive (rounded down if it does not divide).

    Args:
        shape: The event's shape, at least two elements in all.

    Returns:
        Boolean array of that shape; True = passive (copied, input of the network), False = active
            (transformed).

    Raises:
        ValueError: If the shape has fewer than two elements.

    Example:
        >>> half((5,)).astype(int)
        array([1, 1, 0, 0, 0])
    """
    shape, size = _sized(shape)
    return (np.arange(size) < size // 2).reshape(shape)


def alternating(shape: Shape) -> Mask:
    """Every other element, in C order, is passive, beginning with the first.

    Args:
        shape: The event's shape, at least two elements in all.

    Returns:
        Boolean array of that shape, True = passive.

    Raises:
        ValueError: If the shape has fewer than two elements.

    Example:
        >>> alternating((5,)).astype(int)
        array([1, 0, 1, 0, 1])
    """
    shape, size = _sized(shape)
    return (np.arange(size) % 2 == 0).reshape(shape)


def random(key: PRNGKeyArray, shape: Shape) -> Mask:
    """Half of the elements, drawn without replacement, are passive (rounded down).

    Args:
        key: Random key.
        shape: The event's shape, at least two elements in all.

    Returns:
        Boolean array of that shape, True = passive.

    Raises:
        ValueError: If the shape has fewer than two elements, or the key is traced: a mask is part of a
            layer's structure, so it must be known when the layer is made.

    Example:
        >>> import jax
        >>> int(random(jax.random.key(0), (4, 2)).sum())
        4
    """
    shape, size = _sized(shape)
    if isinstance(key, jax.core.Tracer):
        raise ValueError("`key` must be a concrete random key, but it is traced.")
    return np.asarray(jax.random.permutation(expect_key(key), size) < size // 2).reshape(shape)


def checkerboard(height: int, width: int, channels: int | None = None) -> Mask:
    """A checkerboard: pixel (i, j) is passive, in all its channels, where i + j is even.

    Args:
        height: Rows.
        width: Columns; at least two pixels in all.
        channels: Channels; None for images of shape (height, width).

    Returns:
        Boolean array of shape (height, width[, channels]), True = passive.

    Raises:
        ValueError: If a size is not a whole number of at least 1, or there is one pixel only.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), section 3.4.

    Example:
        >>> checkerboard(2, 3).astype(int)
        array([[1, 0, 1],
               [0, 1, 0]])
    """
    shape, _ = _image(height, width, channels)
    if height * width < 2:
        raise ValueError(f"`height` × `width` must be at least 2 pixels; got {height} × {width}.")
    board = np.add.outer(np.arange(height), np.arange(width)) % 2 == 0
    return np.broadcast_to(board.reshape(height, width, *[1] * (len(shape) - 2)), shape).copy()


def channel(height: int, width: int, channels: int) -> Mask:
    """The first half of the channels is passive (rounded down), at every pixel.

    Args:
        height: Rows.
        width: Columns.
        channels: Channels, at least 2.

    Returns:
        Boolean array of shape (height, width, channels), True = passive.

    Raises:
        ValueError: If a size is not a whole number of at least 1, or there is one channel only.

    Source:
        Dinh et al., "Density estimation using Real NVP" (ICLR 2017), section 3.4.

    Example:
        >>> channel(1, 1, 3).astype(int).tolist()
        [[[1, 0, 0]]]
    """
    shape, _ = _image(height, width, expect_whole("channels", channels, 2))
    return np.broadcast_to(np.arange(channels) < channels // 2, shape).copy()


def flip(mask: Mask) -> Mask:
    """The same mask with the roles exchanged: what was passive is active.

    Args:
        mask: Boolean array with both values.

    Raises:
        ValueError: If the mask is not boolean, or one side of it is empty.

    Example:
        >>> flip(half((3,))).astype(int)
        array([0, 1, 1])
    """
    return ~as_mask(mask, np.shape(mask))


def interlaced(height: int, width: int) -> Int[np.ndarray, "height width"]:
    """An order for images: a coarse grid of pixels first, then, step by step, the pixels between.

    Pixel (0, 0) has rank 0. Each further step halves the distance of the grid: first come the middles of its
    squares, then the middles of their sides, which lie between four known neighbors. An image of 8 × 8
    pixels has 7 ranks, with 1, 1, 2, 4, 8, 16 and 32 pixels.

    Args:
        height: Rows.
        width: Columns; at least two pixels in all.

    Returns:
        The rank of each pixel, for the ``order`` of :class:`~gauss_flows.MaskedAutoregressive`.

    Raises:
        ValueError: If a size is not a whole number of at least 1, or there is one pixel only.

    Source:
        The interlacing of PNG (Adam7), with squares and their sides in place of halved rows and columns.

    Example:
        >>> interlaced(4, 4)
        array([[0, 4, 2, 4],
               [4, 3, 4, 3],
               [2, 4, 1, 4],
               [4, 3, 4, 3]])
    """
    shape, _ = _image(height, width, None)
    rows, columns = np.indices(shape)
    # The distance of the coarsest grid on which a pixel lies: the largest power of two that divides both.
    both = rows | columns
    grid = both & -both
    coarsest = 1 << (max(shape) - 1).bit_length()
    step = np.log2(coarsest / np.where(grid == 0, coarsest, grid)).astype(int)
    is_side = ((rows | grid) != rows) | ((columns | grid) != columns)
    ranks = np.where(grid == 0, 0, 2 * step + is_side)
    return np.unique(ranks, return_inverse=True)[1].reshape(shape)


def patch_order(shape: Shape, patch: int) -> Int[np.ndarray, "*shape"]:
    """The order of an autoregressive layer over square patches: row by row, each patch one rank.

    Args:
        shape: The image's shape, (height, width) or (height, width, channels).
        patch: Height and width of a patch; a divisor of the image's height and width.

    Returns:
        Integer array of that shape, the rank of each element; at least two ranks.

    Raises:
        ValueError: If the shape is not an image's, or ``patch`` does not divide it into two patches or more.

    Source:
        Zhai et al., "Normalizing flows are capable generative models" (ICML 2025).

    Example:
        >>> patch_order((2, 4), 2)
        array([[0, 0, 1, 1],
               [0, 0, 1, 1]])
    """
    shape = expect_shape(shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"`shape` must be (height, width) or (height, width, channels); got {shape}.")
    (height, width), patch = shape[:2], expect_whole("patch", patch, 1)
    if height % patch or width % patch:
        raise ValueError(
            f"`patch` must divide the image's height and width, {height} × {width}; got {patch}."
        )
    if patch == height == width:
        raise ValueError(
            f"`patch` must leave at least two patches of {height} × {width} pixels; got {patch}."
        )
    rows, columns = np.arange(height) // patch, np.arange(width) // patch
    ranks = rows[:, None] * (width // patch) + columns[None, :]
    return np.broadcast_to(ranks.reshape(height, width, *[1] * (len(shape) - 2)), shape).copy()


def reachability(masks: Iterable[Mask | None]) -> Bool[np.ndarray, "D D"]:
    r"""Return which outputs can depend on which inputs after a stack of layers, from their masks alone.

    In a coupling layer an active element depends on every passive one and on itself, and a passive one
    itself: a boolean matrix. A stack is the boolean product of its layers' matrices,

    .. math:: R = R_L \lor\!\cdot\!\land \cdots \lor\!\cdot\!\land R_1, \qquad
              (R_k)_{ij} = [i = j] \lor (\lnot m_i \land m_j).

    Args:
        masks: One mask per layer, from data to latent, all of one shape; None for a layer that mixes all
            elements, such as a rotation (at least one entry must be a mask).

    Returns:
        Boolean array of shape (D, D), D the number of elements in C order; entry [i, j] is True if
        output i can depend on input j.

    Raises:
        ValueError: If there is no mask, or their shapes differ.

    Example:
        >>> import gauss_flows as gf
        >>> once = gf.masks.half((4,))
        >>> gf.reachability([once, gf.masks.flip(once)]).astype(int)
        array([[1, 1, 1, 1],
               [1, 1, 1, 1],
               [1, 1, 1, 0],
               [1, 1, 0, 1]])
    """
    layers = list(masks)
    shapes = {np.shape(mask) for mask in layers if mask is not None}
    if len(shapes) != 1:
        raise ValueError(f"`masks` must hold at least one mask, and all of one shape; got {sorted(shapes)}.")
    (shape,) = shapes
    size = math.prod(shape)
    reach = np.eye(size, dtype=bool)
    for mask in layers:
        if mask is None:
            layer = np.ones((size, size), dtype=bool)
        else:
            passive = as_mask(mask, shape).ravel()
            layer = np.eye(size, dtype=bool) | (~passive[:, None] & passive[None, :])
        reach = (layer.astype(int) @ reach.astype(int)) > 0
    return reach


def as_mask(mask: Given, shape: Shape) -> Mask:
    """The mask as a NumPy array, or the default for None; checked against the event's shape.

    Raises:
        ValueError: If the mask is not boolean, has another shape, or leaves either side empty.
    """
    if mask is None:
        return half(shape)
    array = expect_concrete("mask", mask)
    if array.dtype != bool:
        raise ValueError(f"`mask` must be a boolean array, True = passive; got dtype {array.dtype}.")
    if array.shape != shape:
        raise ValueError(f"`mask` must have shape {shape}, the event's shape; got {array.shape}.")
    if array.all():
        raise ValueError("`mask` must have at least one active coordinate (False); every entry is True.")
    if not bool(array.any()):
        raise ValueError("`mask` must have at least one passive coordinate (True); every entry is False.")
    return array


def _sized(shape):
    shape = expect_shape(shape)
    size = math.prod(shape)
    if size < 2:
        raise ValueError(f"`shape` must hold at least two elements, one passive and one active; got {shape}.")
    return shape, size


def _image(height, width, channels):
    sizes = {"height": height, "width": width} | ({} if channels is None else {"channels": channels})
    return _sized(tuple(expect_whole(name, value, 1) for name, value in sizes.items()))
