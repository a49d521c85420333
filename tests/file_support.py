"""Flows and layers to save, and the comparison of what comes back."""

import json
from typing import Any

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from cases import CASES

import gauss_flows as gf


def small(key=None, bijector=None, **options):
    key, bijector = jr.key(0) if key is None else key, gf.Affine() if bijector is None else bijector
    return gf.coupling_flow(key, 2, layers=2, nn_width=8, bijector=bijector, **options)


def bits(leaf):
    """Type, shape and bytes of an array; anything else as it is."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jr.key_impl(leaf)), np.asarray(jr.key_data(leaf)).tobytes(), leaf.shape
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        kind = "jax" if isinstance(leaf, jax.Array) else type(leaf)
        return kind, leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()
    return leaf


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        bits(x) == bits(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def blank(tree):
    """The same structure with other numbers."""
    return jax.tree.map(lambda a: jnp.full_like(a, 7) if eqx.is_inexact_array(a) else a, tree)


FLOWS = {
    "coupling_flow": lambda k: gf.coupling_flow(k, 2, layers=2, nn_width=8, actnorm=True, cond_dim=1),
    "coupling_flow, householder": lambda k: small(k, gf.DeepSigmoid(2), mixing="householder"),
    "coupling_flow, supports": lambda k: gf.coupling_flow(
        k, 3, layers=1, nn_width=8, supports=["positive", "angle", (0, 1)]
    ),
    "maf": lambda k: gf.maf(k, 2, layers=2, nn_width=8),
    "iaf": lambda k: gf.iaf(k, 2, layers=2, nn_width=8, bijector=gf.bijectors.exp_affine(2.0)),
    "transformer_flow": lambda k: gf.transformer_flow(k, (2, 4), layers=2, nn_width=8, cond_dim=2),
    "residual_flow": lambda k: gf.residual_flow(k, 2, layers=2, nn_width=8),
    "gaussianization_flow": lambda k: gf.gaussianization_flow(
        k, 2, layers=1, bijector=gf.MixtureGaussianCDF(2)
    ),
    "image_flow": lambda k: gf.image_flow(k, (4, 4, 1), steps=(2, 1), nn_width=4, cond_dim=1),
    "image_flow, permutation": lambda k: gf.image_flow(
        k, (2, 2, 1), steps=(1,), mixing="permutation", nn_width=4
    ),
    "Dequantize": lambda k: gf.Dequantize(
        small(k), 4, images=np.eye(2, dtype=int), noise=gf.variational_noise(k, (2,), layers=1, nn_width=8)
    ),
    "DiscreteAutoregressive": lambda k: gf.DiscreteAutoregressive(
        gf.MaskedAutoregressive(k, (2,), bijector=gf.Affine(), nn_width=8), 4, images=np.eye(2, dtype=int)
    ),
    "roulette": lambda k: gf.with_log_det(
        gf.Residual(k, shape=(2,), log_det="roulette", nn_width=8), key=jr.key(1)
    ),
    **{
        name: lambda k, factory=factory: gf.Coupling(
            k, shape=(4,), bijector=fb.RationalQuadraticSpline(knots=3, interval=2), conditioner=factory
        )
        for name, factory in {
            "resnet": gf.conditioners.resnet(8, 1),
            "shared_trunk": gf.conditioners.shared_trunk(8, 1, 2),
            "attention": gf.conditioners.attention(8, 1),
        }.items()
    },
}

# Supports has no arrays; a flow that has it is among FLOWS.
PUBLIC = {name: case.make for name, case in CASES.items() if "," not in name and name != "Supports"} | FLOWS


def coupling(activation=jax.nn.silu, mask=(True, False, True, False), shape=(4,), cond_dim=None, key=None):
    network = gf.conditioners.mlp(8, 1, activation=activation)
    key = jr.key(0) if key is None else key
    mask = np.array(mask).reshape(shape)
    options = {"shape": shape, "mask": mask, "cond_dim": cond_dim}
    return gf.Coupling(key, bijector=gf.Affine(), conditioner=network, **options)


class Held(eqx.Module):
    """Anything at all in a static field, and an array beside it."""

    value: Any = eqx.field(static=True)
    array: Any = eqx.field(default_factory=lambda: jnp.zeros(2))


def edit_header(path, change):
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    header = json.loads(content["header"].tobytes())
    change(header)
    content["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **content)
