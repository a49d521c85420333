"""Tests of ``gauss_flows.checks``."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from network_support import DOUBLE, Linear

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRIPS = ("round trip x -> z -> x", "round trip z -> x -> z")


class Scaled(gf.Bijection):
    """Multiply each coordinate by a number of its own; the inverse is off by a part of it where asked."""

    scale: jax.Array
    off: jax.Array
    shape = (2,)
    cond_shape = None

    def transform_and_log_det(self, x, condition=None):
        return self.scale * x, jnp.log(self.scale).sum()

    def inverse_and_log_det(self, y, condition=None):
        return y / self.scale * (1 + self.off), -jnp.log(self.scale).sum()


def report(scale=(1.0, 1.0), off=(0.0, 0.0), columns=(1.0, 1.0)):
    x = jr.normal(jr.key(0), (50, 2)) * jnp.array(columns)[None, :]
    return gf.check_bijection(Scaled(jnp.array(scale), jnp.array(off)), x)


def test_a_column_of_large_numbers_is_judged_by_ratios(capsys):
    """The bound of one column says nothing about the error of the other."""
    found = report(columns=(1.0, 1e9), off=(2e-6, 0.0))
    printed = capsys.readouterr().out.splitlines()
    for line in found.lines[:2]:
        assert line.name in TRIPS
        assert line.bound == 1
        assert 0.005 < line.value <= 1
        text = next(row for row in printed if line.name in row)
        assert re.fullmatch(rf"  {line.name:<24} ≈ [\d.e-]+ of the bound  ≤ 1  ok", text)
        assert text == f"  {line}"
        row = f"<td>≈ {line.value:.1g} of the bound</td><td>≤ 1</td><td>ok</td>"
        assert row in found._repr_html_()
    # The report's figures stay errors: 2e-6 of a column whose largest number is about 3.
    assert 1e-6 < found[TRIPS[0]] < 2e-5
    assert found.lines[0].error == found[TRIPS[0]]


def test_the_ratio_is_the_largest_of_error_over_bound():
    """By hand: for a scale J the bound is eps (1 + |x|) + eps (|z| + |J| (1 + |x|)) / |J|."""
    with jax.enable_x64(True):
        scale, off, eps = np.array([1.0, 1e4]), np.array([1e-14, 3e-14]), 100 * np.finfo(float).eps
        x = np.asarray(jr.normal(jr.key(0), (50, 2))) * [1, 1e3]
        found = gf.check_bijection(Scaled(jnp.asarray(scale), jnp.asarray(off)), jnp.asarray(x))
        allowed = eps * (1 + np.abs(x)) + eps * (scale * np.abs(x) + scale * (1 + np.abs(x))) / scale
        ratio = (off * np.abs(x) / allowed).max()
    line = found.lines[0]
    assert line.error is not None
    np.testing.assert_allclose(line.value, ratio, rtol=0.05)


def test_bounds_of_one_size_keep_their_line(capsys):
    found = report(scale=(1.0, 2.0))
    line = capsys.readouterr().out.splitlines()[1]
    assert re.fullmatch(r"  round trip x -> z -> x   ≈ \d\.\de[-+]\d\d  ≤ 0.001  ok", line)
    assert found.lines[0].error is None
    assert found.lines[0].value == found[TRIPS[0]]
    assert found.lines[0].bound == 1e-3


@pytest.mark.parametrize(("factor", "is_ratio"), [(8.0, False), (13.0, True)])
def test_the_rule_begins_at_a_factor_of_ten(factor, is_ratio):
    """At x = 0 a slope s has the bound eps (1 + 2 s) for z."""
    layer = Scaled(jnp.array([10.0, 10.0 * factor]), jnp.zeros(2))
    lines = gf.check_bijection(layer, jnp.zeros(2)).lines
    assert (lines[1].error is not None) == is_ratio
    assert lines[0].error is None  # those of x are equal
    assert lines[2].error is None  # a log-determinant has one bound a point


def test_one_point_far_out_does_not_make_a_coordinate_of_another_scale():
    """It widens the largest bound of its coordinate a thousandfold, but the median decides."""
    x = jr.normal(jr.key(0), (50, 2)).at[7, 1].set(1e5)
    lines = gf.check_bijection(Scaled(jnp.ones(2), jnp.zeros(2)), x).lines
    assert [line.error for line in lines] == [None] * len(lines)
    assert lines[0].bound == 10


def test_a_row_for_each_coordinate_far_out_keeps_the_line():
    """The largest bounds are equal then, and the line pairs what belongs together."""
    x = jr.normal(jr.key(0), (50, 2)).at[:40, 1].multiply(1e3).at[7, 0].set(3e3)
    lines = gf.check_bijection(Scaled(jnp.ones(2), jnp.zeros(2)), x).lines
    assert lines[0].error is None


def test_one_bound_for_all_is_printed_as_it_is():
    x = jnp.array([1.0, 1e6])
    line = gf.check_bijection(Scaled(jnp.ones(2), jnp.zeros(2)), x, atol=0.5).lines[0]
    assert (line.bound, line.error) == (1.0, None)


def test_a_broken_bound_is_shown_in_absolute_terms_for_any_columns():
    with pytest.raises(gf.CheckError, match=r"round trip x -> z -> x   ≈ \d\.\de-02  ≤ 0\.001  FAILED") as e:
        report(columns=(1.0, 1e9), off=(1e-2, 0.0))
    line = e.value.report.lines[0]
    assert (line.ok, line.error) == (False, None)


EPSILON = float(np.finfo(np.float32).eps)


def passes(bijection, x=None, **options):
    """Whether the check passes, by default at the origin."""
    x = np.zeros(bijection.shape, np.float32) if x is None else x
    try:
        return gf.check_bijection(bijection, x, **options).ok
    except gf.CheckError:
        return False


def test_the_bounds_are_those_of_the_formula():
    """For z = 2 x at the origin: 200 epsilons for x, and (1 + log 4 + 2) hundred for the log-determinant."""
    assert passes(Linear(DOUBLE, inverse_error=190 * EPSILON))
    assert not passes(Linear(DOUBLE, inverse_error=210 * EPSILON))
    allowed = 100 * (1 + math.log(4) + 2) * EPSILON
    assert passes(Linear(DOUBLE, log_det_error=0.95 * allowed))
    assert not passes(Linear(DOUBLE, log_det_error=1.1 * allowed))
    assert passes(Linear(DOUBLE, log_det_error=1.1 * allowed), atol=2 * allowed)
    assert not passes(Linear(DOUBLE, inverse_error=20 * EPSILON), atol=10 * EPSILON)


def test_a_bound_above_a_hundredth_of_the_figure_fails():
    """z_1 = x_1 + K x_2: for z_1 at the origin 3 + 4 K hundred epsilons are allowed, 0.0072 and 0.014."""
    shear = lambda k: Linear(((1.0, k), (0.0, 1.0)))
    assert passes(shear(150.0))
    assert not passes(shear(300.0))
    assert passes(shear(300.0), atol=1e-3)  # a bound that is given is taken


def test_one_condition_serves_all_points_and_a_batch_gives_each_its_own():
    layer = Linear(DOUBLE, cond_shape=(3,))
    x = np.ones((4, 2), np.float32)
    assert passes(layer, x, condition=np.ones(3, np.float32))
    assert passes(layer, x, condition=np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match="`condition` must"):
        gf.check_bijection(layer, x, np.ones((2, 3), np.float32))


class Sometimes(gf.Bijection):
    """z = x, but where x_1 > 0 the second coordinate depends on the first."""

    passive: tuple[bool, ...] | None = eqx.field(static=True, default=None)
    shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    cond_shape: None = eqx.field(static=True, default=None)

    @property
    def mask(self):
        return None if self.passive is None else np.array(self.passive)

    def transform_and_log_det(self, x, condition=None):
        change = jnp.where(x[0] > 0, x[0], 0)
        return x + jnp.stack([0 * change, change]), jnp.zeros((), x.dtype)

    def inverse_and_log_det(self, y, condition=None):
        change = jnp.where(y[0] > 0, y[0], 0)
        return y - jnp.stack([0 * change, change]), jnp.zeros((), y.dtype)


def test_the_structure_is_judged_at_every_point():
    x = np.array([[-1.0, 2.0], [1.0, 2.0]], np.float32)
    assert gf.check_bijection(Sometimes(), x[:1])["Jacobian"] == "diagonal"
    assert gf.check_bijection(Sometimes(), x)["Jacobian"] == "lower triangular"
    changed = Sometimes((False, True))
    assert passes(changed, x[:1])
    assert not passes(changed, x)
