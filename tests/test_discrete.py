"""Tests of ``gauss_flows.discrete``."""

import copy
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy
from file_support import same
from network_support import in_precision_of_now

import gauss_flows as gf
from gauss_flows.discrete import FLOOR

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALL = np.indices((3,) * 4).reshape(4, -1).T.reshape(-1, 2, 2)  # every image of four pixels and three levels

IMAGES = np.random.default_rng(0).binomial(2, [[0.2, 0.5], [0.6, 0.9]], size=(100, 2, 2))

LAYERS = {
    "mixture": {"bijector": gf.MixtureGaussianCDF(3)},
    "condition, two ranks": {"bijector": gf.Affine(), "order": np.array([[0, 1], [1, 0]]), "cond_dim": 2},
    "plain network": {"bijector": gf.Affine(), "conditioner": gf.conditioners.mlp(8, 1), "passes": 3},
}


class Mirrored(gf.Bijection):
    """z = loc - x, which decreases."""

    loc: jax.Array = eqx.field(default_factory=lambda: jnp.zeros(()))
    shape = ()
    cond_shape = None

    def transform_and_log_det(self, x, condition=None):
        return self.loc - x, jnp.zeros(())

    def inverse_and_log_det(self, y, condition=None):
        return self.loc - y, jnp.zeros(())


@functools.cache
def model_of(name="mixture"):
    """A model with parameters far from those of the start."""
    rng = np.random.default_rng(0)
    options = LAYERS[name]
    options = options if "conditioner" in options else {"nn_width": 8, **options}
    layer = gf.MaskedAutoregressive(jr.key(0), (2, 2), **options)
    draw = lambda a: (
        jnp.asarray(a + 0.7 * rng.normal(size=a.shape), a.dtype) if eqx.is_inexact_array(a) else a
    )
    layer = eqx.tree_at(lambda m: m.conditioner, layer, jax.tree.map(draw, layer.conditioner))
    return gf.DiscreteAutoregressive(layer, 3, images=IMAGES)


def conditions(model, n):
    return None if model.cond_shape is None else jr.normal(jr.key(5), (n, *model.cond_shape))


@pytest.mark.parametrize("name", LAYERS)
def test_the_probabilities_of_all_images_sum_to_one(name):
    model = model_of(name)
    condition = conditions(model, 1)
    condition = None if condition is None else jnp.repeat(condition, len(ALL), axis=0)
    log_p = np.asarray(model.log_prob(ALL, condition), float)
    assert abs(np.exp(log_p).sum() - 1) < 1e-5
    assert log_p.std() > 0.5


@pytest.mark.parametrize("name", ["condition, two ranks", "plain network"])
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)  # a CDF's differences lose digits
def test_an_image_has_the_product_of_its_pixels_probabilities(name, dtype):
    model = in_precision_of_now(model_of(name))
    condition = conditions(model, len(ALL))
    product = np.zeros(len(ALL))
    known = np.full((len(ALL), 4), 2)  # pixels that are not known yet make no difference
    cdf = jax.jit(jax.vmap(model.cdf, (0, None, None if condition is None else 0)))
    for row in model.steps:
        table = np.asarray(cdf(jnp.asarray(known.reshape(-1, 2, 2)), row, condition))
        assert (np.diff(table, axis=2) > 0.9 * FLOOR).all()
        real = row[row < 4]
        now = ALL.reshape(-1, 4)[:, real]
        chances = np.take_along_axis(np.diff(table, axis=2)[:, : len(real)], now[..., None], axis=2)
        product += np.log(chances).sum(axis=(1, 2))
        known[:, real] = now
    np.testing.assert_allclose(model.log_prob(ALL, condition), product, atol=1e-8)


def test_probabilities_are_those_of_a_mixture_between_the_borders_of_the_cells():
    components = {"weights": [0.3, 0.7], "means": [-1.0, 0.4], "scales": [0.5, 0.8]}
    layer = gf.MaskedAutoregressive(
        jr.key(0), (1,), bijector=gf.MixtureGaussianCDF(2, **components), nn_width=4,
        conditioner=gf.conditioners.Made(4, 1, zero_last=True),
    )  # fmt: skip
    images = IMAGES.reshape(-1, 1)
    model = gf.DiscreteAutoregressive(layer, 3, images=images)
    counts = 1 + np.bincount(images.ravel(), minlength=3)
    borders = scipy.special.ndtri(np.cumsum(counts)[:2] / counts.sum())
    normal = scipy.stats.norm(components["means"], components["scales"])
    cdf = [0, *(np.dot(components["weights"], normal.cdf(b)) for b in borders), 1]
    wanted = (1 - 3 * FLOOR) * np.diff(cdf) + FLOOR
    np.testing.assert_allclose(np.exp(model.log_prob([[0], [1], [2]])), wanted, rtol=1e-5)


def test_an_excluded_level_keeps_the_floor():
    bijector = gf.MixtureGaussianCDF(2, weights=[0.5, 0.5], means=[8.0, 8.0], scales=[0.01, 0.01])
    network = gf.conditioners.Made(4, 1, zero_last=True)
    layer = gf.MaskedAutoregressive(jr.key(0), (1,), bijector=bijector, nn_width=4, conditioner=network)
    log_p = gf.DiscreteAutoregressive(layer, 3).log_prob([[0], [1], [2]])
    np.testing.assert_allclose(log_p[:2], np.log(FLOOR), rtol=1e-5)
    assert abs(float(log_p[2])) < 1e-4


def test_samples_have_the_models_probabilities():
    model = model_of("condition, two ranks")
    condition = jnp.ones((4096, 2))
    samples = np.asarray(model.sample(jr.key(1), 4096, condition)).reshape(-1, 4)
    counts = np.bincount(samples @ 3 ** np.arange(4)[::-1], minlength=81)
    expected = 4096 * np.exp(np.asarray(model.log_prob(ALL, condition[:81]), float))
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    assert scipy.stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_fit_trains_the_layer():
    layer = gf.MaskedAutoregressive(jr.key(0), (2, 1), bijector=gf.Affine(), nn_width=8)
    model = gf.DiscreteAutoregressive(layer, 3)
    first = np.random.default_rng(1).integers(3, size=(256, 1, 1))
    images = np.concatenate([first, 2 - first], axis=1).astype(np.uint8)  # the second follows from the first
    options = {"steps": 300, "batch_size": 64, "progress": False, "loss": gf.input_dropout(0.01)}
    bits, error = gf.bits_per_dim(gf.fit(jr.key(0), model, images, **options).flow, images)
    assert bits < np.log2(3) / 2 + 0.2
    assert 0 < error < 0.05


def test_input_dropout_hides_pixels_from_the_network():
    model = model_of("plain network")
    images = jnp.asarray(ALL)
    loss = lambda rate: jax.jit(lambda key: gf.input_dropout(rate)(model, images, None, key))(jr.key(0))
    np.testing.assert_allclose(loss(0.0), -model.log_prob(ALL).mean(), rtol=1e-5)
    blind = jax.jit(jax.vmap(lambda k: model.log_prob_of(model.layer.theta(jnp.zeros(4)), k)))(images)
    np.testing.assert_allclose(loss(1 - 1e-6), -blind.mean(), rtol=1e-5)
    assert gf.input_dropout() == gf.input_dropout(0.1)


def test_a_stack_of_models_is_refused():
    twice = lambda a: jnp.asarray(np.stack([a, a])) if eqx.is_array(a) else a
    stack = jax.tree.map(twice, model_of("plain network"))
    with pytest.raises(ValueError, match="This is a stack of models"):
        stack.log_prob(ALL)


def test_models_are_copied():
    model = model_of()
    assert same(copy.deepcopy(model), model)


def test_arguments_of_discrete_models_are_checked():
    model = model_of()
    with pytest.raises(ValueError, match=r"`layer` must be one MaskedAutoregressive layer.*got ActNorm"):
        gf.DiscreteAutoregressive(gf.ActNorm((2,)), 3)
    with pytest.raises(ValueError, match="`levels` must be at most 256; got 257"):
        gf.DiscreteAutoregressive(model.layer, 257)
    with pytest.raises(ValueError, match="`images` must hold whole numbers from 0 to 1"):
        gf.DiscreteAutoregressive(model.layer, 2, images=IMAGES)
    falling = gf.MaskedAutoregressive(jr.key(0), (2,), bijector=Mirrored())
    with pytest.raises(ValueError, match="`layer` must have an increasing bijector; it maps -1 and 1 to"):
        gf.DiscreteAutoregressive(falling, 3)
    with pytest.raises(ValueError, match=r"`images` must hold whole numbers from 0 to 2.*got 3"):
        model.log_prob(np.full((1, 2, 2), 3))
    with pytest.raises(ValueError, match="`rate` must be at least 0 and below 1; got 1"):
        gf.input_dropout(1)
    flow = gf.Transformed(gf.standard_normal(2), gf.ActNorm((2,)))
    with pytest.raises(ValueError, match="`loss` input_dropout is for a DiscreteAutoregressive model alone"):
        gf.fit(jr.key(0), flow, np.ones((9, 2)), loss=gf.input_dropout(), progress=False, batch_size=2)
    with pytest.raises(ValueError, match="`n` must be a whole number of at least 1; got 0"):
        model.sample(jr.key(0), 0)
    conditional = model_of("condition, two ranks")
    with pytest.raises(ValueError, match=r"`condition` must have shape \(81, 2\), one row per image; got"):
        conditional.log_prob(ALL, np.zeros((80, 2)))


@pytest.mark.parametrize("rate", ["0.1", None, np.nan, -0.1])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match="`rate` must be at least 0 and below 1; got"):
        gf.input_dropout(rate)


def test_conditions_that_are_not_finite_are_named():
    """They gave log-probabilities of NaN, and samples that were blamed on the model's parameters."""
    layer = gf.MaskedAutoregressive(jr.key(0), (2,), bijector=gf.Affine(), nn_width=4, cond_dim=2)
    model, images = gf.DiscreteAutoregressive(layer, 3), np.zeros((3, 2))
    for bad in (np.nan, np.inf):
        broken = np.array([[0.0, 1.0], [bad, 1.0], [0.0, 0.0]])
        for call in (
            lambda c: model.log_prob(images, c),
            lambda c: model.sample(jr.key(0), 3, c),
            lambda c: gf.compress(model, images, c),
            lambda c: gf.bits_per_dim(model, images, condition=c),
        ):
            with pytest.raises(ValueError, match="`condition` must be finite; got NaN or infinity in 1 of 3"):
                call(broken)
