"""Guidance: samples that follow their condition more closely than the data do."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from paramax import NonTrainable

from gauss_flows.conditioners import CausalTransformer
from gauss_flows.fit_loop import maximum_likelihood


@dataclass(frozen=True)
class _DropCondition:
    """The loss that :func:`drop_condition` returns; equal settings are equal, so that programs are shared."""

    loss: Callable
    probability: float

    def __call__(
        self, flow: PyTree, x: Array, condition: Array | None, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        if condition is None:
            raise ValueError("`flow` must have a condition, which this loss drops; got a flow without one.")
        drop_key, key = jr.split(key)
        rows = (len(condition), *[1] * (condition.ndim - 1))
        kept = jr.bernoulli(drop_key, 1 - self.probability, rows)
        return self.loss(flow, x, jnp.where(kept, condition, 0), key)


def drop_condition(
    loss: Callable[[PyTree, Array, Array | None, PRNGKeyArray], Array] | None = None,
    probability: float = 0.1,
) -> Callable[[PyTree, Array, Array | None, PRNGKeyArray], Array]:
    r"""A loss for :func:`~gauss_flows.fit` that replaces the condition of random rows by zeros.

    So one flow learns both p(x | c) and, at c = 0, p(x), as :func:`guided` needs it. Zeros must not be a
    condition of the data themselves: for a class use a vector of zeros and a one.

    Args:
        loss: ``(flow, x, condition, key) -> scalar``, such as ``gf.flow_matching()``. Default: the negative
            mean log-likelihood.
        probability: The probability with which a row loses its condition, in [0, 1].

    Returns:
        A function ``(flow, x, condition, key) -> loss``.

    Raises:
        ValueError: If ``probability`` is out of range or ``loss`` no function; from the loss, if the flow has
            no condition.

    Source:
        Ho and Salimans, "Classifier-free diffusion guidance" (2022).

    Example:
        >>> import gauss_flows as gf, jax, jax.random as jr
        >>> labels = jax.nn.one_hot(jr.randint(jr.key(0), (200,), 0, 2), 2)
        >>> x = jr.normal(jr.key(1), (200, 2)) + 3 * labels
        >>> flow = gf.maf(jr.key(2), 2, layers=1, nn_width=8, cond_dim=2, bijector=gf.Affine())
        >>> result = gf.fit(
        ...     jr.key(3), flow, x, condition=labels, loss=gf.drop_condition(), steps=10, batch_size=50,
        ...     progress=False,
        ... )
    """
    if loss is not None and not callable(loss):
        raise ValueError(f"`loss` must be a function (flow, x, condition, key) -> scalar; got {loss!r}.")
    within = isinstance(probability, Real) and 0 <= probability <= 1
    if not within:
        raise ValueError(f"`probability` must lie in [0, 1]; got {probability!r}.")
    return _DropCondition(maximum_likelihood if loss is None else loss, float(probability))


def guided(flow: PyTree, weight: float) -> PyTree:
    r"""Return the flow with guidance, which strengthens the effect of the condition on every parameter.

    .. math:: \theta = \theta(c) + w\,(\theta(c) - \theta(0)),

    where θ is the output of each layer's network, for each patch given the patches before it. Samples become
    more typical of their condition and less diverse. The guided flow is a bijection as any other, and its
    ``log_prob`` is that of the guided model, not of the model that was trained.

    Args:
        flow: A flow, trained with :func:`drop_condition`, whose networks are
            :class:`~gauss_flows.conditioners.CausalTransformer`; such as :func:`transformer_flow` makes it.
        weight: w, finite and at least 0; 0 for no guidance. It takes the place of an earlier weight.

    Returns:
        A flow of the same kind; training leaves w as it is.

    Raises:
        ValueError: If ``weight`` is out of range, or the flow holds no such network with a condition.

    Source:
        Ho and Salimans, "Classifier-free diffusion guidance" (2022); Zhai et al., "Normalizing flows are
        capable generative models" (ICML 2025), for flows.

    Example:
        >>> import gauss_flows as gf, jax, jax.random as jr
        >>> flow = gf.transformer_flow(jr.key(0), (4, 4), layers=2, nn_width=8, cond_dim=10)
        >>> gf.guided(flow, 1.0).sample(jr.key(1), condition=jax.nn.one_hot(3, 10)).shape
        (4, 4)
    """
    within = isinstance(weight, Real) and 0 <= weight < math.inf
    if not within:
        raise ValueError(f"`weight` must be at least 0 and finite; got {weight!r}.")
    is_network = lambda node: isinstance(node, CausalTransformer)
    networks = [node for node in jax.tree.leaves(flow, is_leaf=is_network) if is_network(node)]
    if not any(network.condition is not None for network in networks):
        raise ValueError(
            "`flow` must hold a patch_transformer with a condition, such as gf.transformer_flow makes with "
            f"`cond_dim`; got {type(flow).__name__} without one."
        )
    change = lambda node: _with_guidance(node, float(weight)) if is_network(node) else node
    return jax.tree.map(change, flow, is_leaf=is_network)


def _with_guidance(network, weight):
    if network.condition is None:
        return network
    # One number for each network of a stack. Without guidance the second pass is left out.
    stack, dtype = network.places.shape[:-2], network.places.dtype
    guidance = NonTrainable(jnp.full(stack, weight, dtype)) if weight else None
    return eqx.tree_at(lambda n: n.guidance, network, guidance, is_leaf=lambda node: node is None)
