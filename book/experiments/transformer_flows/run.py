"""Run the long experiments of the chapter "Transformer flows".

    python -m experiments.transformer_flows.run             all, about an hour on two idle cores
    python -m experiments.transformer_flows.run files       (or: exact, samples, training, sampling)

``exact`` trains autoregressive models with exact probabilities; ``files`` compresses held-out images with two
of them and with general programs (zstd only where the package zstandard is installed). ``samples`` measures
what noise, denoising and guidance do to samples of a class; ``training`` trains the transformer and the image
flow longer and longer, and once a transformer that does not reverse the order between its layers;
``sampling`` times three ways to sample, and must run on an idle machine. Each writes
a table beside this file, whose first line names the versions, the machine and the date.
"""

import bz2
import io
import lzma
import sys
import time
import zlib
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import Invert
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import gauss_flows as gf
from experiments.common import parameters, seconds, write_table
from experiments.image_flows.run import BATCH, LEVELS, SHAPE, images, photographs, seeds
from experiments.masks.run import split

SEEDS, WIDTH, SIGMA, WEIGHTS = 5, 32, 0.25, (0.5, 1.0, 2.0)
TRAINING_STEPS = (1000, 3000, 9000)
FOLDER = "transformer_flows"


# Exact probabilities and files.


def orders():
    """Return the two orders of the pixels: row by row, and from coarse grids to fine ones."""
    return {"raster": np.arange(64).reshape(SHAPE), "interlaced": gf.masks.interlaced(8, 8).reshape(SHAPE)}


def exact_model(key, training, order="interlaced", levels=LEVELS):
    """Make an autoregressive model whose probabilities of levels are exact."""
    layer = gf.MaskedAutoregressive(
        key, SHAPE, order=orders()[order], bijector=gf.MixtureGaussianCDF(4, log_scale_bound=3.0),
        conditioner=gf.conditioners.made(160, 2, activation=jax.nn.silu),
    )  # fmt: skip
    return gf.DiscreteAutoregressive(layer, levels, images=training)


def train_exact(training, seed, order="interlaced", levels=LEVELS):
    """Train an autoregressive model with exact probabilities.

    There are few digits, so hidden inputs keep the model from memorizing them. For photographs they cost more
    than they gain, and more steps help.
    """
    make_key, key = seeds(seed)
    options = {"steps": 3000} if levels == 256 else {"steps": 1000, "loss": gf.input_dropout(0.1)}
    options |= {"batch_size": BATCH, "progress": False}
    return gf.fit(key, exact_model(make_key, training, order, levels), training, **options).flow


def sweep_exact():
    """Train one autoregressive layer in two orders, five seeds each."""
    training, test = images()
    rows = []
    for order in orders():
        make = lambda key, order=order: exact_model(key, training, order)
        size = parameters(lambda key, make=make: eqx.filter_vmap(make)(key[None]))
        for seed in range(SEEDS):
            begin = time.perf_counter()
            model = train_exact(training, seed, order)
            took = time.perf_counter() - begin
            score, seen = (gf.bits_per_dim(model, part) for part in (test, training))
            numbers = (score.bits, score.standard_error, seen.bits)
            rows.append([order, seed, size, *(f"{v:.4f}" for v in numbers), f"{took:.0f}"])
            print(rows[-1], flush=True)
    fields = ["order", "seed", "parameters", "bits", "standard_error", "train_bits", "seconds"]
    write_table(f"{FOLDER}/exact.csv", fields, rows)


def sheets(pixels):
    """Return images below each other, and side by side on one sheet as nearly square as possible."""
    n = len(pixels)
    across = int(np.ceil(np.sqrt(n)))
    full = np.concatenate([pixels, np.zeros((-n % across, 8, 8), np.uint8)])
    return pixels.reshape(-1, 8), full.reshape(-1, across, 8, 8).swapaxes(1, 2).reshape(-1, 8 * across)


def photographs_again(patches):
    """Return the two halves of photographs that the test patches were cut from, below each other."""
    return (patches.reshape(2 * 53, 40, 8, 8).swapaxes(1, 2).reshape(2 * 424, 320),)


def general_programs(arranged, levels):
    """Return the bytes that general programs need for images, each with its best arrangement of them.

    Args:
        arranged: The same images in several arrangements, arrays of two axes.
        levels: The number of their levels. With few levels PNG stores a palette, and the others see bytes.
    """
    programs = {
        "zlib": lambda data: zlib.compress(data, 9),
        "bz2": lambda data: bz2.compress(data, 9),
        "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
    try:
        import zstandard

        programs["zstd"] = zstandard.ZstdCompressor(level=22).compress
    except ImportError:
        pass
    sizes = {name: min(len(pack(a.tobytes())) for a in arranged) for name, pack in programs.items()}
    formats = {"PNG": {"optimize": True}, "WebP": {"lossless": True, "quality": 100, "method": 6}}
    for name, options in formats.items():
        fitting = [a for a in arranged if len(a) < 2**14]  # what WebP can hold
        sizes[name] = min(len(picture(a, name, levels, options)) for a in fitting)
    return sizes


def picture(array, name, levels, options):
    """Return a picture as a file of a format."""
    made = Image.fromarray(array)
    if levels < 256 and name == "PNG":
        made = made.convert("P")
        made.putdata(array.ravel().tolist())
        made.putpalette([255 * k // (levels - 1) for k in range(levels) for _ in range(3)])
    file = io.BytesIO()
    made.save(file, name, **options)
    return file.getvalue()


def sweep_files():
    """Compress held-out digits and patches of photographs."""
    rows = []
    for name, (training, test), levels in (("digits", images(), 17), ("patches", photographs(), 256)):
        model = train_exact(training, 0, levels=levels)
        data = gf.compress(model, test)
        if not (gf.decompress(model, data) == test).all():
            raise AssertionError("decoded images differ")
        promised = -float(np.asarray(model.log_prob(test), float).sum()) / np.log(2) / 8
        bits = gf.bits_per_dim(model, test).bits
        weights = sum(a.nbytes for a in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
        sizes = {"flow": len(data), "promised": round(promised, 1), "model": weights}
        pixels = test[..., 0].astype(np.uint8)
        arranged = sheets(pixels) if name == "digits" else (*sheets(pixels), *photographs_again(pixels))
        sizes |= general_programs(arranged, levels)
        rows += [[name, len(test), program, size] for program, size in sizes.items()]
        print(name, f"{bits:.4f} bits per pixel", sizes, flush=True)
    write_table(f"{FOLDER}/files.csv", ["data", "images", "program", "bytes"], rows)


# Samples of a class.


def labels():
    """Return the classes of the training and of the test images."""
    return split(load_digits().target)


@dataclass(frozen=True)
class Noisy:
    """The negative log-likelihood of images in [-1, 1] with noise that is fresh in each step.

    Attributes:
        sigma: The standard deviation of Gaussian noise; None for uniform noise within each level.
    """

    sigma: float | None

    def __call__(self, flow, k, condition, key):
        if self.sigma is None:
            x = (k + jr.uniform(key, k.shape)) * (2 / LEVELS) - 1
        else:
            x = k * (2 / (LEVELS - 1)) - 1 + self.sigma * jr.normal(key, k.shape)
        return -flow.log_prob(x, condition).mean()


def levels_of(x, sigma):
    """Return the levels of images in [-1, 1]."""
    k = np.floor((x + 1) * LEVELS / 2) if sigma is None else np.round((x + 1) * (LEVELS - 1) / 2)
    return np.clip(k, 0, LEVELS - 1).astype(int)


def conditional_flow(key):
    """Make a transformer flow whose condition is the class, as ten zeros and ones."""
    return gf.transformer_flow(key, SHAPE, nn_width=WIDTH, cond_dim=10)


def train_conditional(seed, sigma, steps=1000):
    """Train a flow of classes with noise."""
    make_key, key = seeds(seed)
    loss = gf.drop_condition(Noisy(sigma), 0.15)
    options = {"steps": steps, "batch_size": BATCH, "loss": loss, "progress": False}
    condition = np.eye(10, dtype=np.float32)[labels()[0]]
    training = images()[0].astype(np.float32)
    return gf.fit(key, conditional_flow(make_key), training, condition=condition, **options).flow


@eqx.filter_jit
def draw(flow, key, condition):
    """Return one sample for each row of conditions."""
    return flow.sample(key, condition=condition)


@eqx.filter_jit
def denoised(flow, x, condition, sigma):
    """Return the mean of the image given the noisy image, by Tweedie's formula."""
    return x + sigma**2 * jax.grad(lambda x: flow.log_prob(x, condition).sum())(x)


def classifier():
    """Return a support vector machine that was trained on the training images, and its held-out accuracy."""
    (training, test), (known, truth) = images(), labels()
    machine = SVC(gamma=0.002).fit(training.reshape(-1, 64), known)
    return machine, machine.score(test.reshape(-1, 64), truth)


def coverage(real, samples, neighbors=5):
    """Return the share of real images with a sample nearer than their fifth-nearest real image.

    Naeem et al., "Reliable fidelity and diversity metrics for generative models" (ICML 2020).
    """
    distance = lambda a, b: np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1))
    radius = np.sort(distance(real, real), axis=1)[:, neighbors]  # the nearest is the image itself
    return float((distance(real, samples).min(axis=1) < radius).mean())


def nearest(samples, training):
    """Return the median distance of samples to the nearest training image, in levels."""
    return float(np.median(np.sqrt(((samples[:, None] - training[None]) ** 2).sum(axis=-1)).min(axis=1)))


def treatments(seed):
    """Yield the name of a treatment, and 1,028 samples of one seed: four for the class of each test image."""
    condition = jnp.asarray(np.tile(np.eye(10, dtype=np.float32)[labels()[1]], (4, 1)))
    for sigma in (None, SIGMA):
        flow = train_conditional(seed, sigma)
        kind = "levels" if sigma is None else "noise"
        for weight in (0.0, *WEIGHTS):
            guided = gf.guided(flow, weight)
            x = draw(guided, jr.key(seed), condition)
            name = f"{kind}, w = {weight:g}" if weight else kind
            yield name, levels_of(np.asarray(x), sigma)
            if sigma is not None:
                clean = denoised(flow, x, condition, sigma)
                yield name.replace("noise", "noise, denoised"), levels_of(np.asarray(clean), sigma)


def measures(machine, samples):
    """Return class agreement, coverage of the test images, and the distance to the training images."""
    training, test = (part.reshape(-1, 64).astype(float) for part in images())
    flat = samples.reshape(-1, 64).astype(float)
    agreement = float((machine.predict(flat) == np.tile(labels()[1], len(flat) // len(test))).mean())
    covered = np.mean([coverage(test, part) for part in np.split(flat, len(flat) // len(test))])
    return agreement, float(covered), nearest(flat, training)


def sweep_samples():
    """Sample with each treatment, five seeds, and measure agreement and coverage."""
    machine, accuracy = classifier()
    training, test = (part.reshape(-1, 64).astype(float) for part in images())
    rows = []
    for seed in range(SEEDS):
        # Training images of the same classes in the place of samples: what a perfect model would reach.
        rng = np.random.default_rng(seed)
        rows_of = [rng.choice(np.flatnonzero(labels()[0] == digit)) for digit in labels()[1]]
        numbers = accuracy, coverage(test, training[rows_of]), nearest(test, training)
        rows.append(["training images", seed, *(f"{v:.4f}" for v in numbers)])
        for name, samples in treatments(seed):
            rows.append([name, seed, *(f"{v:.4f}" for v in measures(machine, samples))])
            print(rows[-1], flush=True)
    write_table(f"{FOLDER}/samples.csv", ["treatment", "seed", "agreement", "coverage", "nearest"], rows)


# Longer training.


def one_order(key):
    """Make a transformer flow in which every layer has the same order of the patches."""
    make = lambda key: gf.MaskedAutoregressive(
        key, SHAPE, order=gf.masks.patch_order(SHAPE, 2), bijector=Invert(gf.bijectors.exp_affine(2.0)),
        conditioner=gf.conditioners.patch_transformer(WIDTH, 1, heads=4, zero_last=True),
    )  # fmt: skip
    layers = eqx.filter_vmap(make)(jr.split(key, 4))
    return gf.Transformed(gf.standard_normal(SHAPE), Invert(gf.Scan(layers)))


COMPETITORS = {
    "transformer": lambda key: gf.transformer_flow(key, SHAPE, nn_width=WIDTH),
    "couplings": lambda key: gf.image_flow(key, SHAPE),
    "one order": one_order,
}


def planned():
    """Return flow and steps of all fits without classes."""
    longer = [(name, steps) for steps in TRAINING_STEPS for name in ("transformer", "couplings")]
    return [("one order", TRAINING_STEPS[0]), *longer]


def sweep_training():
    """Train flows without classes for more and more steps, five seeds."""
    training, test = images()
    rows = []
    fields = ["flow", "parameters", "steps", "seed", "bits", "train_bits", "best_step", "seconds"]
    for name, steps in planned():
        make = lambda key, name=name: gf.Dequantize(COMPETITORS[name](key), LEVELS, images=training)
        for seed in range(SEEDS):
            make_key, key = seeds(seed)
            begin = time.perf_counter()
            options = {"steps": steps, "batch_size": BATCH, "progress": False}
            result = gf.fit(key, make(make_key), training, **options)
            took = time.perf_counter() - begin
            bits = [gf.bits_per_dim(result.flow, part, jr.key(9)).bits for part in (test, training)]
            rows.append([name, parameters(make), steps, seed, *(f"{b:.4f}" for b in bits)])
            rows[-1] += [int(result.best_step), f"{took:.0f}"]
            print(rows[-1], flush=True)
        write_table(f"{FOLDER}/training.csv", fields, rows)


# Three ways to sample.


def sampler(flow, inverse):
    """Return the trained flow with another way to invert its layers."""
    same = gf.transformer_flow(jr.key(0), SHAPE, nn_width=WIDTH, cond_dim=10, inverse=inverse)
    return jax.tree.unflatten(jax.tree.structure(same), jax.tree.leaves(flow))


def sweep_sampling(n=300):
    """Time a density pass and the ways to sample n images, and compare the images."""
    flow = train_conditional(0, SIGMA)
    condition = jnp.asarray(np.eye(10, dtype=np.float32)[np.arange(n) % 10])
    ways = {
        "cached": sampler(flow, "incremental"),
        "sequential": sampler(flow, "sequential"),
        "Jacobi": sampler(flow, "jacobi"),
    }
    runs = {name: lambda way=way: draw(way, jr.key(1), condition) for name, way in ways.items()}
    images = {name: run() for name, run in runs.items()}
    density = eqx.filter_jit(lambda flow, x: flow.log_prob(x, condition))
    times = seconds([lambda: density(flow, images["cached"]), *runs.values()], rounds=7)
    rows = [["density", f"{times[0]:.4g}", 0]]
    for name, took in zip(runs, times[1:], strict=True):
        error = float(jnp.abs(images[name] - images["sequential"]).max())
        rows.append([name, f"{took:.4g}", f"{error:.2g}"])
    print(rows)
    write_table(f"{FOLDER}/sampling.csv", ["way", "seconds", "error"], rows)


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "all"
    begin = time.perf_counter()
    sweeps = {
        "exact": sweep_exact, "files": sweep_files, "samples": sweep_samples, "training": sweep_training,
        "sampling": sweep_sampling,
    }  # fmt: skip
    for name, sweep in sweeps.items():
        if chosen in ("all", name):
            sweep()
    print(f"{chosen}: {time.perf_counter() - begin:.0f} s")
