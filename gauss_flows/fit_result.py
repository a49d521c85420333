"""What training gives: the result, and the error that explains a failure."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from gauss_flows.information import Estimate
from gauss_flows.log_det import log_prob
from gauss_flows.validate import Given, as_floats


class NonFiniteLoss(FloatingPointError):
    """The error of a training run in which a loss or a gradient was not finite.

    It is also raised where no validation loss was finite, so that no step can be judged.

    Attributes:
        result: The :class:`FitResult` so far, with the best parameters before the failure.
    """

    result: "FitResult"


@dataclass(frozen=True)
class FitResult:
    """The outcome of training. After :func:`fit_many` every array has a leading axis, one entry per key.

    ``len(result)`` is then the number of keys, and ``result[i]`` is the result of key i alone.

    Attributes:
        flow: The flow with the (averaged) parameters of the lowest validation loss. After :func:`fit_many`
            the parameters of all keys are stacked; ``result[i].flow`` is a flow to work with.
        train_loss: The loss of the batch of each step, shape (steps,). It ends with the step that failed, if
            one did. After :func:`fit_many` it is NaN beyond that step, shape (m, steps).
        val_loss: The validation loss after each chunk of steps, shape (chunks,).
        val_steps: The number of updates after which it was measured, shape (chunks,). After a failure this
            is the number of updates before it; :func:`fit_many` repeats it until all keys end.
        best_step: The number of updates after which the parameters in ``flow`` were kept; 0 for the start.
        failed_step: The index in ``train_loss`` of the step whose loss or gradient was not finite, which is
            also the number of updates before it; -1 if there was none.
        stopped: Why training ended: "steps", "patience", "interrupted" or "non-finite".
        density_error: For a continuous flow, the mean absolute error of log p that its solver leaves, in
            nats, on at most 256 rows of the data (:func:`density_error`); None for other flows, and where the
            log-determinant is an estimate. One number per key after :func:`fit_many`.
        elbo: After :func:`fit_density`, the evidence lower bound on fresh draws, with its standard error, in
            nats; None after other runs.
    """

    flow: PyTree
    train_loss: np.ndarray
    val_loss: np.ndarray
    val_steps: np.ndarray
    best_step: int | np.ndarray
    failed_step: int | np.ndarray
    stopped: str
    density_error: float | np.ndarray | None = None
    elbo: Estimate | None = None

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        if np.ndim(self.best_step) == 0:
            raise TypeError(
                "Only a result of `fit_many` has a length and can be indexed; this is the result of one "
                "flow, which is `result.flow`."
            )
        return len(np.asarray(self.best_step))

    def __getitem__(self, i: int) -> "FitResult":
        """Return the result of key i of :func:`fit_many`, as :func:`fit` would give it.

        Args:
            i: The index of a key; a negative one counts from the end.

        Raises:
            IndexError: If there are not so many keys.
            TypeError: If the index is no whole number, or the result is not of :func:`fit_many`.
        """
        m = len(self)
        try:
            i = operator.index(i)
        except TypeError as error:
            raise TypeError(f"The index of a result must be a whole number; got {i!r}.") from error
        if not -m <= i < m:
            raise IndexError(f"The index of a result must lie between {-m} and {m - 1}; got {i}.")
        failed = int(np.asarray(self.failed_step)[i])
        return of_one_flow(
            flow=jax.tree.map(lambda leaf: leaf[i] if eqx.is_array(leaf) else leaf, self.flow),
            train_loss=self.train_loss[i],
            val_loss=self.val_loss[i],
            val_steps=self.val_steps[i],
            best_step=int(np.asarray(self.best_step)[i]),
            failed_step=failed,
            stopped=self.stopped if failed < 0 else "non-finite",
            density_error=None if self.density_error is None else float(np.asarray(self.density_error)[i]),
        )


def of_one_flow(*, train_loss, val_loss, val_steps, failed_step, **rest) -> FitResult:
    """A result without the steps after a failure, and with one entry per number of updates."""
    if failed_step >= 0:
        train_loss = train_loss[: failed_step + 1]
    new = np.diff(val_steps, prepend=-1) > 0
    return FitResult(
        train_loss=train_loss,
        val_loss=val_loss[new],
        val_steps=val_steps[new],
        failed_step=failed_step,
        **rest,
    )


def reason(
    result: FitResult,
    key: PRNGKeyArray,
    flow: PyTree,
    x: Given,
    condition: Given,
    loss: Callable | None,
) -> str:
    """Return the message of a :class:`NonFiniteLoss`: what happened, and the likeliest cause.

    Args:
        result: The result so far.
        key: Random key, for a flow whose log-density can only be estimated.
        flow: The flow that training started from.
        x: The rows given to it.
        condition: One row per row of ``x``, for conditional flows.
        loss: The caller's loss, if there was one. Where it says ``rows_are_noise``, as that of
            :func:`~gauss_flows.distill`, the rows' density means nothing.
    """
    what = "the validation loss was never finite"
    if result.failed_step >= 0:
        what = f"the loss or its gradient was not finite at step {result.failed_step}"
    what += f"; `.result` holds the flow of step {result.best_step}."
    scores = (
        np.zeros(len(x)) if getattr(loss, "rows_are_noise", False) else log_densities(key, flow, x, condition)
    )
    rows = np.flatnonzero(~np.isfinite(scores))
    if len(rows):
        tests: dict[str, Callable] = {"−inf": np.isneginf, "NaN": np.isnan, "+inf": np.isposinf}
        values = " or ".join(name for name, test in tests.items() if test(scores).any())
        few = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        one = len(rows) == 1
        return (
            f"{what} Under the flow that training starts from, {len(rows)} of {len(x)} rows of `x` "
            f"{'has' if one else 'have'} log-density {values}: {'row' if one else 'rows'} {few}. "
            "Such rows lie outside or on the boundary of the flow's support, or too far out for its "
            "arithmetic. Remove or rescale them, or use a flow whose support contains them."
        )
    if result.failed_step != 0:
        return f"{what} Lower `learning_rate`, bound the scales, or clip the gradient."
    return f"{what} No update was made before, so look at the `loss` and its gradient at the start."


def log_densities(key: PRNGKeyArray, flow: PyTree, x: Given, condition: Given) -> np.ndarray:
    """Return the log-density of each row, in nats; zeros if the flow has none, so that no row is blamed."""

    def one(row):
        x, condition = row
        return log_prob(flow, x[None], None if condition is None else condition[None], key)[0]

    given = as_floats("x", np.asarray(x))
    rows = (given, None if condition is None else as_floats("condition", np.asarray(condition)))
    try:  # in batches, since all rows at once may not fit in memory
        run: Callable = jax.jit(lambda rows: jax.lax.map(one, rows, batch_size=4096))
        scores = run(rows)
        return np.asarray(scores, float).reshape(len(x))
    except Exception:  # a custom loss may train what has no log_prob; the loss's own failure is reported then
        return np.zeros(len(x))
