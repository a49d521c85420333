"""Tests of ``gauss_flows.check_report``."""

import numpy as np
import pytest
from network_support import DOUBLE, Linear

import gauss_flows as gf
from gauss_flows.check_report import Line

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_line_in_words_has_no_bound():
    assert str(Line("mask", "copied", None, True)) == f"{'mask':<24} copied  ok"


def test_a_masked_value_is_no_value():
    with pytest.raises(ValueError, match="`value` must not be a masked array"):
        gf.check("nothing", np.ma.masked, at_most=2)


def test_the_report_prints_bounds_rounded_up_and_permutations_of_twelve(capsys):
    report = gf.check_bijection(Linear(DOUBLE), np.zeros(2, np.float32))
    assert [line.bound for line in report.lines[:4]] == [1e-4] * 4
    out = capsys.readouterr().out
    assert out.startswith(
        "Linear, event (2,), 1 point, float32\n  round trip x -> z -> x   ≈ 0.0e+00  ≤ 0.0001  ok\n"
    )
    for size in (12, 13):
        matrix = np.eye(size)
        matrix[[0, -1], 1] = 1  # the first and the last read the second
        report = gf.check_bijection(Linear(tuple(map(tuple, matrix.tolist()))), np.zeros(size, np.float32))
        assert report.permutation == (*range(1, size - 1), 0, size - 1)
        assert (str(list(report.permutation)) in str(report)) == (size == 12)


def test_a_measured_line_shows_number_unit_and_bounds(capsys):
    gf.check("speed", 1.25, at_least=1, at_most=2, unit="nats", digits=".2f")
    gf.check("largest error", 2.5e-7, at_most=1e-6)
    assert capsys.readouterr().out == (
        "speed                    ≈ 1.25 nats  ≥ 1, ≤ 2  ok\n"
        "largest error            ≈ 2.5e-07  ≤ 1e-06  ok\n"
    )
