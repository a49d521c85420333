"""Lossless compression of images by a model whose probabilities are exact."""

import hashlib
import json
import math
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from gauss_flows.compiling import compiled
from gauss_flows.discrete import DiscreteAutoregressive
from gauss_flows.structure import Description
from gauss_flows.validate import Given

_MAGIC, _VERSION = b"gfi", 1

_HEADER = struct.Struct(">3sB8sIB")  # magic, version, digest of model, number of images, bytes of the state

_CHECKSUM = struct.Struct(">I")

OVERHEAD = _HEADER.size + 2 * _CHECKSUM.size + 1  # bytes besides the images' bits; the last one for rounding

_BATCH = 64  # images that are predicted at once


def compress(model: DiscreteAutoregressive, images: Given, condition: Given = None) -> bytes:
    r"""Write images of whole numbers into as many bits as the model promises, without loss.

    The pixels of a rank are predicted from those of smaller rank, and an asymmetric numeral system turns each
    level of probability P into :math:`-\log_2 P` bits. Together these are the model's log-likelihood, up to
    ``gauss_flows.codec.OVERHEAD`` bytes and the rounding of probabilities to 20 bits. The model itself is not
    part of the file: to read it, the same model is needed.

    Coding needs the probability of each level given the pixels before, exactly as the reader will compute it.
    Both therefore run one program, in double precision, on batches of one size, and round the CDF.

    Args:
        model: A :class:`~gauss_flows.DiscreteAutoregressive` model.
        images: Whole numbers from 0 to levels - 1, shape (n, \*shape) with n ≥ 1.
        condition: One row per image, for conditional models; :func:`decompress` needs the same rows.

    Raises:
        ValueError: If an argument does not fit, or the model has no exact probabilities.

    Source:
        Duda, "Asymmetric numeral systems" (2013), the range variant.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> layer = gf.MaskedAutoregressive(jr.key(0), (2, 2), bijector=gf.Affine(), nn_width=4)
        >>> model = gf.DiscreteAutoregressive(layer, levels=4)
        >>> images = model.sample(jr.key(1), 50)
        >>> bool((gf.decompress(model, gf.compress(model, images)) == images).all())
        True
    """
    model = _expect_exact(model)
    k = model.images(images)
    condition = _conditions(model, condition, len(k))
    flat = k.reshape(len(k), -1)
    starts: list[int] = []
    ends: list[int] = []
    for step in _steps(model, len(k), condition):
        levels = flat[step.rows][:, step.places]
        for column, which in ((starts, levels), (ends, levels + 1)):
            column += np.take_along_axis(step.cdf, which[..., None], axis=2).ravel().tolist()
        step.known[:, step.places] = levels
    # The reader ends where the writer begins: with the checksum of the images.
    coder = _Coder(_first_state(k), [])
    for start, end in zip(reversed(starts), reversed(ends), strict=True):
        coder.push(start, end)
    state = coder.state.to_bytes(math.ceil(coder.state.bit_length() / 8))
    body = _HEADER.pack(_MAGIC, _VERSION, _digest(model, condition), len(k), len(state))
    body += state + np.array(coder.words, ">u4").tobytes()
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decompress(
    model: DiscreteAutoregressive, data: bytes, condition: Given = None
) -> UInt8[np.ndarray, "n *shape"]:
    """Read the images that :func:`compress` wrote.

    Args:
        model: The model that they were written with.
        data: What :func:`compress` returned.
        condition: The rows that they were written with, for conditional models.

    Returns:
        The images, bit for bit.

    Raises:
        ValueError: If the data are damaged or were not written by :func:`compress`, or with another model or
            other conditions. Also if the probabilities that are computed here are not those of the writer to
            20 bits, as another processor may cause in rare cases; then nothing is returned.
    """
    model = _expect_exact(model)
    body, n, size = _open(data)
    condition = _conditions(model, condition, n)
    if _HEADER.unpack_from(body)[2] != _digest(model, condition):
        raise ValueError(
            "`model` must be the model that the images were written with, with the same conditions; its "
            "parameters or settings differ, or it was made by another version of the package."
        )
    state, words = body[_HEADER.size :][:size], body[_HEADER.size + size :]
    coder = _Coder(int.from_bytes(state), np.frombuffer(words, ">u4").tolist())
    images = np.zeros((n, math.prod(model.shape)), np.uint8)
    for step in _steps(model, n, condition):
        levels = [[coder.pop(cdf) for cdf in row] for row in step.cdf.tolist()]
        step.known[:, step.places] = levels
        images[step.rows, step.places] = levels
    images = images.reshape(n, *model.shape)
    if coder.words or coder.state != _first_state(images):
        raise ValueError(
            "`data` cannot be decoded here, although they are whole and of this model: the probabilities "
            "that were computed differ, in their last bits, from those of the writer. Read them on a "
            "processor of the same kind, with the same versions of JAX and of this package."
        )
    return images


class _Coder:
    """An asymmetric numeral system: a whole number that grows by the information of each symbol.

    A symbol is a part [start, end) of the numbers below M = 2^20, of probability (end - start) / M. What is
    pushed last is popped first. Where the state would grow beyond 68 bits, its lower 32 move to a list, so
    that the arithmetic stays short and its rounding below 2^-16 of a symbol.
    """

    BITS, LEAST, WORD = 20, 36, 32

    def __init__(self, state: int, words: list[int]):
        self.state, self.words = state, words

    def push(self, start: int, end: int) -> None:
        """Add a symbol."""
        length = end - start
        if self.state >= length << (self.LEAST + self.WORD - self.BITS):
            self.words.append(self.state & (1 << self.WORD) - 1)
            self.state >>= self.WORD
        self.state = (self.state // length << self.BITS) + self.state % length + start

    def pop(self, cdf: list[int]) -> int:
        """Remove a symbol, and return which of the parts between the numbers of ``cdf`` it is."""
        rest = self.state & (1 << self.BITS) - 1
        symbol = bisect_right(cdf, rest) - 1
        start, end = cdf[symbol], cdf[symbol + 1]
        self.state = (end - start) * (self.state >> self.BITS) + rest - start
        if self.state < 1 << self.LEAST and self.words:
            self.state = self.state << self.WORD | self.words.pop()
        return symbol


class _Step(NamedTuple):
    """The pixels of one rank in one batch of images, before their levels are known."""

    rows: slice  # which images
    places: Int[np.ndarray, " m"]  # which pixels
    known: Int[np.ndarray, "b D"]  # the levels of these images, to be filled in before the next step
    cdf: Int[np.ndarray, "b m L+1"]  # the parts of all levels


def _steps(model: DiscreteAutoregressive, n: int, condition: Float[Array, "n C"] | None) -> Iterator[_Step]:
    """The steps in which both the writer and the reader go through n images."""
    with jax.enable_x64(True):
        # In double precision, rounding reaches the twentieth bit in about one of 10^9 numbers.
        double = lambda a: jnp.asarray(np.asarray(a), float) if eqx.is_inexact_array(a) else a
        model = jax.tree.map(double, model)
    size = math.prod(model.shape)
    for first in range(0, n, _BATCH):
        count = min(_BATCH, n - first)
        rows, known = slice(first, first + count), np.zeros((_BATCH, size), np.int32)
        given = None
        if condition is not None:
            given = np.zeros((_BATCH, *condition.shape[1:]))
            given[:count] = condition[rows]
        for places in model.steps:
            with jax.enable_x64(True):
                arrays = [None if a is None else jnp.asarray(a) for a in (known, places, given)]
                cdf = np.asarray(compiled(_rounded_cdf, model, *arrays))
            if not (np.diff(cdf, axis=2) > 0).all():
                raise ValueError(
                    "`model` must give each level a positive probability; its parameters are NaN."
                )
            real = places < size
            yield _Step(rows, places[real], known[:count], cdf[:count, real])


def _rounded_cdf(model, known, places, condition):
    axes = (0, None, None if condition is None else 0)
    of_image = lambda k, places, condition: model.cdf(k.reshape(model.shape), places, condition)
    cdf = jax.vmap(of_image, axes)(known, places, condition)
    return jnp.round(cdf * 2**_Coder.BITS).astype(jnp.int32)


def _expect_exact(model: Given) -> DiscreteAutoregressive:
    if not isinstance(model, DiscreteAutoregressive):
        raise ValueError(
            "`model` must be a gf.DiscreteAutoregressive, which gives the probability of each level from the "
            "pixels before it; a dequantized flow gives no more than a bound on the probability of a whole "
            f"image, with which no file can be written. Got {type(model).__name__}."
        )
    model.expect_single()
    _expect_not_traced("model", model)
    return model


def _conditions(model: DiscreteAutoregressive, condition: Given, n: int) -> Float[Array, "n C"] | None:
    condition = model.conditions(condition, n)
    _expect_not_traced("condition", condition)
    return condition


def _expect_not_traced(name: str, value: PyTree) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            f"`{name}` must be concrete, since a file holds numbers; inside jax.jit it is traced."
        )


def _open(data: Given) -> tuple[bytes, int, int]:
    """The file without its checksum, the number of images, and the number of bytes of the coder's state."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"`data` must be bytes that gf.compress returned; got {type(data).__name__}.")
    data = bytes(data)
    if len(data) < OVERHEAD or data[:3] != _MAGIC:
        raise ValueError(
            f"`data` must be bytes that gf.compress returned; these {len(data)} bytes are not, or are cut."
        )
    body, (checksum,) = data[: -_CHECKSUM.size], _CHECKSUM.unpack(data[-_CHECKSUM.size :])
    if zlib.crc32(body) != checksum:
        raise ValueError("`data` must be whole; their checksum differs, so they are damaged or cut.")
    _, version, _, n, size = _HEADER.unpack_from(body)
    if version != _VERSION:
        raise ValueError(f"`data` must be of format version {_VERSION}; got version {version}.")
    return body, n, size


def _digest(model: DiscreteAutoregressive, condition: Float[Array, "n C"] | None) -> bytes:
    """A digest of what determines the probabilities: the model's arrays and settings, and the conditions."""
    described = Description().describe(model, "", stored=True)
    content = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for array in jax.tree.leaves(eqx.filter((model, condition), eqx.is_array)):
        content.update(f"{array.dtype}{array.shape}".encode() + np.asarray(array).tobytes())
    return content.digest()[:8]


def _first_state(images: Int[np.ndarray, "n *shape"]) -> int:
    """What the writer begins with: 1 and then the checksum of the images."""
    return 1 << 32 | zlib.crc32(images.astype(np.uint8).tobytes())
