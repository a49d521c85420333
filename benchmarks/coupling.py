"""Coupling flows side by side with flowjax, Zuko and normflows, in one run.

    make bench BENCHMARKS=benchmarks/coupling.py    (pip install zuko normflows, for those two)

8 layers, conditioners of 2 hidden layers of 64 with relu, float32, on the CPU; splines of 8 bins on
[-4, 4] and affine maps with an exponential scale (Zuko's is softly bounded). No flow does more than permute
between its layers: ours reverses the coordinates, flowjax permutes them, Zuko and normflows alternate
masks or swap halves. Times log_prob, sample and the gradient of the mean log_prob by all parameters,
compiled where the library compiles, under `torch.no_grad` where no gradient is asked for. Prints the
rivals' times over ours. The floor is the 8 conditioner networks of our flow and nothing else, forward
or with the gradient.
"""

import importlib.metadata
import importlib.util
import platform
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow

import gauss_flows as gf
from experiments.timing import seconds
from gauss_flows.bijection import partition

CASES = ((2, 4096), (16, 4096), (64, 1024))
LAYERS, WIDTH, DEPTH, BINS, INTERVAL = 8, 64, 2, 8, 4.0
TASKS = ("log_prob", "sample", "gradient")
RIVALS = ("floor", "flowjax", "zuko", "normflows")


def split(tree):
    """The parameters, and the function that puts them back."""
    params, static = partition(tree)
    return params, lambda params: eqx.combine(params, static)


def jax_tasks(flow, x):
    params, build = split(flow)
    log_prob = jax.jit(lambda params, x: build(params).log_prob(x))
    sample = jax.jit(lambda params, key: build(params).sample(key, (len(x),)))
    gradient = jax.jit(jax.grad(lambda params, x: build(params).log_prob(x).mean()))
    key = jr.key(1)
    return partial(log_prob, params, x), partial(sample, params, key), partial(gradient, params, x)


def ours(kind, x):
    bijector = gf.RQSpline(BINS, INTERVAL) if kind == "spline" else gf.bijectors.exp_affine()
    network = gf.conditioners.mlp(WIDTH, DEPTH)
    flow = gf.coupling_flow(
        jr.key(0), x.shape[1], layers=LAYERS, bijector=bijector, conditioner=network, mixing="flip"
    )
    return flow, jax_tasks(flow, x)


def floor(flow, x):
    """The conditioners alone, one after the other, each waiting for the one before it."""
    networks = flow.bijection.bijection.bijection.bijections[-1].conditioner
    params, build = split(networks)
    size = networks.layers[0].weight.shape[-1]

    def run(params, x):
        @jax.checkpoint
        def step(x, network):
            out = jax.vmap(build(network))(x)
            return x + 1e-3 * jnp.square(out).mean(axis=1, keepdims=True), None

        return jax.lax.scan(step, x, params)[0].mean(axis=1)

    forward = partial(jax.jit(run), params, x[:, :size])
    gradient = partial(jax.jit(jax.grad(lambda params, x: run(params, x).mean())), params, x[:, :size])
    return forward, forward, gradient


def flowjax(kind, x):
    # The knots are inner ones: 7 make 8 bins.
    spline = RationalQuadraticSpline(knots=BINS - 1, interval=INTERVAL)
    flow = coupling_flow(
        jr.key(0),
        base_dist=Normal(jnp.zeros(x.shape[1])),
        transformer=spline if kind == "spline" else gf.bijectors.exp_affine(),
        flow_layers=LAYERS,
        nn_width=WIDTH,
        nn_depth=DEPTH,
    )
    return jax_tasks(flow, x)


def torch_tasks(parameters, log_prob, sample, x):
    import torch

    parameters = list(parameters)
    log_prob_only = torch.no_grad()(partial(log_prob, x))
    gradient = lambda: torch.autograd.grad(log_prob(x).mean(), parameters)
    wait = lambda f: lambda: (f(), None)[1]  # nothing that jax would try to wait for
    return wait(log_prob_only), wait(torch.no_grad()(sample)), wait(gradient)


def zuko(kind, x):
    import torch
    import zuko

    torch.manual_seed(0)
    x = torch.tensor(jax.device_get(x))
    spline = {
        "univariate": partial(zuko.transforms.MonotonicRQSTransform, bound=INTERVAL),
        "shapes": [(BINS,), (BINS,), (BINS - 1,)],
    }  # zuko.flows.NSF(passes=2) computes the parameters of all coordinates twice when it samples
    flow = zuko.flows.RealNVP(
        x.shape[1],
        transforms=LAYERS,
        hidden_features=(WIDTH,) * DEPTH,
        **(spline if kind == "spline" else {}),
    )
    log_prob = lambda x: flow().log_prob(x)
    return torch_tasks(flow.parameters(), log_prob, lambda: flow().sample((len(x),)), x)


def normflows(kind, x):
    import normflows as nf
    import torch
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
    from normflows.utils.masks import create_alternating_binary_mask

    class Network(nf.nets.MLP):  # the wrapper of the library has a residual network instead
        hidden_features = WIDTH

        def forward(self, x, context=None):
            return super().forward(x)

    class Spline(nf.flows.CoupledRationalQuadraticSpline):
        def __init__(self, dim, even):
            torch.nn.Module.__init__(self)
            self.prqct = PiecewiseRationalQuadraticCoupling(
                create_alternating_binary_mask(dim, even=even),
                lambda n_in, n_out: Network([n_in, *(WIDTH,) * DEPTH, n_out]),
                num_bins=BINS,
                tails="linear",
                tail_bound=INTERVAL,
            )

    torch.manual_seed(0)
    x = torch.tensor(jax.device_get(x))
    dim, layers = x.shape[1], []
    for i in range(LAYERS):
        if kind == "spline":
            layers.append(Spline(dim, i % 2 == 0))
        else:
            network = nf.nets.MLP([dim // 2, *(WIDTH,) * DEPTH, dim])
            layers += [nf.flows.AffineCouplingBlock(network), nf.flows.Permute(dim, mode="swap")]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), layers)
    return torch_tasks(flow.parameters(), flow.log_prob, lambda: flow.sample(len(x)), x)


def main():
    there = {name: importlib.util.find_spec(name) is not None for name in ("zuko", "normflows")}
    print(f"jax {jax.__version__}, {platform.machine()}, {jax.local_device_count()} CPU device")
    for name in ("flowjax", "zuko", "normflows", "torch"):
        found = importlib.util.find_spec(name) is not None
        print(f"{name} {importlib.metadata.version(name) if found else 'not installed'}")
    print("bijector  dim, batch  task      ours (ms)" + "".join(f"{name + '/ours':>16}" for name in RIVALS))
    for kind in ("spline", "affine"):
        for dim, batch in CASES:
            x = jr.normal(jr.key(2), (batch, dim))
            flow, tasks = ours(kind, x)
            rivals = {"floor": floor(flow, x), "flowjax": flowjax(kind, x)}
            rivals |= {make.__name__: make(kind, x) for make in (zuko, normflows) if there[make.__name__]}
            for i, task in enumerate(TASKS):
                own, *times = seconds([tasks[i], *(rival[i] for rival in rivals.values())])
                ratios = {name: f"{t / own:.2f}" for name, t in zip(rivals, times, strict=True)}
                row = "".join(f"{ratios.get(name, 'not installed'):>16}" for name in RIVALS)
                print(f"{kind:<9} {dim:>3}, {batch:<6} {task:<9} {1e3 * own:>8.2f}{row}", flush=True)


if __name__ == "__main__":
    main()
