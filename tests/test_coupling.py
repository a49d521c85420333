"""Tests of ``gauss_flows.coupling``."""

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import KEY, LOC, built, constant, fixed, hidden_sizes
from paramax import unwrap

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_affine_coupling_reproduces_the_source_document():
    with jax.enable_x64(True):
        layer = gf.AffineCoupling(jr.key(0), shape=(4,), nn_width=32, nn_depth=2)
        x = jr.normal(jr.key(1), (4,))
        z, log_det = layer.transform_and_log_det(x)
        assert np.round(z, 3).tolist() == [-1.184, -0.116, 0.363, 0.679]
        assert f"{log_det:.5f}" == "-0.00768"
        jacobian = np.round(np.asarray(jax.jacfwd(layer.transform)(x)), 3)
        expected = [[1, 0, 0, 0], [0, 1, 0, 0], [-0.08, -0.036, 1.031, 0], [0.02, 0.027, 0, 0.963]]
        np.testing.assert_array_equal(jacobian, expected)
        batch = jr.normal(jr.key(2), (2000, 4))
        back = jax.vmap(layer.inverse)(jax.vmap(layer.transform)(batch))
        assert float(jnp.abs(back - batch).max()) <= 1e-15


def test_conditioner_of_zeros_leaves_the_given_bijector():
    zeros = lambda in_size, out_size, *, key: lambda passive: jnp.zeros(out_size)
    bijector = gf.MixtureGaussianCDF(2, means=[-1.0, 2.0], scales=[0.5, 1.5])
    layer = gf.Coupling(jr.key(0), shape=(4,), bijector=bijector, conditioner=zeros)
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    expected = jax.vmap(bijector.transform)(x[2:])
    np.testing.assert_allclose(layer.transform(x)[2:], expected, rtol=1e-6)


def test_a_layer_can_be_cast_to_another_precision():
    """The bijector may have been made in another precision."""
    with jax.enable_x64(True):
        bijector = gf.bijectors.exp_affine(2.0)
    layer = gf.Coupling(jr.key(0), shape=(2,), bijector=bijector)
    z = layer.transform(jnp.ones(2))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, layer)
        again = wide.transform(jnp.ones(2))
        assert (z.dtype, again.dtype) == (jnp.float32, jnp.float64)
        np.testing.assert_allclose(again, np.asarray(z, float), rtol=1e-5)


def test_the_parts_of_a_coupling_layer_can_be_used_alone():
    layer = gf.MixtureGaussianCDFCoupling(jr.key(0), (4,), n_components=2, cond_dim=1)
    x, c = jr.normal(jr.key(1), (4,)), jnp.ones(1)
    theta = layer.theta(x[:2], c)
    assert theta.shape == (2, 6)
    z = jnp.stack([layer.bijector(p).transform(v) for p, v in zip(theta, x[2:], strict=True)])
    np.testing.assert_allclose(z, layer.transform(x, c)[2:], rtol=1e-5)


GOOD = {"key": jr.key(0), "shape": (4,), "bijector": gf.Affine()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 0}, "`key` must be a random key.*got 0"),
        ({"mask": np.ones(3, bool)}, r"`mask` must have shape \(4,\).*got \(3,\)"),
        ({"mask": np.ones(4)}, "`mask` must be a boolean array.*got dtype float64"),
        ({"mask": np.ones(4, bool)}, "`mask` must have at least one active.*every entry is True"),
        ({"mask": np.zeros(4, bool)}, "`mask` must have at least one passive.*every entry is False"),
        ({"shape": (1,)}, r"`shape` must hold at least two.*got \(1,\)"),
        ({"shape": (2.5,)}, r"`shape` must be a tuple of positive integers.*got \(2.5,\)"),
        ({"shape": 4}, "`shape` must be a tuple of positive integers.*got 4"),
        ({"shape": (0, 4)}, "`shape` must be a tuple of positive integers"),
        ({"bijector": fb.Flip((4,))}, r"`bijector` must be scalar.*got \(4,\)"),
        ({"bijector": jnp.tanh}, "`bijector` must be a flowjax bijection; got "),
        ({"conditioner": 3}, "`conditioner` must be a factory.*got int"),
        ({"conditioner": lambda i, o: 3}, "`conditioner` must be a factory.*unexpected keyword"),
        (
            {"conditioner": lambda i, o, *, key: eqx.nn.MLP(i + 1, o, 8, 1, key=key)},
            "`conditioner` must map a vector of size 2 to one of size 4; it raised",
        ),
        ({"conditioner": lambda i, o, *, key: 3}, "`conditioner` must make a callable.*got int"),
        (
            {"conditioner": lambda i, o, *, key: lambda h: h},
            r"`conditioner` must map a vector of size 2 to one of size 4; got output \(2,\)",
        ),
        ({"cond_dim": 0}, "`cond_dim` must be a whole number of at least 1; got 0"),
        ({"nn_width": 0}, "`nn_width` must be a whole number of at least 1; got 0"),
        ({"nn_depth": 1.5}, "`nn_depth` must be a whole number of at least 0; got 1.5"),
    ],
)
def test_coupling_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        gf.Coupling(**(GOOD | change))


def test_coupling_forms_pass_their_errors_on():
    with pytest.raises(ValueError, match="`n_components`"):
        gf.MixtureGaussianCDFCoupling(jr.key(0), (4,), n_components=0)
    with pytest.raises(ValueError, match="`mask`"):
        gf.AffineCoupling(jr.key(0), (4,), mask=[True, False])


def test_a_conditioner_takes_the_passive_coordinates_in_c_order_and_then_the_condition():
    mask = np.array([[False, True], [True, False]])
    weights = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    layer = gf.Coupling(KEY, shape=(2, 2), bijector=LOC, mask=mask, cond_dim=2, conditioner=fixed(weights))
    x, c = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([0.5, 0.6])
    shift = weights @ [0.2, 0.3, 0.5, 0.6]
    np.testing.assert_allclose(layer.transform(x, c), x + np.diag(shift), rtol=1e-6)
    theta = layer.theta(jnp.array([0.2, 0.3]), jnp.array([0.5, 0.6]))
    np.testing.assert_allclose(theta, shift[:, None], rtol=1e-6)


def test_affine_scales_are_a_softplus_or_a_bounded_or_a_free_exponential():
    """The conditioner's output is a shift and a scale parameter for each active coordinate in turn."""
    out, x = [0.3, -1.2, 0.7, 2.5], np.array([1.0, 0.5, -2.0])
    shift, raw = np.array([0.3, 0.7]), np.array([-1.2, 2.5])
    make = lambda **options: gf.AffineCoupling(KEY, (3,), conditioner=constant(out), **options)
    free = gf.Coupling(KEY, shape=(3,), bijector=gf.bijectors.exp_affine(), conditioner=constant(out))
    for layer, scale in (
        (make(), np.log1p(np.exp(np.log(np.e - 1) + raw))),
        (make(log_scale_bound=2.0), np.exp(2 * np.tanh(raw / 2))),
        (free, np.exp(raw)),
    ):
        z, log_det = layer.transform_and_log_det(x)
        np.testing.assert_allclose(z, [x[0], *(scale * x[1:] + shift)], rtol=1e-5)
        np.testing.assert_allclose(log_det, np.log(scale).sum(), rtol=1e-5)


@pytest.mark.parametrize("make", [gf.MixtureGaussianCDFCoupling, gf.DeepSigmoidCoupling])
def test_mixture_couplings_have_eight_components_and_bounded_scales(make):
    assert built(make, (2,)).conditioner.out_size == 3 * 8
    for options, bound in (({}, 5.0), ({"log_scale_bound": 2.0}, 2.0)):
        layer = make(KEY, (2,), n_components=2, conditioner=constant(np.zeros(6)), **options)
        far = unwrap(layer.bijector(jnp.full(6, 1e3))).log_scales
        np.testing.assert_allclose(far, bound, rtol=1e-6)


def test_default_networks_have_two_hidden_layers_of_64_units():
    autoregressive = {"shape": (4,), "bijector": LOC}
    for make, options in (
        (gf.Coupling, {"shape": (4,), "bijector": LOC}),
        (gf.AffineCoupling, {"shape": (4,)}),
        (gf.MaskedAutoregressive, autoregressive),
    ):
        assert hidden_sizes(built(make, **options).conditioner) == [64, 64]
        sized = built(make, **options, nn_width=5, nn_depth=3).conditioner
        assert hidden_sizes(sized) == [5, 5, 5]
    v = jnp.array([-0.5, 1.0])
    for make in (gf.Coupling, gf.MaskedAutoregressive):
        network = built(make, **autoregressive).conditioner
        np.testing.assert_array_equal(network.activation(v), jax.nn.relu(v))
    for network in (
        built(gf.Residual, shape=(2,)).network,
        built(gf.LipschitzMLP, in_size=2, out_size=2),
    ):
        assert [len(bias) for bias in network.biases] == [64, 64, 2]
        assert network.lipschitz == 0.9
