"""Graders for the exercises of the chapter "Conditioners".

Each takes an attempt and returns one sentence: the first fault that it finds, or that all tests passed.
"""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

PASSED = "All tests passed."


def grade_periodic(factory, period):
    """Test a factory of networks that depend periodically on their last input, the condition.

    Args:
        factory: ``(in_size, out_size, *, key) -> callable``.
        period: The period in the last input.
    """
    network = factory(3, 5, key=jr.key(0))
    c = 0.7
    changed = {
        "none": (0.3, -1.2, c),
        "period": (0.3, -1.2, c + period),
        "half": (0.3, -1.2, c + period / 2),
        "sine": (0.3, -1.2, -c),
        "cosine": (0.3, -1.2, period / 2 - c),
        "passive": (1.3, -1.2, c),
    }
    outputs = dict(zip(changed, _run(network, np.array(list(changed.values()))), strict=True))
    out = outputs["none"]
    if out.shape != (5,) or not np.isfinite(out).all():
        return f"The output must have 5 finite numbers; its shape is {out.shape}."
    change = {name: np.abs(value - out).max() for name, value in outputs.items()}
    if change["period"] > 1e-9:
        return "The outputs at c and at c + T differ."
    if change["half"] < 1e-6:
        return "The outputs at c and at c + T/2 are equal: c has no effect, or the period is a fraction of T."
    if change["sine"] < 1e-6:
        return "The outputs at c and at -c are equal."
    if change["cosine"] < 1e-6:
        return "The outputs at c and at T/2 - c are equal."
    if change["passive"] < 1e-6:
        return "The output does not depend on the passive coordinates."
    return PASSED


def grade_set(factory):
    """Test a factory of networks whose output does not depend on the order of the inputs.

    Args:
        factory: ``(in_size, out_size, *, key) -> callable``.
    """
    network = factory(6, 8, key=jr.key(0))
    inputs = np.random.default_rng(1).normal(size=6)
    first, second = np.eye(6)[:2]
    changed = [inputs, inputs[::-1], np.roll(inputs, 1), inputs + first, inputs + 0.5 * (first - second)]
    outputs = _run(network, np.stack(changed))
    out = outputs[0]
    if out.shape != (8,) or not np.isfinite(out).all():
        return f"The output must have 8 finite numbers; its shape is {out.shape}."
    _, backwards, rolled, larger, same_sum = np.abs(outputs - out).max(axis=1)
    if max(backwards, rolled) > 1e-9:
        return "The output depends on the order of the inputs."
    if larger < 1e-9:
        return "The output does not depend on the first input."
    if same_sum < 1e-9:
        return "The output depends on nothing but the sum of the inputs."
    return PASSED


@eqx.filter_jit
def _outputs(network, inputs):
    return jax.vmap(network)(inputs)


def _run(network, inputs):
    """Return the outputs of a network, one row per row of the inputs."""
    return np.asarray(_outputs(network, inputs))
