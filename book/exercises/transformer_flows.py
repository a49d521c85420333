"""Graders of the exercises in the chapter ``transformer_flows``. Each returns a sentence about an attempt."""

import numpy as np


def _attention(q, k, v, scale=True, mask="right", axis=1):
    """Causal attention, or one of the common mistakes."""
    scores = q @ k.T / (np.sqrt(q.shape[1]) if scale else 1)
    allowed = {
        "right": np.tri(len(q), dtype=bool),
        "none": np.ones((len(q), len(q)), bool),
        "reversed": np.tri(len(q), dtype=bool).T,
        "strict": np.tri(len(q), k=-1, dtype=bool),
    }[mask]
    allowed = allowed.copy()
    if mask == "strict":
        allowed[0, 0] = True
    weights = np.where(allowed, np.exp(scores - scores.max()), 0.0)
    return weights / weights.sum(axis=axis, keepdims=True) @ v


def grade_attention(attention):
    """Try ``attention(q, k, v)`` for one head; all arrays have shape (M, d)."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 6, 4))
    found = np.asarray(attention(q, k, v))
    if found.shape != v.shape:
        return f"for arrays of shape {v.shape} the result must have this shape too; it has {found.shape}"
    if np.isnan(found).any():
        return "the result has NaN: is there a row in which no token is allowed?"
    comments = (
        (_attention(q, k, v), "right"),
        (_attention(q, k, v, mask="none"), "every token attends to later ones, so the layer has no inverse"),
        (_attention(q, k, v, mask="reversed"), "each token attends to later tokens and not to earlier ones"),
        (_attention(q, k, v, mask="strict"), "a token may attend to itself: it holds the patch before"),
        (_attention(q, k, v, scale=False), "divide the scores by the square root of d"),
        (_attention(q, k, v, axis=0), "the weights of one query, a row, must sum to 1"),
    )
    for value, comment in comments:
        if np.allclose(found, value, rtol=1e-5, atol=1e-6):
            return comment
    return "not yet right, and not one of the common mistakes"
