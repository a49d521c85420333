"""Tests of ``gauss_flows.tables``, ``columns`` and ``frames``: from a table to coordinates and back."""

import sys

import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from table_support import mixed

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHOSEN = {"missing": "drop", "atoms": "jitter", "angles": ["wind"]}


def test_the_summary_names_every_peculiarity():
    lines = str(gf.prepare(mixed(), **CHOSEN)).splitlines()
    assert lines[0] == "588 rows (of 600; 12 with missing values are dropped), 12 columns -> 11 coordinates"
    for line, words in zip(
        lines[1:],
        [
            ("price ", "positive", "2 far values, up to 1e+06"),
            ("share ", "fraction", "atoms, ", " × 0 and ", " × 1: jitter"),
            ("visits ", "count", ": dequantized"),
            ("wind ", "angle", "a circle of 360"),
            ("site ", "constant", "always 5; comes back in samples"),
            ("height ", "positive", "nearly a linear function of 'length'"),
            ("length ", "positive", "nearly a linear function of 'height'"),
            ("seen_unix ", "real", "a time by its name; offset 17000", "is subtracted first"),
            *[(f"x{i} ", "real") for i in range(4)],
        ],
        strict=True,
    ):
        assert all(word in line for word in words), line
    without = str(gf.prepare(mixed(), missing="drop", atoms="jitter"))
    assert "may be an angle in degrees: angles=['wind']" in without


@pytest.mark.parametrize("atoms", ["jitter", "indicator"])
def test_the_way_back_is_exact_for_what_was_not_dequantized(atoms):
    """And for what was: to the cell. The constant, the types and the order of the columns come back."""
    table = mixed()
    with jax.enable_x64(True):
        prepared = gf.prepare(table, **CHOSEN | {"atoms": atoms})
        assert prepared.array.shape == (588, prepared.dim) == (588, 11 + (atoms == "indicator"))
        kept = table.iloc[prepared.rows].reset_index(drop=True)
        for x in (prepared.array, prepared.dequantize(jr.key(0)), prepared.transform(kept, jr.key(1))):
            back = prepared.to_frame(x)
            assert list(back.columns) == list(table.columns)
            assert (back["visits"] == kept["visits"]).all()
            assert back["visits"].dtype == kept["visits"].dtype
            assert (back["share"].isin([0, 1]) == kept["share"].isin([0, 1])).all()
            np.testing.assert_allclose(back, kept, rtol=1e-12, atol=1e-9)
        spread = np.asarray(prepared.dequantize(jr.key(0)) != prepared.array).any(axis=0)
        assert np.flatnonzero(spread).tolist() == ([1, 2] if atoms == "jitter" else [1, 2, 3])


def test_single_precision_keeps_the_digits_that_it_has():
    """A time's offset is subtracted before the cast: errors of milliseconds, not of minutes."""
    table = mixed()
    prepared = gf.prepare(table, **CHOSEN)
    assert prepared.array.dtype == jnp.float32
    kept = table.iloc[prepared.rows].reset_index(drop=True)
    error = (prepared.to_frame(prepared.array) - kept).abs()
    assert error["seen_unix"].max() < 0.01
    assert (error["price"] / kept["price"]).max() < 1e-5


@pytest.fixture(scope="module", name="trained")
def _trained():
    table = mixed()
    prepared = gf.prepare(table, **CHOSEN)
    flow = gf.coupling_flow(jr.key(1), prepared.dim, layers=3, nn_width=16, supports=prepared.supports)
    options = {"steps": 300, "batch_size": 128, "progress": False}
    return table, prepared, gf.fit(jr.key(2), flow, prepared.dequantize(jr.key(0)), **options).flow


def test_planted_outliers_rank_first_and_samples_respect_every_support(trained):
    table, prepared, flow = trained
    scores = prepared.log_prob(flow, table.iloc[prepared.rows])
    assert set(prepared.rows[np.argsort(scores)[:2]]) == {10, 20}
    samples = prepared.to_frame(flow.sample(jr.key(3), (4000,)))
    assert (samples["price"] > 0).all()
    assert samples["share"].between(0, 1).all()
    assert samples["wind"].between(0, 360, inclusive="left").all()
    assert (samples["site"] == 5).all()
    assert (samples["visits"] >= 0).all()
    assert (samples["visits"] == samples["visits"].round()).all()
    for value in (0, 1):
        assert (samples["share"] == value).mean() == pytest.approx((table["share"] == value).mean(), abs=0.03)


def test_a_row_outside_has_no_density(trained):
    table, prepared, flow = trained
    rows = table.iloc[prepared.rows[:1]]
    rows = pd.concat([rows] * 6, ignore_index=True)
    rows["visits"] = rows["visits"].astype(float)
    rows.loc[1, "price"], rows.loc[2, "share"], rows.loc[3, "visits"] = -1.0, 1.5, 2.5
    rows.loc[4, "site"], rows.loc[5, "wind"] = 6, rows.loc[0, "wind"] + 360
    scores = prepared.log_prob(flow, rows)
    assert np.isfinite(scores).tolist() == [True, False, False, False, False, True]
    assert scores[5] == pytest.approx(scores[0], abs=1e-3)


def test_densities_integrate_to_one_in_the_units_of_the_table():
    """A positive column and a fraction; the flow in the table's units is the same density."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 2))
    table = np.stack([np.exp(3 + 0.3 * z[:, 0]), 1 / (1 + np.exp(-z[:, 1] - z[:, 0]))], axis=1)
    prepared = gf.prepare(table)
    assert [c.kind for c in prepared.columns] == ["positive", "fraction"]
    flow = gf.coupling_flow(jr.key(0), 2, layers=2, nn_width=8)
    flow = gf.fit(jr.key(1), flow, prepared.array, steps=100, batch_size=128, progress=False).flow
    axes = np.linspace(3, 120, 400), np.linspace(0, 1, 402)[1:-1]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    log_p = prepared.log_prob(flow, grid)
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    assert np.exp(log_p).sum() * cell == pytest.approx(1, abs=0.01)
    own = gf.Transformed(flow.base_dist, fb.Chain([flow.bijection, prepared.bijection]))
    np.testing.assert_allclose(own.log_prob(grid[::1000]), log_p[::1000], atol=2e-3)


def test_the_bijection_is_the_way_back_of_the_continuous_values():
    with jax.enable_x64(True):
        prepared = gf.prepare(mixed(), **CHOSEN)
        own = np.asarray(jax.vmap(prepared.bijection.transform)(prepared.array))
        kept = mixed().iloc[prepared.rows].drop(columns="site").to_numpy()
        continuous = [0, 3, 4, 5, 6, 7, 8, 9, 10]
        np.testing.assert_allclose(own[:, continuous], kept[:, continuous], rtol=1e-10)
        np.testing.assert_allclose(own[:, 2], kept[:, 2] + 0.5, rtol=1e-10)  # the middle of a count's cell


@pytest.mark.parametrize(
    ("load", "kinds"),
    [
        (load_iris, {"sepal length (cm)": "rounded to 0.1: dequantized"}),
        (load_wine, {"magnesium": "70 to 162: dequantized", "hue": "rounded to 0.001: dequantized"}),
        (
            load_breast_cancer,
            {"mean radius": "nearly a linear", "mean concavity": "atoms, 13 × 0: jitter"},
        ),
        (load_diabetes, {"sex": "2 values, -0.0446416, 0.0506801: dequantized"}),
    ],
    ids=["iris", "wine", "breast cancer", "diabetes"],
)
def test_public_tables(load, kinds):
    """What is peculiar is named, and the way back is exact."""
    table = load(as_frame=True).data
    with jax.enable_x64(True):
        prepared = gf.prepare(table, atoms="jitter")
        for column in prepared.columns:
            assert kinds.get(column.name, "") in "; ".join(column.notes)
        x = prepared.dequantize(jr.key(0))
        assert bool(jnp.isfinite(x).all() & (jnp.abs(jnp.median(x, axis=0)) < 1).all())
        np.testing.assert_allclose(prepared.to_frame(x), table, rtol=1e-9, atol=1e-9)


def test_other_kinds_of_columns_come_back_as_they_were():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "when": pd.Timestamp("2024-03-01")
            + pd.to_timedelta(np.round(rng.uniform(0, 1e6, 200)), unit="s"),
            "waited": pd.to_timedelta(rng.integers(1, 10**6, 200), unit="s"),
            "vaccinated": rng.random(200) < 0.3,
            "grade": rng.integers(1, 6, 200),
            "balance": np.round(rng.normal(0, 3, 200)),
            "phase": rng.uniform(0, 2 * np.pi, 200),
        }
    )
    with jax.enable_x64(True):
        prepared = gf.prepare(table, angles=["phase"])
        kinds = ["time", "time", "levels", "levels", "real", "angle"]
        assert [c.kind for c in prepared.columns] == kinds
        back = prepared.to_frame(prepared.dequantize(jr.key(0)))
    for name in ("when", "waited", "vaccinated", "grade"):
        assert (back[name] == table[name]).all()
        assert back[name].dtype.kind == table[name].dtype.kind
    np.testing.assert_allclose(back["balance"], table["balance"], atol=1e-9)
    np.testing.assert_allclose(back["phase"], table["phase"], rtol=1e-12)


@pytest.mark.parametrize("names", [[0, 1], [("a", "x"), ("a", "y")]], ids=["numbers", "tuples"])
def test_names_that_are_no_text_come_back(names):
    table = tiny().set_axis(pd.Index(names), axis=1)
    prepared = gf.prepare(table, angles={names[1]: 360.0})
    back = prepared.to_frame(prepared.array)
    assert list(back.columns) == names
    np.testing.assert_allclose(back[names[0]], table[names[0]], atol=1e-5)


def test_a_time_with_a_zone_comes_back_in_utc():
    when = pd.date_range("2024-03-30", periods=40, freq="h", tz="Europe/Berlin")  # summer time begins
    with jax.enable_x64(True):
        prepared = gf.prepare(tiny(when=when))
        back = prepared.to_frame(prepared.array)["when"]
    assert (abs(back - when.tz_convert("UTC").tz_localize(None)) < pd.Timedelta("1ms")).all()


def test_columns_of_any_size_are_prepared():
    table = tiny(large=1e300 * np.random.default_rng(1).normal(size=40))
    assert bool(jnp.isfinite(gf.prepare(table).array).all())


def tiny(**columns):
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.normal(size=40), "b": rng.normal(size=40)} | columns)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (mixed(), {}, r"`missing` must be given, since 12 of 600 rows have missing values: 'x0' 12"),
        (mixed(), {"missing": "drop"}, r"`atoms` must say .* 'share' has \d+ × 0 and \d+ × 1. Choose"),
        (mixed(), {"missing": "mean"}, "`missing` must be 'drop' or None; got 'mean'"),
        (mixed(), {"atoms": "drop"}, "`atoms` must be 'jitter' or 'indicator' or None; got 'drop'"),
        (tiny(c=list("ab" * 20)), {}, "`table` must hold numbers or times; 'c' is of type"),
        (tiny(row_id=np.arange(40)), {}, "`table` must not hold an index as a column; 'row_id'"),
        (tiny(c=np.inf), {}, "`table` must be finite; 'c' has 40 infinite values"),
        (tiny().assign(c=lambda t: t.a + t.b), {}, "must have no column that others determine"),
        (tiny().iloc[:0], {}, "`table` must have rows and columns"),
        (tiny().iloc[:1], {}, "`table` must have two rows or more"),
        (tiny()[[]], {}, "`table` must have rows and columns"),
        (tiny().set_axis(["a", "a"], axis=1), {}, "one name for each column; 'a' stands 2 times"),
        (tiny(), {"columns": ["a", "z"]}, "`columns` must name columns of the table, 'a', 'b'; got 'z'"),
        (tiny(), {"columns": "a"}, r"`columns` must be a list of names, such as \['a'\]; got 'a'"),
        (tiny(), {"angles": "a"}, "`angles` must be a list of names"),
        (tiny(), {"columns": ["a", "a"]}, "`columns` must name each column once; got 'a', 'a'"),
        (tiny(c=np.exp(tiny().a)), {}, "'a' is a linear function of 'c' and others, or of their logarithms"),
        (tiny(), {"angles": ["z"]}, "`angles` must name columns of the table"),
        (tiny(), {"angles": {"a": -1}}, "`angles` must have positive periods; that of 'a' is -1"),
        (tiny(), {"counts": ["a"]}, "`counts` must name columns of whole numbers of at least 0; 'a'"),
        (np.ones((5, 2)), {}, "`table` must have a column that is not constant"),
        (np.ones(5), {}, r"`table` must have shape \(n, D\) if it is an array; got \(5,\)"),
        (np.ones((5, 2), complex), {}, "`table` must hold numbers or times; 0 is of type complex128"),
        ({"a": [1, 2]}, {}, "`table` must be a data frame or an array; got dict"),
        (np.stack([np.zeros(9), np.arange(9.0)]).T[:, [1, 0]] * [0, 1], {}, "not constant"),
    ],
)
def test_prepare_refuses(table, options, message):
    with pytest.raises(ValueError, match=message):
        gf.prepare(table, **options)


def test_what_comes_later_is_checked_too():
    prepared = gf.prepare(tiny())
    with pytest.raises(ValueError, match="`table` must have the column 'b'; it has 'a'"):
        prepared.transform(tiny()[["a"]])
    with pytest.raises(ValueError, match="must have no missing or infinite values here; 1 of its rows do"):
        prepared.transform(tiny().assign(a=lambda t: t.a.where(t.index > 0)))
    with pytest.raises(ValueError, match=r"`samples` must have shape \(n, 2\); got \(2,\)"):
        prepared.to_frame(jnp.zeros(2))
    with pytest.raises(ValueError, match="`samples` must be finite"):
        prepared.to_frame(jnp.full((3, 2), jnp.nan))
    with pytest.raises(ValueError, match="`key` must be a random key"):
        prepared.dequantize(0)


def test_the_index_and_the_name_can_be_overruled():
    table = tiny(row_id=np.arange(40.0))
    assert gf.prepare(table, continuous=["row_id"]).columns[2].kind == "real"
    assert gf.prepare(table, columns=["b", "a"]).to_frame(np.zeros((1, 2))).columns.tolist() == ["b", "a"]
    assert gf.prepare(np.asarray(tiny()), columns=[1]).dim == 1


def test_arrays_need_no_library_of_data_frames(monkeypatch):
    monkeypatch.setitem(sys.modules, "narwhals", None)
    prepared = gf.prepare(np.asarray(tiny()))
    assert isinstance(prepared.to_frame(prepared.array), np.ndarray)
    with pytest.raises(ImportError, match=r"pip install 'gauss_flows\[tables\]'"):
        gf.prepare(tiny())
