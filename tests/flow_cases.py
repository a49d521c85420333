"""Small flows of every kind."""

import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr

import gauss_flows as gf

SMALL = {"layers": 2, "nn_width": 8}


def stacked(kind, distribution):
    """A flow made by hand: layers in a Scan, or one after the other in a Chain."""
    keys = jr.split(jr.key(0), 2)
    make = lambda key: gf.AffineCoupling(key, (2,), nn_width=8)
    layers = gf.Scan(eqx.filter_vmap(make)(keys)) if kind == "Scan" else fb.Chain([make(key) for key in keys])
    return distribution(fd.Normal(jnp.zeros(2)), fb.Invert(layers))


FLOWS = {
    "coupling_flow": lambda: gf.coupling_flow(jr.key(0), 2, **SMALL),
    "coupling_flow, mixtures": lambda: gf.coupling_flow(
        jr.key(0), 2, bijector=gf.MixtureGaussianCDF(3), **SMALL
    ),
    "maf": lambda: gf.maf(jr.key(0), 2, **SMALL),
    "iaf": lambda: gf.iaf(jr.key(0), 2, **SMALL),
    "residual_flow": lambda: gf.residual_flow(jr.key(0), 2, **SMALL),
    "gaussianization_flow": lambda: gf.gaussianization_flow(jr.key(0), 2, layers=2),
    "rbig": lambda: gf.rbig(jr.key(0), jr.normal(jr.key(1), (200, 2)), layers=2).flow,
    "a Scan by hand": lambda: stacked("Scan", gf.Transformed),
    "a Chain by hand": lambda: stacked("Chain", gf.Transformed),
    "a Scan in flowjax's class": lambda: stacked("Scan", fd.Transformed),
    "a Chain in flowjax's class": lambda: stacked("Chain", fd.Transformed),
}


def with_random_networks(flow, scale, key):
    """The flow with normal numbers in all weights and biases of its networks."""
    keys = iter(jr.split(key, 100))
    is_network = lambda node: isinstance(node, eqx.nn.MLP | gf.conditioners.MaskedMLP | gf.LipschitzMLP)
    draw = lambda a: scale * jr.normal(next(keys), a.shape) if eqx.is_inexact_array(a) else a
    change = lambda node: jax.tree.map(draw, node) if is_network(node) else node
    return jax.tree.map(change, flow, is_leaf=is_network)
