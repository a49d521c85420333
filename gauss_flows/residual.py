"""Residual blocks: the identity plus a contraction, in which every coordinate depends on every other."""

import math
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gauss_flows.bijection import Bijection
from gauss_flows.deprecated import moved
from gauss_flows.lipschitz import LipschitzMLP
from gauss_flows.log_det import EXACT_LIMIT, LogDet, LogDetMethod, choose_log_det, log_det_estimate
from gauss_flows.rootfinding import implicit_root
from gauss_flows.validate import Shape, expect_shape, expect_whole

ResidualInverse = Literal["newton", "banach"]


class Residual(Bijection):
    r"""A residual block, :math:`z = x + g(x)` with a contraction g: every output depends on every input.

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
        shape: Shape,
        *,
        lipschitz: float = 0.9,
        nn_width: int = 64,
        nn_depth: int = 2,
        cond_dim: int | None = None,
        zero_last: bool = False,
        log_det: LogDetMethod = "exact",
        terms: int | None = None,
        inverse: ResidualInverse | None = None,
    ):
        self.shape = expect_shape(shape)
        size = math.prod(self.shape)
        self.cond_shape = None if cond_dim is None else (expect_whole("cond_dim", cond_dim, 1),)
        self.network = LipschitzMLP(
            key, in_size=size, out_size=size, lipschitz=lipschitz, nn_width=nn_width, nn_depth=nn_depth,
            cond_dim=cond_dim, zero_last=zero_last,
        )  # fmt: skip
        self.log_det = choose_log_det(size, log_det, terms)
        if inverse is None:
            inverse = "newton" if size <= EXACT_LIMIT else "banach"
        if inverse not in get_args(ResidualInverse):
            raise ValueError(f"`inverse` must be one of {get_args(ResidualInverse)}; got {inverse!r}.")
        small = size <= EXACT_LIMIT or inverse == "banach"
        if not small:
            raise ValueError(
                f"`inverse` must be 'banach' for an event of more than {EXACT_LIMIT} elements; got "
                f"{inverse!r} for {size} elements."
            )
        self.inverse_method = inverse

    @property
    def stack_shape(self) -> Shape:
        """The leading axes along which blocks are stacked in a :class:`Scan`; () for one block."""
        return self.network.betas[0].shape

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
        if how.key is None:
            raise ValueError(
                f"`log_det` must have a random key, since {how.method!r} is an estimate; give it one by "
                "gf.with_log_det(flow, key=...)."
            )
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


__getattr__ = moved(__name__)
