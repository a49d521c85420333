"""Networks with a bounded Lipschitz constant, the contractions of residual blocks."""

import math
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from paramax import Parameterize, unwrap

from gauss_flows.validate import expect_key, expect_whole


class LipschitzMLP(eqx.Module):
    r"""A network whose outputs differ by at most a given constant times as much as its inputs.

    .. math:: h_{k+1} = \sigma_k\big(W_k h_k / \max(1, \|W_k\|_2 / L^{1/n}) + b_k\big), \qquad
              \sigma_k(t) = t\,\mathrm{sigmoid}(\beta_k t) / 1.1,

    with n dense layers and no activation after the last. The operator norms are exact (largest singular
    values), not estimated from below by power iteration, so the product of the layers' norms is at most L
    after every step of training, with a margin for rounding. The activation, LipSwish, has slopes in
    (-0.1, 1). The condition enters the first layer freely: the bound is in x alone.

    Args:
        key: Random key.
        in_size: Size of x.
        out_size: Size of the output.
        lipschitz: L, between 0 and 1.
        nn_width: Hidden units.
        nn_depth: Hidden layers, at least 1.
        cond_dim: Size of an external condition. Default: none.
        zero_last: Start with a last layer of zeros, and so with the zero map.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Behrmann et al., "Invertible residual networks" (ICML 2019), section 2.1; Chen et al., "Residual
        flows for invertible generative modeling" (NeurIPS 2019), section 3.3, for LipSwish.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> net = gf.LipschitzMLP(jr.key(0), in_size=2, out_size=2, lipschitz=0.9)
        >>> bool(jnp.prod(net.norms()) <= 0.9)
        True
    """

    weights: tuple[PyTree, ...]  # Float[Array, "out in"] each, wrapped: bounded whenever the network runs
    biases: tuple[Array, ...]
    betas: tuple[Array, ...]
    cond_weight: Float[Array, "W C"] | None
    lipschitz: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        *,
        in_size: int,
        out_size: int,
        lipschitz: float = 0.9,
        nn_width: int = 64,
        nn_depth: int = 2,
        cond_dim: int | None = None,
        zero_last: bool = False,
    ):
        inside = isinstance(lipschitz, (int, float)) and 0 < lipschitz < 1
        if not inside:
            raise ValueError(f"`lipschitz` must lie between 0 and 1, both excluded; got {lipschitz!r}.")
        width, depth = expect_whole("nn_width", nn_width, 1), expect_whole("nn_depth", nn_depth, 1)
        sizes = [expect_whole("in_size", in_size, 1), *[width] * depth, expect_whole("out_size", out_size, 1)]
        self.lipschitz = float(lipschitz)
        bound = self.lipschitz ** (1 / (depth + 1))
        keys = jr.split(expect_key(key), (depth + 2, 2))
        pairs = list(pairwise(sizes))
        draw = lambda key, size, shape: jr.uniform(key, shape, minval=-1, maxval=1) / math.sqrt(size)
        weights = [draw(keys[i, 0], n, (m, n)) for i, (n, m) in enumerate(pairs)]
        if zero_last:
            weights[-1] = jnp.zeros_like(weights[-1])
        self.weights = tuple(Parameterize(_bounded, w, bound=bound) for w in weights)
        self.biases = tuple(draw(keys[i, 1], n, (m,)) for i, (n, m) in enumerate(pairs))
        if zero_last:
            self.biases = (*self.biases[:-1], jnp.zeros_like(self.biases[-1]))
        self.betas = tuple(jnp.zeros(()) for _ in range(depth))
        self.cond_weight = None
        if cond_dim is not None:
            size = expect_whole("cond_dim", cond_dim, 1)
            self.cond_weight = draw(keys[-1, 0], size, (width, size))

    def __call__(
        self, x: Float[Array, " in"], condition: Float[Array, " C"] | None = None
    ) -> Float[Array, " out"]:
        """The output at one point.

        Args:
            x: The point.
            condition: The external condition, where the network has one.
        """
        net = unwrap(self)
        for i, (weight, bias, beta) in enumerate(zip(net.weights, net.biases, net.betas, strict=False)):
            x = weight @ x + bias
            if i == 0 and net.cond_weight is not None:
                x = x + net.cond_weight @ condition
            # beta = 1/2 at the start, as in the paper
            x = x * jax.nn.sigmoid(jax.nn.softplus(beta - 0.4327521) * x) / 1.1
        return net.weights[-1] @ x + net.biases[-1]

    def norms(self) -> Float[Array, " n"]:
        """The operator norm of each dense layer as it is used; their product is at most ``lipschitz``."""
        return jnp.stack([jnp.linalg.norm(w, 2, axis=(-2, -1)) for w in unwrap(self).weights], axis=-1)


def _bounded(weight, *, bound):
    """The matrix (or stack of them), smaller where its operator norm exceeds the bound; rounding included."""
    bound = bound * (1 - 16 * float(jnp.finfo(weight.dtype).eps))
    return weight / jnp.maximum(1, _norm(weight) / bound)[..., None, None]


def _norm(weight):
    """The largest singular value, from the smaller Gram matrix (quicker than by an SVD)."""
    flat = weight if weight.shape[-2] < weight.shape[-1] else jnp.swapaxes(weight, -1, -2)
    largest = jnp.linalg.eigvalsh(flat @ jnp.swapaxes(flat, -1, -2))[..., -1]
    positive = largest > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, largest, 1)), 0)
