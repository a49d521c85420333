"""Train one flow on another."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import jax.random as jr
from flowjax.distributions import Transformed
from jaxtyping import PRNGKeyArray, PyTree
from paramax import unwrap

from gauss_flows.compiling import compiled
from gauss_flows.density import fit_density
from gauss_flows.fit_result import FitResult
from gauss_flows.train import fit
from gauss_flows.validate import expect_key, expect_whole

Loss = Literal["reverse_kl", "output"]


def distill(
    key: PRNGKeyArray,
    teacher: Transformed,
    student: Transformed,
    *,
    loss: Loss = "reverse_kl",
    n_noise: int = 2**15,
    **options: Any,
) -> FitResult:
    r"""Train a flow that samples quickly to match one with known densities or samples.

    With u from the student's base density, :math:`f_S, f_T` the maps from base to data:

    .. math:: \text{reverse_kl: } & E_u\big[\log q_S(f_S(u)) - \log p_T(f_S(u))\big], \\
              \text{output: } & E_u\,\|f_S(u) - f_T(u)\|^2.

    The first needs the teacher's density on the student's samples and no sample of the teacher's. It seeks
    modes: what the student never draws costs it nothing; see :func:`~gauss_flows.fit_density`, of which it
    is a call. The second ties the student to the teacher's own map point by point, so both need the same base
    density.

    Args:
        key: Random key for the noise and the training.
        teacher: A flowjax ``Transformed``; it stays as it is.
        student: A flowjax ``Transformed`` of the same shape, without a condition, as the teacher.
        loss: "reverse_kl" or "output".
        n_noise: Number of noise points, of which "output" draws its batches; "reverse_kl" draws new ones at
            each step.
        **options: As for :func:`~gauss_flows.fit_density`, or for "output" as for :func:`~gauss_flows.fit`:
            steps, batch_size, learning_rate, …

    Returns:
        A :class:`FitResult` with the student; its losses are those above, in nats or squared units.

    Raises:
        ValueError: If the two do not fit one another, or as :func:`fit`.
        NonFiniteLoss: As :func:`fit`.

    Source:
        Oord et al., "Parallel WaveNet" (ICML 2018), section 3, for the first; Huang et al., "Probability
        distillation: a caveat and alternatives" (UAI 2019) for the second.

    Example:
        >>> import gauss_flows as gf, jax.random as jr
        >>> small = {"layers": 1, "nn_width": 4, "bijector": gf.Affine()}
        >>> teacher, student = gf.maf(jr.key(0), 2, **small), gf.iaf(jr.key(1), 2, **small)
        >>> gf.distill(jr.key(2), teacher, student, steps=5, progress=False).train_loss.shape
        (5,)
    """
    for name, flow in (("teacher", teacher), ("student", student)):
        if not isinstance(flow, Transformed):
            raise ValueError(f"`{name}` must be a flowjax Transformed; got {type(flow).__name__}.")
        if flow.cond_shape is not None:
            raise ValueError(f"`{name}` must be unconditional; its condition has shape {flow.cond_shape}.")
    if teacher.shape != student.shape:
        raise ValueError(f"`student` must have the teacher's shape {teacher.shape}; got {student.shape}.")
    if loss not in get_args(Loss):
        raise ValueError(f"`loss` must be one of {get_args(Loss)}; got {loss!r}.")
    if "condition" in options:
        raise ValueError("`condition` must be left out: teacher and student are unconditional.")
    n_noise = expect_whole("n_noise", n_noise, 2)
    if loss == "reverse_kl":
        return fit_density(key, student, teacher.log_prob, **options)
    noise_key, key = jr.split(expect_key(key))
    noise = compiled(_draw, student.base_dist, noise_key, n_noise)
    return fit(key, student, noise, loss=_OutputDistance(teacher), **options)


def _draw(base, key, n):
    return unwrap(base).sample(key, (n,))


@dataclass(frozen=True, eq=False)
class _OutputDistance:
    """The mean squared distance of two maps, whose rows are noise and not data.

    It is equal to another of the same teacher, so that a second call compiles nothing.
    """

    teacher: PyTree
    rows_are_noise: ClassVar[bool] = True

    def __call__(self, student, noise, condition, key):
        flows = unwrap(student), unwrap(self.teacher)
        ours, theirs = (jax.vmap(flow.bijection.transform)(noise) for flow in flows)
        return jnp.square(ours - theirs).sum(axis=tuple(range(1, ours.ndim))).mean()

    def __eq__(self, other):
        return isinstance(other, _OutputDistance) and self.teacher is other.teacher

    def __hash__(self):
        return id(self.teacher)
