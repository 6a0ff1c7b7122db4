"""Flax's msgpack files (flax.serialization.to_bytes), without Flax or msgpack.

Nested maps, whose arrays are extensions of type 1: shape, name of the dtype, bytes. Arrays
beyond 2^30 bytes are maps of flat parts.
"""

import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edm_jax.files import Damaged, open_regular
from edm_jax.foreign.layout import ITEMSIZE, Array, Layout

_MAX_DEPTH, _MAX_VALUES, _MAX_TEXT, _MAX_DIMS = 32, 1_000_000, 4096, 32
_NDARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "bool": "BOOL",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
}
# First byte -> (kind, struct format of what follows)
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_LENGTHS = {
    0xD9: ("text", ">B"),
    0xDA: ("text", ">H"),
    0xDB: ("text", ">I"),
    0xC4: ("bytes", ">B"),
    0xC5: ("bytes", ">H"),
    0xC6: ("bytes", ">I"),
    0xDC: ("list", ">H"),
    0xDD: ("list", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
    0xC7: ("ext", ">B"),
    0xC8: ("ext", ">H"),
    0xC9: ("ext", ">I"),
}


def read(path: Path) -> Layout:
    """The layout of a msgpack file of Flax; raises Damaged if it is not one."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    reader = _Reader(memoryview(data))
    try:
        root = reader.value(0)
        if reader.at != size or not isinstance(root, dict):
            raise ValueError("it holds more or other things than one map")
        arrays: dict[str, Array] = {}
        values: dict[str, Any] = {}
        for name, leaf in _leaves(root, ""):
            (arrays if isinstance(leaf, Array) else values)[name] = leaf
    except (ValueError, struct.error, IndexError) as error:
        reason = f"is damaged or not a msgpack file of Flax ({error}): do not trust it."
        raise Damaged(path, reason) from None
    return Layout(path, "flax", arrays, values)


class _Reader:
    """Parses msgpack; arrays become their places."""

    def __init__(self, data: memoryview):
        self.data, self.at, self.left = data, 0, _MAX_VALUES

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:
        self.left -= 1
        if depth > _MAX_DEPTH or self.left < 0:
            raise ValueError("it is nested too deeply, or holds too many values")
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first in _NUMBERS:
            return self.unpack(_NUMBERS[first])
        if first < 0x90:
            return self.map(first & 15, depth)
        if first < 0xA0:
            return self.list(first & 15, depth)
        if first < 0xC0:
            return self.text(first & 31)
        if 0xD4 <= first <= 0xD8:
            return self.extension(1 << (first - 0xD4), depth)
        if first not in _LENGTHS:
            raise ValueError(f"no value begins with {first:#x}")
        kind, form = _LENGTHS[first]
        count = self.unpack(form)
        match kind:
            case "map":
                return self.map(count, depth)
            case "list":
                return self.list(count, depth)
            case "text":
                return self.text(count)
            case "bytes":
                return self.take(count)
        return self.extension(count, depth)

    def map(self, count: int, depth: int) -> dict[str, Any]:
        found = {}
        for _ in range(count):
            key = self.value(_MAX_DEPTH)
            if not isinstance(key, str) or key in found:
                raise ValueError("a map's keys are not texts, or not different")
            found[key] = self.value(depth + 1)
        return found

    def list(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(count)]

    def text(self, count: int) -> str:
        if count > _MAX_TEXT:
            raise ValueError("a text is too long")
        return str(self.take(count), "utf-8")

    def extension(self, count: int, depth: int) -> Any:
        kind, end = self.take(1)[0], self.at + count
        if kind != _NDARRAY:
            return self.take(count)
        inner = self.value(depth + 1)
        match inner:
            case [list(shape), str(name), memoryview() as data] if name in _CODES:
                elements = math.prod(
                    n if type(n) is int and n >= 0 else -1 for n in shape
                )
                code = _CODES[name]
                whole = elements * ITEMSIZE[code] == len(data) and self.at == end
                if whole and len(shape) <= _MAX_DIMS:
                    start = end - len(data)
                    return Array(tuple(shape), code, start, elements)
        raise ValueError("an array's shape does not match its bytes")


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if not key or "." in key:
            raise ValueError(f"the name {key[:40]!r} is empty or holds a dot")
        if isinstance(value, dict) and _CHUNKED in value:
            yield from _leaves(value.get("chunks") or {}, f"{prefix}{key}.")
        elif isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
