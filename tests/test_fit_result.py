"""Tests of ``gauss_flows.fit_result``."""

from types import SimpleNamespace

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from training_support import HalfLine, Point, breaks_below, fit_point

import gauss_flows as gf
from gauss_flows.fit_result import reason

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_losses_of_steps_that_were_not_taken_are_not_shown():
    """Here the batches after a failure have a finite loss again, but no update follows."""

    def loss(point, x, condition, key):
        return jnp.where((jr.uniform(key) < 0.1) & (len(x) == 2), jnp.nan, point.at.sum())

    options = {"steps": 100, "batch_size": 2, "val_fraction": 3 / 8, "progress": False}
    start = lambda key: Point(jnp.zeros(1))
    many = gf.fit_many(jr.split(jr.key(0), 3), start, np.ones((8, 1)), loss=loss, **options)
    for i, failed in enumerate(many.failed_step):
        assert 0 <= failed < 90
        assert np.isfinite(many.train_loss[i, :failed]).all()
        assert np.isnan(many.train_loss[i, failed:]).all()
        assert many[i].train_loss.shape == (failed + 1,)


def test_a_result_of_many_is_indexed_by_key():
    """Each flow works by itself; the stacked one still does under ``vmap``."""
    keys, x = jr.split(jr.key(3), 3), np.linspace(0.1, 2, 50)[:, None]
    make = lambda key: HalfLine(jr.normal(key, (1,)))
    many = gf.fit_many(keys, make, x, steps=2, batch_size=8, progress=False)
    assert len(many) == len(list(many)) == 3
    stacked = eqx.filter_vmap(lambda flow: flow.log_prob(x))(many.flow)
    assert len(set(many.train_loss[:, 0])) == 3
    for i in range(-3, 3):
        np.testing.assert_allclose(many[i].flow.log_prob(x), stacked[i], rtol=1e-5)
        np.testing.assert_array_equal(many[i].train_loss, many.train_loss[i])
        assert isinstance(many[i].best_step, int)
    for i in (3, -4):
        with pytest.raises(IndexError, match=f"must lie between -3 and 2; got {i}"):
            many[i]
    with pytest.raises(TypeError, match="must be a whole number; got 'a'"):
        many["a"]
    one = fit_point()
    assert one
    for use in (len, lambda result: result[0], list):
        with pytest.raises(TypeError, match="Only a result of `fit_many`"):
            use(one)


def test_the_advice_of_a_failure_fits_its_cause():
    with pytest.raises(gf.NonFiniteLoss, match="Lower `learning_rate`"):  # a Point has no log_prob at all
        fit_point(steps=100, loss=breaks_below(25))
    with pytest.raises(gf.NonFiniteLoss, match="No update was made before, so look at the `loss`"):
        fit_point(loss=breaks_below(0))
    result = fit_point(steps=1)
    outside = (result, jr.key(0), HalfLine(jnp.zeros(1)), -np.ones((8, 1)), None)
    assert "8 of 8 rows" in reason(*outside, None)
    assert "rows" not in reason(*outside, SimpleNamespace(rows_are_noise=True))  # distill's rows are noise
