r"""A transformer as the conditioner of an autoregressive layer, and its inverse with a cache.

The elements of one rank, a patch of an image say, are one token. The token at place t holds the patch before
it, so that what the transformer computes there may set the parameters of patch t; and it attends to itself
and to earlier tokens only::

    tokens        start      patch 0     patch 1     patch 2
                    |           |           |           |
    attention       o---------->o---------->o---------->o      each to itself and to those on its left
                    |           |           |           |
    parameters   patch 0     patch 1     patch 2     patch 3

One pass gives the parameters of all patches. The inverse finds them one after another, and does not run the
whole network for each: the query, key and value of a token depend on the tokens on its left alone, which are
final by then. So step t computes those of one token, and keeps its key and value for later steps (the cache).
All steps together cost the arithmetic of one pass.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from paramax import unwrap

from gauss_flows.compiling import varying_like
from gauss_flows.masked_network import Degrees, MaskedFactory, MaskedNetwork, expect_degrees
from gauss_flows.validate import expect_whole

_FAR = -1e30  # the score of a later token: its weight is exactly zero


class Block(eqx.Module):
    r"""A block of a transformer: attention, then a network of two layers, both added to the token.

    .. math:: h_t &\leftarrow h_t + W_o \sum_{s \le t} \mathrm{softmax}_s(q_t \cdot k_s / \sqrt{E})\, v_s, \\
              h_t &\leftarrow h_t + W_2\, \mathrm{gelu}(W_1 \tilde h_t),

    for each head, with E numbers per head, where the queries q, keys k and values v are linear functions of
    the normalized token :math:`\tilde h_t`, which has mean 0 and variance 1.

    Args:
        width: Size of a token.
        heads: Attention heads.
        key: Random key.

    Source:
        Vaswani et al., "Attention is all you need" (NeurIPS 2017), with the normalization first.
    """

    project: eqx.nn.Linear
    gather: eqx.nn.Linear
    widen: eqx.nn.Linear
    narrow: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, key: PRNGKeyArray):
        keys = jr.split(key, 4)
        self.project = eqx.nn.Linear(width, 3 * width, key=keys[0])
        self.gather = eqx.nn.Linear(width, width, key=keys[1])
        self.widen = eqx.nn.Linear(width, 2 * width, key=keys[2])
        self.narrow = eqx.nn.Linear(2 * width, width, key=keys[3])
        self.heads = heads

    def __call__(self, tokens: Float[Array, "T W"]) -> Float[Array, "T W"]:
        """All tokens at once."""
        query, key, value = jax.vmap(self._split)(tokens)
        earlier = np.tri(len(tokens), dtype=bool)
        return jax.vmap(self._update, (0, 0, None, None, 0))(tokens, query, key, value, earlier)

    def step(
        self,
        token: Float[Array, " W"],
        cache: tuple[Float[Array, "T H E"], Float[Array, "T H E"]],
        place: Int[Array, ""],
    ) -> tuple[Float[Array, " W"], tuple[Float[Array, "T H E"], Float[Array, "T H E"]]]:
        """Return one token after the block, and the keys and values so far with its own added."""
        query, *new = self._split(token)
        keys, values = (
            lax.dynamic_update_index_in_dim(a, b, place, 0) for a, b in zip(cache, new, strict=True)
        )
        earlier = jnp.arange(len(keys)) <= place
        return self._update(token, query, keys, values, earlier), (keys, values)

    def _split(self, token):
        """The query, the key and the value of a token, each (heads, E)."""
        return tuple(self.project(_normalized(token)).reshape(3, self.heads, -1))

    def _update(self, token, query, keys, values, earlier):
        scores = jnp.einsum("he,she->hs", query, keys) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(earlier[None, :], scores, _FAR), axis=-1)
        token = token + self.gather(jnp.einsum("hs,she->he", weights, values).ravel())
        return token + self.narrow(jax.nn.gelu(self.widen(_normalized(token))))


def _normalized(token):
    """The token with mean 0 and variance 1; the linear map after it can make any other scale and shift."""
    centered = token - token.mean()
    return centered * lax.rsqrt(jnp.square(centered).mean() + 1e-5)


class CausalTransformer(MaskedNetwork):
    r"""A transformer with one token for each rank, whose outputs depend only on elements of smaller rank.

    The token at place t is :math:`E x_{t-1} + p_t + C c`, where :math:`x_{t-1}` holds the elements of the
    rank before, :math:`p_t` is learned and c is the condition. The token at place 0 has no elements before
    it, and is a learned start. The parameters of rank t are a linear function of its normalized token after
    all blocks.

    With guidance w, the outputs are :math:`\theta(c) + w\,(\theta(c) - \theta(0))`.

    Args:
        inputs: As for :class:`~gauss_flows.masked_network.MaskedFactory`.
        outputs: Likewise.
        width: Size of a token.
        depth: Number of blocks.
        heads: Attention heads.
        zero_last: Start the last layer at zero.
        key: Random key.

    Raises:
        ValueError: If there are not equally many elements of each rank.

    Source:
        Zhai et al., "Normalizing flows are capable generative models" (ICML 2025).
    """

    places: Float[Array, "T W"]
    embed: eqx.nn.Linear
    condition: eqx.nn.Linear | None
    blocks: list[Block]
    head: eqx.nn.Linear
    guidance: PyTree  # Float[Array, ""] in NonTrainable, or None
    by_rank: tuple[int, ...] = eqx.field(static=True)  # the elements, sorted by rank

    def __init__(
        self,
        inputs: Degrees,
        outputs: Degrees,
        *,
        width: int,
        depth: int,
        heads: int,
        zero_last: bool,
        key: PRNGKeyArray,
    ):
        ranks = np.array([degree for degree in inputs if degree >= 0])
        sizes = np.bincount(ranks)
        if sizes.min() != sizes.max():
            raise ValueError(
                "`order` must have equally many elements of each rank, which are one token of the "
                f"transformer; got {sizes.min()} to {sizes.max()} elements."
            )
        self.by_rank = tuple(np.argsort(ranks, kind="stable").tolist())
        linear, n_conditions = eqx.nn.Linear, len(inputs) - len(ranks)
        place_key, embed_key, head_key, *keys = jr.split(key, 3 + depth)
        self.places = jr.normal(place_key, (len(sizes), width))
        self.embed = linear(int(sizes[0]), width, use_bias=False, key=embed_key)
        self.condition = None
        if n_conditions:
            condition = linear(n_conditions, width, use_bias=False, key=embed_key)
            self.condition = jax.tree.map(jnp.zeros_like, condition)
        self.blocks = [Block(width, heads, key=k) for k in keys]
        head = linear(width, len(outputs) // len(sizes), key=head_key)
        self.head = jax.tree.map(jnp.zeros_like, head) if zero_last else head
        self.guidance = None

    def __call__(self, inputs):
        size = len(self.by_rank)
        patches = self._patches(inputs[:size])
        before = jnp.pad(jax.vmap(self.embed)(patches[:-1]), ((1, 0), (0, 0)))

        def run(context):
            tokens = before + self.places + context[None, :]
            for block in self.blocks:
                tokens = block(tokens)
            return jax.vmap(self._parameters)(tokens)

        out = self._guided(jax.vmap(run)(self._contexts(inputs[size:])))
        return self._scatter(out.reshape(size, -1)).ravel()

    def incremental_inverse(self, bijector, ranks, y, condition):
        contexts = self._contexts(condition)
        steps = (self.places, self._patches(y), jnp.arange(len(self.places)))

        def advance(context, token, caches, place):
            token, new = token + context, []
            for block, cache in zip(self.blocks, caches, strict=True):
                token, cache = block.step(token, cache, place)
                new.append(cache)
            return self._parameters(token), new

        def step(carry, inputs):
            before, caches = carry
            learned, y, place = inputs
            out, caches = jax.vmap(advance, (0, None, 0, None))(contexts, before + learned, caches, place)
            theta = bijector.theta(self._guided(out).reshape(len(y), -1))
            x, log_slopes = bijector.inverse(theta, y)
            return (self.embed(x), caches), (x, log_slopes)

        n, width = self.places.shape
        heads, dtype = self.blocks[0].heads, jnp.result_type(y, self.places)
        cache = jnp.zeros((len(contexts), n, heads, width // heads), dtype)
        start = (jnp.zeros(width, dtype), [(cache, cache) for _ in self.blocks])
        start = jax.tree.map(lambda a: varying_like(a, y, condition, self, bijector), start)
        _, found = lax.scan(step, start, steps)
        x, log_slopes = (self._scatter(part.ravel()) for part in found)
        return x, log_slopes

    def _patches(self, flat):
        """The elements, one row for each rank."""
        return flat[np.array(self.by_rank)].reshape(len(self.places), -1)

    def _scatter(self, rows):
        """What belongs to the elements, from the order of ranks to the order of the event."""
        return rows[np.argsort(self.by_rank)]

    def _parameters(self, token):
        return self.head(_normalized(token))

    def _contexts(self, condition):
        """What the condition adds to every token; with guidance, two rows, the second without a condition."""
        if self.condition is None:
            return jnp.zeros_like(self.places[:1])
        context = self.condition(condition)
        return jnp.stack([context] if self.guidance is None else [context, jnp.zeros_like(context)])

    def _guided(self, outs):
        if self.guidance is None:
            return outs[0]
        return outs[0] + unwrap(self.guidance) * (outs[0] - outs[1])


@dataclasses.dataclass(frozen=True)
class PatchTransformer(MaskedFactory):
    """A factory of causal transformers for autoregressive layers; also named ``patch_transformer``.

    The elements of equal rank are one token, such as the patches of ``gf.masks.patch_order``. One pass gives
    the parameters of all patches, each from the patches before it.

    Args:
        width: Size of a token, divisible by ``heads``.
        depth: Number of blocks, at least 1.
        heads: Attention heads.
        zero_last: As for :func:`mlp`. The weights of a condition start at zero in any case.

    Raises:
        ValueError: If a size is below 1, or ``width`` does not divide by ``heads``.

    Source:
        Zhai et al., "Normalizing flows are capable generative models" (ICML 2025).

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> order = gf.masks.patch_order((4, 4), 2)
        >>> network = gf.conditioners.patch_transformer(width=8, heads=2)
        >>> options = {"bijector": gf.Affine(), "order": order, "conditioner": network}
        >>> gf.MaskedAutoregressive(jr.key(0), (4, 4), **options).passes
        4
    """

    width: int = 48
    depth: int = 1
    _: dataclasses.KW_ONLY
    heads: int = 4
    zero_last: bool = False

    def __post_init__(self):
        expect_whole("nn_width", self.width, 1)
        expect_whole("nn_depth", self.depth, 1)
        if self.width % expect_whole("heads", self.heads, 1) != 0:
            raise ValueError(f"`nn_width` must be divisible by `heads` = {self.heads}; got {self.width}.")

    def __call__(self, inputs: Degrees, outputs: Degrees, *, key: PRNGKeyArray) -> CausalTransformer:
        """The network from the degrees of its inputs and outputs."""
        expect_degrees("patch_transformer", inputs)
        return CausalTransformer(inputs, outputs, key=key, **dataclasses.asdict(self))
