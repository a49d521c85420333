"""Tests of ``gauss_flows.patch_transformer`` and ``gauss_flows.masked_network``."""

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import PATCHES, order_pattern, patch_layer
from jax.test_util import check_grads
from network_support import KEY, built, drawn
from scipy.special import log_softmax

import gauss_flows as gf
from gauss_flows.bijection import partition

pytestmark = pytest.mark.usefixtures("quick_compilation")

PATCH, LOC = gf.conditioners.patch_transformer, fb.Loc(jnp.zeros(()))

NIGHTLY = pytest.mark.nightly

single_now = pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=NIGHTLY)], indirect=True
)

double_now = pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=NIGHTLY), "float64"], indirect=True
)


def draw(n, cond_dim):
    rng = np.random.default_rng(1)
    x, c = rng.normal(size=(n, *PATCHES.shape)), rng.normal(size=(n, cond_dim or 1))
    return jnp.asarray(x, float), None if cond_dim is None else jnp.asarray(c, float)


@single_now
def test_a_patch_depends_on_earlier_patches_alone(dtype):
    """The contract at rank 3, and which elements depend on which; in double precision it has two cases."""
    cond_dim = 3 if dtype == "float32" else None
    layer = drawn(patch_layer, cond_dim=cond_dim)
    report = gf.check_bijection(layer, *draw(8, cond_dim))
    np.testing.assert_array_equal(report.pattern, order_pattern(PATCHES))
    assert report["round trip x -> z -> x"] <= (1e-5 if dtype == "float32" else 1e-13)


def expected(network, x, condition):
    """A transformer for tokens of two numbers, written out with NumPy, token by token and head by head."""
    weights = jax.tree.map(np.asarray, eqx.filter(network, eqx.is_array))
    linear = lambda layer, v: layer.weight @ v + layer.bias
    normal = lambda v: (v - v.mean()) / np.sqrt(v.var() + 1e-5)
    gelu = lambda v: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
    tokens = weights.places + weights.condition.weight @ condition
    tokens[1:] += x[:-1] @ weights.embed.weight.T
    for block in weights.blocks:
        query, key, value = np.split(np.stack([linear(block.project, normal(t)) for t in tokens]), 3, axis=1)
        for t in range(len(tokens)):
            found = []
            for head in range(2):  # of four numbers each
                part = slice(4 * head, 4 * head + 4)
                scores = key[: t + 1, part] @ query[t, part] / 2
                found.append(np.exp(log_softmax(scores)) @ value[: t + 1, part])
            tokens[t] += linear(block.gather, np.concatenate(found))
            tokens[t] += linear(block.narrow, gelu(linear(block.widen, normal(tokens[t]))))
    return np.stack([linear(weights.head, normal(t)) for t in tokens])


def test_the_transformer_computes_what_its_formula_says():
    """In an order that is not that of the event, with and without guidance."""
    with jax.enable_x64(True):
        ranks = (1, 0, 2, 0, 1, 2)
        outputs = tuple(np.repeat(np.array(ranks) - 1, 2).tolist())
        network = drawn(lambda key: PATCH(8, 2, heads=2)((*ranks, -1), outputs, key=key))
        x, c = np.array([0.5, -1.0, 0.7, 0.2, 1.5, -0.3]), np.array([0.8])
        by_rank = np.array([1, 3, 0, 4, 2, 5])
        run = jax.jit(lambda network, inputs: network(inputs).reshape(6, 2)[by_rank].reshape(3, 4))
        found = lambda network: run(eqx.filter(network, eqx.is_array), np.append(x, c))
        with_c = expected(network, x[by_rank].reshape(3, 2), c)
        without = expected(network, x[by_rank].reshape(3, 2), 0 * c)
        np.testing.assert_allclose(found(network), with_c, rtol=1e-12)
        guided = gf.guided(network, 0.5)
        np.testing.assert_allclose(found(guided), with_c + 0.5 * (with_c - without), rtol=1e-12)


@double_now
def test_the_cache_gives_the_inverse_of_the_other_methods(dtype):
    """Equal to the sequential inverse and to Jacobi sweeps up to rounding, with guidance too."""
    x, c = draw(8, 3)
    weight, others = (0.0, ["sequential"]) if dtype == "float32" else (1.5, ["sequential", "jacobi"])
    guided = lambda inverse: gf.guided(drawn(patch_layer, cond_dim=3, inverse=inverse), weight)
    layer = guided("incremental")
    z = jax.jit(jax.vmap(layer.transform))(x, c)
    found, log_det = jax.jit(jax.vmap(layer.inverse_and_log_det))(z, c)
    exact, near = (1e-5, 1e-4) if dtype == "float32" else (1e-13, 1e-12)
    np.testing.assert_allclose(found, x, atol=exact)
    for inverse in others:
        x_again, log_det_again = jax.jit(jax.vmap(guided(inverse).inverse_and_log_det))(z, c)
        np.testing.assert_allclose(found, x_again, atol=exact)
        np.testing.assert_allclose(log_det, log_det_again, atol=near)


def test_gradients_through_the_cache_are_those_of_differences():
    """In the latent image, the parameters and the condition."""
    with jax.enable_x64(True):
        params, static = partition(gf.guided(drawn(patch_layer, cond_dim=3), 0.5))
        y, c = jax.tree.map(lambda a: a[0], draw(1, 3))

        @jax.jit
        def both(params, y, c):
            layer = eqx.combine(params, static)
            x, log_det = layer.inverse_and_log_det(y, c)
            return jnp.sin(x).sum() + log_det

        check_grads(both, (params, y, c), order=1, modes=("rev",), rtol=1e-5, atol=1e-5)


def test_the_cache_is_the_inverse_by_default_and_any_bijector_fits():
    layer = drawn(patch_layer, bijector=gf.RQSpline(n_bins=4))
    assert layer.inverse_method == "incremental"
    x = draw(1, None)[0][0]
    again = jax.jit(lambda x: layer.inverse(layer.transform(x)))(x)
    np.testing.assert_allclose(again, x, atol=1e-4)


def test_a_new_transformer_has_the_sizes_of_its_defaults_and_starts_as_the_bijector():
    inputs, outputs = (0, 0, 1, 1, -1), (-1, -1, 0, 0)
    network = built(lambda key: PATCH()(inputs, outputs, key=key))
    (block,) = network.blocks
    assert (network.places.shape, block.heads, network.guidance) == ((2, 48), 4, None)
    assert (block.project.weight.shape, block.widen.weight.shape) == ((144, 48), (96, 48))
    layer = patch_layer(KEY, cond_dim=3, zero_last=True)
    x, c = draw(1, 3)
    np.testing.assert_array_equal(jax.jit(lambda x, c: layer.transform(x, c))(x[0], c[0]), x[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PATCH(30), "`nn_width` must be divisible by `heads` = 4; got 30"),
        (lambda: PATCH(depth=0), "`nn_depth` must be a whole number of at least 1; got 0"),
        (
            lambda: gf.MaskedAutoregressive(KEY, (5,), bijector=LOC, passes=2, conditioner=PATCH(8)),
            "`order` must have equally many elements of each rank.*got 2 to 3",
        ),
        (
            lambda: gf.Coupling(KEY, (4,), bijector=LOC, conditioner=PATCH(8)),
            r"`conditioner` must not be `patch_transformer\(...\)`",
        ),
        (
            lambda: gf.warm_start(drawn(patch_layer, bijector=gf.MixtureGaussianCDF(2)), draw(9, None)[0]),
            "`conditioner` must end in a dense layer with a bias; got CausalTransformer",
        ),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
