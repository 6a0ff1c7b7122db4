"""The safetensors container, read and written in ranges, here or on an object store.

The safetensors library maps local files only, and writes a file from memory at once. The
format: 8 bytes of little-endian length, a JSON header of that length, the data.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import xxhash
from etils import epath

from edm_jax.files import Damaged

Table = dict[str, tuple[int, ...]]  # names in the order of the data, and their shapes

ITEMSIZE = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1}
# Its value is the checksum of the header in which it stands as zeros.
CHECKSUM = "header_checksum"
NO_DIGEST = "0" * 16
_HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library

assert sys.byteorder == "little", "safetensors files are little-endian"


class Header(NamedTuple):
    """What stands before the data: free words, and the place of every array."""

    words: dict[str, str]
    table: Table
    codes: set[str]  # formats that occur, such as F32
    data_start: int  # bytes
    data_bytes: int


def encode(table: Table, code: str, words: Mapping[str, str]) -> bytes:
    """The bytes before the data of arrays that all have the format `code`.

    Their number does not depend on the values of digests in the words.
    """
    header: dict[str, Any] = {"__metadata__": dict(words) | {CHECKSUM: NO_DIGEST}}
    start = 0
    for name, shape in table.items():
        stop = start + math.prod(shape) * ITEMSIZE[code]
        header[name] = {
            "dtype": code,
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = text.replace(_field(NO_DIGEST), _field(xxhash.xxh3_64_hexdigest(text)))
    return len(text).to_bytes(8, "little") + text


def read_header(path: epath.Path) -> Header:
    """Parses and checks a file's header, if it has a checksum by that too.

    Raises Damaged, and FileNotFoundError where there is no file.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no snapshot at {path}.")
    if path.is_dir():
        raise Damaged(path, "is a directory and no snapshot: name a file.")
    again = "move it away or copy it again."
    file_bytes, length = path.stat().length, bytearray(8)
    read_range(path, 0, memoryview(length))
    count = int.from_bytes(length, "little")
    if file_bytes < 8 or count > min(file_bytes - 8, _HEADER_LIMIT):
        reason = f"{file_bytes} bytes, of which the header has {count}"
        raise Damaged(path, f"is damaged or no safetensors file ({reason}): {again}")
    raw = bytearray(count)
    read_range(path, 8, memoryview(raw))
    try:
        header = json.loads(raw)
        words = header.pop("__metadata__", {})
        table, data_bytes = _places(header)
        codes = {entry["dtype"] for entry in header.values()}
        digest = str(words.get(CHECKSUM, ""))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = f"is damaged or no safetensors file ({error}): {again}"
        raise Damaged(path, reason) from error
    blank = bytes(raw).replace(_field(digest), _field(NO_DIGEST))
    if digest and xxhash.xxh3_64_hexdigest(blank) != digest:
        raise Damaged(path, f"has a damaged snapshot header (its checksum): {again}")
    if file_bytes != 8 + count + data_bytes:
        wanted = 8 + count + data_bytes
        reason = f"is damaged: it has {file_bytes} bytes and not {wanted}; {again}"
        raise Damaged(path, reason)
    return Header(words, table, codes, 8 + count, data_bytes)


def read_range(path: epath.Path, offset: int, out: memoryview) -> int:
    """Fills `out` from byte `offset` on; returns how many bytes there were."""
    if not is_local(path):
        # An exact range: a file object of an object store would read ahead.
        fs, name = fsspec.core.url_to_fs(os.fspath(path))
        data = fs.cat_file(name, start=offset, end=offset + len(out))
        out[: len(data)] = data
        return len(data)
    file, done = os.open(path, os.O_RDONLY), 0
    try:
        while done < len(out):
            count = os.preadv(file, [out[done:]], offset + done)
            if not count:
                break
            done += count
    finally:
        os.close(file)
    return done


def is_local(path: epath.Path) -> bool:
    """Whether a path is one of this machine's file system."""
    return "://" not in os.fspath(path)


def partial_path(path: epath.Path) -> str:
    """Where a file lies until it is whole: beside its name, where that can be."""
    if is_local(path):
        return os.fspath(path.with_name(f".{path.name}.partial"))
    name = xxhash.xxh3_64_hexdigest(os.fspath(path).encode())
    return str(Path(tempfile.gettempdir()) / f"edm_jax-{name}.partial")


def publish(partial: str, path: epath.Path) -> None:
    """Moves a whole file to its name, in one step for whoever looks there."""
    if is_local(path):
        os.replace(partial, path)
    else:
        epath.Path(partial).copy(path, overwrite=True)
        os.unlink(partial)


def _field(digest: str) -> bytes:
    return f'"{CHECKSUM}":"{digest}"'.encode()


def _places(header: dict[str, Any]) -> tuple[Table, int]:
    """Names and shapes in the order of the data, and its bytes."""
    position, table = 0, {}
    for name, entry in sorted(header.items(), key=lambda x: x[1]["data_offsets"]):
        shape = tuple(int(n) for n in entry["shape"])
        start, stop = entry["data_offsets"]
        count = math.prod(shape) * ITEMSIZE[entry["dtype"]]
        if min(shape, default=0) < 0 or start != position or stop - start != count:
            raise ValueError(f"the place of {name} is wrong")
        table[name], position = shape, stop
    return table, position
