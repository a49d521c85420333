"""The moving figure ``maf_sampling``.

cd book; python -m motion.maf_sampling
"""

from functools import partial

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from flowjax.distributions import Normal, Transformed
from jax.scipy.stats import norm
from matplotlib.colors import LinearSegmentedColormap, to_hex
from paramax import non_trainable
from sklearn.datasets import load_digits

import gauss_flows as gf
from _style import ACTIVE, GOOD, MUTED, style_ax
from experiments.masks import run as digits
from motion.drawing import marker
from motion.movie import Movie


def maf_sampling():
    """Draw ten digits from one MAF layer, by the sequential inverse and by sweeps of all pixels."""
    images, labels = load_digits().images.astype(int), load_digits().target
    table = digits.pixel_table(images)
    scores = jax.jit(lambda key: digits.to_normal(table, images, key)[0])
    v = np.concatenate([np.asarray(scores(jr.key(i))).reshape(-1, 64) for i in range(8)])
    which = np.tile(np.eye(10, dtype=np.float32)[labels], (8, 1))
    layer = gf.MaskedAutoregressive(
        jr.key(1), shape=(64,), bijector=gf.RQSpline(n_bins=8, interval=5.0), cond_dim=10,
        conditioner=gf.conditioners.made(256, 2, activation=jax.nn.silu, zero_last=True),
    )  # fmt: skip
    flow = Transformed(non_trainable(Normal(jnp.zeros(64))), fb.Invert(layer))
    fit = gf.fit(
        jr.key(2),
        flow,
        v,
        condition=which,
        steps=1500,
        learning_rate=3e-3,
        progress=False,
    )
    layer = fit.flow.bijection.bijection

    z, classes = jr.normal(jr.key(5), (10, 64)), jnp.eye(10)
    batch = lambda f: eqx.filter_jit(lambda layer, *rows: jax.vmap(partial(f, layer))(*rows))
    sweep = batch(lambda layer, x, z, c: layer._sweep(x, z, c))
    guesses = [jnp.zeros((10, 64))]
    for _ in range(64):
        guesses.append(sweep(layer, guesses[-1], z, classes))
    exact = batch(lambda layer, z, c: layer.inverse(z, c))(layer, z, classes)
    gap = jnp.abs(guesses[-1] - exact).max()
    gf.check("64 sweeps minus the incremental inverse", gap, at_most=1e-4)

    def gray(v):
        """Return the gray level of each pixel, 0 to 16."""
        ends = table.cumsum(axis=-1).reshape(64, 17)
        above = np.asarray(norm.cdf(v))[..., None] > ends
        return np.minimum(above.sum(axis=-1), 16)

    levels = np.stack([gray(v) for v in guesses])  # (65, 10, 64)
    final = levels[-1]
    # Final: neither this sweep nor a later one changes the level.
    backwards = (levels == final[None])[::-1]
    same = np.logical_and.accumulate(backwards, axis=0)[::-1]
    done = int(np.argmax(same.all(axis=(1, 2))))
    gf.check("number of sweeps after which no pixel changes", done, at_most=32, digits=".0f")

    def ramp(*ends):
        shades = LinearSegmentedColormap.from_list("", ends)
        return [to_hex(shades(level / 16)) for level in range(17)]

    # Gray pixels are final, orange ones still change, pale blue ones have no value yet.
    none, unknown, settled, moving = 0, 1, 2, 19
    colours = ["", "#dbe4ea", *ramp("#ffffff", "#111111")]
    colours += ramp("#fdf3dc", "#c47f00")
    run, pixel = np.arange(66)[:, None, None], np.arange(64)
    # After evaluation k the first k pixels of the sequential method are final.
    textbook = np.where(pixel < run, settled + final[None], unknown)
    sweeps = levels + np.where(same, settled, moving)
    sweeps = np.concatenate([sweeps, sweeps[-1:]])

    def tiles(which):
        picture = np.full((len(which), 8, 89), none)
        for i in range(10):
            picture[:, :, 9 * i : 9 * i + 8] = which[:, i].reshape(-1, 8, 8)
        return picture

    fig = plt.figure(figsize=(7.2, 4.3))
    axes = fig.subplot_mosaic([["a"], ["b"], ["c"]], height_ratios=[1, 1, 1.7])
    for name, title in (
        ("a", "Sequential: one pixel per evaluation"),
        ("b", "Sweeps: all pixels in every evaluation"),
    ):
        axes[name].set_title(title, loc="left")
        axes[name].set(xlim=(0, 89), ylim=(0, 8), aspect="equal")
        axes[name].axis("off")
    known = {
        "textbook": np.minimum(np.arange(66), 64),
        "sweeps": np.append(same.sum(axis=2).mean(axis=1), 64),
    }
    ax = axes["c"]
    ax.plot(known["textbook"], color=MUTED, lw=1.4, label="sequential")
    ax.plot(known["sweeps"], color=ACTIVE, lw=1.8, label="sweeps")
    ax.axvline(1, color=GOOD, lw=1.4, ls=":")
    ax.annotate("dotted: an IAF needs one evaluation", (25, 6), fontsize=9, color="#00704f")
    ax.set(
        xlim=(0, 65),
        ylim=(0, 68),
        yticks=(0, 32, 64),
        xticks=range(0, 65, 8),
    )
    ax.legend(loc="center right")
    style_ax(
        ax,
        title=f"{done} evaluations instead of 64 give the same images",
        xlabel="evaluations of the network",
        ylabel="final pixels (of 64)",
    )

    captions = [
        "Before the first evaluation: the sequential method has no pixel,"
        " and the sweeps have a guess, each pixel's median."
    ]
    captions += [
        f"After evaluation {k}: pixels that are final, of 64: {k} with the sequential method,"
        f" and on average {known['sweeps'][k]:.1f} with the sweeps."
        for k in range(1, 65)
    ]
    captions.append("Both methods have finished, with the same ten images.")
    movie = Movie(fig, captions, still=8, seconds=0.16, smooth=False)
    movie.cells(axes["a"], tiles(textbook), colours)
    movie.cells(axes["b"], tiles(sweeps), colours)
    steps = np.arange(66)
    for name, colour in (("textbook", MUTED), ("sweeps", ACTIVE)):
        movie.points(
            ax,
            marker(np.stack([np.minimum(steps, 64), known[name]], 1)),
            colour,
            radius=5,
            alpha=1,
        )
    return movie


if __name__ == "__main__":
    maf_sampling().write("maf_sampling")
