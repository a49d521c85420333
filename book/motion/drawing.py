"""What several moving figures draw."""

import matplotlib.pyplot as plt
import numpy as np
from jax.scipy.stats import norm
from matplotlib.colors import LinearSegmentedColormap, to_hex

from _style import GOOD, OTHER, PASSIVE, style_ax


def marker(ax_values):
    """One point that moves along a curve: shape (frames, 1, 2)."""
    return np.asarray(ax_values, float)[:, None, :]


def missing_nats(log_p, log_det, z):
    """KL of the density of z from the standard normal, from the data's known density."""
    return float((log_p - log_det - norm.logpdf(z).sum(axis=1)).mean())


def standing_on(floor, along, heights):
    """The outline of the area under a curve, shape (n + 2, 2)."""
    x = np.concatenate([along[:1], along, along[-1:]])
    return np.stack([x, np.concatenate([[floor], heights, [floor]])], axis=1)


def round_colours(xy, steps=24):
    """A colour for each direction from the origin, all the way round."""
    stations = [PASSIVE, GOOD, "#b8a000", "#D55E00", OTHER, PASSIVE]
    round_ = LinearSegmentedColormap.from_list("round", stations)
    turn = np.arctan2(xy[:, 1], xy[:, 0]) / (2 * np.pi) % 1
    return [to_hex(round_((np.floor(t * steps) + 0.5) / steps)) for t in turn]


def two_panels(title, right_title, xlabel, ylabel, height=3.9, lim=3.6):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, height), width_ratios=[1.32, 1])
    style_ax(
        left,
        title=title,
        xlabel="first coordinate",
        ylabel="second coordinate",
    )
    left.set(xlim=(-lim, lim), ylim=(-lim, lim), aspect="equal")
    style_ax(right, title=right_title, xlabel=xlabel, ylabel=ylabel)
    return fig, left, right
