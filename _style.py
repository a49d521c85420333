"""The look of every figure in the book, and the drawings that several chapters share.

Colours keep their meaning throughout: passive is blue, active is orange, the truth is black, and
what fails is vermilion (the palette of Okabe and Ito, which the common colour-blindnesses keep
apart). Figures are drawn on opaque white, so that they read the same on a light and a dark page.
"""

from itertools import pairwise

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

PASSIVE = "#0072B2"
ACTIVE = "#E69F00"
GOOD = "#009E73"
BAD = "#D55E00"
OTHER = "#CC79A7"
TRUTH = "#111111"
MUTED = "#6b6b6b"

GAUSS_KW = {"color": TRUTH, "lw": 1.4, "ls": (0, (5, 3)), "zorder": 1}  # reference curves
SCATTER_KW = {"s": 5, "alpha": 0.35, "lw": 0, "rasterized": True}  # samples

mpl.rcParams.update(
    {
        "figure.dpi": 110,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "savefig.dpi": 140,
        "figure.constrained_layout.use": True,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "font.size": 10,
        "font.family": "DejaVu Sans",
    }
)


def style_ax(ax: Axes, *, title: str | None = None, xlabel: str = "", ylabel: str = "") -> Axes:
    """Title (the finding), labels with units, and no more ink than needed."""
    if title:
        ax.set_title(title)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    return ax


def draw_images(ax: Axes, images, title: str, *, most: float = 16) -> Axes:
    """Gray images side by side, dark where the level is high.

    Args:
        ax: Where to draw.
        images: Shape (n, height, width, 1).
        title: What they are.
        most: The highest level, drawn black.
    """
    row = np.concatenate([np.pad(image[..., 0], 1) for image in np.asarray(images)], axis=1)
    ax.imshow(row, cmap="gray_r", vmin=0, vmax=most)
    ax.set_title(title, fontsize=10, loc="left")
    ax.axis("off")
    return ax


def draw_jacobian(ax: Axes, jacobian, passive, *, order=None, title: str = "") -> Axes:
    """A Jacobian as a picture: exact zeros white, passive rows blue, active rows orange.

    Args:
        ax: Where to draw.
        jacobian: Shape (D, D); entry [i, j] is the derivative of output i by input j.
        passive: Boolean, shape (D,).
        order: The coordinates in the order to draw them; default 0 … D − 1.
        title: The finding.
    """
    jacobian, passive = np.asarray(jacobian), np.asarray(passive)
    order = np.arange(len(passive)) if order is None else np.asarray(order)
    shown, rows = jacobian[np.ix_(order, order)], passive[order]
    size = len(order)
    for i in range(size):
        for j in range(size):
            if shown[i, j] != 0:
                colour = PASSIVE if rows[i] else ACTIVE
                strength = 0.95 if i == j else 0.45
                ax.add_patch(Rectangle((j, i), 1, 1, fc=colour, alpha=strength, ec="none"))
    for k in range(size + 1):
        ax.axhline(k, color="0.85", lw=0.8, zorder=0)
        ax.axvline(k, color="0.85", lw=0.8, zorder=0)
    ax.plot([0, size], [0, size], color="0.35", lw=0.8, ls=":")
    ax.set(xlim=(0, size), ylim=(size, 0), aspect="equal", title=title)
    ax.set_xlabel("input $x_j$")
    ax.set_ylabel("output $z_i$")
    ticks, names = np.arange(size) + 0.5, [str(k) for k in order]
    ax.set_xticks(ticks, names)
    ax.set_yticks(ticks, names)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        for label, is_passive in zip(labels, rows, strict=True):
            label.set_color(PASSIVE if is_passive else "#9a6a00")
            label.set_fontweight("bold")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def draw_coupling(ax: Axes) -> Axes:
    """The coupling layer: one wire copied, one wire transformed, a network between them."""

    def box(x, y, w, h, text, colour, edge):
        ax.add_patch(
            FancyBboxPatch(
                (x, y), w, h, boxstyle="round,pad=0.02,rounding_size=0.12", fc=colour, ec=edge, lw=1.6
            )
        )
        ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=11)

    def arrow(*points, colour=MUTED, style="-"):
        for start, end in pairwise(points[:-1]):
            ax.plot(*zip(start, end, strict=True), color=colour, lw=2, ls=style)
        ax.add_patch(
            FancyArrowPatch(
                points[-2], points[-1], arrowstyle="-|>", mutation_scale=16, lw=2, color=colour,
                linestyle=style, shrinkA=0, shrinkB=1,
            )
        )  # fmt: skip

    blue, orange, grey = "#d6e8f5", "#fbe6bf", "#eeeeee"
    box(0.0, 3.0, 1.6, 1.0, "$x_A$  passive", blue, PASSIVE)
    box(0.0, 0.0, 1.6, 1.0, "$x_B$  active", orange, ACTIVE)
    box(3.0, 1.5, 2.6, 1.0, "conditioner $c_\\phi$\n(any network)", grey, MUTED)
    box(6.6, 0.0, 2.2, 1.0, "bijector $T_\\theta$", orange, ACTIVE)
    box(9.9, 3.0, 1.0, 1.0, "$z_A$", blue, PASSIVE)
    box(9.9, 0.0, 1.0, 1.0, "$z_B$", orange, ACTIVE)
    arrow((1.6, 3.5), (9.9, 3.5), colour=PASSIVE)
    ax.text(6.0, 3.62, "copied, bit for bit", color=PASSIVE, ha="center", va="bottom")
    arrow((2.3, 3.5), (2.3, 2.0), (3.0, 2.0), colour=PASSIVE)
    arrow((5.6, 2.0), (7.7, 2.0), (7.7, 1.0))
    ax.text(6.65, 2.12, "parameters $\\theta = c_\\phi(x_A)$", color=MUTED, va="bottom")
    arrow((1.6, 0.5), (6.6, 0.5), colour=ACTIVE)
    arrow((8.8, 0.5), (9.9, 0.5), colour=ACTIVE)
    ax.text(4.1, 0.38, "no arrow from here to the network", color=MUTED, ha="center", va="top")
    ax.set(xlim=(-0.2, 11.1), ylim=(-0.25, 4.35), aspect="equal")
    ax.axis("off")
    return ax
