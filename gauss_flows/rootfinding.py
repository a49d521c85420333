"""A bracketed solver for increasing functions, and roots that can be differentiated to any order."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree


def solve_monotone(
    residual_and_slope: Callable[[Array], tuple[Array, Array]],
    lower: Array,
    upper: Array,
    guess: Array,
    *,
    scale: Array,
    tolerance: Array,
    max_steps: int = 200,
) -> tuple[Array, Array]:
    r"""Solve r(x) = 0 for an increasing r inside an exact bracket: Newton, kept safe by bisection.

    A step is replaced by a bisection if it leaves the bracket or is longer than half the step
    before it (without the second rule Newton's method can cycle without end on a mixture's CDF). The loop
    ends with the step that lands within rounding error, which is known before it is taken:
    Newton's next error is about the square of its step over the scale on which the slope
    changes, so a step below :math:`10^{-2}\sqrt{\varepsilon}` of that scale is the last.

    Nothing is differentiated through the loop: give the solution to :func:`implicit_root`.

    Args:
        residual_and_slope: x -> (r(x), r'(x)), scalars; ``jax.vmap`` batches.
        lower: r(lower) <= 0.
        upper: r(upper) >= 0.
        guess: Where to start.
        scale: How far x must move for the slope to change by its own size; positive.
        tolerance: The rounding error to expect in r; a smaller residual ends the loop.
        max_steps: More than bisection alone would need.

    Returns:
        The root, and the number of evaluations.
    """
    eps = float(jnp.finfo(guess.dtype).eps)

    def running(state):
        *_, steps, done = state
        return ~done & (steps < max_steps)

    def step(state):
        x, lower, upper, previous, steps, _ = state
        residual, slope = residual_and_slope(x)
        lower = jnp.where(residual <= 0, x, lower)
        upper = jnp.where(residual >= 0, x, upper)
        newton = x - residual / slope
        length = jnp.abs(newton - x)
        inside = (newton >= lower) & (newton <= upper)
        small = jnp.maximum(1e-2 * eps**0.5 * scale, 4 * eps * jnp.abs(x))
        last = (length <= small) | (jnp.abs(residual) <= tolerance)
        accept = inside & (last | (length <= 0.5 * previous))
        middle = lower + 0.5 * (upper - lower)
        closed = (middle <= lower) | (middle >= upper)
        new = jnp.where(accept, newton, jnp.where(last, x, middle))
        moved = jnp.where(accept, length, upper - lower)
        return new, lower, upper, moved, steps + 1, last | closed

    start = (guess, lower, upper, upper - lower, jnp.zeros((), jnp.int32), lower >= upper)
    root, _, _, _, steps, _ = lax.while_loop(running, step, start)
    return root, steps


def implicit_root(
    function: Callable[[Array], Array],
    target: Array,
    solve: Callable[[], PyTree],
    *,
    divide: Callable[[Callable[[Array], Array], Array], Array] | None = None,
    has_aux: bool = False,
) -> PyTree:
    r"""Return the x with function(x) = target, with the derivatives of the implicit function theorem.

    :math:`dx = T'(x)^{-1} (dy - \partial_\theta T\, d\theta)`, for everything that ``function`` and
    ``target`` depend on, closed-over values included, to any order, in forward and in reverse mode and in any
    nesting of the two. (``lax.custom_root`` does the same but for one case: inside a ``lax.scan`` its
    reverse-mode derivative cannot be differentiated in reverse mode again.)

    Args:
        function: Maps arrays of the shape of ``target`` to such arrays, one to one; differentiable.
        target: The value to reach.
        solve: Returns the root; it is not differentiated.
        divide: ``(linear, v) -> w`` with linear(w) = v, for the linear map :math:`T'(x)`; differentiable as
            often as the root must be. Default: that of a scalar equation.
        has_aux: Whether ``solve`` returns a root and something else, which is passed on without derivatives.

    Returns:
        The root; with ``has_aux`` the root and the rest.
    """
    # What the two close over becomes an argument, so that the rules below can differentiate it.
    solver, known = jax.closure_convert(solve)
    found = lax.stop_gradient(solver(*lax.stop_gradient(known)))
    root, aux = found if has_aux else (found, None)
    # A lambda, since the conversion hashes its argument, which a method of a layer with traced arrays is not.
    equation, parameters = jax.closure_convert(lambda x: function(x), root)
    divide = divide or (lambda linear, y: y / linear(jnp.ones_like(y)))

    def quotient(x, v, *parameters):
        return divide(lambda w: jax.jvp(lambda x: equation(x, *parameters), (x,), (w,))[1], v)

    x = _root_p.bind(root, target, *parameters, equation=equation, quotient=quotient)
    return (x, aux) if has_aux else x


# The root itself, with a rule that makes it a function of the target and the parameters. It is a primitive
# because JAX forgets the rule of a ``custom_jvp`` (and so that of ``lax.custom_root``) in the part of a scan
# that reverse mode computes in advance: second derivatives would be wrong there, without an error.
_root_p = Primitive("implicit_root")

_root_p.def_impl(lambda root, *_, **__: root)

_root_p.def_abstract_eval(lambda root, *_, **__: root)

mlir.register_lowering(_root_p, lambda _context, root, *_, **__: [root])


def _root_jvp(primals, tangents, *, equation, quotient):
    _, _, *parameters = primals
    _, change, *changes = map(ad.instantiate_zeros, tangents)
    x = _root_p.bind(*primals, equation=equation, quotient=quotient)  # so that dx has derivatives in its turn
    if parameters:
        change = change - jax.jvp(lambda *p: equation(x, *p), parameters, changes)[1]
    return x, quotient(x, change, *parameters)


def _root_batch(args, dims, *, equation, quotient):
    """Batch root and target; parameters that all events share stay as they are."""
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    front = lambda a, d: jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
    root, target = map(front, args[:2], dims[:2])
    axes = dims[2:]
    equation, quotient = jax.vmap(equation, (0, *axes)), jax.vmap(quotient, (0, 0, *axes))
    return _root_p.bind(root, target, *args[2:], equation=equation, quotient=quotient), 0


ad.primitive_jvps[_root_p] = _root_jvp

batching.primitive_batchers[_root_p] = _root_batch
