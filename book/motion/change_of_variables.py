"""The moving figure ``change_of_variables``.

cd book; python -m motion.change_of_variables
"""

from itertools import pairwise

import jax
import matplotlib.pyplot as plt
import numpy as np

import gauss_flows as gf
from _style import GAUSS_KW, TRUTH, style_ax
from motion.drawing import standing_on
from motion.movie import Movie


def change_of_variables():
    """The chapter's wave, turned up from the identity; ten strips of a tenth each."""
    frames, end = 33, 4.0
    amounts = np.linspace(0, 1, frames)
    wave = lambda x: 0.7 * x - 0.3 * np.sin(2 * x)
    slope = lambda x: 0.7 - 0.6 * np.cos(2 * x)
    bell = lambda z: np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    z_edges = np.asarray(jax.scipy.special.ndtri(np.arange(1, 10) / 10.0))
    line = np.linspace(-end, end, 241)
    fine = np.linspace(-9, 9, 180_001)

    curves, outlines, strips, guides, worst = [], [], [], [], 0.0
    for a in amounts:
        f = lambda x, a=a: (1 - a) * x + a * wave(x)
        density = lambda x, a=a, f=f: bell(f(x)) * (1 - a + a * slope(x))
        x_edges = np.interp(z_edges, f(fine), fine)
        curves.append([np.stack([line, f(line)], axis=1)])
        outlines.append([np.stack([line, density(line)], axis=1)])
        ends = np.concatenate([[-end], x_edges, [end]])
        tops = [np.linspace(*pair, 24) for pair in pairwise(ends)]
        strips.append([standing_on(0, t, density(t)) for t in tops])
        guides.append([[[-end, z], [x, z], [x, -3]] for x, z in zip(x_edges, z_edges, strict=True)])
        mass = np.cumsum(density(fine)) * (fine[1] - fine[0])
        shares = np.diff(np.interp(x_edges, fine, mass), prepend=0, append=1)
        worst = max(worst, np.abs(shares - 0.1).max())
    gf.check("strips, all frames: area - 0.1", worst, at_most=1e-4)

    fig = plt.figure(figsize=(7.2, 4.9))
    axes = fig.subplot_mosaic(
        [["z", "map"], [".", "x"]],
        width_ratios=[1, 2.6],
        height_ratios=[1.5, 1],
    )
    colours = plt.get_cmap("cividis")(np.linspace(0.05, 1, 10))
    ends = np.concatenate([[-end], z_edges, [end]])
    for pair, colour in zip(pairwise(ends), colours, strict=True):
        part = np.linspace(*pair, 60)
        axes["z"].fill_betweenx(part, bell(part), color=colour, lw=0)
    axes["z"].plot(bell(line), line, color=TRUTH, lw=1.4)
    axes["map"].plot(line, line, **GAUSS_KW)
    axes["x"].plot(line, bell(line), **GAUSS_KW)
    style_ax(axes["z"], xlabel="density of $z$", ylabel="$z$")
    style_ax(
        axes["map"],
        title="The strips change shape but not area",
        ylabel="$z = f(x)$",
    )
    style_ax(axes["x"], xlabel="$x$", ylabel="density of $x$")
    axes["z"].set(ylim=(-3, 3), xlim=(0.42, 0))
    axes["map"].set(xlim=(-end, end), ylim=(-3, 3))
    axes["x"].set(xlim=(-end, end), ylim=(0, 0.6))

    stops = list(range(0, frames, 4))
    captions = [
        f"At {amounts[k]:.0%} of the bend, the slope of the map lies between {1 - 0.9 * amounts[k]:.2f} and"
        f" {1 + 0.3 * amounts[k]:.2f}; each strip below holds a tenth of the probability."
        for k in stops
    ]
    captions[0] = "The identity: x has the density of z, dashed; each strip holds a tenth of the probability."
    movie = Movie(fig, captions, stops=stops, seconds=0.8)
    movie.lines(axes["map"], np.array(guides), "#999999", width=0.9)
    movie.lines(axes["map"], np.array(curves), TRUTH, width=2.4)
    movie.areas(axes["x"], np.array(strips), colours)
    movie.lines(axes["x"], np.array(outlines), TRUTH, width=1.8)
    return movie


if __name__ == "__main__":
    change_of_variables().write("change_of_variables")
