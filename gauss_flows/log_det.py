"""Log-determinants without a closed form: exact ones, and random estimates, which need a key."""

import math
from collections.abc import Mapping
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from paramax import unwrap

from gauss_flows.compiling import varying_like
from gauss_flows.validate import expect_whole

LogDetMethod = Literal["exact", "hutchinson", "roulette"]

EXACT_LIMIT = 32  # largest event whose Jacobian is formed: its cost is cubic

_TERMS = {"exact": 0, "hutchinson": 10, "roulette": 4}


class LogDet(eqx.Module):
    """The settings by which a layer computes its log-determinant: method, number of terms, random key."""

    method: str = eqx.field(static=True)
    terms: int = eqx.field(static=True)
    key: Array | None  # one key, or one per layer of a stack


def log_det_estimate(
    network: PyTree,
    x: Float[Array, " D"],
    key: PRNGKeyArray,
    condition: Float[Array, " C"] | None = None,
    *,
    terms: int,
    keep: float | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    r"""Return one random estimate of log|det(I + J)|, where J is the Jacobian of a contraction at x.

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
    if keep is not None and not 0 < keep < 1:
        raise ValueError(f"`keep` must lie between 0 and 1; got {keep}.")
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


def choose_log_det(
    size: int, method: str, terms: int | None, default_terms: Mapping[str, int] = _TERMS
) -> LogDet:
    """Return the way to the log-determinant of an event of some size, without a key.

    Args:
        size: Number of elements of the event.
        method: One of the methods that the layer has.
        terms: Number of terms, None for the default.
        default_terms: The layer's methods, and the default number of terms of each.
    """
    if method not in default_terms:
        raise ValueError(f"`log_det` must be one of {tuple(default_terms)}; got {method!r}.")
    if method == "exact" and size > EXACT_LIMIT:
        others = " or ".join(repr(name) for name in default_terms if name != "exact")
        raise ValueError(
            f"`log_det` must be {others} for an event of {size} elements (more than {EXACT_LIMIT}); got "
            "'exact'."
        )
    if terms is None:
        terms = default_terms[method]
    return LogDet(method, expect_whole("terms", terms, int(method == "hutchinson")), None)


def _is_block(node: PyTree) -> bool:
    """Whether a node is a layer that finds its log-determinant in one of several ways."""
    return isinstance(getattr(node, "log_det", None), LogDet)


def is_random(flow: PyTree) -> bool:
    """Return whether a flow holds a layer whose log-determinant is an estimate."""
    nodes = jax.tree.leaves(flow, is_leaf=_is_block)
    return any(_is_block(node) and node.log_det.method != "exact" for node in nodes)


def with_log_det(
    flow: PyTree,
    log_det: LogDetMethod | None = None,
    *,
    terms: int | None = None,
    key: PRNGKeyArray | None = None,
) -> PyTree:
    """Return the flow with another log-determinant in its layers without a closed form, or with a key for it.

    With a key a flow of "hutchinson" or "roulette" gives estimates, the same noise for every point (for noise
    of its own for each point see :func:`estimate_log_prob`), and it gives samples, which do not depend on the
    key. Without one both are refused.

    Args:
        flow: A flow or bijection with :class:`Residual` blocks or :class:`FlowODE` layers.
        log_det: "exact", "hutchinson" or, for residual blocks, "roulette". Default: as it is.
        terms: As for :class:`Residual` and :class:`FlowODE`. Default: as it is, or that of a new ``log_det``.
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
        new = choose_log_det(math.prod(node.shape), method, wanted, getattr(node, "log_det_terms", _TERMS))
        if key is not None:
            own, stack = jr.fold_in(key, count), node.stack_shape
            new = LogDet(new.method, new.terms, jr.split(own, stack) if stack else own)
        return eqx.tree_at(lambda block: block.log_det, node, new, is_leaf=lambda n: isinstance(n, LogDet))

    changed = jax.tree.map(change, flow, is_leaf=_is_block)
    if count == 0:
        raise ValueError(f"`flow` must hold a Residual block or a FlowODE; got {type(flow).__name__}.")
    return changed


def estimate_log_prob(
    flow: PyTree, x: Float[Array, "n *shape"], key: PRNGKeyArray, condition: Float[Array, "n C"] | None = None
) -> Float[Array, " n"]:
    """Estimate log p(x), in nats, with independent noise for each point; these are not likelihoods.

    This is what :func:`~gauss_flows.fit` maximizes for a flow with "hutchinson" or "roulette".

    Args:
        flow: A flowjax ``Transformed`` with :class:`Residual` blocks or :class:`FlowODE` layers.
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


def log_prob(flow: PyTree, x: Array, condition: Array | None, key: PRNGKeyArray) -> Array:
    """Return log p(x) in nats, with noise of its own for each row if the flow can only be estimated."""
    if hasattr(flow, "training_log_prob"):  # a model of images of whole numbers
        return flow.training_log_prob(x, condition, key)
    if is_random(flow):
        return estimate_log_prob(flow, x, key, condition)
    return flow.log_prob(x, condition)
