"""Graders of the exercises in the chapter ``your_own_data``. Each returns a sentence about an attempt."""

import jax
import jax.numpy as jnp
import numpy as np


def grade_preparation(make_preparation, train):
    """Try ``make_preparation(train)``, a function from a row to its prepared form and log-determinant."""
    train = np.asarray(train)
    prepare = make_preparation(train)
    prepared, log_det = (np.asarray(a) for a in jax.jit(jax.vmap(prepare))(train))
    if prepared.shape != train.shape or log_det.shape != (len(train),):
        return "For one row, the result must be a row of the same shape and one number."
    if not (np.isfinite(prepared).all() and np.isfinite(log_det).all()):
        return "The result is not finite."
    between = jax.jit(jax.vmap(prepare))(np.sqrt(train * train[::-1]))[0]
    if np.abs(between - (prepared + prepared[::-1]) / 2).max() > 1e-3:
        return "The geometric mean of two rows must become the mean of their images: is there a logarithm?"
    if np.abs(prepared.mean(axis=0)).max() > 1e-3:
        return "The mean of the prepared training rows is not 0."
    if np.abs(prepared.std(axis=0) - 1).max() > 1e-2:
        return "The standard deviation of the prepared training rows is not 1."
    rows = jnp.asarray(train[:5])
    jacobians = jax.jit(jax.vmap(jax.jacfwd(lambda row: prepare(row)[0])))(rows)
    exact, found = np.linalg.slogdet(np.asarray(jacobians, float))[1], log_det[:5]
    near = lambda a, b: bool(np.abs(a - b).max() < 1e-3)
    if near(found, exact):
        return "right"
    if near(found, -exact):
        return "The log-determinant has the wrong sign."
    if near(found, exact + np.log(train[:5]).sum(axis=1)):
        return "The log-determinant of the logarithm is missing."
    return "The log-determinant is not that of the Jacobian."


def grade_exchange(one, three, five, mixed):
    """Check AUCs after an exchange of 1, 3 and 5 columns, and of 3 columns across the diagnoses."""
    if one == five:
        return "One and five columns have the same AUCs: is `k` passed on?"
    if not one["flows"] < three["flows"] < five["flows"]:
        return "The flows' AUC must grow from one column to three and from three to five."
    if mixed["z-scores"] < three["z-scores"] + 0.05:
        return "The z-scores should gain from pairs of different diagnoses: is `across=True` passed on?"
    return "right"
