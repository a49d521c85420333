"""Continuous flows: a map that follows a velocity from t = 0 to t = 1, and how exact its density is."""

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree
from paramax import NonTrainable, unwrap

from gauss_flows.bijection import Bijection
from gauss_flows.compiling import varying_like
from gauss_flows.conditioners import ConditionerFactory
from gauss_flows.log_det import LogDet, choose_log_det, is_random, log_prob
from gauss_flows.ode_solver import ODESolver
from gauss_flows.validate import Shape, expect_data, expect_shape, expect_whole
from gauss_flows.velocity import Velocity


class FlowODE(Bijection):
    r"""The map :math:`x(0) \mapsto x(1)` of an ordinary differential equation, from latent to data.

    .. math:: \frac{dx}{dt} = v(t, x, c), \qquad
              \log|\det J| = \int_0^1 \mathrm{tr}\,\frac{\partial v}{\partial x}(t, x(t), c)\,dt .

    The inverse follows the same equation from t = 1 back to t = 0. Both are as exact as the solver: with too
    few steps the map that is computed and the integral do not belong together, and what ``log_prob`` gives is
    not the logarithm of a density. :func:`density_error` estimates by how much.

    Args:
        key: Random key for the network.
        shape: The event's shape, of any rank.
        velocity: A function ``(t, x, condition) -> dx/dt`` in place of the network, such as the method
            ``velocity`` of a target; the condition is None for an unconditional flow. A pytree whose arrays
            are trained.
        conditioner: A factory of the network, as those of ``gf.conditioners``. Default: an MLP with silu.
        cond_dim: Size of an external condition, shape (cond_dim,). Default: none.
        nn_width: Hidden units of the default network.
        nn_depth: Its hidden layers.
        solver: "euler", "heun" or "rk4" with ``steps`` steps, which are finer towards t = 1, or the name of
            an adaptive solver of diffrax, such as "Tsit5", with ``tolerance``; it has no forward-mode
            derivatives, and gives NaN where 4,096 steps do not suffice.
        steps: Number of steps; "rk4" evaluates the velocity four times in each, "heun" twice.
        tolerance: Relative and absolute tolerance of diffrax's step size controller.
        log_det: "exact" (the trace, by one derivative per element; events of at most 32 elements) or
            "hutchinson" (an unbiased estimate of the trace by random signs, drawn once per call). Only the
            first gives likelihoods; the other is for training, and needs a key: see
            :func:`~gauss_flows.with_log_det`.
        terms: Number of vectors of random signs. Default: 1.

    Raises:
        ValueError: If an argument does not fit; the message says which and how.

    Source:
        Chen et al., "Neural ordinary differential equations" (NeurIPS 2018); Grathwohl et al., "FFJORD"
        (ICLR 2019).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> ode = gf.FlowODE(jr.key(0), (2,), steps=8)
        >>> x, log_det = ode.transform_and_log_det(jnp.ones(2))
        >>> bool(jnp.allclose(ode.inverse(x), 1, atol=1e-4))
        True
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: Shape | None = eqx.field(static=True)
    velocity: PyTree
    log_det: LogDet
    solver: ODESolver
    _one: PyTree  # in a stack of layers it has the stack's axes
    log_det_terms: ClassVar[dict[str, int]] = {"exact": 0, "hutchinson": 1}

    def __init__(
        self,
        key: PRNGKeyArray,
        shape: Shape,
        *,
        velocity: Callable[[Array, Array, Array | None], Array] | None = None,
        conditioner: ConditionerFactory | None = None,
        cond_dim: int | None = None,
        nn_width: int = 64,
        nn_depth: int = 3,
        solver: str = "rk4",
        steps: int = 32,
        tolerance: float = 1e-6,
        log_det: str = "exact",
        terms: int | None = None,
    ):
        self.shape = expect_shape(shape)
        self.cond_shape = None if cond_dim is None else (expect_whole("cond_dim", cond_dim, 1),)
        if velocity is not None and conditioner is not None:
            raise ValueError(
                "`conditioner` must be left out where `velocity` is given: then no network is made."
            )
        if velocity is None:
            velocity = Velocity(
                key, self.shape, conditioner=conditioner, cond_dim=cond_dim, nn_width=nn_width,
                nn_depth=nn_depth,
            )  # fmt: skip
        else:
            _expect_velocity(velocity, self.shape, self.cond_shape)
        self.velocity = velocity
        self.log_det = choose_log_det(math.prod(self.shape), log_det, terms, self.log_det_terms)
        self.solver = ODESolver(solver, steps, tolerance)
        self._one = NonTrainable(jnp.ones(()))

    @property
    def stack_shape(self) -> Shape:
        """The leading axes along which layers are stacked in a :class:`Scan`; () for one layer."""
        return jnp.shape(unwrap(self._one))

    def transform(self, x, condition=None):
        """Return x at t = 1 without the log-determinant; called on the layer itself, this needs no key."""
        return super(FlowODE, self._without_log_det()).transform(x, condition)

    def inverse(self, y, condition=None):
        """Return x at t = 0 without the log-determinant; called on the layer itself, this needs no key."""
        return super(FlowODE, self._without_log_det()).inverse(y, condition)

    def transform_and_log_det(self, x, condition=None):
        return self._follow(x, condition, 0.0, 1.0)

    def inverse_and_log_det(self, y, condition=None):
        return self._follow(y, condition, 1.0, 0.0)

    def round_trip_error(
        self, x: Float[Array, "*shape"], condition: Float[Array, " C"] | None = None
    ) -> Float[Array, ""]:
        """Return the largest difference between an event and the result of following it forward and back.

        Args:
            x: The event at t = 0.
            condition: The external condition, where the flow has one.
        """
        there = self.transform(x, condition)
        return jnp.abs(self.inverse(there, condition) - jnp.asarray(x, there.dtype)).max()

    def _without_log_det(self):
        return eqx.tree_at(lambda b: b.log_det, self, LogDet("none", 0, None))

    def _follow(self, x, condition, start, stop):
        velocity = lambda t, x: self.velocity(t, x, condition)
        like = (x, condition, eqx.filter(self.velocity, eqx.is_array))
        x = varying_like(x, *like)
        if self.log_det.method == "none":
            return self.solver.solve(velocity, x, start, stop), jnp.zeros((), x.dtype)
        directions = self._directions(x)

        def field(t, state):
            value, push = jax.linearize(lambda x: velocity(t, x), state[0])
            along = lambda v: jnp.vdot(v, push(v))
            traces = jax.vmap(along)(directions)
            return value, traces.sum() if self.log_det.method == "exact" else traces.mean()

        return self.solver.solve(field, (x, varying_like(jnp.zeros((), x.dtype), *like)), start, stop)

    def _directions(self, x):
        """The vectors v whose products v · (dv/dx) v are summed, or for an estimate averaged."""
        if self.log_det.method == "exact":
            return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *self.shape)
        if self.log_det.key is None:
            raise ValueError(
                "`log_det` must have a random key, since 'hutchinson' is an estimate; give it one by "
                "gf.with_log_det(flow, key=...)."
            )
        return jr.rademacher(self.log_det.key, (self.log_det.terms, *self.shape), x.dtype)


def _expect_velocity(velocity, shape, cond_shape):
    """Refuse a function that does not give one number per element of the event."""
    if not callable(velocity):
        raise ValueError(f"`velocity` must be a function (t, x, condition) -> dx/dt; got {velocity!r}.")
    kind = jnp.result_type(float)
    x = jax.ShapeDtypeStruct(shape, kind)
    condition = None if cond_shape is None else jax.ShapeDtypeStruct(cond_shape, kind)
    try:
        out = eqx.filter_eval_shape(unwrap(velocity), jax.ShapeDtypeStruct((), kind), x, condition)
    except Exception as error:
        raise ValueError(
            f"`velocity` must take a time, an event of shape {shape} and a condition; it raised: {error}"
        ) from error
    got = getattr(out, "shape", out)
    real = jnp.issubdtype(getattr(out, "dtype", int), jnp.floating)
    if got == shape and not real:
        raise ValueError(f"`velocity` must return floating-point numbers; it returned {out.dtype}.")
    if got != shape:
        raise ValueError(f"`velocity` must return an array of the event's shape {shape}; it returned {got}.")


def _is_ode(node: PyTree) -> bool:
    return isinstance(node, FlowODE)


def is_continuous(flow: PyTree) -> bool:
    """Return whether a flow holds a layer that follows a velocity."""
    return any(map(_is_ode, jax.tree.leaves(flow, is_leaf=_is_ode)))


def _refined(flow):
    """The flow with twice the steps in every such layer."""
    refine = lambda node: (
        eqx.tree_at(
            lambda b: b.solver, node, node.solver.refined(), is_leaf=lambda n: isinstance(n, ODESolver)
        )
        if _is_ode(node)
        else node
    )
    return jax.tree.map(refine, flow, is_leaf=_is_ode)


def density_error(
    flow: PyTree, x: ArrayLike, condition: ArrayLike | None = None, *, key: PRNGKeyArray | None = None
) -> np.ndarray:
    r"""Estimate the error of log p(x) that the solvers of a continuous flow leave, in nats.

    The log-density is computed twice, as it is and with twice the steps. If the error falls as the p-th power
    of the step, :math:`\log p_n - \log p_{2n} = (1 - 2^{-p})` times the error of :math:`\log p_n`. A positive
    value says that the density is reported too large. With very few steps the law does not hold yet: then the
    estimate says only that the error is large, and its sign may be wrong. For a solver of diffrax the second
    computation has a hundredth of the tolerance, and its own error is taken to be zero.

    Args:
        flow: A flowjax ``Transformed`` with :class:`FlowODE` layers.
        x: Points, shape (n, \*flow.shape).
        condition: One row for each point, for conditional flows.
        key: Random key, needed where the log-determinant is an estimate: both computations use the same.

    Returns:
        The estimated error for each point, shape (n,).

    Raises:
        ValueError: If there is no such layer, or an argument does not fit or is traced.

    Source:
        Hairer, Nørsett, Wanner, "Solving ordinary differential equations I" (1993), section II.4
        (Richardson's extrapolation).

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> flow = gf.continuous_flow(jr.key(0), 2)
        >>> gf.density_error(flow, jr.normal(jr.key(1), (5, 2))).shape
        (5,)
    """
    if not (isinstance(flow, fd.AbstractDistribution) and is_continuous(flow)):
        raise ValueError(f"`flow` must be a distribution that holds a FlowODE; got {type(flow).__name__}.")
    for name, value in (("x", x), ("condition", condition)):
        if isinstance(value, jax.core.Tracer):
            raise ValueError(f"`{name}` must be a concrete array: call density_error outside of jax.jit.")
    if key is None and is_random(flow):
        raise ValueError("`key` must be a random key where the log-determinant is an estimate; got None.")
    rows, condition = expect_data(flow, x, condition, at_least=1)
    orders = {n.solver.order for n in jax.tree.leaves(flow, is_leaf=_is_ode) if _is_ode(n)}
    order = min((o for o in orders if o is not None), default=None)
    key = jr.key(0) if key is None else key  # then it has no effect
    coarse, fine = (
        np.asarray(log_prob(each, rows, condition, key), np.float64) for each in (flow, _refined(flow))
    )
    with np.errstate(invalid="ignore"):  # infinite minus infinite: the error is not known
        difference = coarse - fine
    return difference / (1 if order is None else 1 - 2.0**-order)
