"""Read the columns of a data frame or an array in double precision, and write them again."""

from typing import Any

import jax
import numpy as np

from gauss_flows.validate import Given

Name = str | int


def columns_of(table: Given) -> tuple[dict[Name, Any], Any]:
    """Return the columns by name, and the library of a data frame, None for an array.

    Raises:
        ValueError: If it is neither, or has two columns of one name.
        ImportError: If it is a data frame and narwhals is not installed.
    """
    if isinstance(table, np.ndarray | jax.Array | list | tuple):
        array = np.asarray(table)
        if array.ndim != 2:
            raise ValueError(f"`table` must have shape (n, D) if it is an array; got {array.shape}.")
        return dict(enumerate(array.T)), None
    try:
        import narwhals as nw
    except ImportError as error:
        raise ImportError("Data frames need narwhals: pip install 'gauss_flows[tables]'.") from error
    names = list(getattr(table, "columns", []))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"`table` must have one name for each column; {twice[0]!r} stands {names.count(twice[0])} times."
        )
    try:
        frame = nw.from_native(table, eager_only=True)
    except TypeError as error:
        raise ValueError(f"`table` must be a data frame or an array; got {type(table).__name__}.") from error
    return dict(zip(frame.columns, frame.iter_columns(), strict=True)), frame.implementation


def numbers(name: Name, column: Any) -> tuple[np.ndarray, np.dtype]:
    """Return a column in double precision, with NaN for missing values, and the type that it came in.

    Times become seconds, since 1970 in UTC if they are dates.

    Raises:
        ValueError: If it holds neither numbers nor times.
    """
    if hasattr(column, "to_native"):  # of narwhals
        return _series(name, column)
    column = np.asarray(column)
    if column.dtype.kind in "mM":
        times = column.astype(f"{column.dtype.kind}8[us]")
        return np.where(np.isnat(times), np.nan, times.astype("int64") / 1e6), column.dtype
    if column.dtype.kind not in "biuf":
        raise ValueError(_no_numbers(name, column.dtype))
    return column.astype(float), column.dtype


def _series(name, column):
    import narwhals as nw

    dtype = column.dtype
    if isinstance(dtype, nw.Datetime) and dtype.time_zone is not None:  # comes back in UTC, without a zone
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if isinstance(dtype, nw.Datetime) or dtype == nw.Date:
        return numbers(name, column.cast(nw.Datetime("us")).to_numpy().astype("datetime64[us]"))
    if isinstance(dtype, nw.Duration):
        return numbers(name, column.to_numpy().astype("timedelta64[us]"))
    if not (dtype.is_numeric() or dtype == nw.Boolean):
        raise ValueError(_no_numbers(name, dtype))
    kind = bool if dtype == nw.Boolean else int if dtype.is_integer() else float
    values = column.cast(nw.Float64).to_numpy()
    return np.where(column.is_null().to_numpy(), np.nan, values), np.dtype(kind)


def _no_numbers(name, dtype) -> str:
    return (
        f"`table` must hold numbers or times; {name!r} is of type {dtype}. Leave it out by `columns`, or "
        "encode it: one column of 0 and 1 per category, best as a condition of the flow."
    )


def as_given(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return values in the type in which the column came, where it can hold them."""
    if dtype.kind in "mM":
        return np.round(values * 1e6).astype("int64").astype(f"{dtype.kind}8[us]")
    if dtype.kind == "b":
        return values > 0.5
    whole = dtype.kind in "iu" and (values == np.round(values)).all()
    return values.astype(dtype) if whole else values


def frame_of(values: dict[Name, np.ndarray], backend: Any) -> Any:
    """Return a table of these columns, in the library of the one that was read."""
    if backend is None:
        return np.stack(list(values.values()), axis=1)
    import narwhals as nw

    frame = nw.from_dict({str(i): v for i, v in enumerate(values.values())}, backend=backend).to_native()
    if all(isinstance(name, str) for name in values):
        renamed = {str(i): name for i, name in enumerate(values)}
        return nw.from_native(frame).rename(renamed).to_native()
    frame.columns = list(values)  # numbers or tuples, which pandas alone has
    return frame


def listed(names: Any) -> str:
    """Return names as an error message shows them."""
    shown = ", ".join(repr(name) for name in list(names)[:8])
    return shown + (", …" if len(names) > 8 else "")
