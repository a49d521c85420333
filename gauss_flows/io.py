"""Save and load: arrays in a NumPy archive, written atomically, read without pickle."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gauss_flows.base import expect

_FORMAT = "gauss_flows"
_VERSION = 1


def save(path: str | os.PathLike, flow: Any) -> None:
    """Write every array of a flow (or of any pytree) to a file, all or nothing.

    The file is written beside its final place and moved there when it is whole, so that a crash
    leaves the old file or the new one. It is a NumPy archive with a header; the structure is not in
    it: :func:`load` takes that from a flow built by the same code.

    Args:
        path: Where to write. An existing file is replaced.
        flow: Any pytree with arrays.

    Example:
        >>> import gauss_flows as gf, jax.random as jr, tempfile, pathlib
        >>> flow = gf.AffineCoupling(jr.key(0), (4,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gf.save(pathlib.Path(folder) / "flow.npz", flow)
        ...     again = gf.load(pathlib.Path(folder) / "flow.npz", flow)
    """
    write(path, flow, {})


def load(path: str | os.PathLike, like: Any) -> Any:
    """Read what :func:`save` wrote into the structure of ``like``.

    Args:
        path: The file.
        like: A flow of the same structure, such as a newly built one; its values are not used.

    Returns:
        A flow with the structure of ``like`` and the arrays of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, was not written by :func:`save`, is of a newer version,
            or holds arrays of other names, shapes or types than ``like``; the message says which.
    """
    return read(path, like)[0]


def write(path: str | os.PathLike, tree: Any, notes: dict[str, Any]) -> None:
    """As :func:`save`, with notes (anything that JSON holds) in the header."""
    path = Path(path)
    names, leaves = _named_arrays(tree)
    header = {"format": _FORMAT, "version": _VERSION, "names": names, "notes": notes}
    arrays = {f"a{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike, like: Any) -> tuple[Any, dict[str, Any]]:
    """As :func:`load`, with the header's notes."""
    path = Path(path)
    names, leaves = _named_arrays(like)
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes().decode())
            stored = {name: file[name] for name in file.files if name != "header"}
        known = header.get("format") == _FORMAT
    except FileNotFoundError:
        raise
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"`path` must be a whole file that gauss_flows saved; {path}: {error}") from error
    expect(known, "path", "be a file that gauss_flows saved", header)
    version = header.get("version")
    expect(version == _VERSION, "path", f"be of version {_VERSION}", f"version {version}")
    kind = lambda name, array: name if array is None else f"{name} {np.dtype(array.dtype)}{list(array.shape)}"
    theirs = [kind(name, stored.get(f"a{i}")) for i, name in enumerate(header["names"])]
    ours = list(map(kind, names, leaves))
    for mine, their in zip(ours, theirs, strict=False):
        expect(mine == their, "like", f"have the file's array {their}", mine)
    expect(len(ours) == len(theirs), "like", f"have {len(theirs)} arrays, as the file", len(ours))
    arrays, static = eqx.partition(like, eqx.is_array)
    new = [jnp.asarray(stored[f"a{i}"]) for i in range(len(ours))]
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), new), static), header["notes"]


def _named_arrays(tree: Any) -> tuple[list[str], list[Any]]:
    arrays = eqx.filter(tree, eqx.is_array)
    named, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return [jax.tree_util.keystr(path) for path, _ in named], [leaf for _, leaf in named]
