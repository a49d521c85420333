"""The two moons."""

import jax.random as jr

import gauss_flows as gf

MIX = gf.MixtureGaussianCDF(4)


def moons(n=4000, seed=1):
    return gf.targets.two_moons().sample(jr.key(seed), (n,))
