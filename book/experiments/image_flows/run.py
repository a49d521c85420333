"""Run the long experiments of the chapter "Image flows".

    python -m experiments.image_flows.run               all, about an hour on two idle cores
    python -m experiments.image_flows.run cost          (or: fits, draws, patches)
    python -m experiments.image_flows.run fits conv     some flows only, by the beginning of their names

``cost`` measures how long a training step of each flow takes; run it on an idle machine. ``fits`` trains the
flows for ``STEPS`` steps, four of them for the steps that take ``BUDGET`` seconds by that table, and one for
``SHORT`` steps. ``draws`` scores two flows with more and more draws of noise, and ``patches`` trains two on
photographs. Each writes a table beside this file, whose first line names the versions, the machine and the
date; flows that the table of fits holds already are left out.
"""

import sys
import time

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from flowjax.bijections import Chain, Invert
from sklearn.datasets import load_sample_image

import gauss_flows as gf
from experiments.common import HERE, parameters, read_table, write_table
from experiments.masks.run import digits

SEEDS, STEPS, SHORT, BATCH, LEVELS, SHAPE, BUDGET = 5, 1000, 300, 64, 17, (8, 8, 1), 20.0
AT_EQUAL_TIME = ("dense, flat", "conv, flat", "dense, multi-scale", "conv, multi-scale")
FOLDER = "image_flows"


def images():
    """Return training and test images of handwritten digits, shape (n, 8, 8, 1), levels 0 to 16."""
    return tuple(part[..., None] for part in digits())


def photographs():
    """Return training and test patches, shape (n, 8, 8, 1), levels 0 to 255.

    They come from gray versions of scikit-learn's two photographs: the left half of each is for training, the
    right half for testing, so no test patch shares a pixel with a training patch.
    """
    left, right = [], []
    for name in ("china.jpg", "flower.jpg"):
        color = load_sample_image(name).astype(float)
        gray = np.round(color @ np.array([0.299, 0.587, 0.114])).astype(int)[:424]
        patches = gray.reshape(53, 8, 80, 8).swapaxes(1, 2)
        left.append(patches[:, :40].reshape(-1, 8, 8, 1))
        right.append(patches[:, 40:].reshape(-1, 8, 8, 1))
    return np.concatenate(left), np.concatenate(right)


def dense(width):
    """Return a factory of dense networks with one hidden layer, whose last layer starts at zero."""
    return gf.conditioners.mlp(width, 1, activation=jax.nn.silu, zero_last=True)


def dense_flat(key):
    """Make eight dense couplings with checkerboard masks, as in the chapter on masks."""
    board = gf.masks.checkerboard(8, 8, 1)
    options = {"bijector": gf.bijectors.exp_affine(2.0), "conditioner": dense(54)}

    def pair(key):
        masks = board, gf.masks.flip(board)
        layers = [gf.Coupling(k, SHAPE, mask=m, **options) for k, m in zip(jr.split(key), masks, strict=True)]
        return Chain(layers)

    blocks = eqx.filter_vmap(pair)(jr.split(key, 4))
    return gf.Transformed(gf.standard_normal(SHAPE), Invert(gf.Scan(blocks)))


def with_options(**options):
    """Return what makes an image flow with these options."""
    return lambda key: gf.image_flow(key, SHAPE, **options)


SPLINE = {"bijector": gf.RQSpline(8, 4.0)}
FLOWS = {  # the first four have equal numbers of parameters, within 2 %
    "dense, flat": dense_flat,
    "conv, flat": with_options(steps=(10,), nn_width=38),
    "dense, multi-scale": with_options(conditioner=dense(47)),
    "conv, multi-scale": with_options(),
    "conv, permutation": with_options(mixing="permutation"),
    "conv, wide": with_options(nn_width=54),  # as many parameters as the flow with noise
    "conv, noise": with_options(),
    "mixture": with_options(bijector=gf.MixtureGaussianCDF(4, log_scale_bound=3.0), nn_width=12),
    "spline": with_options(**SPLINE),
    "spline, wide": with_options(**SPLINE, nn_width=38),  # as many as the spline flow with noise
    "spline, noise": with_options(**SPLINE),
}


def make_of(name, training, levels=LEVELS):
    """Return what makes the model of images: the flow, its levels and its noise."""

    def model(key):
        flow_key, noise_key = jr.split(key)
        noise = gf.variational_noise(noise_key, SHAPE) if name.endswith("noise") else None
        return gf.Dequantize(FLOWS[name](flow_key), levels, images=training, noise=noise)

    return model


def seeds(seed):
    """Return the keys for making and for training a model."""
    return jr.split(jr.fold_in(jr.key(0), seed))


def train(name, training, seed, steps=STEPS, levels=LEVELS):
    """Train one model with the defaults of ``gf.fit``; return the result and the seconds."""
    make_key, key = seeds(seed)
    model = make_of(name, training, levels)(make_key)
    begin = time.perf_counter()
    result = gf.fit(key, model, training, steps=steps, batch_size=BATCH, progress=False)
    return result, time.perf_counter() - begin


def sweep_cost():
    """Time one training step and the compilation of each flow."""
    training, _ = images()
    rows = []
    for name in FLOWS:
        first = train(name, training, 0, 100)[1]
        again = np.median([train(name, training, 0, 100)[1] for _ in range(3)])
        size = parameters(lambda key, name=name: make_of(name, training)(key))
        rows.append([name, size, f"{again / 100:.4g}", f"{first - again:.1f}"])
        print(rows[-1], flush=True)
    write_table(f"{FOLDER}/cost.csv", ["flow", "parameters", "step_seconds", "compile_seconds"], rows)


def add_rows(name, fields, rows):
    """Write rows below those that the table holds."""
    old = []
    if (HERE / name).exists():
        table, _ = read_table(name)
        old = list(zip(*(table[field] for field in fields), strict=True))
    write_table(name, fields, [*old, *rows])


def planned():
    """Return flow and steps of all fits."""
    cost, _ = read_table(f"{FOLDER}/cost.csv")
    step = dict(zip(cost["flow"], cost["step_seconds"].astype(float), strict=True))
    longer = [(name, round(BUDGET / step[name] / 100) * 100) for name in AT_EQUAL_TIME]
    equal = [(name, "steps", STEPS) for name in FLOWS]
    return [*equal, *((name, "time", n) for name, n in longer), ("conv, multi-scale", "short", SHORT)]


def sweep_fits(chosen=()):
    """Train every flow with five seeds, and score the held-out images."""
    table, done = f"{FOLDER}/fits.csv", set()
    fields = ["flow", "equal", "steps", "seed", "bits", "bits_64", "standard_error", "train_bits"]
    fields += ["best_step", "seconds"]
    if (HERE / table).exists():
        columns, _ = read_table(table)
        done = set(zip(columns["flow"], columns["equal"], strict=True))
    training, test = images()
    for name, equal, steps in planned():
        if (name, equal) in done or (chosen and not name.startswith(tuple(chosen))):
            continue
        rows = []
        for seed in range(SEEDS):
            result, took = train(name, training, seed, steps)
            one, many = (gf.bits_per_dim(result.flow, test, jr.key(9), draws=n) for n in (1, 64))
            seen = gf.bits_per_dim(result.flow, training, jr.key(9)).bits
            bits = (one.bits, many.bits, many.standard_error, seen)
            rows.append([name, equal, steps, seed, *(f"{v:.4f}" for v in bits)])
            rows[-1] += [int(result.best_step), f"{took:.0f}"]
            print(rows[-1], flush=True)
        add_rows(table, fields, rows)


def sweep_draws():
    """Score two flows with more and more draws of the noise, three times each."""
    training, test = images()
    rows = []
    for name in ("conv, multi-scale", "spline"):
        model = train(name, training, 0)[0].flow
        for draws in (1, 4, 16, 64, 256, 1024):
            for repetition in range(3):
                bits = gf.bits_per_dim(model, test, jr.key(repetition), draws=draws).bits
                rows.append([name, draws, repetition, f"{bits:.4f}"])
            print(rows[-1], flush=True)
    write_table(f"{FOLDER}/draws.csv", ["flow", "draws", "repetition", "bits"], rows)


def sweep_patches():
    """Train two flows on patches of photographs, five seeds each."""
    training, test = photographs()
    rows = []
    for name in ("dense, flat", "conv, multi-scale"):
        for seed in range(SEEDS):
            result, took = train(name, training, seed, levels=256)
            one, many = (gf.bits_per_dim(result.flow, test, jr.key(9), draws=n) for n in (1, 16))
            rows.append([name, seed, f"{one.bits:.4f}", f"{many.bits:.4f}", f"{one.standard_error:.4f}"])
            rows[-1].append(f"{took:.0f}")
            print(rows[-1], flush=True)
    fields = ["flow", "seed", "bits", "bits_16", "standard_error", "seconds"]
    write_table(f"{FOLDER}/patches.csv", fields, rows)


if __name__ == "__main__":
    name, *chosen = sys.argv[1:] or ["all"]
    begin = time.perf_counter()
    sweeps = {
        "cost": sweep_cost,
        "fits": lambda: sweep_fits(chosen),
        "draws": sweep_draws,
        "patches": sweep_patches,
    }
    for which, sweep in sweeps.items():
        if name in ("all", which):
            sweep()
    print(f"{name}: {time.perf_counter() - begin:.0f} s")
