"""Tests of ``gauss_flows.initialize``."""

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from data_support import MIX as PAIR
from data_support import NORM, sample
from flow_cases import SMALL
from flowjax.distributions import Normal, Transformed
from moons_support import MIX, moons
from network_support import KEY

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("scan", [False, True])
def test_data_init_standardises_what_reaches_each_actnorm(scan):
    def layer(key):
        return fb.Chain([gf.ActNorm((3,)), gf.AffineCoupling(key, (3,), cond_dim=1), fb.Flip((3,))])

    keys = jr.split(jr.key(0), 3)
    make = lambda: fb.Scan(eqx.filter_vmap(layer)(keys)) if scan else fb.Chain([layer(k) for k in keys])
    x = 3 + 5 * jr.normal(jr.key(1), (500, 3)) * jnp.array([[1.0, 10.0, 0.1]])
    c = jr.normal(jr.key(2), (500, 1))
    flow = Transformed(Normal(jnp.zeros(3)), fb.Invert(make()))
    before = jax.tree.leaves(eqx.filter(flow, eqx.is_array))
    new = gf.data_init(flow, x, c)
    for a, b in zip(before, jax.tree.leaves(eqx.filter(flow, eqx.is_array)), strict=True):
        assert a is b  # pure: the old flow is as it was
    bijection = new.bijection.bijection
    pick = lambda tree, i: jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, tree)
    for i in range(3):
        part = pick(bijection.bijection, i) if scan else bijection[i]
        inside = jax.vmap(part[0].transform)(x)
        np.testing.assert_allclose(inside.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(inside.std(0), 1, atol=1e-4)
        x = jax.vmap(part.transform)(x, c)
    backwards = gf.data_init(fb.Invert(gf.ActNorm((3,))), x)
    out = jax.vmap(backwards.transform)(x)
    np.testing.assert_allclose([out.mean(0), out.std(0)], [np.zeros(3), np.ones(3)], atol=1e-4)
    with pytest.raises(ValueError, match="`x` must have shape"):
        gf.data_init(flow, x[:1], c)
    with pytest.raises(ValueError, match="`x` must be finite"):
        gf.data_init(flow, x.at[0, 0].set(jnp.nan), c)


def test_a_stack_of_flows_is_not_set_from_data():
    stack = eqx.filter_vmap(lambda key: gf.maf(key, 2, **SMALL))(jr.split(jr.key(0), 2))
    for call in (gf.data_init, gf.warm_start):
        with pytest.raises(ValueError, match="must be used one at a time"):
            call(stack, jnp.ones((20, 2)))


def test_a_dead_conditioner_is_a_diagonal_layer(dtype):
    layer = gf.Coupling(jr.key(0), shape=(4,), bijector=MIX, conditioner=gf.conditioners.mlp(8, 2))
    x = jr.normal(jr.key(1), (200, 4))
    warm = gf.warm_start(layer, x)
    marginal = gf.warm_start(gf.MarginalGaussianization((2,), bijector=MIX), x[:, 2:])
    ours = jax.jit(jax.vmap(lambda x: warm.transform_and_log_det(x)))(x)
    theirs = jax.jit(jax.vmap(lambda x: marginal.transform_and_log_det(x)))(x[:, 2:])
    tolerance = 32 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(ours[0][:, 2:], theirs[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=tolerance, atol=tolerance)


def test_what_cannot_be_warmed_or_fitted_is_named():
    x = moons(100)
    constant = lambda in_size, out_size, *, key: lambda passive: jnp.zeros(out_size)
    refused = [
        (lambda: gf.warm_start(gf.LULinear((2,)), x), "`flow` must hold a layer to set"),
        (
            lambda: gf.warm_start(gf.coupling_flow(jr.key(0), 2, layers=1), x),
            "`flow` must have MixtureGaussianCDF",
        ),
        (
            lambda: gf.warm_start(fb.Invert(gf.MarginalGaussianization((2,))), x),
            "`flow` must take data to latent",
        ),
        (
            lambda: gf.warm_start(gf.Coupling(jr.key(0), shape=(2,), bijector=MIX, conditioner=constant), x),
            "`conditioner` must end in a dense layer",
        ),
        (lambda: gf.warm_start(gf.MarginalGaussianization((3,)), x), r"`x` must have shape \(n, 3\)"),
        (lambda: gf.warm_start(gf.MarginalGaussianization((2,)), x, rotation="ica"), "`rotation` must be"),
        (lambda: gf.rbig(jr.key(0), x[:, 0]), r"`x` must have shape \(n, D\)"),
        (lambda: gf.rbig(jr.key(0), x, rotation="ica"), "`rotation` must be one of"),
        (
            lambda: gf.rbig(jr.key(0), x, n_components=1),
            "`n_components` must be a whole number of at least 2",
        ),
        (lambda: gf.rbig(jr.key(0), x, val_fraction=1.0), r"`val_fraction` must lie in \[0, 1\)"),
        (lambda: gf.rbig(jr.key(0), x.at[0, 0].set(jnp.inf)), "`x` must be finite"),
        (lambda: gf.gaussianization_flow(jr.key(0), 0), "`dim` must be a whole number of at least 1"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_warm_start_leaves_constant_columns_alone_and_names_what_bounds_stop():
    layer = gf.MarginalGaussianization((2,), bijector=PAIR)
    x = np.column_stack([np.full(64, 0.1), sample()[:, 0]])
    warm = gf.warm_start(layer, x, em_steps=2)
    np.testing.assert_array_equal(warm.raw[0], 0)
    assert np.abs(warm.raw[1]).max() > 0
    noise = np.float32(0.1) + np.spacing(np.float32(0.1)) * (np.arange(64) % 2).astype(np.float32)
    rounded = gf.warm_start(fb.Chain([NORM, layer]), np.column_stack([noise, x[:, 1]]), em_steps=2)
    np.testing.assert_array_equal(rounded[1].raw[0], 0)
    for scale in (1e3, 1e-3):  # the mixture's log-scales stay within ±5
        with pytest.raises(ValueError, match="`x` must reach each layer with standard deviations within"):
            gf.warm_start(layer, scale * sample(), em_steps=2)
    before = fb.Chain([NORM, layer])
    z = jax.vmap(gf.warm_start(before, 1e30 * sample(), em_steps=2).transform)(jnp.asarray(1e30 * sample()))
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.2)


def test_a_warm_start_leaves_rotations_alone_unless_asked():
    x = np.asarray(jr.normal(jr.key(4), (40, 2)) @ jnp.array([[2.0, 1.0], [0.0, 0.5]]))
    marginal = gf.MarginalGaussianization((2,), bijector=gf.MixtureGaussianCDF(2))
    layers = fb.Chain([gf.HouseholderRotation(2, (2,), key=KEY), marginal])
    for rotation in (None, "pca"):
        warm = gf.warm_start(layers, x, rotation=rotation, em_steps=2)
        same = bool((warm.bijections[0].params == layers.bijections[0].params).all())
        assert same == (rotation is None)


def test_a_model_of_whole_numbers_is_refused_and_its_flow_named():
    model = gf.Dequantize(gf.Transformed(gf.standard_normal(2), gf.ActNorm((2,))), 4)
    for set_from in (gf.data_init, gf.warm_start):
        with pytest.raises(ValueError, match=r"`flow` must be a flow for real numbers, .*; got Dequantize"):
            set_from(model, np.zeros((9, 2), int))
