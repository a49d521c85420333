r"""The inverse of a masked autoregressive layer, for the arithmetic of one pass through its network.

A masked network (MADE) for three elements of ranks 0, 1 and 2. Every unit has a degree, in brackets, and
takes as input those units of the layer before whose degree is at most its own. The parameters of an element
of rank r have degree r - 1, so that they depend only on elements of smaller rank::

    elements        hidden units       parameters

                                       theta_0 (-1)   no input: its bias
    x_0 (0) ------> a (0) -----------> theta_1 (0)
       |  \------>  b (0) ----/   |
       v                          v
    x_1 (1) ------> c (1) -----------> theta_2 (1)    inputs a, b and c
    x_2 (2)                            x_2 is the input of no unit

To invert, :math:`x_i = T^{-1}_{\theta_i}(y_i)` needs :math:`\theta_i`, and that needs
:math:`x_0, \dots, x_{i-1}`. The textbook runs the whole network once for each rank. But a hidden unit of
degree d is final as soon as the elements of rank d are known, so it has to be computed once only:

    step 0:  theta_0                       then x_0
    step 1:  a, b from x_0, then theta_1,  then x_1
    step 2:  c from x_0, x_1, then theta_2, then x_2

Step i computes the hidden units of degree i - 1, the parameters of rank i and the elements of rank i. Each
row of each weight matrix is used in exactly one step: together the steps cost one pass.

The work has three phases. *Plan*: sort the units of each layer by degree, so that a step writes a window of
neighboring units, and cut the weights into the rows of each step. *Step*: compute the windows of one rank,
layer by layer. *Scatter*: put the elements, sorted by rank, back into the order of the event.

All windows of a layer must have one width, that of its largest degree, since one loop runs all steps. Where a
degree has fewer units, the window's tail holds units of the next degrees, computed too early; no unit uses
them before their own step writes them again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from gauss_flows.compiling import varying_like

_LOOPS = 4  # the steps run in so many loops, each over the units known by its end; more compile longer


def incremental_inverse(
    network: PyTree,
    bijector: PyTree,
    ranks: np.ndarray,
    y: Float[Array, " D"],
    condition: Float[Array, " C"] | None,
) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """Return the x with :math:`T(x) = y`, and minus the log of each slope there.

    Args:
        network: A :class:`~gauss_flows.conditioners.MaskedMLP`; its inputs are the elements and then the
            condition.
        bijector: As the other arguments, that of
            :meth:`~gauss_flows.masked_network.MaskedNetwork.incremental_inverse`.
        ranks: Likewise.
        y: Likewise.
        condition: Likewise.
    """
    plan = _plan(network, bijector.size, ranks, y, 0 if condition is None else len(condition))
    buffers = [jnp.zeros(0, y.dtype) for _ in plan.ends]
    if condition is not None:
        buffers[0] = condition
    n_steps, found = len(plan.first), []
    for part in np.array_split(np.arange(n_steps), _LOOPS if n_steps >= 4 * _LOOPS else 1):
        known = [int(end[part[-1]]) for end in plan.ends]  # what the part's last step can have reached
        buffers = [jnp.pad(b, (0, size - len(b))) for b, size in zip(buffers, known, strict=True)]
        buffers = [varying_like(b, y, condition, network, bijector) for b in buffers]
        steps = _steps_of(plan, part, known)
        done, new = lax.scan(lambda carry, step: _step(network, bijector, carry, step), tuple(buffers), steps)
        buffers = list(done)
        found.append(new)
    x, log_slopes = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
    return _scatter(plan, ranks, x), _scatter(plan, ranks, log_slopes)


class _Steps(NamedTuple):
    """The arrays of all steps, with one entry per step along the first axis."""

    places: list[Array]  # where each buffer's window begins: the elements, then each hidden layer
    hidden: list[tuple[Array, Array]]  # the windows' weights and biases, layer by layer
    weights: Array  # those of the parameters, (steps, elements, parameters, units)
    biases: Array
    y: Array


class _Plan(NamedTuple):
    """What is known before any number is: the order of the units, the windows, and the rows of each step."""

    by_rank: np.ndarray  # the elements, sorted by rank
    first: np.ndarray  # the place among them at which each rank begins
    ends: list[np.ndarray]  # how much of each buffer each step can have written
    steps: _Steps


def _plan(network, n_parameters, ranks, y, n_conditions) -> _Plan:
    n_steps, size = max(ranks) + 1, len(ranks)
    by_rank = np.argsort(ranks, kind="stable")
    width, first = _windows(ranks[by_rank], np.arange(n_steps))
    hidden_degrees = [np.array(degrees) for degrees in network.degrees[1:-1]]
    windows = [_windows(degrees, np.arange(n_steps) - 1) for degrees in hidden_degrees]

    # The columns of each matrix in the order of its buffer, with zeros for the tails of the last windows.
    columns = [np.append(size + np.arange(n_conditions), by_rank), *map(np.arange, map(len, hidden_degrees))]
    ends = [n_conditions + first + width, *(starts + count for count, starts in windows)]
    weights = [
        jnp.pad(weight[:, order], ((0, 0), (0, end[-1] - len(order))))
        for weight, order, end in zip(network.weights, columns, ends, strict=True)
    ]
    biases = [layer.bias for layer in network.layers]
    outputs = (by_rank[:, None] * n_parameters + np.arange(n_parameters)).ravel()
    steps = _Steps(
        places=[jnp.array(n_conditions + first), *(jnp.array(starts) for _, starts in windows)],
        hidden=[
            (_rows(weight, starts, count), _rows(bias, starts, count))
            for (count, starts), weight, bias in zip(windows, weights, biases, strict=False)
        ],
        weights=_rows(weights[-1][outputs].reshape(size, n_parameters, -1), first, width),
        biases=_rows(biases[-1][outputs].reshape(size, n_parameters), first, width),
        y=_rows(y[by_rank], first, width),
    )
    return _Plan(by_rank, first, ends, steps)


def _windows(degrees: np.ndarray, values: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the largest number of units of one degree, and where each degree begins in the sorted array."""
    first = np.searchsorted(degrees, values, side="left")
    return int((np.searchsorted(degrees, values, side="right") - first).max()), first


def _rows(array: Array, first: np.ndarray, count: int) -> Array:
    """Return the window of rows of each step, (steps, count, …); past the end the last row again."""
    return array[np.minimum(first[:, None] + np.arange(count), len(array) - 1)]


def _steps_of(plan: _Plan, part: np.ndarray, known: list[int]) -> _Steps:
    """Return the arrays of some steps, with weights for the known units only."""
    steps = jax.tree.map(lambda a: a[part[0] : part[-1] + 1], plan.steps)
    hidden = [(weight[..., :size], bias) for (weight, bias), size in zip(steps.hidden, known, strict=False)]
    return steps._replace(hidden=hidden, weights=steps.weights[..., : known[-1]])


def _step(network, bijector, buffers, step):
    """Compute the hidden units that have just become known, then the parameters, then the elements."""
    buffers = list(buffers)
    for i, (weight, bias) in enumerate(step.hidden):
        new = network.activation(weight @ buffers[i] + bias)
        buffers[i + 1] = lax.dynamic_update_slice(buffers[i + 1], new, (step.places[i + 1],))
    theta = bijector.theta(step.weights @ buffers[-1] + step.biases)
    x, log_slopes = bijector.inverse(theta, step.y)
    buffers[0] = lax.dynamic_update_slice(buffers[0], x, (step.places[0],))
    return tuple(buffers), (x, log_slopes)


def _scatter(plan: _Plan, ranks: np.ndarray, windows: Array) -> Array:
    """Return what the steps found, (steps, window), in the order of the event."""
    place = np.empty(len(ranks), int)
    place[plan.by_rank] = np.arange(len(ranks))
    return windows[ranks, place - plan.first[ranks]]
