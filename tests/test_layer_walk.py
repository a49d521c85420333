"""Tests of ``gauss_flows.layer_walk``."""

import functools

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from data_support import MIX, NORM, coupling_flow, flow_of, sample
from flowjax.distributions import Normal, Transformed, VmapMixture
from paramax import NonTrainable, Parameterize

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")

POSITIVE, BOUNDED = np.exp(3 + 0.5 * sample()), 1 / (1 + np.exp(-sample() - 2))


def test_nested_flows_are_set_as_merged_ones():
    """Positive and bounded data: a flow inside two distributions, and a warm start inside one."""
    twice = Transformed(Transformed(coupling_flow(), fb.Exp((2,))), fb.Affine(jnp.zeros(2), jnp.full(2, 0.5)))
    warm = Transformed(flow_of(NORM, gf.MarginalGaussianization((2,), bijector=MIX)), fb.Sigmoid((2,)))
    for init, flow, x in (
        (gf.data_init, twice, 0.5 * POSITIVE),
        (functools.partial(gf.warm_start, em_steps=2), warm, BOUNDED),
    ):
        new, merged = init(flow, x), init(flow.merge_transforms(), x)
        assert jax.tree.structure(new) == jax.tree.structure(flow)
        leaves = [jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (flow, new, merged)]
        for _, ours, theirs in zip(*leaves, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        changed = [bool((old != ours).any()) for old, ours, _ in zip(*leaves, strict=True)]
        assert sum(changed) >= 2


def test_rows_outside_the_support_are_named():
    nested = Transformed(flow_of(NORM), fb.Exp((2,)))
    x = POSITIVE.copy()
    x[[5, 7], 1] = -1.0
    with pytest.raises(
        ValueError, match=r"`x` must have a finite image under the flow; 2 of 64 rows .* row 5"
    ):
        gf.data_init(nested, x)
    warm = Transformed(flow_of(gf.MarginalGaussianization((2,), bijector=MIX)), fb.Sigmoid((2,)))
    x = BOUNDED.copy()
    x[9, 0] = 1.0
    with pytest.raises(ValueError, match=r"1 of 64 rows .* row 9"):
        gf.warm_start(warm, x, em_steps=2)


def containers():
    """ActNorm in every container, with the indices of the coordinates that it must standardize."""
    one, scalar = gf.ActNorm((1,)), gf.ActNorm(())
    many = eqx.filter_vmap(lambda _: gf.ActNorm(()), axis_size=2)(jnp.zeros(2))
    tiled = eqx.filter_vmap(lambda _: NORM, axis_size=1)(jnp.zeros(1))
    shift = fb.Affine(jnp.array([3.0, -2.0]), jnp.array([2.0, 0.5]))
    return {
        "Chain": fb.Chain([shift, fb.Flip((2,)), NORM]),
        "Chain in Chain": fb.Chain([fb.Chain([shift]), fb.Chain([NORM])]),
        "Scan": fb.Scan(tiled),
        "gf.Scan": gf.Scan(tiled),
        "Invert": fb.Invert(NORM),
        "Invert of Invert": fb.Invert(fb.Invert(NORM)),
        "Concatenate": fb.Concatenate([one, one]),
        "Concatenate, Invert": fb.Concatenate([fb.Invert(one), one], axis=-1),
        "Stack": fb.Stack([scalar, fb.Invert(scalar)]),
        "Stack, last axis": fb.Reshape(fb.Stack([one, one], axis=1), (2,)),
        "Reshape": fb.Reshape(gf.ActNorm((2, 1)), (2,)),
        "Indexed": fb.Chain([fb.Indexed(one, slice(0, 1), (2,)), fb.Indexed(scalar, 1, (2,))]),
        "Permute": fb.Chain([fb.Permute(np.array([1, 0])), NORM]),
        "Vmap": fb.Vmap(many, in_axes=eqx.if_array(0)),
        "NonTrainable": fb.Chain([shift, NonTrainable(NORM)]),
        "frozen arrays": jax.tree.map(lambda a: NonTrainable(a) if eqx.is_array(a) else a, NORM),
        "NumericalInverse": fb.NumericalInverse(NORM, lambda b, y, condition=None: b.inverse(y)),
        "EmbedCondition": fb.EmbedCondition(
            gf.AffineCoupling(jr.key(0), (2,), cond_dim=1), lambda c: c[:1], (3,)
        ),
    }


# Containers within containers, and others of a kind that is tested: `make nightly` runs them.
TWICE = ("Chain in Chain", "Invert of Invert", "Concatenate, Invert", "Stack, last axis", "frozen arrays")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.nightly if name in TWICE else []) for name in containers()],
)
def test_layers_in_every_container_are_set(name):
    bijection = containers()[name]
    condition = np.ones((64, 3)) if name == "EmbedCondition" else None
    if condition is not None:
        bijection = fb.Chain([bijection, NORM])
    x = 5 + 3 * sample()
    new = gf.data_init(bijection, x, condition)
    assert jax.tree.structure(new) == jax.tree.structure(bijection)
    axes = (0, None if condition is None else 0)
    run = jax.jit(jax.vmap(new.transform, axes))
    z = np.asarray(run(jnp.asarray(x), None if condition is None else jnp.asarray(condition)))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)
    if name in ("NumericalInverse", "EmbedCondition"):
        return
    flow = Transformed(Normal(jnp.zeros(2)), fb.Invert(bijection))
    again = gf.data_init(flow, x).bijection.bijection
    assert eqx.tree_equal(again, new)


def test_an_embedded_condition_reaches_the_layers_inside():
    layer = fb.Chain([gf.AffineCoupling(jr.key(0), (2,), cond_dim=1), NORM])
    x, c = sample(), sample(seed=1)
    embed = lambda c: c.sum(keepdims=True)
    inside = gf.data_init(fb.EmbedCondition(layer, embed, (2,)), x, c)
    plain = gf.data_init(layer, x, c.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(inside.bijection[1].log_scale, plain[1].log_scale, rtol=1e-5)
    shaped = gf.data_init(fb.Reshape(layer, (2, 1), (1, 1)), x[:, :, None], c.sum(axis=1)[:, None, None])
    np.testing.assert_allclose(shaped.bijection[1].log_scale, plain[1].log_scale, rtol=1e-5)


def test_one_layer_for_all_places_sees_the_data_of_all():
    shared = gf.data_init(fb.Vmap(gf.ActNorm(()), axis_size=2), 5 + 3 * sample())
    assert float(shared.bijection.log_scale) == pytest.approx(-np.log((3 * sample()).std()), abs=1e-5)
    x, c = sample(), sample(seed=1)[:, :1]
    layer = fb.Chain([gf.AffineCoupling(jr.key(0), (2,), cond_dim=1), NORM])
    once = gf.data_init(fb.Vmap(layer, axis_size=1), x[:, None], c)
    along = gf.data_init(fb.Vmap(layer, axis_size=1, in_axes_condition=0), x[:, None], c[:, None])
    for vmap in (once, along):
        np.testing.assert_allclose(
            vmap.bijection[1].log_scale, gf.data_init(layer, x, c)[1].log_scale, rtol=1e-5
        )


def test_a_sandwich_is_set_from_the_outside_in():
    outer, inner = fb.Chain([NORM, fb.Affine(jnp.ones(2), jnp.full(2, 3.0))]), NORM
    for way in (lambda b: b, fb.Invert):
        new = gf.data_init(way(fb.Sandwich(inner, outer)), sample())
        new = new if isinstance(new, fb.Sandwich) else new.bijection
        inside = jax.vmap(new.outer.transform)(jnp.asarray(sample()))
        np.testing.assert_allclose(inside.std(axis=0), 3, atol=1e-4)
        method = new.inner.transform if way is not fb.Invert else new.inner.inverse
        np.testing.assert_allclose(jax.vmap(method)(inside).std(axis=0), 1, atol=1e-3)


class Doubled(gf.Bijection):
    """A container of one's own."""

    shape: tuple = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    inner: gf.ActNorm

    def __init__(self):
        self.shape, self.cond_shape, self.inner = (2,), None, NORM

    def transform_and_log_det(self, x, condition=None):
        return self.inner.transform_and_log_det(2 * x)

    def inverse_and_log_det(self, y, condition=None):
        x, log_det = self.inner.inverse_and_log_det(y)
        return x / 2, log_det


def test_a_container_that_cannot_be_entered_is_named():
    many = eqx.filter_vmap(lambda _: flow_of(NORM), axis_size=3)(jnp.zeros(3))
    layer = gf.MarginalGaussianization((2,), bijector=MIX)
    in_axes = eqx.tree_at(lambda b: (b.log_scale, b.bias), gf.ActNorm(()), (None, 0))
    tree = gf.ActNorm(())
    tree = eqx.tree_at(lambda b: b.bias, tree, jnp.zeros(2))
    numerical = fb.NumericalInverse(NORM, lambda b, y, condition=None: b.inverse(y))
    for init, flow, kind in (
        (gf.data_init, fb.Chain([Doubled()]), "Doubled"),
        (gf.data_init, fb.Invert(numerical), "NumericalInverse"),
        (gf.data_init, VmapMixture(many, weights=jnp.ones(3)), "VmapMixture"),
        (gf.data_init, fb.Vmap(tree, in_axes=in_axes), "Vmap"),
        (gf.data_init, fb.Chain([fb.Flip((2,)), Parameterize(lambda b: b, NORM)]), "Parameterize"),
        (gf.warm_start, fb.Chain([layer, Doubled()]), "Doubled"),
    ):
        with pytest.raises(ValueError, match=f"`flow` must hold its layers .*; {kind} holds ActNorm"):
            init(flow, sample())
    for init in (gf.data_init, gf.warm_start):
        with pytest.raises(ValueError, match="`flow` must be a flowjax distribution or bijection"):
            init(3, sample())
        with pytest.raises(ValueError, match=r"`x` must have shape \(n, 2\)"):
            init(Transformed(flow_of(layer), fb.Exp((2,))), sample()[:, :1])


def test_flows_made_under_vmap_are_set_one_by_one():
    x = 5 + 3 * sample()
    init = lambda key: gf.data_init(gf.coupling_flow(key, 2, layers=1, nn_width=4, actnorm=True), x)
    keys = jr.split(jr.key(0))
    made = eqx.filter_vmap(init)(keys)
    second = jax.tree.map(lambda a: a[1] if eqx.is_array(a) else a, made)
    log_prob = eqx.filter_jit(lambda f: f.log_prob(x))
    np.testing.assert_allclose(log_prob(second), log_prob(init(keys[1])), rtol=1e-4, atol=1e-4)
