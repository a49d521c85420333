"""Tests of ``gauss_flows.dequantize``."""

import copy
import functools

import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import paramax
import pytest
import scipy
from file_support import same
from network_support import built

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = np.random.default_rng(0).binomial(3, [[0.3, 0.5], [0.6, 0.8]], size=(200, 2, 2)).astype(np.uint8)

ALL = np.indices((4,) * 4).reshape(4, -1).T.reshape(-1, 2, 2)  # every image of four pixels and four levels


def shifted_flow(key=None):
    """Scores that are independent and normal with means of their own, so that P(k) has a closed form."""
    loc = jnp.array([[0.5, -0.3], [0.2, 0.0]])
    scale = jnp.array([[0.8, 1.2], [1.0, 0.6]])
    base = paramax.non_trainable(fd.Normal(jnp.zeros((2, 2))))
    return gf.Transformed(base, fb.Affine(loc, scale)), np.asarray(loc), np.asarray(scale)


@functools.cache
def new_noise():
    return gf.variational_noise(jr.key(1), (2, 2), layers=1, nn_width=8)


def small(key, noise=None, cond_dim=None):
    keys = jr.split(key)
    layer = gf.Coupling(
        keys[0],
        (2, 2),
        bijector=gf.Affine(),
        mask=gf.masks.checkerboard(2, 2),
        cond_dim=cond_dim,
        nn_width=8,
        nn_depth=1,
    )
    base = paramax.non_trainable(fd.Normal(jnp.zeros((2, 2))))
    noise = gf.variational_noise(keys[1], (2, 2), layers=1, nn_width=8) if noise == "own" else noise
    return gf.Dequantize(gf.Transformed(base, fb.Invert(layer)), 4, images=IMAGES, noise=noise)


def bent(model, key):
    """The model with other parameters in its noise, which is then far from uniform."""
    draw = lambda a: a + 0.1 * jr.normal(key, a.shape) if eqx.is_inexact_array(a) else a
    bijection = jax.tree.map(draw, model.noise.bijection)
    return eqx.tree_at(lambda m: m.noise.bijection, model, bijection)


@functools.cache
def plain():
    return small(jr.key(0))


def exact_log_prob(images):
    """The integral of the density of :func:`shifted_flow` over the cells."""
    _, loc, scale = shifted_flow()
    counts = 1 + np.stack([(k == IMAGES).sum(axis=0) for k in range(4)], axis=-1)
    ends = scipy.special.ndtri(np.cumsum(counts, axis=-1) / counts.sum(axis=-1, keepdims=True))
    ends = np.concatenate([np.full((2, 2, 1), -np.inf), ends], axis=-1)
    cdf = scipy.special.ndtr((ends - loc[..., None]) / scale[..., None])
    table = np.log(np.diff(cdf, axis=-1))
    return np.take_along_axis(table[None], images[..., None], axis=-1)[..., 0].sum(axis=(1, 2))


@pytest.mark.parametrize("noise", [False, True])
def test_the_mean_of_many_draws_is_the_integral_over_the_cell(noise):
    flow, _, _ = shifted_flow()
    model = gf.Dequantize(flow, 4, images=IMAGES, noise=new_noise() if noise else None)
    model = bent(model, jr.key(2)) if noise else model
    exact = exact_log_prob(ALL)
    assert abs(np.exp(exact).sum() - 1) < 1e-12
    many = np.asarray(model.log_prob_bound(ALL, jr.key(3), draws=1000))
    # The spread of the log of one weight is about 0.3, of the mean of a thousand about 0.01.
    assert np.abs(many - exact).max() < 0.15
    assert abs(np.exp(many).sum() - 1) < 0.01
    one = np.asarray(model.log_prob_bound(ALL, jr.key(4)))
    weight = np.exp(exact)
    assert (weight * one).sum() < (weight * many).sum()


def test_noise_starts_uniform():
    model = gf.Dequantize(plain().flow, 4, images=IMAGES, noise=new_noise())
    assert model.noise.cond_shape == (4,)
    log_u, log_rest, log_q = jax.jit(jax.vmap(model._noise))(
        jnp.asarray(IMAGES, int), jr.split(jr.key(1), 200)
    )
    np.testing.assert_allclose(log_q, 0, atol=1e-5)
    np.testing.assert_allclose(jnp.exp(log_u) + jnp.exp(log_rest), 1, atol=1e-6)
    assert scipy.stats.kstest(np.exp(np.asarray(log_u)).ravel(), "uniform").pvalue > 0.01


def test_uniform_noise_is_never_at_the_border_of_a_cell():
    model = plain()
    log_u, log_rest, _ = jax.jit(lambda key: model._noise(jnp.zeros((1000, 1000), int), key))(jr.key(1))
    assert np.isfinite(log_u).all()
    assert np.isfinite(log_rest).all()
    assert (np.asarray(log_u) < 0).all()
    assert (np.asarray(log_rest) < 0).all()


@pytest.fixture(scope="module")
def trained():
    condition = IMAGES[:, 0, 1:] / 3  # what one of the active pixels is
    make = eqx.filter_jit(lambda key: small(key, noise="own", cond_dim=1))
    options = {"steps": 200, "batch_size": 64, "progress": False}
    keys = jr.split(jr.key(1), 2)
    result = gf.fit_many(keys, make, IMAGES, condition=condition, **options)
    return make(jr.split(keys[1])[0]), result, condition


def test_fit_trains_flow_and_noise_together(trained):
    model, result, condition = trained
    result = result[1]
    before, after = (gf.bits_per_dim(m, IMAGES, jr.key(2), condition=condition) for m in (model, result.flow))
    assert after.bits < before.bits - 3 * after.standard_error
    changed = lambda a, b: not np.array_equal(a, b)
    arrays = lambda m: jax.tree.leaves(eqx.filter(m, eqx.is_inexact_array))
    assert any(map(changed, arrays(model.flow), arrays(result.flow.flow)))
    assert any(map(changed, arrays(model.noise), arrays(result.flow.noise)))
    np.testing.assert_array_equal(model.table.counts, result.flow.table.counts)


def test_samples_are_images_that_follow_the_condition(trained):
    model = trained[1][1].flow
    condition = jnp.repeat(jnp.array([[0.0], [1.0]]), 200, axis=0)
    samples = np.asarray(model.sample(jr.key(3), 400, condition))
    assert samples.shape == (400, 2, 2)
    assert samples.min() >= 0
    assert samples.max() <= 3
    assert samples[:200, 0, 1].mean() + 1 < samples[200:, 0, 1].mean()
    with pytest.raises(ValueError, match=r"`condition` must have shape \(400, 1\).*got None"):
        model.sample(jr.key(3), 400)


def test_a_stack_of_models_is_refused(trained):
    stack, condition = trained[1].flow, trained[2]
    for use in (
        lambda: stack.sample(jr.key(1), 3, condition[:3]),
        lambda: gf.bits_per_dim(stack, IMAGES, jr.key(1), condition=condition),
        lambda: stack.dequantize(IMAGES, jr.key(1)),
    ):
        with pytest.raises(ValueError, match="This is a stack of models"):
            use()


def test_dequantized_images_are_quantized_to_themselves():
    model = plain()
    v = model.dequantize(IMAGES, jr.key(1))
    assert v.shape == IMAGES.shape
    np.testing.assert_array_equal(model.quantize(v), IMAGES)
    assert 0.9 < float(v.std()) < 1.1
    with pytest.raises(ValueError, match=r"`v` must have shape \(n, 2, 2\); got \(2, 2\)"):
        model.quantize(v[0])
    with pytest.raises(ValueError, match="`v` must not hold NaN"):
        model.quantize(v.at[0, 0, 0].set(jnp.nan))


def test_models_are_copied(trained):
    model = trained[0]
    assert same(copy.deepcopy(model), model)


def test_numbers_that_are_no_levels_give_nan_under_jit():
    model = plain()
    score = jax.jit(lambda images: model.training_log_prob(images, None, jr.key(0)))
    images = jnp.asarray(IMAGES[:4], float).at[1, 0, 0].set(0.5).at[2, 0, 0].set(4).at[3, 0, 0].set(-1)
    assert np.isnan(score(images)).tolist() == [False, True, True, True]


def test_arguments_of_dequantize_are_checked():
    model = plain()
    with pytest.raises(ValueError, match="`flow` must be a flowjax distribution; got ActNorm"):
        gf.Dequantize(gf.ActNorm((2,)), 4)
    with pytest.raises(ValueError, match="`noise` must be a flowjax distribution; got float"):
        gf.Dequantize(model.flow, 4, noise=0.1)
    with pytest.raises(ValueError, match=r"`noise` must have the shape .*\(\(2, 2\), \(4,\)\).*got"):
        gf.Dequantize(model.flow, 4, noise=built(gf.variational_noise, (4,)))
    with pytest.raises(ValueError, match="`levels` must be a whole number of at least 2"):
        gf.Dequantize(model.flow, 1)
    with pytest.raises(ValueError, match="`images` must hold whole numbers from 0 to 2"):
        gf.Dequantize(model.flow, 3, images=IMAGES)
    for x, message in ((IMAGES + 0.5, "whole numbers from 0 to 3"), (IMAGES[:, 0], r"shape \(n, 2, 2\)")):
        with pytest.raises(ValueError, match=f"`images` must .*{message}"):
            gf.fit(jr.key(0), model, x, progress=False)
    with pytest.raises(ValueError, match="`layers` must be a whole number of at least 1; got 0"):
        gf.variational_noise(jr.key(0), (2, 2), layers=0)
    with pytest.raises(ValueError, match="`key` must be a random key"):
        gf.variational_noise(0, (2, 2))
    with pytest.raises(ValueError, match="`mask` must"):
        gf.variational_noise(jr.key(0), (1,))


def test_noise_from_another_key_compiles_nothing():
    made = []

    def network(in_size, out_size, *, key):
        made.append(in_size)
        return gf.conditioners.mlp(4, 1)(in_size, out_size, key=key)

    first, second = (
        (gf.variational_noise(jr.key(seed), (2, 1), layers=1, conditioner=network), len(made))
        for seed in (0, 1)
    )
    assert first[1] == second[1]
    assert not eqx.tree_equal(first[0], second[0])
