"""The safetensors container, read and written in ranges, locally or on an object store.

The safetensors library maps local files only, and writes whole files from memory. The
format: 8 bytes of little-endian length, a JSON header of that length, then the data.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edm_jax.ema.optional import epath, fsspec, xxhash
from edm_jax.files import Damaged, open_regular, parse_json

Table = dict[str, tuple[int, ...]]  # names in the order of the data, and their shapes

ITEMSIZE = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1}
# Its value is the checksum of the header with zeros in its place.
CHECKSUM = "header_checksum"
NO_DIGEST = "0" * 16
_HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
_MAX_DIMENSIONS = 32
_AGAIN = "copy it again or move it away."

assert sys.byteorder == "little", "safetensors files are little-endian"


class Header(NamedTuple):
    """The part before the data: free metadata, and the place of every array."""

    words: dict[str, str]
    table: Table
    formats: dict[str, str]  # {array: format}, such as F32
    data_start: int  # bytes
    data_bytes: int


class Run(NamedTuple):
    """Elements `start` to `stop` of a file, contiguous and in one format."""

    start: int
    stop: int
    offset: int  # bytes from the start of the data
    code: str


def runs(table: Table, formats: Mapping[str, str]) -> tuple[Run, ...]:
    """The runs of a file's arrays, in order."""
    found: list[Run] = []
    start = offset = 0
    for name, shape in table.items():
        stop, code = start + math.prod(shape), formats[name]
        if found and found[-1].code == code:
            found[-1] = found[-1]._replace(stop=stop)
        else:
            found.append(Run(start, stop, offset, code))
        offset += (stop - start) * ITEMSIZE[code]
        start = stop
    return tuple(found)


def encode(
    table: Table,
    formats: Mapping[str, str],
    words: Mapping[str, str],
    itemsize: Mapping[str, int] = ITEMSIZE,
    checked: bool = True,
) -> bytes:
    """The bytes before the data, for arrays in formats such as F32.

    Their number does not depend on the values of digests in `words`. Without `checked`
    the header has no checksum of its own.
    """
    checksum = {CHECKSUM: NO_DIGEST} if checked else {}
    header: dict[str, Any] = {"__metadata__": dict(words) | checksum}
    start = 0
    for name, shape in table.items():
        stop = start + math.prod(shape) * itemsize[formats[name]]
        header[name] = {
            "dtype": formats[name],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = text.replace(_field(NO_DIGEST), _field(xxhash.xxh3_64_hexdigest(text)))
    return len(text).to_bytes(8, "little") + text


def read_header(
    path: epath.Path,
    refuse: Callable[[dict[str, str]], str] = lambda words: "",
    itemsize: Mapping[str, int] = ITEMSIZE,
) -> Header:
    """Parses and checks a file's header, including its checksum if it has one.

    Args:
        path: the file.
        refuse: returns why the metadata rule the file out, or ''. It is called before
            parsing anything that another format might lay out differently.
        itemsize: bytes of an element in each format that is allowed.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is not a safetensors file, or it is damaged.
    """
    file_bytes, start = _size(path), bytearray(8)
    read_range(path, 0, memoryview(start))
    count = int.from_bytes(start, "little")
    if file_bytes < 8 or count > min(file_bytes - 8, _HEADER_LIMIT):
        reason = f"{file_bytes} bytes, with a header of {count}"
        raise _not_safetensors(path, reason)
    raw = bytearray(count)
    read_range(path, 8, memoryview(raw))
    try:
        header = parse_json(bytes(raw), unique=True)
        words = _words(header)
    except ValueError as error:
        raise _not_safetensors(path, error) from error
    digest = words.get(CHECKSUM, "")
    blank = bytes(raw).replace(_field(digest), _field(NO_DIGEST))
    if digest and xxhash.xxh3_64_hexdigest(blank) != digest:
        reason = f"has a damaged header, which does not match its checksum: {_AGAIN}"
        raise Damaged(path, reason)
    if reason := refuse(words):
        raise Damaged(path, reason)
    try:
        table, formats, data_bytes = _places(header, itemsize)
    except ValueError as error:
        raise _not_safetensors(path, error) from error
    wanted = 8 + count + data_bytes
    if file_bytes != wanted:
        reason = f"is damaged: it has {file_bytes} bytes instead of {wanted}; {_AGAIN}"
        raise Damaged(path, reason)
    return Header(words, table, formats, 8 + count, data_bytes)


def _size(path: epath.Path) -> int:
    """The size in bytes; raises FileNotFoundError, or Damaged if it is not a file."""
    missing = FileNotFoundError(f"There is no snapshot at {path}.")
    if is_local(path):
        try:
            with open_regular(path) as file:
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise missing from None
    if not path.exists():
        raise missing
    if path.is_dir():
        raise Damaged(path, "is a directory, not a file.")
    return path.stat().length


def _not_safetensors(path: epath.Path, reason: object) -> Damaged:
    return Damaged(path, f"is damaged or not a safetensors file ({reason}): {_AGAIN}")


def read_range(path: epath.Path, offset: int, out: memoryview) -> int:
    """Fills `out` from byte `offset` on; returns how many bytes there were.

    Raises FileNotFoundError and, for a local path that is not a readable file, Damaged.
    """
    if not is_local(path):
        # An exact range: a file object of an object store would read ahead.
        fs, name = fsspec.core.url_to_fs(os.fspath(path))
        data = fs.cat_file(name, start=offset, end=offset + len(out))
        out[: len(data)] = data
        return len(data)
    done = 0
    with open_regular(path) as file:
        while done < len(out):
            try:
                count = os.preadv(file.fileno(), [out[done:]], offset + done)
            except OSError as error:
                reason = f"cannot be read ({error.strerror})."
                raise Damaged(path, reason) from error
            if not count:
                break
            done += count
    return done


def is_local(path: epath.Path) -> bool:
    """Whether a path is one of this machine's file system."""
    return "://" not in os.fspath(path)


def partial_path(path: epath.Path) -> str:
    """Where a file lies until it is whole: beside its name where that is local."""
    if is_local(path):
        return os.fspath(path.with_name(f".{path.name}.partial"))
    name = xxhash.xxh3_64_hexdigest(os.fspath(path).encode())
    return str(Path(tempfile.gettempdir()) / f"edm_jax-{name}.partial")


def publish(partial: str, path: epath.Path) -> None:
    """Moves a complete file to its name, atomically."""
    if is_local(path):
        os.replace(partial, path)
    else:
        epath.Path(partial).copy(path, overwrite=True)
        os.unlink(partial)


def _field(digest: str) -> bytes:
    return f'"{CHECKSUM}":"{digest}"'.encode()


def _words(header: Any) -> dict[str, str]:
    """Takes the metadata out of a header; raises ValueError if values are not text."""
    words = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(words, dict) or not all(
        isinstance(value, str) for value in words.values()
    ):
        raise ValueError("its __metadata__ is not an object of texts")
    return words


def _places(
    header: dict[str, Any], itemsize: Mapping[str, int]
) -> tuple[Table, dict[str, str], int]:
    """Names and shapes in the order of the data, their formats, and the data's bytes."""
    entries = [(*_entry(name, each, itemsize), name) for name, each in header.items()]
    position, table, formats = 0, {}, {}
    for start, stop, shape, code, name in sorted(entries, key=lambda each: each[:2]):
        count = math.prod(shape) * itemsize[code]
        if start != position or stop - start != count:
            raise ValueError(f"the place of {_short(name)} is wrong")
        table[name], position = shape, stop
        formats[name] = code
    return table, formats, position


def _entry(
    name: str, entry: Any, itemsize: Mapping[str, int]
) -> tuple[int, int, tuple[int, ...], str]:
    """Start, stop, shape and format of an array; raises ValueError naming it."""
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [start, stop]}:
            sizes = [start, stop, *shape]
            # Not isinstance: in Python a bool is an int.
            if all(type(size) is int and size >= 0 for size in sizes):
                if code not in itemsize:
                    known = ", ".join(itemsize)
                    raise ValueError(
                        f"{_short(name)} has the format {_short(code)}, not {known}"
                    )
                # NumPy's own limits, even if one dimension is 0.
                elements = math.prod(max(size, 1) for size in shape)
                if len(shape) <= _MAX_DIMENSIONS and elements < 2**60:
                    return start, stop, tuple(shape), code
    raise ValueError(f"the entry of {_short(name)} is not a dtype, shape and place")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
