"""Residual blocks: no mask, a contraction in its place; and the estimators of their log-determinant."""

import math
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from paramax import Parameterize, unwrap

from gauss_flows.base import Bijection, Shape, expect, expect_shape, expect_whole, varying_like
from gauss_flows.numerics import implicit_root

_LOG_DETS = ("exact", "hutchinson", "roulette")
_INVERSES = ("newton", "banach")
EXACT_LIMIT = 32  # largest event whose Jacobian is formed: its cost is cubic
_TERMS = {"exact": 0, "hutchinson": 10, "roulette": 4}


class LipschitzMLP(eqx.Module):
    r"""A network whose outputs never differ by more than L times what its inputs differ by.

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

    weights: tuple[Any, ...]  # Float[Array, "out in"] each, wrapped: bounded whenever the network runs
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
        expect(inside, "lipschitz", "lie between 0 and 1, both excluded", repr(lipschitz))
        width, depth = expect_whole("nn_width", nn_width, 1), expect_whole("nn_depth", nn_depth, 1)
        sizes = [expect_whole("in_size", in_size, 1), *[width] * depth, expect_whole("out_size", out_size, 1)]
        self.lipschitz = float(lipschitz)
        bound = self.lipschitz ** (1 / (depth + 1))
        keys = jr.split(key, (depth + 2, 2))
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


class LogDet(eqx.Module):
    """How a residual block finds its log-determinant: the method, its terms, and its random key."""

    method: str = eqx.field(static=True)
    terms: int = eqx.field(static=True)
    key: PRNGKeyArray | None


def log_det_estimate(
    network: Any,
    x: Float[Array, " D"],
    key: PRNGKeyArray,
    condition: Float[Array, " C"] | None = None,
    *,
    terms: int,
    keep: float | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    r"""One draw of an estimate of log|det(I + J)|, J the Jacobian of a contraction at x.

    .. math:: \sum_{k=1}^{N} \frac{(-1)^{k+1}}{k\,p_k}\, v^T J^k v, \qquad
              \nabla: \; \sum_{k=0}^{N} \frac{(-1)^k}{p_k}\, v^T J^k (\nabla J)\, v,

    with random signs v. Without ``keep``, N = ``terms`` and all :math:`p_k = 1`: what is cut off is a
    bias. With it (Russian roulette) each further term is computed with probability ``keep`` given the one
    before, and divided by its own probability :math:`p_k` = keep^(k - terms): no bias, but more variance,
    finite if keep exceeds the square of the Lipschitz constant. There is no cap on the number of terms.
    The gradient is that of the second series, exact in expectation like the first; the derivative of the
    first series' partial sum would need all its terms in memory. First derivatives only.

    Args:
        network: ``network(x, condition)``, of the shape of x; a pytree whose leaves are arrays.
        x: The point.
        key: Random key for v and N.
        condition: The external condition, where the network has one.
        terms: Terms that are always computed, at least 0 (1 without ``keep``).
        keep: Probability of going on after them, between 0 and 1.

    Returns:
        The estimate, in nats, and the number of terms.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Chen et al., "Residual flows for invertible generative modeling" (NeurIPS 2019), section 3.
    """
    terms = expect_whole("terms", terms, 1 if keep is None else 0)
    expect(keep is None or 0 < keep < 1, "keep", "lie between 0 and 1", keep)
    sign_key, count_key = jr.split(key)
    v = varying_like(jr.rademacher(sign_key, x.shape, x.dtype), x, condition, network)
    last = jnp.asarray(terms, x.dtype)
    if keep is not None:
        uniform = jr.uniform(count_key, (), x.dtype, minval=jnp.finfo(x.dtype).tiny)
        last = last + jnp.floor(jnp.log(uniform) / math.log(keep))
    network = unwrap(network)
    arrays, static = eqx.partition(network, eqx.is_inexact_array)
    arrays, x_fixed, c_fixed = lax.stop_gradient((arrays, x, condition))
    _, pull = jax.vjp(lambda x: eqx.combine(arrays, static)(x, c_fixed), x_fixed)

    def term(state):
        k, u, weight, value, neumann = state
        (u,) = pull(u)
        k, weight = k + 1, -weight
        if keep is not None:
            weight = jnp.where(k > terms, weight / keep, weight)
        return k, u, weight, value - weight / k * jnp.vdot(u, v), neumann + weight * u

    zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    start = (zero, v, one, varying_like(zero, v), v)
    _, _, _, value, neumann = lax.while_loop(lambda state: state[0] < last, term, start)
    # A number that is 0 and whose gradient is the second series.
    _, push = jax.jvp(lambda x: network(x, condition), (x,), (v,))
    slope = jnp.vdot(lax.stop_gradient(neumann), push)
    return value + slope - lax.stop_gradient(slope), last.astype(int)


class Residual(Bijection):
    r"""Add a contraction to the identity: every coordinate reads every coordinate.

    .. math:: z &= x + g_\phi(x, c), \qquad \|g_\phi(x, c) - g_\phi(x', c)\| \le L \|x - x'\|, \; L < 1, \\
              \log|\det(I + J_g)| &= \sum_{k \ge 1} \frac{(-1)^{k+1}}{k} \mathrm{tr}\, J_g^k.

    L < 1 is sufficient for an inverse, not necessary. The inverse has no formula: x is the fixed point of
    :math:`x \mapsto z - g(x)`, reached from any start, with an error that falls by L or better at each step.

    Args:
        key: Random key for the network.
        shape: The event's shape, of any rank.
        lipschitz: L, between 0 and 1.
        nn_width: Hidden units of the :class:`LipschitzMLP`.
        nn_depth: Its hidden layers.
        cond_dim: Size of an external condition, shape (cond_dim,). Default: none.
        zero_last: Start as the identity.
        log_det: "exact" (the determinant, events of at most 32 elements), "hutchinson" (the series cut off
            after ``terms`` terms: biased) or "roulette" (unbiased, with a random number of terms). Only the
            first gives likelihoods; the others are estimates for training, and need a key: see
            :func:`with_log_det`.
        terms: Terms of the series that are always computed. Default: 10 for "hutchinson", 4 for "roulette".
        inverse: "newton" (Newton's steps where they fall faster; the default up to 32 elements) or
            "banach" (the plain iteration). Both go on until rounding stops the fall.

    Raises:
        ValueError: If an argument does not fit; the message says which and how.

    Source:
        Behrmann et al., "Invertible residual networks" (ICML 2019); Chen et al., "Residual flows for
        invertible generative modeling" (NeurIPS 2019).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> block = gf.Residual(jr.key(0), shape=(2,), lipschitz=0.9)
        >>> z, log_det = block.transform_and_log_det(jnp.ones(2))
        >>> bool(jnp.allclose(block.inverse(z), 1, atol=1e-5))
        True
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: Shape | None = eqx.field(static=True)
    network: LipschitzMLP
    log_det: LogDet
    inverse_method: str = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        *,
        shape: Shape,
        lipschitz: float = 0.9,
        nn_width: int = 64,
        nn_depth: int = 2,
        cond_dim: int | None = None,
        zero_last: bool = False,
        log_det: str = "exact",
        terms: int | None = None,
        inverse: str | None = None,
    ):
        self.shape = expect_shape(shape)
        size = math.prod(self.shape)
        self.cond_shape = None if cond_dim is None else (expect_whole("cond_dim", cond_dim, 1),)
        self.network = LipschitzMLP(
            key, in_size=size, out_size=size, lipschitz=lipschitz, nn_width=nn_width, nn_depth=nn_depth,
            cond_dim=cond_dim, zero_last=zero_last,
        )  # fmt: skip
        self.log_det = _log_det(size, log_det, terms, None)
        if inverse is None:
            inverse = "newton" if size <= EXACT_LIMIT else "banach"
        expect(inverse in _INVERSES, "inverse", f"be one of {_INVERSES}", repr(inverse))
        small = size <= EXACT_LIMIT or inverse == "banach"
        expect(small, "inverse", f"be 'banach' for more than {EXACT_LIMIT} elements", f"{inverse!r}, {size}")
        self.inverse_method = inverse

    @property
    def lipschitz(self) -> float:
        """The bound L on the network's Lipschitz constant."""
        return self.network.lipschitz

    def transform(self, x, condition=None):
        """Z alone, for which no key is needed."""
        return super(Residual, self._without_log_det()).transform(x, condition)

    def inverse(self, y, condition=None):
        """X alone, for which no key is needed."""
        return super(Residual, self._without_log_det()).inverse(y, condition)

    def transform_and_log_det(self, x, condition=None):
        z = x + self.network(x.ravel(), condition).reshape(self.shape)
        return z, self._find_log_det(x.ravel(), condition)

    def inverse_and_log_det(self, y, condition=None):
        x, _, _ = self._root(y.ravel(), condition)
        return x.reshape(self.shape), -self._find_log_det(x, condition)

    def inverse_and_steps(
        self, y: Float[Array, "*shape"], condition: Float[Array, " C"] | None = None
    ) -> tuple[Float[Array, "*shape"], Int[Array, ""], Float[Array, ""]]:
        r"""The inverse, how many steps it took, and a bound on its error.

        The bound is :math:`\|x + g(x) - y\| / (1 - L)`: it holds for any x, however it was found.

        Args:
            y: The event to invert.
            condition: The external condition, where the block has one.
        """
        x, steps, bound = self._root(jnp.asarray(y).ravel(), condition)
        return x.reshape(self.shape), lax.stop_gradient(steps).astype(int), lax.stop_gradient(bound)

    def _without_log_det(self):
        return eqx.tree_at(lambda b: b.log_det, self, LogDet("none", 0, None))

    def _find_log_det(self, x, condition):
        how = self.log_det
        if how.method == "none":
            return jnp.zeros((), x.dtype)
        if how.method == "exact":
            jacobian = jax.jacfwd(self.network)(x, condition)
            return jnp.linalg.slogdet(jnp.eye(len(x), dtype=x.dtype) + jacobian)[1]
        wanted = f"have a key, since {how.method!r} is random: gf.with_log_det(flow, key=...)"
        expect(how.key is not None, "log_det", wanted, "none")
        assert how.key is not None
        keep = self.lipschitz if how.method == "roulette" else None
        return log_det_estimate(self.network, x, how.key, condition, terms=how.terms, keep=keep)[0]

    def _root(self, y, condition):
        """X with x + g(x) = y, the steps, the bound; derivatives by the implicit function theorem."""
        contraction = self.lipschitz
        residual = lambda x: x + self.network(x, condition) - y
        size = lambda r: jnp.sqrt(jnp.vdot(r, r))

        def solve():
            def step(state):
                x, r, _, steps = state
                new = x - r
                new_r = residual(new)
                if self.inverse_method == "newton":
                    jacobian = jax.jacfwd(residual)(x)
                    other = x - jnp.linalg.solve(jacobian, r)
                    other_r = residual(other)
                    better = size(other_r) < size(new_r)
                    new, new_r = jnp.where(better, other, new), jnp.where(better, other_r, new_r)
                # Banach's step shrinks the residual by L at least; where it does not, rounding is left.
                falls = size(new_r) <= contraction * size(r)
                keep = lambda a, b: jnp.where(falls, a, b)
                return keep(new, x), keep(new_r, r), jnp.where(falls, size(new_r), 0), steps + 1

            first = residual(y)
            state = (y, first, size(first), jnp.zeros((), y.dtype))
            x, r, _, steps = lax.while_loop(lambda state: state[2] > 0, step, state)
            return x, (steps, size(r) / (1 - contraction))

        def tangent(linear, v):
            if len(v) <= EXACT_LIMIT:
                return jnp.linalg.solve(jax.jacobian(linear)(v), v)
            return lax.custom_linear_solve(linear, v, _neumann, _neumann)

        function = lambda x: x + self.network(x, condition)
        x, (steps, bound) = implicit_root(function, y, solve, divide=tangent, has_aux=True)
        return x, steps, bound


def _neumann(linear, v):
    """The w with linear(w) = v, by fixed-point iteration; linear is the identity plus a contraction."""

    def step(state):
        w, r, _ = state
        new = w - r
        return new, linear(new) - v, jnp.vdot(r, r)

    falls = lambda state: jnp.vdot(state[1], state[1]) < state[2]
    return lax.while_loop(falls, step, (v, linear(v) - v, jnp.full((), jnp.inf, v.dtype)))[0]


def _log_det(size, method, terms, key) -> LogDet:
    expect(method in _LOG_DETS, "log_det", f"be one of {_LOG_DETS}", repr(method))
    fits = method != "exact" or size <= EXACT_LIMIT
    others = f"be 'hutchinson' or 'roulette' for more than {EXACT_LIMIT} elements"
    expect(fits, "log_det", others, f"'exact', {size}")
    if terms is None:
        terms = _TERMS[method]
    return LogDet(method, expect_whole("terms", terms, int(method == "hutchinson")), key)


def _is_block(node: Any) -> bool:
    return isinstance(node, Residual)


def is_random(flow: Any) -> bool:
    """Whether a flow holds a residual block whose log-determinant is an estimate."""
    nodes = jax.tree.leaves(flow, is_leaf=_is_block)
    return any(_is_block(node) and node.log_det.method != "exact" for node in nodes)


def with_log_det(
    flow: Any, log_det: str | None = None, *, terms: int | None = None, key: PRNGKeyArray | None = None
) -> Any:
    """The same flow, its residual blocks with another way to their log-determinant, or with a key.

    With a key a flow of "hutchinson" or "roulette" gives estimates, the same noise for every point (for noise
    of its own for each point see :func:`estimate_log_prob`), and it gives samples, which do not depend on the
    key. Without one both are refused.

    Args:
        flow: A flow or bijection with :class:`Residual` blocks.
        log_det: "exact", "hutchinson" or "roulette". Default: as it is.
        terms: As for :class:`Residual`. Default: as it is, or that of a new ``log_det``.
        key: Random key; each block gets one of its own. Default: none.

    Returns:
        A flow with the same parameters.

    Raises:
        ValueError: If there is no such block, or the blocks cannot take the ``log_det``.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> flow = gf.residual_flow(jr.key(0), 2, layers=2, log_det="roulette")
        >>> gf.with_log_det(flow, "exact").log_prob(jnp.zeros((3, 2))).shape
        (3,)
    """
    count = 0

    def change(node):
        nonlocal count
        if not _is_block(node):
            return node
        count += 1
        method, wanted = log_det or node.log_det.method, terms
        if wanted is None and method == node.log_det.method:
            wanted = node.log_det.terms
        new = _log_det(math.prod(node.shape), method, wanted, None)
        if key is not None:
            lead = node.network.betas[0].shape  # blocks under Scan are stacked along leading axes
            own = jr.fold_in(key, count)
            new = LogDet(new.method, new.terms, jr.split(own, lead) if lead else own)
        return eqx.tree_at(lambda block: block.log_det, node, new, is_leaf=lambda n: isinstance(n, LogDet))

    changed = jax.tree.map(change, flow, is_leaf=_is_block)
    expect(count > 0, "flow", "hold a Residual block", type(flow).__name__)
    return changed


def estimate_log_prob(
    flow: Any, x: Float[Array, "n *shape"], key: PRNGKeyArray, condition: Float[Array, "n C"] | None = None
) -> Float[Array, " n"]:
    """Estimates of log p(x), in nats, with noise of its own for each point; not likelihoods.

    This is what :func:`~gauss_flows.fit` maximises for a flow with "hutchinson" or "roulette".

    Args:
        flow: A flowjax ``Transformed`` with :class:`Residual` blocks.
        x: Points.
        key: Random key.
        condition: One row for each point, for conditional flows.

    Raises:
        ValueError: As :func:`with_log_det`.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> flow = gf.residual_flow(jr.key(0), 2, layers=2, log_det="roulette")
        >>> gf.estimate_log_prob(flow, jnp.zeros((3, 2)), jr.key(1)).shape
        (3,)
    """
    one = lambda key, x, condition: with_log_det(flow, key=key).log_prob(x, condition)
    return jax.vmap(one, (0, 0, None if condition is None else 0))(jr.split(key, len(x)), x, condition)
