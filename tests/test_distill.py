"""Tests of ``gauss_flows.distill``."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flowjax.bijections import Affine
from flowjax.distributions import Normal, Transformed
from training_support import data, leaves, small

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("loss", ["reverse_kl", "output"])
def test_distillation_brings_the_student_to_the_teacher(loss):
    """A Gaussian teacher, so that both divergences are known; the teacher is left alone."""
    shift = Affine(jnp.array([1.0, -2.0]), jnp.array([2.0, 0.5]))
    teacher = Transformed(Normal(jnp.zeros(2)), shift)
    before = [np.array(a) for a in leaves(teacher)]
    student = gf.iaf(jr.key(0), 2, layers=2, bijector=gf.Affine(), nn_width=8)
    options = {"steps": 400, "batch_size": 128, "n_noise": 2000, "progress": False}
    result = gf.distill(jr.key(1), teacher, student, loss=loss, **options)
    x = data(5000)
    kl = float((teacher.log_prob(x) - eqx.filter_jit(result.flow.log_prob)(x)).mean())
    assert -0.02 < kl < 0.05
    assert 0 <= result.val_loss[-1] + 0.02 < 0.1
    assert all((a == b).all() for a, b in zip(before, leaves(teacher), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "forward"}, "`loss` must be one of"),
        ({"teacher": gf.Affine()}, "`teacher` must be a flowjax Transformed; got Affine"),
        ({"student": gf.maf(jr.key(0), 3, layers=1, nn_width=4)}, r"`student` must have the teacher's shape"),
        ({"student": gf.maf(jr.key(0), 2, cond_dim=1, nn_width=4)}, "`student` must be unconditional"),
        ({"condition": jnp.ones((2, 1))}, "`condition` must be left out"),
        ({"n_noise": 0}, "`n_noise` must be a whole number of at least 2"),
    ],
)
def test_distill_refuses(change, message):
    arguments = {"teacher": small(), "student": small()} | change
    with pytest.raises(ValueError, match=message):
        gf.distill(jr.key(0), arguments.pop("teacher"), arguments.pop("student"), **arguments)
