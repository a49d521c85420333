"""Train a flow on a log-density in place of data."""

from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import PRNGKeyArray

from gauss_flows.bijection import partition
from gauss_flows.fit_options import FitOptions
from gauss_flows.fit_result import FitResult, NonFiniteLoss
from gauss_flows.information import estimate
from gauss_flows.log_density import LogDensity, Static, draw, expect_finite
from gauss_flows.train import fit, with_density_error
from gauss_flows.validate import expect_key, expect_whole

Gradient = Literal["total", "path"]


def fit_density(
    key: PRNGKeyArray,
    flow: AbstractDistribution,
    log_density: LogDensity,
    *,
    annealing: float | None = None,
    gradient: Gradient = "total",
    n_judged: int = 4096,
    options: FitOptions | None = None,
    **changes: Any,
) -> FitResult:
    r"""Train a flow q to match a density p that is known up to a constant factor, without data.

    The loss is the reverse KL divergence but for :math:`\log Z`, with :math:`p = \tilde p / Z`. Each step
    draws fresh samples of the flow:

    .. math:: E_{x \sim q}\big[\log q(x) - \log \tilde p(x)\big] = \mathrm{KL}(q \,\|\, p) - \log Z
              = -\mathrm{ELBO}.

    A part of p that the flow never draws from costs nothing: the flow may leave whole modes out, and the
    ELBO does not show it.

    Args:
        key: Random key.
        flow: A flowjax distribution without a condition, whose samples are differentiable in its parameters.
        log_density: :math:`\log \tilde p`, a function that takes one point of shape ``flow.shape`` to one
            number, in nats. JAX traces it.
        annealing: An inverse temperature in (0, 1]. :math:`\log \tilde p` is multiplied by a number that
            rises from this one to 1, geometrically, in the first half of the steps. The flow then begins on
            a flatter density, and leaves fewer modes out. Default: 1 from the start.
        gradient: "total", by the samples and by the parameters of :math:`\log q`; or "path", by the samples
            alone. Both are right on average. The variance of "path" vanishes where the flow is exact; but
            each of its steps also inverts the flow.
        n_judged: How many draws, the same ones each time, judge the flow after each chunk of steps; and how
            many fresh ones estimate the ELBO at the end.
        options: The options of the run. Default: ``FitOptions()``.
        **changes: Options that differ from these: steps, batch_size, learning_rate, … of
            :class:`~gauss_flows.FitOptions`; ``loss`` and ``val_fraction`` must be left out.

    Returns:
        A :class:`~gauss_flows.FitResult`. Its losses are −ELBO in nats, those of the steps with the flatter
        density while it is one; ``elbo`` is an estimate with its standard error.

    Raises:
        ValueError: If an argument does not fit; if the log-density of a draw of the flow is not finite, or
            differs between single and double precision by more than a hundredth of a nat and of its spread.
        NonFiniteLoss: As :func:`~gauss_flows.fit`.

    Source:
        Rezende and Mohamed, "Variational inference with normalizing flows" (ICML 2015); Roeder et al.,
        "Sticking the landing" (NeurIPS 2017) for the path gradient.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> log_density = lambda x: -0.5 * jnp.sum((x - 1) ** 2)  # log Z = log 2π = 1.838
        >>> flow = gf.coupling_flow(jr.key(0), 2, layers=1, bijector=gf.Affine())
        >>> result = gf.fit_density(jr.key(1), flow, log_density, steps=300, progress=False)
        >>> print(f"{result.elbo.value:.1f}")
        1.8
    """
    look_key, judge_key, key = jr.split(expect_key(key), 3)
    if gradient not in get_args(Gradient):
        raise ValueError(f"`gradient` must be one of {get_args(Gradient)}; got {gradient!r}.")
    if annealing is not None and not 0 < annealing <= 1:
        raise ValueError(f"`annealing` must lie in (0, 1] or be None; got {annealing}.")
    judged = expect_whole("n_judged", n_judged, 2)
    options = _without_data(options, changes)
    expect_finite(draw(look_key, flow, log_density, judged), zero=False)
    # The rows say how many draws a step and a judgment take, and nothing else.
    n = options.batch_size + judged
    loss = _ReverseKL(Static(log_density), gradient, float(annealing or 1))
    options = replace(options, loss=loss, val_fraction=judged / n)
    try:
        result = fit(key, flow, np.zeros((n, *flow.shape), jnp.result_type(float)), options=options)
    except NonFiniteLoss as error:
        raise _explained(error, look_key, log_density, judged) from None
    draws = draw(judge_key, result.flow, log_density, judged)
    result = with_density_error(result, draws.x, None)
    return replace(result, elbo=estimate(np.asarray(draws.log_p, float) - np.asarray(draws.log_q, float)))


def _without_data(options, changes) -> FitOptions:
    """The options of a run that has no rows and a loss of its own."""
    options = options or FitOptions()
    usual = {"loss": None, "val_fraction": FitOptions.val_fraction, "condition": None}
    for name, value in usual.items():
        if changes.get(name, value) is not value or getattr(options, name, value) != value:
            raise ValueError(f"`{name}` must be left out of `fit_density`, which draws its own samples.")
    return options.changed({name: value for name, value in changes.items() if name not in usual})


def _explained(error, key, log_density, n) -> NonFiniteLoss:
    """The error, with what the log-density is on draws of the last good flow if that is the cause."""
    try:
        expect_finite(draw(key, error.result.flow, log_density, n), zero=False)
    except ValueError as cause:
        explained = NonFiniteLoss(f"{error} In the flow of that step: {cause}")
        explained.result = error.result
        return explained
    return error


class _ReverseKL(eqx.Module):
    """The loss, of which the rows say how many draws, and the last argument which part of the run is done."""

    log_density: Static = eqx.field(static=True)
    gradient: str = eqx.field(static=True)
    annealing: float = eqx.field(static=True)
    rows_are_noise: ClassVar[bool] = True
    takes_progress: ClassVar[bool] = True

    def __call__(self, flow, rows, condition, key, progress=1.0):
        x, log_q = flow.sample_and_log_prob(key, (len(rows),))
        if self.gradient == "path":
            params, rest = partition(flow)
            log_q = eqx.combine(jax.lax.stop_gradient(params), rest).log_prob(x)
        power = jnp.asarray(self.annealing, x.dtype) ** jnp.maximum(1 - 2 * progress, 0)
        return (log_q - power * jax.vmap(self.log_density)(x)).mean()
