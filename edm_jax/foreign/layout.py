"""Where the numbers lie in another code's file, and the same file with other numbers.

Whatever the format, a file of weights is a number of arrays, each one contiguous piece of
bytes, among bytes that say what they are. So one reader and one writer serve all formats:
a format only says where the arrays are, and what to mend after they were replaced.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from edm_jax.ema import container
from edm_jax.files import Damaged, PathLike, kind_of, open_regular

# bfloat16 is the upper half of float32, so it needs no package.
FLOATS = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
ITEMSIZE = {code: np.dtype(dtype).itemsize for code, dtype in DTYPES.items()}
_WIDE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.float32}

_PREFIXES = ("ema_model.", "state_dict_ema.", "model.", "state_dict.", "params.")

Table = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Array:
    """An array in a file: `count` elements from byte `offset` on, and the view of them.

    Elements outside of the view are stored, and averaged, like those inside.
    """

    shape: tuple[int, ...]
    code: str  # the format of its numbers, such as F32
    offset: int  # bytes
    count: int  # elements in the piece
    first: int = 0  # the view's first element
    strides: tuple[int, ...] | None = None  # in elements; None is C order

    @property
    def whole(self) -> bool:
        """Whether the view is the piece in C order."""
        return self.strides is None and self.count == math.prod(self.shape)

    def view(self, numbers: np.ndarray) -> np.ndarray:
        """The array (shape) of a piece's numbers (count,)."""
        if self.whole:
            return numbers.reshape(self.shape)
        steps = [
            numbers.itemsize * step for step in self.strides or c_strides(self.shape)
        ]
        start = self.first * numbers.itemsize
        return np.ndarray(self.shape, numbers.dtype, numbers.data, start, steps)


@dataclass(frozen=True)
class Layout:
    """A file's arrays and numbers by name, as its format lays them out.

    Attributes:
        path: the file.
        container: the format, such as 'torch'.
        arrays: every array by its name; those of nested dicts joined by dots.
        values: numbers, texts and other leaves that are not arrays, by name.
        mend: called with the open file once arrays were replaced in it.
        load: fills a row from an element of an array on, where that is not a piece of
            the file as it is.
        copy: starts a copy with other numbers, where that is not one of the file's bytes.
        averaged: the names of the arrays to average.
        chosen: those, other names of the same arrays, and whole numbers beside them.
    """

    path: Path
    container: str
    arrays: Mapping[str, Array]
    values: Mapping[str, Any] = field(default_factory=dict)
    mend: Callable[[int], None] = lambda file: None
    averaged: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    load: Callable[[str, int, np.ndarray], None] | None = None
    copy: Callable[["Layout", Path], Any] | None = None

    def averaging(self, names: tuple[str, ...]) -> "Layout":
        """The same, to average the floating-point arrays among these.

        Arrays that share a piece of the file, such as tied weights, are averaged once.

        Raises:
            Damaged: none of them holds floating-point numbers, or two overlap in part.
        """
        chosen: dict[int, str] = {}
        for name in names:
            array = self.arrays[name]
            if array.code in FLOATS and array.count:
                first = chosen.setdefault(array.offset, name)
                if self.arrays[first].count != array.count:
                    raise Damaged(
                        self.path, "holds arrays that overlap: do not use it."
                    )
        end = 0
        for offset, name in sorted(chosen.items()):
            if offset < end:
                raise Damaged(self.path, "holds arrays that overlap: do not use it.")
            end = offset + self.arrays[name].count * ITEMSIZE[self.arrays[name].code]
        if not chosen:
            raise Damaged(self.path, "holds no floating-point weights.")
        return replace(self, averaged=tuple(chosen.values()), chosen=names)

    @property
    def prefix(self) -> str:
        """What the names of all chosen arrays begin with that is not the network's."""
        for prefix in _PREFIXES:
            if self.chosen and all(name.startswith(prefix) for name in self.chosen):
                return prefix
        return ""

    @property
    def table(self) -> Table:
        """Names and shapes of the pieces to average, in their order."""
        table = {}
        for name in self.averaged:
            array = self.arrays[name]
            table[name] = array.shape if array.whole else (array.count,)
        return table

    @property
    def form(self) -> tuple[Any, ...]:
        """What files must have in common to be averaged: names, shapes and orders."""
        return tuple(
            (name, array.shape, array.count, array.first, array.strides)
            for name, array in ((n, self.arrays[n]) for n in self.averaged)
        )

    def read(self, name: str) -> np.ndarray:
        """One array, floating-point numbers at least as float32 where they are BF16."""
        array = self.arrays[name]
        raw = np.empty(array.count, DTYPES[array.code])
        if self.load is not None:
            self.load(name, 0, raw)
            return array.view(widened(raw, array.code))
        with open_regular(self.path) as file:
            fill(self.path, file, array.offset, raw)
        return array.view(widened(raw, array.code))


@dataclass(frozen=True)
class Source:
    """A file's averaged arrays as one long row of elements, for `combine`."""

    layout: Layout
    local = True
    digests = None

    @property
    def name(self) -> str:
        return os.fspath(self.layout.path)

    @property
    def table(self) -> Table:
        return self.layout.table

    @property
    def codes(self) -> set[str]:
        return {self.layout.arrays[name].code for name in self.layout.averaged}

    @property
    def dtype(self) -> np.dtype:
        return max(map(np.dtype, (_WIDE[c] for c in self.codes)), key=_itemsize)

    @property
    def unit_roundoff(self) -> float:
        return max(FLOATS[code] for code in self.codes)

    def read(self, start: int, out: np.ndarray) -> None:
        """Fills `out` (elements,) from element `start` on; raises Damaged."""
        layout = self.layout
        try:
            file = open_regular(layout.path) if layout.load is None else None
        except FileNotFoundError:
            reason = "was removed while it was being read: restore it."
            raise Damaged(layout.path, reason) from None
        with file or contextlib.nullcontext():
            for name, array, low, part in parts(layout, start, out):
                dtype = np.dtype(DTYPES[array.code])
                direct = part.dtype == dtype
                raw = part if direct else np.empty(len(part), dtype)
                if file is None:
                    assert layout.load is not None
                    layout.load(name, low, raw)
                else:
                    fill(layout.path, file, array.offset + low * dtype.itemsize, raw)
                if not direct:
                    part[:] = widened(raw, array.code)

    def verify(self, chunk: int, digest: str) -> None:
        del chunk, digest


class Writer:
    """A copy of a file with other numbers; it appears whole or not at all."""

    def __init__(self, path: Path, template: Layout):
        self.path, self._template = path, template
        self._partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        if kind := kind_of(self._file):
            os.close(self._file)
            raise ValueError(f"{self._partial} is {kind}, not a file: remove it.")
        try:
            with (
                open_regular(template.path) as source,
                open(self._partial, "r+b") as to,
            ):
                shutil.copyfileobj(source, to, 2**22)
        except BaseException:
            self.discard()
            raise

    def write(self, start: int, values: np.ndarray) -> None:
        """Puts values (elements,) at element `start`; raises ValueError if too large."""
        for _, array, low, part in parts(self._template, start, values):
            raw = narrowed(part, array.code, self._template.path)
            put(self._file, raw, array.offset + low * raw.itemsize)

    def finish(self) -> Path:
        """Mends what the format says of the numbers, and moves the file to its name."""
        self._template.mend(self._file)
        os.fsync(self._file)
        os.close(self._file)
        os.replace(self._partial, self.path)
        return self.path

    def discard(self) -> None:
        """Removes the partial file."""
        os.close(self._file)
        self._partial.unlink(missing_ok=True)


class Pieces:
    """The pieces of a layout's averaged arrays, in a file where they wait to be stored."""

    def __init__(self, layout: Layout, path: Path, code: str = ""):
        self._layout, self._path = layout, path
        arrays = [layout.arrays[name] for name in layout.averaged]
        self._codes = dict(
            zip(layout.averaged, (code or a.code for a in arrays), strict=True)
        )
        self._starts, at = {}, 0
        for name, array in zip(layout.averaged, arrays, strict=True):
            self._starts[name] = at
            at += array.count * ITEMSIZE[self._codes[name]]
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, start: int, values: np.ndarray) -> None:
        """Puts values (elements,) at element `start`; raises ValueError if too large."""
        for name, _, low, part in parts(self._layout, start, values):
            raw = narrowed(part, self._codes[name], self._layout.path)
            put(self._file, raw, self._starts[name] + low * raw.itemsize)

    def get(self, name: str) -> np.ndarray | None:
        """The numbers of a piece (count,), as its file would hold them, if it is one."""
        if name not in self._starts:
            return None
        raw = np.empty(self._layout.arrays[name].count, DTYPES[self._codes[name]])
        with open(self._path, "rb") as file:
            fill(self._path, file, self._starts[name], raw)
        return raw

    def close(self) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)


class PlainWriter:
    """A safetensors file of a layout's arrays with other numbers, float32 or float64.

    What all names begin with, such as ema_model., is left out of them.
    """

    def __init__(self, path: Path, template: Layout):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._template = path, template
        self._partial = path.with_name(f".{path.name}.partial")
        double = any(template.arrays[name].code == "F64" for name in template.averaged)
        self._code = "F64" if double else "F32"
        waiting = path.with_name(f".{path.name}.values")
        self._pieces = Pieces(template, waiting, self._code)
        self.write = self._pieces.write

    def finish(self) -> Path:
        """Stores every array under all of its names, and moves the file to its name."""
        arrays, first = self._template.arrays, {}
        for name in self._template.averaged:
            first[arrays[name].offset] = name
        prefix = self._template.prefix
        table, codes = {}, {}
        for name in self._template.chosen:
            table[name.removeprefix(prefix)] = arrays[name].shape
            known = arrays[name].code in FLOATS and arrays[name].count
            codes[name.removeprefix(prefix)] = (
                self._code if known else arrays[name].code
            )
        with open(self._partial, "wb") as file:
            file.write(container.encode(table, codes, {"format": "pt"}, ITEMSIZE))
            for name in self._template.chosen:
                piece = self._pieces.get(first.get(arrays[name].offset, ""))
                if piece is None or not arrays[name].count:
                    values = self._template.read(name)
                else:
                    values = arrays[name].view(piece)
                file.write(np.ascontiguousarray(values).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        self._pieces.close()
        os.replace(self._partial, self.path)
        return self.path

    def discard(self) -> None:
        """Removes the partial file."""
        self._pieces.close()
        self._partial.unlink(missing_ok=True)


def put(file: int, raw: np.ndarray, offset: int) -> None:
    """Writes a contiguous array at byte `offset`."""
    left = raw.view(np.uint8).data
    while left:
        count = os.pwrite(file, left, offset)
        left, offset = left[count:], offset + count


def writer(path: Path, template: Layout) -> Any:
    """What writes a copy of `template` with other numbers to `path`."""
    return template.copy(template, path) if template.copy else Writer(path, template)


def parts(
    layout: Layout, start: int, row: np.ndarray
) -> Iterator[tuple[str, Array, int, np.ndarray]]:
    """Splits a row that begins at element `start`: array, its first element, the part."""
    begin = 0
    for name in layout.averaged:
        array = layout.arrays[name]
        low, high = max(start, begin), min(start + len(row), begin + array.count)
        if low < high:
            yield name, array, low - begin, row[low - start : high - start]
        begin += array.count


def fill(path: PathLike, file: IO[bytes], offset: int, out: np.ndarray) -> None:
    """Reads a contiguous array from byte `offset` on; raises Damaged if it ends before."""
    left = out.view(np.uint8).data
    while left:
        try:
            count = os.preadv(file.fileno(), [left], offset)
        except OSError as error:
            raise Damaged(path, f"cannot be read ({error.strerror}).") from error
        if not count:
            raise Damaged(path, "was cut short: copy it again.")
        left, offset = left[count:], offset + count


def widened(raw: np.ndarray, code: str) -> np.ndarray:
    """Numbers as NumPy has them: bfloat16 as float32."""
    if code != "BF16":
        return raw
    return (raw.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: np.ndarray, code: str, path: PathLike) -> np.ndarray:
    """Numbers in a file's format, rounded to nearest; raises ValueError if too large."""
    if code == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        finite = (raw & 0x7F80) != 0x7F80
    else:
        with np.errstate(over="ignore"):
            raw = np.ascontiguousarray(values, DTYPES[code])
        finite = np.isfinite(raw)
    if not finite.all():
        raise ValueError(
            f"The averages are too large for the format of {os.fspath(path)}: use "
            "--to=safetensors, which stores float32."
        )
    return raw


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of C order, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _itemsize(dtype: np.dtype) -> int:
    return dtype.itemsize
