"""Orbax checkpoints, through TensorStore and without Orbax or JAX.

A checkpoint is a directory: _METADATA names the arrays, which are Zarr arrays, in one
database (OCDBT) or in a directory each. Their chunks are compressed, so unlike files of
other formats a checkpoint is not copied and patched, but its arrays are stored again.
"""

import functools
import importlib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax.files import Damaged, read_json
from edm_jax.foreign.layout import DTYPES, ITEMSIZE, Array, Layout, Pieces

_META = "_METADATA"
_DATABASE = ("d", "manifest.ocdbt")
_CODES = {"bfloat16": "BF16"} | {dtype: code for code, dtype in DTYPES.items()}
# Arrays may claim this many times their compressed bytes, and this many bytes more.
_RATIO, _SPARE = 64, 2**26
_CACHE = 2**27


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint, or holds one item of it."""
    return path.is_dir() and ((path / _META).is_file() or any(path.glob(f"*/{_META}")))


def read(path: Path) -> Layout:
    """The layout of a checkpoint; raises Damaged if it is not one."""
    items = (
        [path]
        if (path / _META).is_file()
        else sorted(p.parent for p in path.glob(f"*/{_META}"))
    )
    if len(items) != 1:
        known = ", ".join(item.name for item in items)
        reason = f"holds several items ({known}): name one of these directories."
        raise Damaged(path, reason if items else "is not an Orbax checkpoint.")
    [item] = items
    store = _Store(path, item)
    arrays, offset = {}, 0
    for name in store.names:
        shape, code = store.form(name)
        count = math.prod(shape)
        arrays[name] = Array(shape, code, offset, count)
        offset += count * ITEMSIZE[code]
    size = sum(each.stat().st_size for each in item.rglob("*") if each.is_file())
    if offset > _RATIO * size + _SPARE:
        raise Damaged(path, f"claims {offset:,} bytes of weights in files of {size:,}.")
    return Layout(path, "orbax", arrays, {}, load=store.load, copy=store.copy)


class _Store:
    """The arrays of one item."""

    def __init__(self, path: Path, item: Path):
        self.path, self.item = path, item
        found = read_json(item / _META)
        try:
            self._ocdbt = bool(found.get("use_ocdbt", True))
            self._driver = "zarr3" if found.get("use_zarr3") else "zarr"
            self.names = [
                ".".join(str(part["key"]) for part in entry["key_metadata"])
                for entry in found["tree_metadata"].values()
                if entry["value_metadata"].get("value_type") != "None"
            ]
        except (AttributeError, KeyError, TypeError):
            raise Damaged(
                item / _META, "is not the metadata of an Orbax tree."
            ) from None
        if any("/" in name or ".." in name for name in self.names):
            raise Damaged(item / _META, "names arrays outside of its directory.")

    def form(self, name: str) -> tuple[tuple[int, ...], str]:
        array = self._opened(name)
        code = _CODES.get(array.dtype.name) or _CODES.get(array.dtype.numpy_dtype.str)
        if code is None:
            raise Damaged(
                self.path, f"holds {name[:60]!r} of dtype {array.dtype.name}."
            )
        return tuple(array.shape), code

    def load(self, name: str, low: int, out: np.ndarray) -> None:
        """Fills `out` (elements,) from element `low` of an array in C order."""
        array = self._opened(name)
        if not array.shape:
            out[:] = self._numbers(array).ravel()
            return
        width = max(math.prod(array.shape[1:]), 1)
        first, last = low // width, -(-(low + len(out)) // width)
        rows = self._numbers(array[first:last]).ravel()
        out[:] = rows[low - first * width :][: len(out)]

    def copy(self, layout: Layout, to: Path) -> "_Copy":
        return _Copy(self, layout, to)

    def spec(self, name: str, item: Path) -> dict[str, Any]:
        base = item.absolute().as_uri() + "/"
        kvstore: Any = f"{base}{name}/"
        if self._ocdbt:
            kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        return {"driver": self._driver, "kvstore": kvstore}

    def store(self, name: str, item: Path, values: np.ndarray | None) -> None:
        """Writes an array anew: these values in C order, or those that it has."""
        array = self._opened(name)
        metadata = array.spec().to_json()["metadata"]
        spec = self.spec(name, item) | {"metadata": metadata}
        new = _tensorstore().open(spec, create=True, delete_existing=True).result()
        if values is None:
            new.write(array.read().result()).result()
        else:
            dtype = array.dtype.numpy_dtype
            new.write(values.view(dtype).reshape(array.shape)).result()

    def _numbers(self, array: Any) -> np.ndarray:
        try:
            found = np.asarray(array.read().result(), order="C")
        except ValueError as error:
            raise Damaged(self.path, f"is damaged ({_short(error)}).") from None
        return found.view(np.uint16) if array.dtype.name == "bfloat16" else found

    @functools.cached_property
    def _opened(self) -> Any:
        ts = _tensorstore()
        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE}})

        @functools.cache
        def opened(name: str) -> Any:
            try:
                spec = self.spec(name, self.item)
                return ts.open(spec, open=True, read=True, context=context).result()
            except ValueError as error:
                raise Damaged(
                    self.path, f"lacks {name[:60]!r} ({_short(error)})."
                ) from None

        return opened


class _Copy:
    """A checkpoint with other numbers, stored once all of them are known."""

    def __init__(self, store: _Store, layout: Layout, path: Path):
        self.path, self._store = path, store
        self._partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._pieces = Pieces(layout, self._partial / "values")
        self.write = self._pieces.write

    def finish(self) -> Path:
        """Stores the arrays, and moves the directory to its name."""
        new, store = self._partial / "checkpoint", self._store
        shutil.copytree(store.path, new, ignore=_skipped(store.names))
        item = new / store.item.relative_to(store.path)
        for name in store.names:
            store.store(name, item, self._pieces.get(name))
        self._pieces.close()
        if self.path.is_dir():
            shutil.rmtree(self.path)
        os.replace(new, self.path)
        self._partial.rmdir()
        return self.path

    def discard(self) -> None:
        self._pieces.close()
        shutil.rmtree(self._partial, ignore_errors=True)


def _skipped(names: Sequence[str]) -> Any:
    def ignore(directory: str, entries: list[str]) -> list[str]:
        return [
            each
            for each in entries
            if each in _DATABASE or each.startswith("ocdbt.process_") or each in names
        ]

    return ignore


def _tensorstore() -> Any:
    try:
        return importlib.import_module("tensorstore")
    except ImportError:
        raise ImportError(
            "Orbax checkpoints are read with TensorStore: pip install tensorstore."
        ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
