"""Tests of ``gauss_flows.check_report``."""

import re
import sys
from types import SimpleNamespace

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
        matrix[[0, -1], 1] = 1  # the first and the last depend on the second
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


def test_checks_in_a_table_are_shown_together_at_its_end(capsys):
    with gf.check_table():
        gf.check("speed", 1.25, at_least=1, unit="nats", digits=".2f")
        gf.check_bijection(Linear(DOUBLE), np.zeros(2, np.float32))
        with gf.check_table():  # joins the table around it
            gf.check("error", 2.5e-7, at_most=1e-6)
        assert capsys.readouterr().out == ""
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "speed                    ≈ 1.25 nats  ≥ 1  ok"
    assert lines[1] == "Linear, event (2,), 1 point, float32"
    assert lines[2] == "  round trip x -> z -> x   ≈ 0.0e+00  ≤ 0.0001  ok"
    assert lines[-1] == "error                    ≈ 2.5e-07  ≤ 1e-06  ok"
    gf.check("alone", 0, at_most=1)
    assert capsys.readouterr().out == "alone                    ≈ 0.0e+00  ≤ 1  ok\n"


def check_all(*values):
    """Check each value, or each bijection, in one table."""
    with gf.check_table():
        for name, value in zip(("first", "second", "third"), values, strict=True):
            if isinstance(value, Linear):
                gf.check_bijection(value, np.zeros(2, np.float32))
            else:
                gf.check(f"{name} < 2", value, at_most=1, digits=".0f")


def test_a_table_ends_with_the_check_that_fails(capsys):
    with pytest.raises(gf.CheckError, match=re.escape("second < 2: ≈ 2  ≤ 1  FAILED")):
        check_all(1, 2, 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["ok", "FAILED"]


def test_a_notebook_shows_one_table_with_a_row_per_claim(monkeypatch):
    shown = []
    shell = SimpleNamespace(kernel=None)
    stand_in = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=shown.append))
    monkeypatch.setitem(sys.modules, "IPython", stand_in)
    with pytest.raises(gf.CheckError):
        check_all(1, Linear(DOUBLE), 2)
    (table,) = shown
    html = table._repr_html_().splitlines()
    assert '<tr><th scope="row">first &lt; 2</th><td>≈ 1</td><td>≤ 1</td><td>ok</td></tr>' in html
    assert '<tr><th scope="rowgroup" colspan="4">Linear, event (2,), 1 point, float32</th></tr>' in html
    assert ('<tr><th scope="row">Jacobian</th><td colspan="2">diagonal</td><td>ok</td></tr>') in html
    assert html[-3] == (
        '<tr class="failed"><th scope="row">third &lt; 2</th><td>≈ 2</td><td>≤ 1</td><td>FAILED</td></tr>'
    )
    report = gf.check_bijection(Linear(DOUBLE), np.zeros(2, np.float32))
    assert shown[1] is report
    assert "Linear, event (2,)" in report._repr_html_()
    gf.check("alone < 2", 1, at_most=1, digits=".0f")
    assert '<th scope="row">alone &lt; 2</th>' in shown[2]._repr_html_()
