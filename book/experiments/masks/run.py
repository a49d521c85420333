"""The sweep behind the chapter "Masks": flows on handwritten digits that differ in their mask only.

    python -m experiments.masks.run            about eight minutes on two cores

Writes mask_families.csv beside this file, which names the versions, the machine and the date. The chapter
draws the table, imports the functions below and runs one family again.
"""

import time

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.distributions import Normal, Transformed
from jax.scipy.special import logsumexp, ndtri
from jax.scipy.stats import norm
from paramax import non_trainable
from sklearn.datasets import load_digits

import gauss_flows as gf
from experiments.common import write_table

LEVELS = 17
COUPLINGS, WIDTH, STEPS, BATCH, RATE = 8, 64, 800, 128, 3e-3
SEEDS = 5


def digits():
    """1,540 images to train on and every seventh held out, shape (n, 8, 8), whole numbers 0 … 16."""
    return split(load_digits().images.astype(int))


def split(rows):
    """What belongs to the training images and to the held-out ones, of an array with a row for each image."""
    held_out = np.arange(len(rows)) % 7 == 0
    return rows[~held_out], rows[held_out]


def pixel_table(images):
    """P[i, j, k]: how often pixel (i, j) has level k, one more than counted; shape (8, 8, 17)."""
    counts = np.stack([(images == k).sum(axis=0) for k in range(LEVELS)], axis=-1)
    return (counts + 1) / (len(images) + LEVELS)


def unsqueeze(event):
    """(4, 4, 4) to (8, 8): the four channels of a place become a block of two by two pixels."""
    return event.reshape(4, 4, 2, 2).swapaxes(1, 2).reshape(8, 8)


def families():
    """The masks of one cycle, in order; every flow goes through its cycle until it has 8 couplings."""
    masks = gf.masks
    board, half = masks.checkerboard(8, 8), masks.half((8, 8))
    rows = unsqueeze(masks.channel(4, 4, 4))
    drawn = masks.random(jr.key(5), (8, 8))
    pair = lambda mask: [mask, masks.flip(mask)]
    return {
        "checkerboard, never flipped": [board, board],
        "half": pair(half),
        "random": pair(drawn),
        "channel": pair(rows),
        "checkerboard": pair(board),
        "checkerboard, channel": pair(board) + pair(rows),
    }


def make_of(cycle):
    """key -> flow, the identity before training."""
    network = gf.conditioners.mlp(WIDTH, 1, activation=jax.nn.silu, zero_last=True)
    bijector = gf.bijectors.exp_affine(2.0)

    def block(key):
        keys = jr.split(key, len(cycle))
        options = {
            "shape": (8, 8),
            "bijector": bijector,
            "conditioner": network,
        }
        return fb.Chain([gf.Coupling(k, mask=m, **options) for k, m in zip(keys, cycle, strict=True)])

    @eqx.filter_jit
    def make(key):
        blocks = eqx.filter_vmap(block)(jr.split(key, COUPLINGS // len(cycle)))
        base = non_trainable(Normal(jnp.zeros((8, 8))))
        return Transformed(base, fb.Invert(gf.Scan(blocks)))

    return make


def to_normal(table, images, key):
    """Fresh noise u, then pixel by pixel the CDF of x = (k + u) / 17, then the normal quantile.

    Gives v and log p(x) of the model of independent pixels, both of the shape of ``images``.
    """
    real = jnp.result_type(float)
    lower = jnp.asarray(np.cumsum(table, axis=-1) - table, real)
    i, j = np.indices((8, 8))
    k = images.astype(int)
    chance = jnp.asarray(table, real)[i, j, k]
    u = jr.uniform(key, k.shape, real)
    tiny = 1e-6  # a quantile at 0 or 1 would be infinite
    v = ndtri(jnp.clip(lower[i, j, k] + u * chance, tiny, 1 - tiny))
    return v, jnp.log(LEVELS * chance)


def log_likelihood(flow, table, images, key):
    """log p(x) of each image at one draw of u, shape (n,): the flow's density times |dv/dx|."""
    v, log_independent = to_normal(table, images, key)
    return flow.log_prob(v) + (log_independent - norm.logpdf(v)).sum(axis=(1, 2))


def loss_with(table):
    return lambda flow, x, condition, key: -log_likelihood(flow, table, x, key).mean()


def bits(flows, table, images, draws=16):
    """Bits per dimension of each flow on each image, by two bounds; each of shape (m, n).

    The first averages log-likelihoods over the draws of u, the second, which is tighter, likelihoods.
    """

    def of_one(flow):
        one_draw = lambda key: log_likelihood(flow, table, images, key)
        log_p = jax.lax.map(one_draw, jr.split(jr.key(9), draws))
        return log_p.mean(axis=0), logsumexp(log_p, axis=0) - np.log(draws)

    both = eqx.filter_jit(eqx.filter_vmap(of_one))(flows)
    per_pixel = np.log(2) * images[0].size
    return tuple(np.log2(LEVELS) - np.asarray(nats, float) / per_pixel for nats in both)


def train(cycle, keys, images, table):
    """One flow a key, side by side."""
    return gf.fit_many(
        keys, make_of(cycle), jnp.asarray(images, jnp.float32), steps=STEPS, batch_size=BATCH,
        learning_rate=RATE, loss=loss_with(table), progress=False,
    )  # fmt: skip


def sweep():
    training, test = (jnp.asarray(part, jnp.float32) for part in digits())
    table = pixel_table(np.asarray(training, int))
    keys = jr.split(jr.key(0), SEEDS)
    results, rows = {}, []  # of the first bound, image by image
    for name, cycle in families().items():
        start = time.time()
        result = train(cycle, keys, training, table)
        results[name], tighter = bits(result.flow, table, test, draws=64)
        on_training = bits(result.flow, table, training, draws=4)[0].mean(axis=1)
        for values in (results[name], tighter):
            print(
                name,
                values.mean(axis=1).round(4),
                f"{time.time() - start:.0f} s",
                flush=True,
            )
        rows += [
            [
                name,
                seed,
                on_training[seed],
                results[name][seed],
                tighter[seed].mean(),
                result.best_step[seed],
            ]
            for seed in range(SEEDS)
        ]
    fields = ["family", "seed", "train", "test", "tighter"]
    fields += ["behind_checkerboard", "standard_error", "best_step"]
    final = []
    for name, seed, on_training, on_test, tighter, best in rows:
        behind = on_test - results["checkerboard"][seed]  # image by image, so that their luck cancels
        error = behind.std() / len(behind) ** 0.5
        numbers = (
            on_training,
            on_test.mean(),
            tighter,
            behind.mean(),
            error,
        )
        final.append([name, seed, *(f"{v:.4f}" for v in numbers), int(best)])
    write_table("masks/mask_families.csv", fields, final)


if __name__ == "__main__":
    sweep()
