"""Tests of ``gauss_flows.deprecated``."""

import pytest

import gauss_flows as gf
from gauss_flows import mixtures, moments, normal, rootfinding


@pytest.mark.parametrize(
    ("module", "name", "new", "place"),
    [
        ("base", "Bijection", gf.Bijection, "gauss_flows.Bijection"),
        ("base", "Transformed", gf.Transformed, "gauss_flows.Transformed"),
        ("base", "standard_normal", gf.standard_normal, "gauss_flows.standard_normal"),
        ("numerics", "mills_ratio", normal.mills_ratio, "gauss_flows.normal.mills_ratio"),
        ("numerics", "implicit_root", rootfinding.implicit_root, "gauss_flows.rootfinding.implicit_root"),
        ("gaussianization", "warm_start", gf.warm_start, "gauss_flows.warm_start"),
        ("gaussianization", "fit_mixture", mixtures.fit_mixture, "gauss_flows.mixtures.fit_mixture"),
        ("gaussianization", "principal_axes", moments.principal_axes, "gauss_flows.moments.principal_axes"),
        ("gaussianization", "gaussianization_flow", gf.gaussianization_flow, "gaussianization_flow"),
        ("bijectors", "Family", gf.Parametrized, "gauss_flows.Parametrized"),
        ("bijectors", "RQSpline", gf.RQSpline, "gauss_flows.RQSpline"),
        ("residual", "with_log_det", gf.with_log_det, "gauss_flows.with_log_det"),
        ("residual", "estimate_log_prob", gf.estimate_log_prob, "gauss_flows.estimate_log_prob"),
    ],
)
def test_an_old_name_works_and_its_new_place_is_named(module, name, new, place):
    with pytest.warns(DeprecationWarning, match=rf"gauss_flows\.{module}\.{name} is now .*{place}\."):
        assert getattr(getattr(gf, module), name) is new


def test_a_name_that_never_was_is_an_error():
    for wrong in (lambda: gf.nothing, lambda: gf.base.nothing, lambda: gf.bijectors.nothing):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            wrong()


def test_names_that_a_module_still_uses_are_found_there():
    assert gf.residual.LipschitzMLP is gf.LipschitzMLP
    assert gf.residual.log_det_estimate is gf.log_det.log_det_estimate


def test_the_name_in_the_source_documents_stays_without_a_warning():
    assert gf.ActNorm1D is gf.ActNorm
