"""How to train: the options that ``fit``, ``fit_many`` and ``distill`` share."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import ArrayLike

from gauss_flows.validate import expect_whole


@dataclass(frozen=True)
class FitOptions:
    """The options of a training run. Every one of them is also an argument of :func:`~gauss_flows.fit`.

    Attributes:
        steps: Number of optimizer steps.
        batch_size: Rows per step, drawn with replacement; at most the number of training rows.
        learning_rate: Peak of the one-cycle schedule, which ends at half the peak (at zero without
            averaging). Another value needs no new compilation. For :func:`~gauss_flows.fit_many` also one
            value per key.
        optimizer: An optax transformation, such as ``optax.adam(1e-3)``, in place of clipping, Adam and the
            schedule. Transformations that take ``value``, ``grad`` and ``value_fn``, such as
            ``optax.lbfgs()`` and ``optax.contrib.reduce_on_plateau()``, receive those of the step's batch.
        clip_norm: Largest global norm of the gradient; None for no clipping.
        average: The parameters that are judged and kept are a moving average over about this part of the
            steps so far; 0 for those of the last step.
        val_fraction: Part of the rows held out, in (0, 1); at least one row.
        patience: Stop when the validation loss has not improved for this many steps. Default: never.
        loss: ``(flow, x, condition, key) -> scalar`` in place of the negative mean log-likelihood.
        progress: Show a progress bar, in a terminal or a notebook.
        checkpoint: A file that is written, whole or not at all, after each chunk of steps. If it exists,
            training continues from it, and ends bit for bit where an uninterrupted run ends. It must be of
            the same run: the start parameters, the data, the key, the settings, the flow's structure, the
            loss and the optimizer are compared. The last three are compared as the program that JAX traces
            for one chunk of steps, with its constants; what a callback does on the host is not seen. The
            program depends on the versions of JAX and the other packages, so that under other versions the
            file may be refused, and the error names them. Files of gauss_flows 0.1.0 lack this record and
            are refused. ``patience``, ``progress`` and ``sharding`` may change.
        sharding: A mesh over whose first axis each batch is divided (data parallelism).

    Raises:
        ValueError: If an option is out of its range.

    Example:
        >>> import gauss_flows as gf
        >>> gf.FitOptions(steps=200, batch_size=64).average
        0.08333333333333333
    """

    steps: int = 1000
    batch_size: int = 256
    learning_rate: ArrayLike = 1e-2
    optimizer: optax.GradientTransformation | None = None
    clip_norm: float | None = 1.0
    average: float = 1 / 12
    val_fraction: float = 0.1
    patience: int | None = None
    loss: Callable | None = None
    progress: bool = True
    checkpoint: str | os.PathLike | None = None
    sharding: Mesh | None = None

    def __post_init__(self):
        expect_whole("steps", self.steps, 1)
        expect_whole("batch_size", self.batch_size, 1)
        rates = _numbers("learning_rate", self.learning_rate)
        if rates.ndim > 1 or not (np.isfinite(rates) & (rates > 0)).all():
            raise ValueError(f"`learning_rate` must be positive; got {self.learning_rate}.")
        _expect_optimizer(self.optimizer)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"`clip_norm` must be positive or None; got {self.clip_norm}.")
        if not 0 <= self.average < 1:
            raise ValueError(f"`average` must lie in [0, 1); got {self.average}.")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"`val_fraction` must lie between 0 and 1; got {self.val_fraction}.")
        if self.patience is not None and not self.patience >= 1:
            raise ValueError(f"`patience` must be at least 1 or None; got {self.patience}.")
        if self.sharding is not None:
            self._expect_mesh(self.sharding)

    def _expect_mesh(self, mesh):
        if not isinstance(mesh, Mesh):
            raise ValueError(f"`sharding` must be a jax.sharding.Mesh; got {type(mesh).__name__}.")
        devices = mesh.shape[mesh.axis_names[0]]
        if self.batch_size % devices:
            raise ValueError(
                f"`batch_size` must be divisible by the {devices} devices of the mesh; got {self.batch_size}."
            )

    def changed(self, changes: dict) -> "FitOptions":
        """Return the options with some of them changed.

        Raises:
            TypeError: If there is no option of a name.
            ValueError: If an option is out of its range.
        """
        known = [field.name for field in fields(self)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise TypeError(f"There is no option {unknown[0]!r}; the options are {', '.join(known)}.")
        return replace(self, **changes)

    def held_out(self, n: int) -> int:
        """Return the number of rows held out of n, if enough are left to train on."""
        n_val = max(1, round(self.val_fraction * n))
        if n <= n_val:
            raise ValueError(
                f"`val_fraction` must leave one of the {n} rows to train on; got {self.val_fraction}."
            )
        if self.batch_size > n - n_val:
            raise ValueError(
                f"`batch_size` must be at most the {n - n_val} training rows; got {self.batch_size}."
            )
        return n_val


def _numbers(name, value) -> np.ndarray:
    try:
        return np.asarray(value, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a positive number; got {value!r}.") from error


def _expect_optimizer(optimizer) -> None:
    methods = (getattr(optimizer, name, None) for name in ("init", "update"))
    if optimizer is None or (not isinstance(optimizer, type) and all(map(callable, methods))):
        return
    name = getattr(optimizer, "__name__", None)
    called = f"; call it first, as in `{name}(...)`" if name else "; if it is a function, call it first"
    raise ValueError(
        "`optimizer` must be an optax transformation with `init` and `update`, such as `optax.adam(1e-3)`; "
        f"got {name or repr(optimizer)}{called if callable(optimizer) else ''}."
    )
