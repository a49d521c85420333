"""Save and load: arrays and settings in a NumPy archive, written atomically, read without pickle."""

import json
import os
import secrets
import warnings
import zipfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gauss_flows.structure import (
    Description,
    Json,
    compare_fields,
    differences,
    is_array,
    is_key,
    kind_of,
    refuse,
)

_FORMAT = "gauss_flows"

# Names of fields and classes in older files, as they stand in the header.
_RENAMED = {
    "._family.": "._bijector.",
    '"_family"': '"_bijector"',
    ':Family"': ':Parametrized"',
    ':ActNorm1D"': ':ActNorm"',
}
_VERSION = 2  # version 1 had no settings, and could hold neither random keys nor NumPy arrays


def save(path: str | os.PathLike, flow: PyTree) -> None:
    """Write the arrays and the settings of a flow (or of any pytree) to a file.

    The file is written beside its final place and moved there when it is complete, so that a crash
    leaves the old file or the new one. It is a NumPy archive with a header. The header describes the
    static structure: the classes, the functions (by qualified name) and the values of all settings that
    are not arrays, such as the interval of a spline. It holds no code: :func:`load` takes the
    structure from a flow built by the same code, and compares.

    Arrays may have any type that JAX has, ``bfloat16`` and random keys included. Arrays and scalars of
    NumPy are saved too; numbers of Python are settings.

    Args:
        path: Where to write. An existing file is replaced.
        flow: PyTree pytree with arrays.

    Raises:
        ValueError: If an array cannot be written, such as a traced or a deleted one (the message names
            it), or ``path`` is a folder.
        OSError: If the file cannot be written: its folder does not exist, permission is missing, or the
            disk is full. Nothing is left behind.

    Warns:
        UserWarning: If a setting cannot be described by name and value, such as a lambda: only its name
            and the values that it captures are compared, not what it computes.

    Example:
        >>> import gauss_flows as gf, jax.random as jr, tempfile, pathlib
        >>> flow = gf.AffineCoupling(jr.key(0), (4,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gf.save(pathlib.Path(folder) / "flow.npz", flow)
        ...     again = gf.load(pathlib.Path(folder) / "flow.npz", flow)
    """
    structure = Description()
    described = structure.describe(flow, "", stored=True)
    _write(path, flow, {}, described)
    structure.warn("The file")


def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Read the arrays that :func:`save` wrote into a flow of the same structure.

    Args:
        path: The file.
        like: A flow of the same structure, such as a newly built one; its arrays' values are not used.

    Returns:
        A flow with the structure of ``like`` and the arrays of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, was not written by :func:`save`, is of a newer version,
            holds arrays of other names, shapes or types than ``like``, or was saved with other settings
            (a class, a function or a value); the message says which. Floating-point settings may differ
            by rounding.

    Warns:
        UserWarning: If settings could not be compared: the file was written by version 0.1.0 or
            earlier, which stored none; a setting is a lambda or the like; or the file and ``like`` come
            from versions of another package that have different settings.
    """
    new, _, structure = _read(path, like)
    if structure is None:
        message = "holds no settings, so that only names, shapes and types of its arrays were compared"
        warnings.warn(f"The file {path} {message} with `like`; save it again.", stacklevel=2)
    else:
        structure.warn("`like`")
    return new


def write(path: str | os.PathLike, tree: PyTree, notes: dict[str, Json]) -> None:
    """Write the arrays of a pytree with notes (anything that JSON holds), but without its settings.

    This is for checkpoints: what must agree is for the caller to write into the notes. Otherwise as
    :func:`save`.

    Args:
        path: Where to write.
        tree: PyTree pytree with arrays.
        notes: What :func:`read` gives back.

    Raises:
        ValueError: As :func:`save`.
        OSError: As :func:`save`.
    """
    _write(path, tree, notes, None)


def read(path: str | os.PathLike, like: PyTree) -> tuple[PyTree, dict[str, Json]]:
    """Read what :func:`write` wrote: the tree, and the notes.

    Args:
        path: The file.
        like: A pytree of the same structure.

    Raises:
        FileNotFoundError: As :func:`load`.
        ValueError: As :func:`load`.
    """
    new, header, _ = _read(path, like)
    return new, header["notes"]


# --- arrays ---------------------------------------------------------------------------------------
def _write(path: str | os.PathLike, tree: PyTree, notes: dict[str, Json], structure: PyTree) -> None:
    path = _as_path(path)
    arrays: dict[str, np.ndarray] = {}
    header: dict[str, Json] = {"format": _FORMAT, "version": _VERSION, "names": [], "views": {}, "keys": {}}
    for name, leaf in _leaves(tree):
        if is_array(leaf):
            arrays[f"a{len(arrays)}"] = _as_numpy(name, leaf, header)
            header["names"].append(name)
    header |= {"notes": notes, "structure": structure}
    content = np.frombuffer(json.dumps(header).encode(), np.uint8)
    # A name of its own, and a short one, for each write: two threads may write to one path.
    temporary = path.with_name(f".gauss_flows-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, header=content, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`path` must lie in an existing folder; got {path}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str | os.PathLike, like: PyTree) -> tuple[PyTree, dict[str, Json], "Description | None"]:
    header, stored = _open(_as_path(path))
    structure, found = None, []
    if header["structure"] is not None:
        structure = Description()
        ours = structure.describe(like, "", stored=True)
        found = list(differences("", header["structure"], ours))
    of_kind = lambda kind: [difference for difference in found if difference[0] == kind]
    refuse(of_kind("class") + of_kind("size"))
    leaves = _leaves(like)
    theirs = {name: _stored_kind(array, header["keys"].get(name)) for name, array in stored.items()}
    use = {name for name, leaf in leaves if is_array(leaf)}
    if header["version"] == 1:  # whether NumPy's arrays are in it depends on the version of equinox
        use -= {name for name, leaf in leaves if not isinstance(leaf, jax.Array) and name not in theirs}
    _compare_arrays(theirs, {name: kind_of(leaf) for name, leaf in leaves if name in use})
    refuse(of_kind("value"))
    compare_fields(of_kind("field"))
    with jax.enable_x64(True):  # or arrays of double precision would be rounded without a word
        new = [_from_numpy(stored[name], leaf) if name in use else leaf for name, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(like), new), header, structure


def _open(path: Path) -> tuple[dict[str, Json], dict[str, np.ndarray]]:
    """The header of a file, and its arrays by name."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            text = file["header"].tobytes().decode()
            for old, new in _RENAMED.items():
                text = text.replace(old, new)
            header = json.loads(text)
            known, version = header.get("format") == _FORMAT, header.get("version")
            supported = known and version in range(1, _VERSION + 1)
            names = header["names"] if supported else []
            stored = {name: file[f"a{i}"] for i, name in enumerate(names)}
            if supported:
                header = {"views": {}, "keys": {}, "structure": None, "notes": {}} | header
                stored |= {name: stored[name].view(jnp.dtype(kind)) for name, kind in header["views"].items()}
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, EOFError, LookupError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"`path` must be a whole file that gauss_flows saved; {path}: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"`path` must be a whole file that gauss_flows saved; {path}: {error}") from error
    if not known:
        raise ValueError(f"`path` must be a file that gauss_flows saved; got {header}.")
    if not supported:
        raise ValueError(
            f"`path` must be a file of format version {_VERSION} or earlier; got version {version}."
        )
    return header, stored


def _as_path(path: str | os.PathLike) -> Path:
    try:
        found = Path(os.fsdecode(path))
    except TypeError as error:
        raise ValueError(f"`path` must be a string or a path; got {type(path).__name__}") from error
    if found.is_dir():
        raise ValueError(f"`path` must be a file; got the folder {found}.")
    return found


def _leaves(tree: PyTree) -> list[tuple[str, PyTree]]:
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in named]


def _as_numpy(name: str, leaf: PyTree, header: dict[str, Json]) -> np.ndarray:
    """An array that NumPy's format can hold; what it really is goes into the header."""
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(f"`flow` must hold concrete arrays, but {name} is traced; save outside of jit.")
    if isinstance(leaf, np.ndarray) and type(leaf) not in (np.ndarray, np.memmap):
        kind = type(leaf).__name__
        raise ValueError(f"`flow` must hold plain arrays, but {name} is a {kind}, which a file cannot hold.")
    if is_key(leaf):
        header["keys"][name] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    try:
        array = np.asarray(leaf)
    except Exception as error:
        raise ValueError(f"`flow` must hold arrays that can be read, but {name} cannot: {error}") from error
    if array.dtype.hasobject:
        raise ValueError(f"`flow` must hold arrays of numbers, but {name} holds Python objects.")
    if array.dtype.isbuiltin == 2:  # registered by ml_dtypes: NumPy would write raw bytes without a name
        header["views"][name] = array.dtype.name
        array = array.view(f"u{array.dtype.itemsize}")
    return array


def _from_numpy(array: np.ndarray, leaf: PyTree) -> PyTree:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return array[()] if isinstance(leaf, np.generic) else array
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array)


def _stored_kind(array: np.ndarray, key: str | None) -> str:
    return kind_of(array) if key is None else f"key<{key}>{list(array.shape[:-1])}"


def _compare_arrays(theirs: dict[str, str], ours: dict[str, str]) -> None:
    for name, kind in theirs.items():
        their, mine = f"{name} {kind}", f"{name} {ours[name]}" if name in ours else "no such array"
        precision = lambda text: text.replace("64", "32").replace("complex128", "complex32")
        same = precision(their) == precision(mine.replace("complex64", "complex32"))
        hint = "; build it in the file's precision (see jax.enable_x64)" if same and mine != their else ""
        if mine != their:
            raise ValueError(f"`like` must have the file's array {their}; got {mine}{hint}.")
    for name, kind in ours.items():
        if name not in theirs:
            raise ValueError(
                f"`like` must have the file's {len(theirs)} arrays alone; got also {name} {kind}."
            )
