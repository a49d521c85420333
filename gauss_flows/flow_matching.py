"""Flow matching: training a continuous flow by regression, without solving its equation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from paramax import unwrap

from gauss_flows.continuous import FlowODE
from gauss_flows.fit_result import FitResult, NonFiniteLoss
from gauss_flows.train import fit, with_density_error
from gauss_flows.transformed import Transformed
from gauss_flows.validate import as_floats, expect_key, expect_whole

Path = Literal["linear", "variance_preserving"]

Pairs = Literal["independent", "optimal_transport"]


def _linear(t, x0, x1):
    return (1 - t) * x0 + t * x1, x1 - x0


def _variance_preserving(t, x0, x1):
    angle = 0.5 * jnp.pi * t
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return cos * x0 + sin * x1, 0.5 * jnp.pi * (cos * x1 - sin * x0)


_PATHS: dict[str, Callable] = {"linear": _linear, "variance_preserving": _variance_preserving}


@dataclass(frozen=True)
class _FlowMatching:
    """The loss that :func:`flow_matching` returns; equal settings are equal, so that programs are shared."""

    path: str
    pairs: str
    block: int

    def __call__(
        self, flow: PyTree, x: Array, condition: Array | None, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """The mean squared distance between the velocity and that of a path, per event."""
        ode = velocity_of(flow)
        if self.pairs == "optimal_transport" and condition is not None:
            raise ValueError(
                "`pairs` must be 'independent' for a flow with a condition, since paired noise would depend "
                "on the condition; got 'optimal_transport'."
            )
        noise_key, time_key = jr.split(key)
        base = unwrap(flow.base_dist)
        noise = jax.lax.stop_gradient(base.sample(noise_key, (len(x),)).astype(x.dtype))
        if self.pairs == "optimal_transport":
            noise = _paired(noise, x, self.block)
        return matching_loss(ode, self.path, noise, x, condition, time_key)


def matching_loss(
    ode: FlowODE,
    path: str,
    x0: Float[Array, "n *shape"],
    x1: Float[Array, "n *shape"],
    condition: Float[Array, "n C"] | None,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Return the mean squared error of a flow's velocity on the paths between given pairs.

    Args:
        ode: The flow's layer.
        path: A name of :data:`Path`.
        x0: The noise.
        x1: The data.
        condition: One row per pair, for conditional flows.
        key: Random key for the times, one in each n-th of [0, 1], which lowers the variance.
    """
    n = len(x0)
    t = (jnp.arange(n, dtype=x0.dtype) + jr.uniform(key, (n,), x0.dtype)) / n
    point, speed = _PATHS[path](t.reshape(n, *[1] * (x0.ndim - 1)), x0, x1)
    velocity = unwrap(ode.velocity)
    found = jax.vmap(velocity, (0, 0, None if condition is None else 0))(t, point, condition)
    return jnp.square(found - speed).reshape(n, -1).sum(axis=1).mean()


def velocity_of(flow: PyTree) -> FlowODE:
    """Return the one layer of a continuous flow, or say why there is none."""
    ode = getattr(flow, "bijection", None)
    if not isinstance(ode, FlowODE):
        raise ValueError(
            "`flow` must be a continuous flow, a Transformed whose bijection is a FlowODE, such as "
            f"gf.continuous_flow makes; got {type(flow).__name__} with {type(ode).__name__}."
        )
    return ode


def _paired(noise, x, block):
    """The noise in another order: within blocks, that of least total squared distance to the data."""

    def order(noise, x):
        # NumPy's arrays first: a slice of JAX's would be another compiled program, and takes 0.4 ms.
        x, noise = (np.asarray(v, float).reshape(len(v), -1) for v in (x, noise))
        blocks = []
        for start in range(0, len(x), block):
            # |a - b|² = |a|² + |b|² - 2 a·b, and the sum of the squares is the same for all pairings.
            products = x[start : start + block] @ noise[start : start + block].T
            blocks.append(start + scipy.optimize.linear_sum_assignment(products, maximize=True)[1])
        return np.concatenate(blocks).astype(np.int32)

    kind = jax.ShapeDtypeStruct((len(x),), jnp.int32)
    return noise[jax.pure_callback(order, kind, noise, x, vmap_method="sequential")]


def flow_matching(
    path: Path = "linear", pairs: Pairs = "independent", *, block: int = 64
) -> Callable[[PyTree, Array, Array | None, PRNGKeyArray], Array]:
    r"""A loss for :func:`~gauss_flows.fit` that trains a continuous flow without solving its equation.

    .. math:: E\,\big\| v(t, x_t, c) - \dot x_t \big\|^2, \qquad t \sim U[0, 1],

    where :math:`x_t` is a path from noise :math:`x_0`, drawn from the flow's base, to data :math:`x_1`. Its
    minimizer is the mean of :math:`\dot x_t` given :math:`x_t`, whose flow carries the noise to the data. The
    loss of the minimizer is not 0: it is the variance of :math:`\dot x_t` given :math:`x_t`.

    Args:
        path: "linear", :math:`x_t = (1 - t)\,x_0 + t\,x_1`, or "variance_preserving",
            :math:`x_t = \cos(\pi t / 2)\,x_0 + \sin(\pi t / 2)\,x_1`, whose variance stays 1 if the data have
            mean 0 and variance 1.
        pairs: "independent", or "optimal_transport": within blocks of each batch noise and data are paired
            such that the sum of their squared distances is smallest, which makes the paths nearly straight.
            Not for flows with a condition, whose noise would then depend on it.
        block: Rows per block; the time of the pairing grows with its cube.

    Returns:
        A function ``(flow, x, condition, key) -> loss``.

    Raises:
        ValueError: If an argument does not fit; from the loss, if the flow is not continuous, or has a
            condition where pairs are not independent.

    Source:
        Lipman et al., "Flow matching for generative modeling" (ICLR 2023); Tong et al., "Improving and
        generalizing flow-based generative models with minibatch optimal transport" (TMLR 2024).

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> x = gf.targets.two_moons().sample(jr.key(0), (500,))
        >>> flow = gf.continuous_flow(jr.key(1), 2, nn_width=8)
        >>> result = gf.fit(jr.key(2), flow, x, loss=gf.flow_matching(), steps=20, progress=False)
        >>> result.train_loss.shape
        (20,)
    """
    for name, value, values in (("path", path, get_args(Path)), ("pairs", pairs, get_args(Pairs))):
        if value not in values:
            raise ValueError(f"`{name}` must be one of {values}; got {value!r}.")
    return _FlowMatching(path, pairs, expect_whole("block", block, 2))


class _Pairs(eqx.Module):
    """A flow that is trained on pairs of noise and data, each pair one event of shape (2, \\*shape)."""

    flow: Transformed
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)


@dataclass(frozen=True)
class _OnPairs:
    """The loss of :func:`reflow`: straight lines between given pairs."""

    rows_are_noise: ClassVar[bool] = True

    def __call__(self, pairs, rows, condition, key):
        return matching_loss(velocity_of(pairs.flow), "linear", rows[:, 0], rows[:, 1], condition, key)


def reflow(
    key: PRNGKeyArray,
    flow: Transformed,
    *,
    student: Transformed | None = None,
    n_pairs: int = 10_000,
    condition: Float[Array, "n C"] | None = None,
    **options: Any,
) -> FitResult:
    r"""Train a continuous flow on pairs of noise and samples of another, so that its paths are straighter.

    The flow is solved once, for ``n_pairs`` points of noise, and the velocity is then fitted to the straight
    lines between each point and its image. Straight paths need few steps of a solver.

    Args:
        key: Random key.
        flow: A trained continuous flow.
        student: The flow to train. Default: ``flow`` itself, so that training starts from its parameters.
        n_pairs: Number of pairs; nine tenths of them must fill a batch.
        condition: One row per pair, shape (n_pairs, \*flow.cond_shape), for conditional flows.
        **options: As for :func:`~gauss_flows.fit`, without ``loss``.

    Returns:
        A :class:`~gauss_flows.FitResult` with the student.

    Raises:
        ValueError: If a flow is not continuous, the two have different bases, or an argument does not fit.

    Source:
        Liu et al., "Flow straight and fast: learning to generate and transfer data with rectified flow"
        (ICLR 2023).

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> flow = gf.continuous_flow(jr.key(0), 2, nn_width=8, steps=4)
        >>> result = gf.reflow(jr.key(1), flow, n_pairs=100, steps=5, batch_size=50, progress=False)
        >>> result.flow.sample(jr.key(2), (3,)).shape
        (3, 2)
    """
    given = options.get("options")
    if "loss" in options or (given is not None and given.loss is not None):
        raise ValueError("`loss` must be left out of `reflow`, which has its own.")
    student = flow if student is None else student
    for model in (flow, student):
        velocity_of(model)
        if isinstance(model, Transformed):
            model.expect_single()
    if not eqx.tree_equal(student.base_dist, flow.base_dist):
        raise ValueError(
            "`student` must have the base of `flow`, from which the noise of the pairs is drawn."
        )
    if student.shape != flow.shape or student.cond_shape != flow.cond_shape:
        raise ValueError(
            f"`student` must have the shapes of `flow`, {flow.shape} and {flow.cond_shape}; got "
            f"{student.shape} and {student.cond_shape}."
        )
    n = expect_whole("n_pairs", n_pairs, 2)
    wanted = None if flow.cond_shape is None else (n, *flow.cond_shape)
    condition = None if condition is None else as_floats("condition", condition)
    got = None if condition is None else condition.shape
    if got != wanted:
        raise ValueError(f"`condition` must have shape {wanted}, one row per pair; got {got}.")
    noise_key, key = jr.split(expect_key(key))
    x0 = unwrap(flow.base_dist).sample(noise_key, (n,))
    axes = (0, None if condition is None else 0)
    x1 = eqx.filter_jit(lambda flow: jax.vmap(flow.bijection.transform, axes)(x0, condition))(flow)
    pairs = _Pairs(student, (2, *flow.shape), flow.cond_shape)
    if not bool(jnp.isfinite(x1).all()):
        raise ValueError("`flow` must map noise to finite points; some are infinite or NaN.")
    rows = jnp.stack([x0, x1], axis=1)
    try:
        result = fit(key, pairs, rows, condition=condition, loss=_OnPairs(), **options)
    except NonFiniteLoss as error:
        error.result = replace(error.result, flow=error.result.flow.flow)
        raise
    return with_density_error(replace(result, flow=result.flow.flow), x1, condition)
