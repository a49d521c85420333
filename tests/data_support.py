"""Small data sets and flows to set from them."""

import flowjax.bijections as fb
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.distributions import Normal, Transformed

import gauss_flows as gf

MIX = gf.MixtureGaussianCDF(2)

NORM = gf.ActNorm((2,))


def sample(n=64, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2))


def flow_of(*layers, shape=(2,)):
    return Transformed(Normal(jnp.zeros(shape)), fb.Invert(fb.Chain(list(layers))))


def coupling_flow(actnorm=True, cond_dim=None):
    options = {"layers": 2, "nn_width": 4, "bijector": gf.Affine(), "actnorm": actnorm, "cond_dim": cond_dim}
    return gf.coupling_flow(jr.key(0), 2, **options)
