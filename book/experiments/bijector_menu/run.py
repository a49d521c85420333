"""The sweep behind the chapter "The bijector menu": too long for a notebook.

    python -m experiments.bijector_menu.run            both parts, about twelve minutes on two cores
    python -m experiments.bijector_menu.run train      (or: measure, which needs the flows of the first)

It trains flows of six couplings on the spiral, one for each bijector, number of weights and seed, then
measures divergence, times and round trips, and writes a CSV beside this file, which names the
versions, the machine and the date. The chapter draws the file and runs one cell of it again. Times
mean something only while the machine does nothing else.
"""

import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

import gauss_flows as gf
from experiments import common
from experiments.common import parameters, seconds, write_table

FLOWS = Path(tempfile.gettempdir()) / "bijector_menu_flows"
TARGET = gf.targets.spiral().standardized()
LAYERS, POINTS, STEPS, BATCH, SEEDS = 6, 10_000, 800, 256, 5
TIMED, TRIPS = (
    1024,
    4096,
)  # points in one timed call, and sent there and back

BIJECTORS = {
    "affine": gf.Affine(),
    "mixture": gf.MixtureGaussianCDF(8),
    "deep sigmoid": gf.DeepSigmoid(8),
    "spline": gf.RQSpline(8, 4.0),
}
# More outputs need a narrower network: widths of equal total size, within 5 %.
WIDTHS = {
    "small": dict(zip(BIJECTORS, (16, 9, 9, 9), strict=True)),
    "middle": dict(zip(BIJECTORS, (32, 23, 23, 23), strict=True)),
    "large": dict(zip(BIJECTORS, (64, 54, 54, 54), strict=True)),
}


def make_flow(name, width):
    """key -> flow, for `fit_many`."""
    bijector = BIJECTORS[name]
    return lambda key: gf.coupling_flow(key, 2, layers=LAYERS, bijector=bijector, nn_width=width)


def train(name, width, keys):
    """A stack of flows, one a key."""
    x = TARGET.sample(jr.key(100), (POINTS,))
    make = make_flow(name, width)
    return gf.fit_many(keys, make, x, steps=STEPS, batch_size=BATCH, progress=False).flow


def fresh_points():
    return TARGET.sample(jr.key(101), (20_000,))


def divergences(flows):
    """KL(target || flow) on fresh points, shape (m,)."""
    return common.divergences(TARGET, flows, fresh_points())


def pick(flows, i):
    return jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, flows)


@eqx.filter_jit
def to_latent(flow, x):
    return jax.vmap(flow.bijection.inverse)(x)


@eqx.filter_jit
def to_data(flow, z):
    return jax.vmap(flow.bijection.transform)(z)


@eqx.filter_jit
def coupling_inputs(flow, x):
    """What each coupling of the flow is given, shape (layers, n, 2)."""
    arrays, static = eqx.partition(flow.bijection.bijection.bijection, eqx.is_array)

    def step(h, layer):
        flip, mixing, coupling = eqx.combine(layer, static).bijections
        h = jax.vmap(lambda v: mixing.transform(flip.transform(v)))(h)
        return jax.vmap(coupling.transform)(h), h

    return jax.lax.scan(step, x, arrays)[1]


@eqx.filter_jit
def run_couplings(flow, values, way):
    """The couplings alone, each on its own values."""
    arrays, static = eqx.partition(flow.bijection.bijection.bijection, eqx.is_array)

    def step(_, layer_and_values):
        layer, h = layer_and_values
        coupling = eqx.combine(layer, static).bijections[-1]
        return None, jax.vmap(getattr(coupling, way))(h)

    return jax.lax.scan(step, None, (arrays, values))[1]


def times(flow, x):
    """Nanoseconds a point of all couplings, single precision: transform and inverse.

    Without the linear maps between them, whose inverse is a triangular solve and no bijector's doing.
    """
    h = coupling_inputs(flow, x)
    z = run_couplings(flow, h, "transform")
    transform = lambda: run_couplings(flow, h, "transform")
    inverse = lambda: run_couplings(flow, z, "inverse")
    return 1e9 * np.array(seconds([transform, inverse])) / len(x)


def round_trip(flow, x, kind):
    """The largest |x - back(x)|."""
    with jax.enable_x64(kind == "float64"):
        cast = lambda a: a.astype(kind) if eqx.is_inexact_array(a) else a
        flow, x = jax.tree.map(cast, flow), np.asarray(x, kind)
        back = to_data(flow, to_latent(flow, x))
        return float(np.abs(np.asarray(back) - x).max())


def file_of(budget, name):
    return FLOWS / f"{budget}_{name}.eqx".replace(" ", "_")


def stack_like(name, width, keys):
    return eqx.filter_eval_shape(eqx.filter_vmap(make_flow(name, width)), keys)


def sweep_train():
    FLOWS.mkdir(exist_ok=True)
    keys = jr.split(jr.key(0), SEEDS)
    for budget, widths in WIDTHS.items():
        for name, width in widths.items():
            start = time.time()
            flows = train(name, width, keys)
            eqx.tree_serialise_leaves(file_of(budget, name), flows)
            values = np.round(divergences(flows), 3)
            print(
                budget,
                name,
                values,
                f"{time.time() - start:.0f} s",
                flush=True,
            )


def sweep_measure():
    rows, keys = [], jr.split(jr.key(0), SEEDS)
    x = np.asarray(fresh_points()[:TRIPS])
    for budget, widths in WIDTHS.items():
        for name, width in widths.items():
            start = time.time()
            flows = eqx.tree_deserialise_leaves(file_of(budget, name), stack_like(name, width, keys))
            size = parameters(make_flow(name, width))
            kls = divergences(flows)
            for seed in range(SEEDS):
                flow = pick(flows, seed)
                forward, inverse = times(flow, x[:TIMED])
                trips = [round_trip(flow, x, kind) for kind in ("float32", "float64")]
                row = [kls[seed], forward, inverse, *trips]
                rows.append(
                    [
                        budget,
                        name,
                        width,
                        size,
                        seed,
                        *(f"{v:.4g}" for v in row),
                    ]
                )
            print(
                budget,
                name,
                rows[-1],
                f"{time.time() - start:.0f} s",
                flush=True,
            )
    fields = [
        "budget",
        "bijector",
        "width",
        "numbers",
        "seed",
        "kl",
        "forward_ns",
        "inverse_ns",
    ]
    write_table("bijector_menu/fits.csv", [*fields, "trip32", "trip64"], rows)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["train", "measure"]
    if "train" in wanted:
        sweep_train()
    if "measure" in wanted:
        sweep_measure()
