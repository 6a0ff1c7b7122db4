"""Ways to damage a file: each takes its place, so that links to the file are spared."""

import io
import json
import os
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

DEEP = 100_000
HERE = "@here@"  # stands in a JSON value for a text that is put there
# Texts of JSON values where others are due.
VALUES = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "negative": "-1",
    "fraction": "0.5",
    "big": "1" + "0" * 30,
    "beyond_float": "1" + "0" * 400,
    "infinity": "1e999",
    "nan": "NaN",
    "text": '"text"',
    "empty_text": '""',
    "control": '"\\u001b[2J\\u0007"',
    "half_character": '"\\ud800"',
    "list": "[]",
    "list_of_lists": "[[]]",
    "object": "{}",
    "object_of_list": '{"a": [1]}',
    "deep": "[" * 900 + "]" * 900,
}


class Damage(NamedTuple):
    """A way to damage a file: other bytes, or what `make` puts in its place.

    `plain`: whoever reads the file must notice.
    """

    name: str
    data: bytes = b""
    plain: bool = False
    make: Callable[[Path], Any] | None = None

    def apply(self, path: Path) -> None:
        """Damages a file, not by writing to it: other names of it keep their bytes."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():
            path.unlink()
        if self.make:
            self.make(path)
        else:
            path.write_bytes(self.data)


def every(path: Path, form: str) -> Iterator[Damage]:
    """All ways to damage a file of a form.

    form: json, jsonl, png, safetensors, zip, npz, code, rows, text, bytes or, of a
    directory, place.
    """
    if form == "place":
        yield from _places()
        return
    yield from _special()
    data = path.read_bytes()
    # Without a newline, bytes are the beginning of a line that is being written.
    yield from (d._replace(plain=d.plain and form != "jsonl") for d in _bytes(data))
    if form in ("json", "jsonl", "text"):
        yield from _texts(data)
    if form == "json":
        yield from _tops()
        yield from _fields(json.loads(data))
    if form == "jsonl":
        yield from _lines(data)
    if form == "png":
        yield from _images()
    if form in ("zip", "npz"):
        yield from _archives(data)
    if form == "npz":
        yield from _arrays(data)
    if form == "code":
        yield from _texts(data)
        yield from _codes()
    if form == "rows":
        yield from _texts(data)
        yield from _rows()
    if form == "safetensors":
        yield from _headers(data)


def _special() -> Iterator[Damage]:
    """Anything but a regular file."""

    def bind(path: Path) -> None:
        # Relative to its directory: an address has at most 108 characters.
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(here)

    def sparse(path: Path) -> None:
        path.touch()
        os.truncate(path, 3 << 30)

    makers: dict[str, Callable[[Path], Any]] = {
        "fifo": os.mkfifo,
        "directory": os.mkdir,
        "symlink_loop": lambda path: path.symlink_to(path.name),
        "socket": bind,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "sparse_3GB": sparse,
    }
    for name, make in makers.items():
        yield Damage(name, plain=True, make=make)
    yield Damage("dangling", make=lambda path: path.symlink_to("nowhere"))
    yield Damage("missing", make=lambda path: None)


def _bytes(data: bytes) -> Iterator[Damage]:
    yield Damage("emptied", b"", True)
    yield Damage("zeroed", bytes(len(data)), True)
    yield Damage("cut_to_half", data[: len(data) // 2])
    yield Damage("cut_by_a_byte", data[:-1])
    yield Damage("noise", bytes(i * i % 251 for i in range(1000)), True)
    for part in range(8):
        place = (len(data) - 1) * part // 7
        flipped = bytearray(data)
        flipped[place] ^= 1 << part
        yield Damage(f"flipped_{part}", bytes(flipped))


def _texts(data: bytes) -> Iterator[Damage]:
    middle = len(data) // 2
    for name, inserted in (
        ("invalid_utf8", b"\xff\xfe\xc0"),
        ("control_characters", b"\x1b[2J\x07\x00"),
        ("nested", b"[" * DEEP),
    ):
        yield Damage(name, data[:middle] + inserted + data[middle:])
    yield Damage("utf16", data.decode().encode("utf-16"), True)


def _tops() -> Iterator[Damage]:
    """Another JSON value than an object."""
    for name, text in VALUES.items():
        if not name.startswith("object"):
            yield Damage(f"top_{name}", text.encode(), True)
    yield Damage("top_nested_lists", b"[" * DEEP, True)
    yield Damage("top_nested_objects", b'{"a":' * DEEP, True)
    yield Damage("top_closed_lists", b"[" * DEEP + b"]" * DEEP, True)


def _fields(value: Any) -> Iterator[Damage]:
    """Every field, replaced by values of every type; and left out."""
    for keys in _paths(value):
        name = ".".join(map(str, keys))
        for kind, text in VALUES.items():
            data = json.dumps(_with(value, keys, HERE)).replace(f'"{HERE}"', text)
            yield Damage(f"{name}={kind}", data.encode())
        yield Damage(f"{name} left out", json.dumps(_without(value, keys)).encode())


def _paths(value: Any, before: tuple = ()) -> Iterator[tuple]:
    """The keys to every field; of a list's, and of objects alike, the first alone."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:1])
    seen = set()
    for key, each in items:
        if isinstance(each, dict) and each:
            if (kind := tuple(each)) in seen:
                continue
            seen.add(kind)
        yield (*before, key)
        yield from _paths(each, (*before, key))


def _with(value: Any, keys: tuple, new: Any) -> Any:
    if not keys:
        return new
    copy = value.copy()
    copy[keys[0]] = _with(value[keys[0]], keys[1:], new)
    return copy


def _without(value: Any, keys: tuple) -> Any:
    copy = value.copy()
    if len(keys) == 1:
        del copy[keys[0]]
    else:
        copy[keys[0]] = _without(value[keys[0]], keys[1:])
    return copy


def _lines(data: bytes) -> Iterator[Damage]:
    """One inner line of each kind of records."""
    lines = data.splitlines()
    seen = set()

    def changed(place: int, line: bytes) -> bytes:
        return b"\n".join([*lines[:place], line, *lines[place + 1 :], b""])

    for place, line in enumerate(lines):
        record = json.loads(line)
        kind = record["kind"]
        if kind in seen or place == len(lines) - 1:
            continue
        seen.add(kind)
        yield Damage(f"{kind} line cut", changed(place, line[: len(line) // 2]), True)
        yield Damage(f"{kind} line empty", changed(place, b""))
        for damage in (*_tops(), *_fields(record)):
            name = f"{kind} line {damage.name}"
            yield Damage(name, changed(place, damage.data), damage.plain)


def _images() -> Iterator[Damage]:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    def png(width: int, height: int, *chunks: bytes, data: bytes = b"") -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(data or bytes(height * (width + 1))))
        return (
            b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + chunk(b"IEND", b"")
        )

    bomb = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(100_000_000)))
    yield Damage("claims_hundreds_of_megapixels", png(20_000, 30_000, data=b"1"), True)
    yield Damage("claims_the_most", png(2**31 - 1, 2**31 - 1, data=b"1"), True)
    yield Damage("no_pixels", png(0, 0, data=b"1"), True)
    yield Damage("text_bomb", png(8, 8, bomb))
    yield Damage("other_format", b"GIF89a" + bytes(100), True)
    yield Damage("one_pixel_wide", png(1, 20_000))


def _headers(data: bytes) -> Iterator[Damage]:
    """Of a safetensors file, its header, with a checksum that is right."""
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    for name, count in (("none", 0), ("file", len(data)), ("most", 2**64 - 1)):
        made = count.to_bytes(8, "little") + data[8:]
        yield Damage(f"header of {name}", made, True)
    yield Damage("more data", data + bytes(8), True)
    yield Damage("data cut", data[:-8], True)
    yield Damage("no data", data[: 8 + size], True)
    flipped = bytearray(data)
    flipped[-3] ^= 16
    yield Damage("data flipped", bytes(flipped))
    for damage in (*_tops(), *_fields(header)):
        made = with_header(damage.data, rest)
        yield Damage(f"header {damage.name}", made, damage.plain)
    # Values that are JSON texts in texts.
    for word, text in header["__metadata__"].items():
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        inner = _fields(value) if isinstance(value, dict | list) else ()
        for damage in (*_tops(), *inner):
            words = header["__metadata__"] | {word: damage.data.decode()}
            made = json.dumps(header | {"__metadata__": words}).encode()
            yield Damage(f"{word} {damage.name}", with_header(made, rest))


def with_header(text: bytes, rest: bytes) -> bytes:
    """A safetensors file; the header's checksum is made right where it stands."""
    text = text.replace(b'": "', b'":"')
    field, blank = b'"header_checksum":"', b"0" * 16
    place = text.find(field) + len(field)
    if place >= len(field):
        text = text[:place] + blank + text[place + 16 :]
        sum_ = xxhash.xxh3_64_hexdigest(text).encode()
        text = text[:place] + sum_ + text[place + 16 :]
    return len(text).to_bytes(8, "little") + text + rest


def _archives(data: bytes) -> Iterator[Damage]:
    """Of a ZIP, what its members are and hold."""

    def packed(
        change: Callable[[int, str, bytes], tuple[str, bytes]], **options
    ) -> bytes:
        made = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(data)) as old,
            zipfile.ZipFile(made, "w", **options) as new,
        ):
            for i, name in enumerate(old.namelist()):
                new.writestr(*change(i, name, old.read(name)))
        return made.getvalue()

    def last(change: Callable[[str, bytes], tuple[str, bytes]]) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            end = len(old.namelist()) - 1
        return packed(lambda i, n, raw: change(n, raw) if i == end else (n, raw))

    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    yield Damage("no members", empty.getvalue(), True)
    same = packed(lambda i, n, raw: (n, raw), compression=zipfile.ZIP_DEFLATED)
    yield Damage("compressed", same)
    for name, make in (
        ("emptied", lambda n, raw: (n, b"")),
        ("cut", lambda n, raw: (n, raw[: len(raw) // 2])),
        ("zeroed", lambda n, raw: (n, bytes(len(raw)))),
        ("nested", lambda n, raw: (n, b"[" * DEEP)),
        ("named ../x", lambda n, raw: (f"../{n}", raw)),
        ("named with control characters", lambda n, raw: (f"\x1b[2J{n}", raw)),
    ):
        yield Damage(f"last member {name}", last(make))
        if name in ("emptied", "cut", "zeroed"):
            every_one = packed(lambda i, n, raw, make=make: make(n, raw))
            yield Damage(f"members {name}", every_one, True)


def _arrays(data: bytes) -> Iterator[Damage]:
    """Of an .npz, arrays of other types and shapes."""
    with np.load(io.BytesIO(data)) as archive:
        held = dict(archive)

    def saved(arrays: dict[str, np.ndarray]) -> bytes:
        made = io.BytesIO()
        np.savez(made, **arrays)
        return made.getvalue()

    for name, array in held.items():
        rest = {key: value for key, value in held.items() if key != name}
        yield Damage(f"{name} left out", saved(rest))
        for kind, other in (
            ("objects", np.array([{}, None], object)),
            ("texts", array.astype(str)),
            ("a number", np.float64(1)),
            ("no rows", array[:0]),
            ("one row", array[:1]),
            ("nan", np.full(array.shape, np.nan)),
            ("infinite", np.full(array.shape, np.inf)),
            ("complex", array * 1j),
            ("negative", -array.astype(np.int64) - 1),
            ("huge", array.astype(np.float64) + 1e300),
        ):
            yield Damage(f"{name} is {kind}", saved(rest | {name: other}))


CODE = {
    "syntax": b"def get_config(:",
    "nothing": b"\n",
    "raises": b"raise RuntimeError('own\\nwords')",
    "exits": b"raise SystemExit(0)",
    "asserts": b"assert False",
    "imports": b"import no_such_module",
    "recurses": b"def f(): f()\nf()",
    "no_function": b"get_config = runs = late = 3",
    "returns_nothing": b"get_config = runs = late = lambda *_: None",
    "returns_list": b"get_config = runs = late = lambda *_: [1, 'a']",
    "returns_text": b"get_config = runs = late = lambda *_: 'text'",
    "returns_dict": b"get_config = runs = late = lambda *_: {}",
    "without_arguments": b"def get_config(): pass\nruns = late = get_config",
    "exits_later": b"def get_config(*_): raise SystemExit(0)\nruns = late = get_config",
    "fails_later": b"def get_config(*_): return 1 / 0\nruns = late = get_config",
}


def _codes() -> Iterator[Damage]:
    """Of a file of Python that a user wrote."""
    for name, data in CODE.items():
        yield Damage(name, data, plain=True)


ROWS = {
    "words": b"a,b\n",
    "nan": b"0,nan\n640,1\n",
    "infinite": b"0,1\ninf,1\n",
    "negative": b"0,-1\n640,1\n",
    "one_column": b"0\n640\n",
    "three_columns": b"0,1,2\n640,1,2\n",
    "one_row": b"640,1\n",
    "backwards": b"640,1\n0,0\n",
    "twice": b"0,1\n0,1\n640,1\n",
    "huge": b"0,1e308\n640,1e308\n1e300,1\n",
    "all_zero": b"0,0\n640,0\n",
    "long_field": b"0," + b"1" * 200_000 + b"\n640,1\n",
}


def _rows() -> Iterator[Damage]:
    """Of a table of weights."""
    for name, data in ROWS.items():
        yield Damage(name, data, plain=True)


def _places() -> Iterator[Damage]:
    """Of a directory that is made where there is none: what else may stand there."""
    yield Damage("file", b"text", plain=True)
    for damage in _special():
        if damage.name not in ("directory", "sparse_3GB", "missing"):
            yield damage
