"""Autoregressive layers: each coordinate's bijector is set by the coordinates before it."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gauss_flows import conditioners
from gauss_flows.base import (
    Bijection,
    Shape,
    expect,
    expect_concrete,
    expect_shape,
    expect_whole,
    varying_like,
)
from gauss_flows.bijectors import Family, as_family
from gauss_flows.numerics import implicit_root

_INVERSES = ("incremental", "sequential", "jacobi")
_LOOPS = 4  # of the incremental inverse; more read less and compile longer


class MaskedAutoregressive(Bijection):
    r"""Transform each coordinate with parameters read from the coordinates of smaller rank.

    .. math:: z_i &= T_{\theta_i}(x_i), \qquad \theta_i = \theta_0 + c_\phi(\{x_j : r_j < r_i\}, c)_i, \\
              \log|\det J| &= \sum_i \log |T'_{\theta_i}(x_i)|.

    J is triangular in the order of the ranks r. ``transform`` makes all parameters in one pass of a masked
    network. The inverse needs :math:`x_j` before :math:`\theta_i`, so it takes one step a rank; but a step
    computes only the hidden units that have just become known, so all steps together cost the arithmetic
    of one pass. Read for densities (data to latent) this is a masked autoregressive flow, MAF; the same
    layer read for sampling (latent to data, flowjax's ``Invert`` the other way) is an inverse
    autoregressive flow, IAF. Elements of equal rank do not read each other: with D ranks the layer is fully
    autoregressive, with two it is a coupling whose passive half has a bijector of its own.

    Args:
        key: Random key for the conditioner.
        shape: The event's shape, of any rank. With one element alone, its parameters depend on the
            condition, if there is one, and on nothing else.
        bijector: Any unconditional scalar bijection, shape (), or a
            :class:`~gauss_flows.bijectors.Family`; each element gets a copy with parameters of its own.
        order: Whole numbers of the event's shape: an element reads those with smaller numbers. Any
            permutation, or fewer ranks. Default: C order.
        passes: In place of ``order``: this many ranks of consecutive elements, 2 to D.
        conditioner: :class:`~gauss_flows.conditioners.Made` (the default, with ``nn_width`` and
            ``nn_depth``), or any factory as for :class:`~gauss_flows.Coupling`: its network reads the event,
            with zeros for what it may not see, and the condition, and is run once for each rank.
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
    conditioner: Any
    _family: Family
    _ranks: tuple[int, ...] = eqx.field(static=True)
    inverse_method: str = eqx.field(static=True)
    tolerance: float | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        *,
        shape: Shape,
        bijector: AbstractBijection,
        order: Int[np.ndarray, "*shape"] | None = None,
        passes: int | None = None,
        conditioner: conditioners.ConditionerFactory | None = None,
        cond_dim: int | None = None,
        nn_width: int = 64,
        nn_depth: int = 2,
        inverse: str | None = None,
        tolerance: float | None = None,
    ):
        self.shape = expect_shape(shape)
        self._family = as_family(bijector, at_least=1)
        self.cond_shape = None if cond_dim is None else (expect_whole("cond_dim", cond_dim, 1),)
        self._ranks = _ranks(self.shape, order, passes)
        if conditioner is None:
            conditioner = conditioners.made(nn_width, nn_depth)
        # The degree of each of the network's inputs and outputs; a network without masks needs their numbers.
        inputs = self._ranks + (-1,) * (cond_dim or 0)
        outputs = tuple(np.repeat(np.array(self._ranks) - 1, self._family.size).tolist())
        if masked := isinstance(conditioner, conditioners.Made):
            self.conditioner = conditioner(inputs, outputs, key=key)
        else:
            self.conditioner = conditioners.make(conditioner, len(inputs), len(outputs), key=key)
        if inverse is None:
            inverse = "incremental" if masked else "sequential"
        expect(inverse in _INVERSES, "inverse", f"be one of {_INVERSES}", repr(inverse))
        expect(masked or inverse != "incremental", "inverse", "be another without a masked network", inverse)
        self.inverse_method = inverse
        sane = tolerance is None or 0 <= tolerance < math.inf
        expect(sane, "tolerance", "be at least 0 and finite", tolerance)
        self.tolerance = None if tolerance is None else float(tolerance)

    @property
    def order(self) -> Int[np.ndarray, "*shape"]:
        """The rank of each element, from 0 up. An element reads those of smaller rank."""
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
        if isinstance(self.conditioner, conditioners.MaskedMLP):
            out = self.conditioner(with_condition(flat)).reshape(len(flat), -1)
        else:
            ranks = np.array(self._ranks)
            seen = ranks[None, :] < np.arange(self.passes)[:, None]
            outs = jax.vmap(lambda keep: self.conditioner(with_condition(jnp.where(keep, flat, 0))))(seen)
            out = outs.reshape(self.passes, len(flat), -1)[ranks, np.arange(len(flat))]
        return self._family.theta(out)

    def transform_and_log_det(self, x, condition=None):
        z, log_det = self._family.apply("transform_and_log_det", self.theta(x.ravel(), condition), x.ravel())
        return z.reshape(self.shape), log_det.sum()

    def inverse_and_log_det(self, y, condition=None):
        flat = y.ravel()
        if self.inverse_method == "incremental":
            x, log_det = self._incremental(flat, condition)
        else:
            at_once = self.inverse_method == "jacobi"
            x = self._jacobi(flat, condition)[0] if at_once else self._sequential(flat, condition)
            _, log_det = self._family.apply("inverse_and_log_det", self.theta(x, condition), flat)
        return x.reshape(self.shape), log_det.sum()

    def inverse_and_sweeps(
        self, y: Float[Array, "*shape"], condition: Float[Array, " C"] | None = None
    ) -> tuple[Float[Array, "*shape"], Int[Array, ""]]:
        """The inverse by Jacobi sweeps, whatever ``inverse`` says, and how many it took.

        Args:
            y: The event to invert.
            condition: The external condition, where the layer has one.
        """
        x, sweeps = self._jacobi(jnp.asarray(y).ravel(), condition)
        return x.reshape(self.shape), lax.stop_gradient(sweeps).astype(int)

    def _sweep(self, x, y, condition):
        return self._family.apply("inverse_and_log_det", self.theta(x, condition), y)[0]

    def _sequential(self, y, condition):
        """After step i the elements of rank i are right, whatever came before."""
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

    def _incremental(self, y, condition):
        """All units sorted by degree; step i computes those of degree i - 1, then the elements of rank i.

        A step writes a window of the sorted units, wide enough for any degree. Where a degree has fewer
        units, the window's tail holds units of the next, whose turn has not come: the masks hide them until
        the next step writes them again. The steps run in a few loops, each over no more of the units than it
        can have reached: what is not known yet need not be read.
        """
        made, size, parts = self.conditioner, len(y), self._family.size
        by_rank = np.argsort(self._ranks, kind="stable")
        extra = 0 if condition is None else len(condition)
        width, first = _windows(np.array(self._ranks)[by_rank], np.arange(self.passes))
        spans = [_windows(np.array(d), np.arange(self.passes) - 1) for d in made.degrees[1:-1]]

        # Columns in the order of the buffers below, whose last places only catch the windows' tails.
        columns = [np.append(size + np.arange(extra), by_rank), *map(np.arange, map(len, made.degrees[1:-1]))]
        ends = [extra + first + width, *(starts + count for count, starts in spans)]
        weights = [
            jnp.pad(w[:, order], ((0, 0), (0, end[-1] - len(order))))
            for w, order, end in zip(made.weights, columns, ends, strict=True)
        ]
        biases = [layer.bias for layer in made.layers]
        outputs = (by_rank[:, None] * parts + np.arange(parts)).ravel()
        windows = [(*window, w, b) for window, w, b in zip(spans, weights, biases, strict=False)]
        steps = {
            "at": [jnp.array(extra + first), *(jnp.array(starts) for _, starts in spans)],
            "hidden": [(_rows(w, starts, n), _rows(b, starts, n)) for n, starts, w, b in windows],
            "last": _rows(weights[-1][outputs].reshape(size, parts, -1), first, width),
            "bias": _rows(biases[-1][outputs].reshape(size, parts), first, width),
            "y": _rows(y[by_rank], first, width),
        }

        def step(buffers, now):
            buffers = list(buffers)
            for i, (weight, bias) in enumerate(now["hidden"]):
                new = made.activation(weight @ buffers[i] + bias)
                buffers[i + 1] = lax.dynamic_update_slice(buffers[i + 1], new, (now["at"][i + 1],))
            theta = self._family.theta(now["last"] @ buffers[-1] + now["bias"])
            new, log_det = self._family.apply("inverse_and_log_det", theta, now["y"])
            buffers[0] = lax.dynamic_update_slice(buffers[0], new, (now["at"][0],))
            return tuple(buffers), (new, log_det)

        buffers, found = [jnp.zeros(0, y.dtype) for _ in ends], []
        if condition is not None:
            buffers[0] = condition
        for part in np.array_split(np.arange(self.passes), _LOOPS if self.passes >= 4 * _LOOPS else 1):
            cuts = [int(end[part[-1]]) for end in ends]
            buffers = [jnp.pad(b, (0, cut - len(b))) for b, cut in zip(buffers, cuts, strict=True)]
            now = jax.tree.map(lambda a, part=part: a[part[0] : part[-1] + 1], steps)
            hidden = zip(now["hidden"], cuts[:-1], strict=True)
            now["hidden"] = [(w[..., :cut], bias) for (w, bias), cut in hidden]
            now["last"] = now["last"][..., : cuts[-1]]
            buffers = [varying_like(buffer, y, condition, self) for buffer in buffers]
            known, new = lax.scan(step, tuple(buffers), now)
            buffers = list(known)
            found.append(new)
        found = [jnp.concatenate(loops) for loops in zip(*found, strict=True)]
        ranks = np.array(self._ranks)
        place = np.empty(size, int)
        place[by_rank] = np.arange(size)
        return tuple(a[ranks, place - first[ranks]] for a in found)


def _windows(ordered, values):
    """Where each value's run begins in a sorted array, and the length of the longest run."""
    first = np.searchsorted(ordered, values, side="left")
    return int((np.searchsorted(ordered, values, side="right") - first).max()), first


def _rows(array, first, count):
    """The window of rows of each step, shape (steps, count, ...); past the end the last row again."""
    return array[np.minimum(first[:, None] + np.arange(count), len(array) - 1)]


def _ranks(shape, order, passes) -> tuple[int, ...]:
    size = math.prod(shape)
    expect(order is None or passes is None, "passes", "be None where `order` is given", passes)
    if passes is not None:
        passes = expect_whole("passes", passes, min(2, size))
        expect(passes <= size, "passes", f"be at most {size}, the event's size", passes)
        return tuple((np.arange(size) * passes // size).tolist())
    if order is None:
        return tuple(range(size))
    array = expect_concrete("order", order)
    whole = np.issubdtype(array.dtype, np.integer)
    expect(whole, "order", "be an array of whole numbers, the elements' ranks", f"dtype {array.dtype}")
    expect(array.shape == shape, "order", f"have shape {shape}, the event's shape", array.shape)
    values, ranks = np.unique(array, return_inverse=True)
    expect(len(values) >= min(2, size), "order", "have at least two different ranks", values.tolist())
    return tuple(ranks.ravel().tolist())
