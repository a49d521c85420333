"""What `check_bijection` prints, and what its report holds."""

import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import gauss_flows as gf
from gauss_flows.checks import Line

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
        assert f"≈ {line.value:.1g} of the bound  ≤ 1  ok" in found._repr_html_()
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


def test_a_broken_bound_is_shown_in_absolute_terms_whatever_the_columns():
    with pytest.raises(gf.CheckError, match=r"round trip x -> z -> x   ≈ \d\.\de-02  ≤ 0\.001  FAILED") as e:
        report(columns=(1.0, 1e9), off=(1e-2, 0.0))
    line = e.value.report.lines[0]
    assert (line.ok, line.error) == (False, None)


def test_a_line_in_words_has_no_bound():
    assert str(Line("mask", "copied", None, True)) == f"{'mask':<24} copied  ok"


def test_a_masked_value_is_no_value():
    with pytest.raises(ValueError, match="`value` must not be a masked array"):
        gf.check("nothing", np.ma.masked, at_most=2)
