"""Image flows: log p, samples and a training step, against normflows' Glow of equal size.

    make bench BENCHMARKS=benchmarks/image.py    (pip install normflows for the rival)

Images of 8×8 and of 16×16 gray pixels. Ours is ``image_flow`` with its defaults: 6 steps on the first scale,
4 on the second, a split between them. The rival is the multi-scale Glow of normflows' own example, with as
many blocks per scale, and networks of the largest width with at most our number of parameters. A training
step is the gradient of the mean log-likelihood of a batch and one step of Adam. Compilation is left out, and
torch runs with both cores. Best of 20 calls in turn.
"""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax

import gauss_flows as gf
from experiments.timing import seconds
from gauss_flows.bijection import partition

BLOCKS = (6, 4)


def ours(side, batch):
    """Return our three calls and the number of parameters."""
    flow = gf.image_flow(jr.key(0), (side, side, 1), steps=BLOCKS)
    x = jr.normal(jr.key(1), (batch, side, side, 1))
    params, static = partition(flow)
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: -eqx.combine(p, static).log_prob(x).mean())(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    density = jax.jit(lambda p: eqx.combine(p, static).log_prob(x))
    sample = jax.jit(lambda p: eqx.combine(p, static).sample(jr.key(2), (batch,)))
    calls = {
        "log_prob": lambda: density(params),
        "sample": lambda: sample(params),
        "training step": lambda: step(params, state),
    }
    return calls, sum(a.size for a in jax.tree.leaves(params))


def glow(side, width):
    """Return normflows' multi-scale Glow, built as in its example."""
    import normflows as nf

    levels, bases, merges, flows = len(BLOCKS), [], [], []
    for i, blocks in enumerate(reversed(BLOCKS)):
        channels = 2 ** (levels + 1 - i)
        made = [nf.flows.GlowBlock(channels, width, split_mode="channel") for _ in range(blocks)]
        flows.append([*made, nf.flows.Squeeze()])
        places = side // 2 ** (levels - i)
        if i:
            merges.append(nf.flows.Merge())
        bases.append(nf.distributions.DiagGaussian((channels // 2 if i else channels, places, places)))
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=False)


def rival(side, batch, size):
    """Return normflows' three calls and the number of parameters."""
    import torch

    torch.set_num_threads(2)
    count = lambda model: sum(p.numel() for p in model.parameters())
    width = max(w for w in range(8, 96) if count(glow(side, w)) <= size)
    model = glow(side, width)
    rows = torch.tensor(np.array(jr.normal(jr.key(1), (batch, 1, side, side))))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def density():
        with torch.no_grad():
            return model.log_prob(rows, None).numpy()

    def sample():
        with torch.no_grad():
            return model.sample(batch)[0].numpy()

    def step():
        optimizer.zero_grad()
        model.forward_kld(rows).backward()
        optimizer.step()

    density()  # ActNorm takes its scales from the first batch
    return {"log_prob": density, "sample": sample, "training step": step}, count(model)


def main():
    print("                              ours [ms]   normflows / ours")
    for side, batch in ((8, 64), (8, 256), (16, 64)):
        calls, size = ours(side, batch)
        try:
            others, other_size = rival(side, batch, size)
        except ImportError:
            print("normflows is not installed")
            return
        print(f"{side}×{side}, batch {batch}: {size} and {other_size} parameters")
        for task, call in calls.items():
            mine, theirs = seconds([call, others[task]], rounds=20, take=min)
            print(f"{task:>28} {1e3 * mine:10.2f} {theirs / mine:18.2f}")


if __name__ == "__main__":
    main()
