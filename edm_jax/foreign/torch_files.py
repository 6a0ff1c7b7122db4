"""PyTorch's files, in both of its formats, without PyTorch and running nothing.

Since 1.6 torch.save writes a ZIP archive, uncompressed: data.pkl, a pickle of the object,
and a member for every storage. Before, it wrote pickles followed by the storages. The
pickles go through the machine of `edm_jax.original.pickles`, which builds inert nodes.
"""

import math
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from edm_jax.files import Damaged, open_regular
from edm_jax.foreign.layout import ITEMSIZE, Array, Layout, c_strides
from edm_jax.original import pickles
from edm_jax.original.pickles import Budget, Global, Node, Refused

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0a" + pickles.LEGACY_MAGIC.to_bytes(10, "little")
_MAX_PICKLE = 2**26  # bytes; and of the archive's directory
_MAX_DEPTH = 16
_MAX_DIMS = 16
_DESCRIPTOR = b"PK\x07\x08"

# (name, storage claim, first element, shape, strides) of a tensor
Claim = tuple[str, tuple[Any, ...], Any, Any, Any]
Place = Callable[[str, str, int], int]  # key, code, count -> byte offset


class Member(NamedTuple):
    """A file in an archive: its bytes, and where its checksum is stated."""

    start: int
    size: int
    checksums: tuple[int, ...]


def read(path: Path) -> Layout:
    """The layout of a file of torch.save; raises Damaged if it is not one."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if os.pread(file.fileno(), 4, 0) == ZIP:
                return _zipped(path, file, size)
            if not size:
                raise Refused("is empty", "copy the file again")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _legacy(path, memoryview(mapped))
        except Refused as refused:
            raise Damaged(path, str(refused)) from None


def _zipped(path: Path, file: IO[bytes], size: int) -> Layout:
    members = _members(file.fileno(), size)
    if not (roots := [name for name in members if name.endswith("/data.pkl")]):
        raise Refused("is an archive without data.pkl", "name a file of weights")
    folder = roots[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise Refused("is a TorchScript program", "name the file of its state_dict()")

    def content(name: str) -> bytes:
        start, count, _ = members[name]
        if count > _MAX_PICKLE:
            raise Refused(f"holds a {name[:40]!r} of {count:,} bytes")
        return os.pread(file.fileno(), count, start)

    order = f"{folder}byteorder"
    if order in members and content(order) != b"little":
        raise Refused("is not little-endian", "save it again elsewhere")
    [root], rest = pickles.nested_streams(
        memoryview(content(roots[0])), 1, _budget(), pickles.CHECKPOINT
    )
    if len(rest):
        raise Refused("has bytes after the end of its pickle")
    used: dict[str, Member] = {}

    def place(key: str, code: str, count: int) -> int:
        if (name := f"{folder}data/{key}") not in members:
            raise Refused(f"lacks the storage {key[:40]!r}", "copy the file again")
        used[key] = members[name]
        if members[name].size != count * ITEMSIZE[code]:
            raise Refused(
                f"claims {count} numbers for the storage {key[:40]!r}, and holds "
                f"{members[name].size} bytes of them"
            )
        return members[name].start

    arrays, values = _walk(root, place)
    return Layout(path, "torch", arrays, values, lambda f: _checksums(f, used.values()))


def _members(file: int, size: int) -> dict[str, Member]:
    """The members of an archive whose every claim fits its size; raises Refused."""
    start, count, entries = _directory(file, size)
    raw = os.pread(file, count, start)
    found: dict[str, Member] = {}
    at = 0
    for _ in range(entries):
        if raw[at : at + 4] != b"PK\x01\x02" or at + 46 > len(raw):
            raise Refused("has a damaged directory", "copy the file again")
        method, *_ = struct.unpack("<H", raw[at + 10 : at + 12])
        bytes_, whole, names, extra, comment = struct.unpack(
            "<IIHHH", raw[at + 20 : at + 34]
        )
        (local,) = struct.unpack("<I", raw[at + 42 : at + 46])
        name = raw[at + 46 : at + 46 + names].decode("utf-8", "replace")
        more = raw[at + 46 + names : at + 46 + names + extra]
        bytes_, whole, local = _zip64(more, bytes_, whole, local)
        if method or bytes_ != whole:
            raise Refused("is an archive that is compressed, as torch.save's is not")
        header = os.pread(file, 30, local)
        if len(header) < 30 or header[:4] != ZIP:
            raise Refused("has a damaged directory", "copy the file again")
        lengths = struct.unpack("<HH", header[26:30])
        begin = local + 30 + sum(lengths)
        if name in found or begin + bytes_ > start:
            raise Refused("has a damaged directory", "copy the file again")
        checksums = [start + at + 16]
        if header[6] & 8:  # it follows the data
            if os.pread(file, 4, begin + bytes_) == _DESCRIPTOR:
                checksums.append(begin + bytes_ + 4)
        else:
            checksums.append(local + 14)
        found[name] = Member(begin, bytes_, tuple(checksums))
        at += 46 + names + extra + comment
    return found


def _directory(file: int, size: int) -> tuple[int, int, int]:
    """Start, bytes and entries of an archive's central directory."""
    tail_at = max(0, size - 2**16 - 98)
    tail = os.pread(file, size - tail_at, tail_at)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise Refused("ends before its archive does", "copy the file again")
    entries, count, start = struct.unpack("<HII", tail[end + 10 : end + 20])
    if end >= 20 and tail[end - 20 : end - 16] == b"PK\x06\x07":
        (at,) = struct.unpack("<Q", tail[end - 12 : end - 4])
        wide = os.pread(file, 56, at) if at < size else b""
        if wide[:4] != b"PK\x06\x06" or len(wide) < 56:
            raise Refused("has a damaged directory", "copy the file again")
        entries, count, start = struct.unpack("<QQQ", wide[32:56])
    if count > _MAX_PICKLE or start + count > size or entries > count // 46:
        raise Refused("has a damaged directory", "copy the file again")
    return start, count, entries


def _zip64(extra: bytes, size: int, whole: int, local: int) -> tuple[int, int, int]:
    """The sizes and offset that have 64 bits in an extra field, in its order."""
    at = 0
    while at + 4 <= len(extra):
        kind, count = struct.unpack("<HH", extra[at : at + 4])
        if kind == 1:
            numbers = [
                int.from_bytes(extra[i : i + 8], "little")
                for i in range(at + 4, at + 4 + count, 8)
            ]
            if whole == 0xFFFFFFFF and numbers:
                whole = numbers.pop(0)
            if size == 0xFFFFFFFF and numbers:
                size = numbers.pop(0)
            if local == 0xFFFFFFFF and numbers:
                local = numbers.pop(0)
        at += 4 + count
    return size, whole, local


def _checksums(file: int, members: Any) -> None:
    """Writes the CRC-32 of members whose bytes were replaced."""
    for member in set(members):
        crc, at, left = 0, member.start, member.size
        while left:
            data = os.pread(file, min(left, 2**22), at)
            crc, at, left = zlib.crc32(data, crc), at + len(data), left - len(data)
        for place in member.checksums:
            os.pwrite(file, crc.to_bytes(4, "little"), place)


def _legacy(path: Path, data: memoryview) -> Layout:
    if bytes(data[: len(LEGACY)]) != LEGACY:
        raise Refused("is not a file of torch.save", "name a file of weights")
    header, rest = pickles.nested_streams(data, 5, _budget(), pickles.CHECKPOINT)
    _, version, system, root, keys = header
    little = isinstance(system, dict) and system.get("little_endian")
    if version != pickles.LEGACY_VERSION or little is not True:
        raise Refused("is a file of torch.save of an unknown form")
    if not isinstance(keys, list):
        raise Refused("does not list its storages")
    claims: dict[str, tuple[str, int]] = {}

    def note(key: str, code: str, count: int) -> int:
        claims[key] = code, count
        return 0

    _walk(root, note)
    places: dict[str, int] = {}
    at = len(data) - len(rest)
    for key in keys:
        if not isinstance(key, str) or key not in claims or key in places:
            raise Refused("lists a storage that no tensor has")
        code, count = claims[key]
        stated = int.from_bytes(data[at : at + 8], "little")
        places[key] = at + 8
        at += 8 + count * ITEMSIZE[code]
        if stated != count or at > len(data):
            raise Refused(
                f"ends before its storage {key[:40]!r}", "copy the file again"
            )
    if at != len(data) or places.keys() != claims.keys():
        raise Refused("does not hold the storages that it lists", "copy the file again")
    arrays, values = _walk(root, lambda key, *_: places[key])
    return Layout(path, "torch-legacy", arrays, values)


def _budget() -> Budget:
    return Budget(pickles.CHECKPOINT_OPERATIONS, pickles.CHECKPOINT_OPERATIONS)


def _walk(root: Any, place: Place) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors and other leaves of nested dicts and lists, by dotted names."""
    arrays: dict[str, Array] = {}
    values: dict[str, Any] = {}
    sizes: dict[str, tuple[str, int]] = {}
    for name, leaf in _leaves(root, "", 0, set()):
        match leaf:
            case Node(pickles.PARAMETER, (tensor, *_)):
                leaf = tensor
        match leaf:
            case Node(pickles.TENSOR, (Node("", claim), first, shape, strides, *_)):
                key, code, count = _storage(name, claim)
                if sizes.setdefault(key, (code, count)) != (code, count):
                    raise Refused(f"gives the storage {key[:40]!r} two forms")
                if name in arrays:
                    raise Refused(f"holds two tensors {name[:60]!r}")
                arrays[name] = _array(name, claim, first, shape, strides, place)
            case int() | float() | str() | None:
                values[name] = leaf
    return arrays, values


def _leaves(
    node: Any, name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Any]]:
    match node:
        case Node(pickles.NAMESPACE, (), dict() as state):
            node = state
    items = node.items() if isinstance(node, dict) else None
    if isinstance(node, list | tuple):
        items = enumerate(node)
    if items is None:
        yield name, node
        return
    # A container within itself, or reached along many ways, would never end.
    if depth == _MAX_DEPTH or id(node) in seen:
        return
    seen.add(id(node))
    for key, member in items:
        yield from _leaves(
            member, f"{name}.{key}" if name else str(key), depth + 1, seen
        )


def _storage(name: str, claim: tuple[Any, ...]) -> tuple[str, str, int]:
    match claim:
        case ("storage", Global(kind), str(key), str(), int(count), *_) if count >= 0:
            if kind in pickles.FORMATS:
                return key, pickles.FORMATS[kind], count
    raise Refused(f"holds a tensor {name[:60]!r} whose storage has an unknown form")


def _array(
    name: str,
    claim: tuple[Any, ...],
    first: Any,
    shape: Any,
    strides: Any,
    place: Place,
) -> Array:
    key, code, count = _storage(name, claim)
    typed = type(first) is int and type(shape) is type(strides) is tuple
    # No stride may be 0, which would repeat numbers.
    if (
        typed
        and 0 <= first <= count
        and len(shape) == len(strides) <= _MAX_DIMS
        and all(type(n) is int and 0 <= n <= count for n in shape)
        and all(type(n) is int and 1 <= n <= max(count, 1) for n in strides)
    ):
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if not math.prod(shape) or max(first + last + 1, math.prod(shape)) <= count:
            order = zip(shape, strides, c_strides(shape), strict=True)
            ordered = first == 0 and all(n < 2 or step == c for n, step, c in order)
            where = place(key, code, count)
            return Array(shape, code, where, count, first, None if ordered else strides)
    raise Refused(
        f"gives the tensor {name[:60]!r} a shape or strides beyond its storage of {count} "
        "numbers"
    )
