"""Autoregressive layers: each coordinate's bijector is set by the coordinates before it."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gauss_flows import conditioners
from gauss_flows.bijection import Bijection
from gauss_flows.compiling import varying_like
from gauss_flows.masked_network import MaskedFactory, MaskedNetwork
from gauss_flows.parametrize import Parametrized, parametrize
from gauss_flows.rootfinding import implicit_root
from gauss_flows.validate import Shape, expect_concrete, expect_shape, expect_whole

AutoregressiveInverse = Literal["incremental", "sequential", "jacobi"]


class MaskedAutoregressive(Bijection):
    r"""Transform each coordinate with parameters that depend on the coordinates of smaller rank.

    .. math:: z_i &= T_{\theta_i}(x_i), \qquad \theta_i = \theta_0 + c_\phi(\{x_j : r_j < r_i\}, c)_i, \\
              \log|\det J| &= \sum_i \log |T'_{\theta_i}(x_i)|.

    J is triangular in the order of the ranks r. ``transform`` makes all parameters in one pass of a masked
    network. The inverse needs :math:`x_j` before :math:`\theta_i`, so it takes one step per rank; but a step
    computes only what has just become known in the network, so all steps together cost the arithmetic
    of one pass. Read for densities (data to latent) this is a masked autoregressive flow, MAF; the same
    layer used for sampling (latent to data, flowjax's ``Invert`` the other way) is an inverse
    autoregressive flow, IAF. Elements of equal rank do not depend on each other: with D ranks the layer is
    fully autoregressive, with two it is a coupling whose passive half has a bijector of its own.

    Args:
        key: Random key for the conditioner.
        shape: The event's shape, of any rank. With one element alone, its parameters depend on the
            condition, if there is one, and on nothing else.
        bijector: Any unconditional scalar bijection, shape (), or a
            :class:`~gauss_flows.Parametrized`; each element gets a copy with parameters of its own.
        order: Whole numbers of the event's shape: an element depends on those with smaller numbers. Any
            permutation, or fewer ranks. Default: C order.
        passes: In place of ``order``: this many ranks of consecutive elements, 2 to D.
        conditioner: A masked network: :class:`~gauss_flows.conditioners.Made` (the default, with
            ``nn_width`` and ``nn_depth``) or :class:`~gauss_flows.conditioners.PatchTransformer`. Or any
            factory as for :class:`~gauss_flows.Coupling`: its network takes as input the event, with zeros
            for what it may not see, and the condition, and is run once for each rank.
        cond_dim: Size of an external condition, shape (cond_dim,). Default: none.
        nn_width: Hidden units of the default conditioner.
        nn_depth: Hidden layers of the default conditioner.
        inverse: "incremental" (the default where the network is masked), "sequential" (the whole network
            at each step, the textbook's way; the default otherwise) or "jacobi": all coordinates at once,
            again and again, until none moves by more than ``tolerance``; exact after as many sweeps as
            there are ranks, and often far sooner.
        tolerance: Of "jacobi": largest change in a last sweep, relative to 1 + the element's size. Default:
            8 machine epsilons.

    Raises:
        ValueError: If an argument does not fit; the message says which and how.

    Source:
        Papamakarios et al., "Masked autoregressive flow" (NeurIPS 2017); Kingma et al., "Inverse
        autoregressive flow" (NeurIPS 2016); Song et al., "Accelerating feedforward computation via
        parallel nonlinear equation solving" (ICML 2021) for the sweeps.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.MaskedAutoregressive(jr.key(0), shape=(3,), bijector=gf.Affine())
        >>> z, log_det = layer.transform_and_log_det(jnp.ones(3))
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: Shape | None = eqx.field(static=True)
    conditioner: Callable[[Array], Array]
    _bijector: Parametrized
    _ranks: tuple[int, ...] = eqx.field(static=True)
    inverse_method: str = eqx.field(static=True)
    tolerance: float | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        shape: Shape,
        *,
        bijector: AbstractBijection | Parametrized,
        order: Int[np.ndarray, "*shape"] | None = None,
        passes: int | None = None,
        conditioner: conditioners.ConditionerFactory | None = None,
        cond_dim: int | None = None,
        nn_width: int = 64,
        nn_depth: int = 2,
        inverse: AutoregressiveInverse | None = None,
        tolerance: float | None = None,
    ):
        self.shape = expect_shape(shape)
        self._bijector = parametrize(bijector, at_least=1)
        self.cond_shape = None if cond_dim is None else (expect_whole("cond_dim", cond_dim, 1),)
        self._ranks = _ranks(self.shape, order, passes)
        if conditioner is None:
            conditioner = conditioners.made(nn_width, nn_depth)
        # The degree of each of the network's inputs and outputs; a network without masks needs their numbers.
        inputs = self._ranks + (-1,) * (cond_dim or 0)
        outputs = tuple(np.repeat(np.array(self._ranks) - 1, self._bijector.size).tolist())
        if masked := isinstance(conditioner, MaskedFactory):
            self.conditioner = conditioner(inputs, outputs, key=key)
        else:
            self.conditioner = conditioners.make(conditioner, len(inputs), len(outputs), key=key)
        if inverse is None:
            inverse = "incremental" if masked else "sequential"
        if inverse not in get_args(AutoregressiveInverse):
            raise ValueError(f"`inverse` must be one of {get_args(AutoregressiveInverse)}; got {inverse!r}.")
        if inverse == "incremental" and not masked:
            raise ValueError(
                f"`inverse` must be 'sequential' or 'jacobi' for a network without masks; got {inverse!r}."
            )
        self.inverse_method = inverse
        sane = tolerance is None or 0 <= tolerance < math.inf
        if not sane:
            raise ValueError(f"`tolerance` must be at least 0 and finite; got {tolerance}.")
        self.tolerance = None if tolerance is None else float(tolerance)

    @property
    def order(self) -> Int[np.ndarray, "*shape"]:
        """The rank of each element, from 0 up. An element depends on those of smaller rank."""
        return np.array(self._ranks).reshape(self.shape)

    @property
    def passes(self) -> int:
        """The number of ranks, and so of the inverse's steps."""
        return max(self._ranks) + 1

    def theta(
        self, flat: Float[Array, " D"], condition: Float[Array, " C"] | None = None
    ) -> Float[Array, "D P"]:
        """The parameters of all elements' bijectors, one row each, from a flat event.

        Args:
            flat: The event, flat, in C order.
            condition: The external condition, where the layer has one.
        """
        with_condition = lambda v: v if condition is None else jnp.concatenate([v, condition])
        if isinstance(self.conditioner, MaskedNetwork):
            out = self.conditioner(with_condition(flat)).reshape(len(flat), -1)
        else:
            ranks = np.array(self._ranks)
            seen = ranks[None, :] < np.arange(self.passes)[:, None]
            outs = jax.vmap(lambda keep: self.conditioner(with_condition(jnp.where(keep, flat, 0))))(seen)
            out = outs.reshape(self.passes, len(flat), -1)[ranks, np.arange(len(flat))]
        return self._bijector.theta(out)

    def transform_and_log_det(self, x, condition=None):
        theta = self.theta(x.ravel(), condition)
        z, log_slopes = self._bijector.transform(theta, x.ravel())
        return z.reshape(self.shape), log_slopes.sum()

    def inverse_and_log_det(self, y, condition=None):
        flat = y.ravel()
        if self.inverse_method == "incremental" and isinstance(self.conditioner, MaskedNetwork):
            by_steps, ranks = self.conditioner.incremental_inverse, np.array(self._ranks)
            x, log_slopes = by_steps(self._bijector, ranks, flat, condition)
        else:
            at_once = self.inverse_method == "jacobi"
            x = self._jacobi(flat, condition)[0] if at_once else self._sequential(flat, condition)
            _, log_slopes = self._bijector.inverse(self.theta(x, condition), flat)
        return x.reshape(self.shape), log_slopes.sum()

    def inverse_and_sweeps(
        self, y: Float[Array, "*shape"], condition: Float[Array, " C"] | None = None
    ) -> tuple[Float[Array, "*shape"], Int[Array, ""]]:
        """Return the inverse by Jacobi sweeps, for any setting of ``inverse``, and the number of sweeps.

        Args:
            y: The event to invert.
            condition: The external condition, where the layer has one.
        """
        x, sweeps = self._jacobi(jnp.asarray(y).ravel(), condition)
        return x.reshape(self.shape), lax.stop_gradient(sweeps).astype(int)

    def _sweep(self, x, y, condition):
        return self._bijector.inverse(self.theta(x, condition), y)[0]

    def _sequential(self, y, condition):
        """After step i the elements of rank i are right, for any start."""
        step = lambda x, _: (self._sweep(x, y, condition), None)
        start = varying_like(jnp.zeros_like(y), y, condition, self)
        return lax.scan(step, start, length=self.passes)[0]

    def _jacobi(self, y, condition):
        tolerance = 8 * float(jnp.finfo(y.dtype).eps) if self.tolerance is None else self.tolerance

        def solve():
            def step(state):
                x, _, sweeps = state
                new = self._sweep(x, y, condition)
                return new, jnp.max(jnp.abs(new - x) / (1 + jnp.abs(new))), sweeps + 1

            go_on = lambda state: (state[1] > tolerance) & (state[2] < self.passes)
            start = (jnp.zeros_like(y), jnp.full((), jnp.inf, y.dtype), jnp.zeros((), y.dtype))
            start = jax.tree.map(lambda a: varying_like(a, y, condition, self), start)
            x, _, sweeps = lax.while_loop(go_on, step, start)
            return x, sweeps

        forward = lambda x: self.transform_and_log_det(x.reshape(self.shape), condition)[0].ravel()
        divide = lambda linear, v: jnp.linalg.solve(jax.jacobian(linear)(v), v)
        return implicit_root(forward, y, solve, divide=divide, has_aux=True)


def _ranks(shape, order, passes) -> tuple[int, ...]:
    size = math.prod(shape)
    if order is not None and passes is not None:
        raise ValueError(f"`passes` must be None where `order` is given; got {passes}.")
    if passes is not None:
        passes = expect_whole("passes", passes, min(2, size))
        if passes > size:
            raise ValueError(f"`passes` must be at most {size}, the event's size; got {passes}.")
        return tuple((np.arange(size) * passes // size).tolist())
    if order is None:
        return tuple(range(size))
    array = expect_concrete("order", order)
    whole = np.issubdtype(array.dtype, np.integer)
    if not whole:
        raise ValueError(
            f"`order` must be an array of whole numbers, the elements' ranks; got dtype {array.dtype}."
        )
    if array.shape != shape:
        raise ValueError(f"`order` must have shape {shape}, the event's shape; got {array.shape}.")
    values, ranks = np.unique(array, return_inverse=True)
    if len(values) < min(2, size):
        raise ValueError(f"`order` must have at least two different ranks; got {values.tolist()}.")
    return tuple(ranks.ravel().tolist())
