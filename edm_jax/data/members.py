"""The files of a folder or of an uncompressed ZIP, indexed by arrays and read in place."""

import os
import struct
import weakref
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from edm_jax import files
from edm_jax.data import listing

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Members(Protocol):
    """Files by number, in the order of their names."""

    path: str
    names: np.ndarray  # (N,) bytes of one width, relative to `path`, '/' between parts
    ignored: int  # files that are of another kind

    def place(self, number: int) -> str:
        """Where a file is, for messages."""
        ...

    def read(self, number: int) -> bytes:
        """A file's bytes; raises ValueError where it is damaged."""
        ...

    def extra(self, name: str) -> bytes | None:
        """The bytes of a file that is not among the names, if there is one."""
        ...

    def fingerprint(self) -> str:
        """What tells one collection from another."""
        ...


def open_members(path: str, suffixes: Collection[str]) -> Members:
    """The files with those suffixes in a folder or in a ZIP.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        files.Damaged: it is neither, or the ZIP is compressed, cut or damaged.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"There are no data at {path}: check data.name.")
    found = Folder(path, suffixes) if os.path.isdir(path) else Zip(path, suffixes)
    if not len(found.names):
        listed = ", ".join(suffixes)
        raise files.Damaged(path, f"holds no files that end with {listed}.")
    return found


class Folder:
    """The files below a folder. Hidden ones are passed over, links are followed."""

    def __init__(self, path: str, suffixes: Collection[str]):
        self.path, self.ignored = path, 0
        endings = tuple(os.fsencode(suffix) for suffix in suffixes)
        found = []
        for name, size in _walk(os.fsencode(path), b"", ()):
            if name.lower().endswith(endings):
                found.append((name, size))
            else:
                self.ignored += 1
        found.sort()
        self.names = np.array([name for name, _ in found], dtype="S")
        self._sizes = np.array([size for _, size in found], dtype=np.int64)

    def place(self, number: int) -> str:
        return os.path.join(self.path, os.fsdecode(bytes(self.names[number])))

    def read(self, number: int) -> bytes:
        try:
            return files.read_bytes(self.place(number))
        except FileNotFoundError:
            raise files.Damaged(self.place(number), "is no longer there.") from None

    def extra(self, name: str) -> bytes | None:
        path = Path(self.path, name)
        return files.read_bytes(path) if path.exists() else None

    def fingerprint(self) -> str:
        """Of names and sizes, which every copy shares."""
        digest = xxhash.xxh3_128(self.names.tobytes())
        digest.update(self._sizes.tobytes())
        return digest.hexdigest()


def _walk(
    root: bytes, inside: bytes, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[bytes, int]]:
    """(name, size) of the files below `root`, in any order."""
    folders = []
    with os.scandir(os.path.join(root, inside)) as entries:
        for entry in entries:
            if entry.name.startswith((b".", b"__MACOSX")):
                continue
            name = os.path.join(inside, entry.name)
            try:
                status = entry.stat()
            except FileNotFoundError:  # a link to nothing, reported when it is read
                yield name, 0
                continue
            if entry.is_dir():
                folders.append((name, (status.st_dev, status.st_ino)))
            else:
                yield name, status.st_size
    for name, identity in folders:
        if identity not in above:  # a link to a folder that it lies in
            yield from _walk(root, name, (*above, identity))


# Of an entry of the central directory (PKWARE's APPNOTE, 4.3.12), without its name.
_ENTRY = np.dtype(
    {
        "names": [
            "flags", "method", "crc", "packed", "size", "name", "extra", "comment",
            "offset",
        ],
        "formats": ["<u2", "<u2", "<u4", "<u4", "<u4", "<u2", "<u2", "<u2", "<u4"],
        "offsets": [8, 10, 16, 20, 24, 28, 30, 32, 42],
        "itemsize": 46,
    }
)  # fmt: skip
_FULL = 0xFFFFFFFF  # the number stands in the ZIP64 field
_LOCAL = 30  # bytes of a local header, without name and extra field


class Zip:
    """The members of a ZIP archive that are stored as they are."""

    def __init__(self, path: str, suffixes: Collection[str]):
        self.path = path
        with files.open_regular(path) as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        directory = _central_directory(self._file, path)
        starts, entries = _entries(directory, path)
        ends = starts + 46 + entries["name"]
        text = np.frombuffer(directory, np.uint8)
        width = max(int(entries["name"].max(initial=0)), 1)
        letters = listing.cut(text, starts + 46, ends, width)
        names = letters.view(f"S{width}").reshape(-1)
        # NumPy cuts zeros off the ends of names, and so does no one else.
        wanted = np.count_nonzero(letters, axis=1) == entries["name"]
        wanted &= _end_with(text, starts + 46, ends, suffixes)
        wanted &= ~_are_hidden(letters, names)
        folders = _end_with(text, starts + 46, ends, ["/"])
        self.ignored = int((~wanted & ~folders).sum())
        offset, size = _zip64(directory, starts, entries)
        self._extra = {
            bytes(names[i]): (int(offset[i]), int(size[i]), int(entries["crc"][i]))
            for i in np.flatnonzero(~wanted & (entries["method"] == 0))[:1000]
        }
        chosen = np.flatnonzero(wanted)
        for bad in chosen[entries["method"][chosen] != 0][:1]:
            raise files.Damaged(
                path,
                f"is compressed (member {bytes(names[bad]).decode(errors='replace')}), and its "
                "members cannot be read in place: unpack it, and give the folder, or "
                "pack it again with `zip -0 -r`.",
            )
        for bad in chosen[(entries["flags"][chosen] & 1) != 0][:1]:
            name = bytes(names[bad]).decode(errors="replace")
            raise files.Damaged(path, f"is encrypted (member {name}).")
        self.names = names[chosen]
        order = np.argsort(self.names, kind="stable")
        self.names, chosen = self.names[order], chosen[order]
        for twice in np.flatnonzero(self.names[1:] == self.names[:-1])[:1]:
            name = bytes(self.names[twice]).decode(errors="replace")
            raise files.Damaged(path, f"holds {name} twice.")
        self._offset, self._size = offset[chosen], size[chosen]
        self._crc = entries["crc"][chosen].copy()

    def place(self, number: int) -> str:
        return f"{self.path}: {bytes(self.names[number]).decode(errors='replace')}"

    def read(self, number: int) -> bytes:
        at = int(self._offset[number]), int(self._size[number])
        return self._member(*at, int(self._crc[number]))

    def extra(self, name: str) -> bytes | None:
        found = self._extra.get(name.encode())
        return found and self._member(*found)

    def fingerprint(self) -> str:
        """Of the members' names and checksums."""
        digest = xxhash.xxh3_128(self.names.tobytes())
        digest.update(self._crc.tobytes())
        return digest.hexdigest()

    def _member(self, offset: int, size: int, crc: int) -> bytes:
        slack = 512
        raw = os.pread(self._file, _LOCAL + slack + size, offset)
        if len(raw) < _LOCAL or raw[:4] != b"PK\3\4":
            raise ValueError("is cut or damaged: its header is not where it should be.")
        start = _LOCAL + sum(struct.unpack_from("<HH", raw, 26))
        if start > _LOCAL + slack:
            raw, start = os.pread(self._file, size, offset + start), 0
        data = raw[start : start + size]
        if len(data) < size or zlib.crc32(data) != crc:
            raise ValueError("is cut or damaged: its checksum is another.")
        return data


def _end_with(
    text: np.ndarray, starts: np.ndarray, ends: np.ndarray, suffixes: Collection[str]
) -> np.ndarray:
    """Which pieces (N,) of a text end with one of the suffixes, in lower case."""
    longest = max(map(len, suffixes))
    last = listing.cut(text, np.maximum(ends - longest, 0), ends, longest)
    last += np.uint8(32) * ((last >= ord("A")) & (last <= ord("Z")))
    found = np.zeros(len(starts), bool)
    for suffix in map(os.fsencode, suffixes):
        same = (last[:, longest - len(suffix) :] == list(suffix)).all(axis=1)
        found |= same & (ends - starts >= len(suffix))
    return found


def _are_hidden(letters: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Which names (N,) are of hidden files, or of what macOS adds to archives."""
    begins = np.ones(letters.shape, bool)
    begins[:, 1:] = letters[:, :-1] == ord("/")
    maybe = (begins & ((letters == ord(".")) | (letters == ord("_")))).any(axis=1)
    found = np.zeros(len(names), bool)
    for i in np.flatnonzero(maybe).tolist():
        name = bytes(names[i]).rpartition(b"/")[2]
        found[i] = name.startswith((b".", b"__MACOSX"))
    return found


def _central_directory(descriptor: int, path: str) -> bytes:
    length = os.fstat(descriptor).st_size
    tail_at = max(0, length - 22 - 65535 - 20)
    tail = os.pread(descriptor, length - tail_at, tail_at)
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise files.Damaged(
            path, "is no folder and no ZIP archive, or one that is cut: it has no end."
        )
    size, offset = struct.unpack_from("<II", tail, end + 12)
    if end >= 20 and tail[end - 20 : end - 16] == b"PK\6\7":
        (record_at,) = struct.unpack_from("<Q", tail, end - 12)
        record = os.pread(descriptor, 56, record_at)
        if len(record) < 56 or record[:4] != b"PK\6\6":
            raise files.Damaged(path, "is damaged: its ZIP64 end is not there.")
        size, offset = struct.unpack_from("<QQ", record, 40)
    directory = os.pread(descriptor, size, offset) if offset + size <= length else b""
    if len(directory) != size or (size and directory[:4] != b"PK\1\2"):
        raise files.Damaged(path, "is cut or damaged: its directory is not there.")
    return directory


def _entries(directory: bytes, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Where entries begin (N,), and their fields (N,) of type _ENTRY."""
    raw = np.frombuffer(directory, np.uint8)
    # All places that may be an entry's beginning; those that a chain from the first
    # one to the end meets are.
    starts = (
        np.flatnonzero(raw[:-45] == ord("P")) if len(raw) > 45 else np.zeros(0, int)
    )
    for place, byte in enumerate(b"K\1\2", 1):
        starts = starts[raw[starts + place] == byte]
    windows = (
        np.lib.stride_tricks.sliding_window_view(raw, 46) if len(raw) > 45 else raw
    )
    entries = np.ascontiguousarray(windows[starts]).view(_ENTRY).reshape(-1)
    lengths = 46 + entries["name"].astype(np.int64) + entries["extra"]
    ends = starts + lengths + entries["comment"]
    if not np.array_equal(ends[:-1], starts[1:]):  # a name or comment holds a signature
        place, kept, index = 0, [], {int(s): i for i, s in enumerate(starts)}
        while place in index:
            kept.append(index[place])
            place = int(ends[index[place]])
        starts, entries, ends = starts[kept], entries[kept], ends[kept]
    if (ends[-1] if len(ends) else 0) != len(raw):
        raise files.Damaged(path, "is damaged: its directory does not hold together.")
    return starts, entries


def _zip64(
    directory: bytes, starts: np.ndarray, entries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and sizes (N,) int64, from the ZIP64 fields where those hold them."""
    offset, size = entries["offset"].astype(np.int64), entries["size"].astype(np.int64)
    large = (entries["offset"] == _FULL) | (entries["size"] == _FULL)
    for i in np.flatnonzero(large):
        place = int(starts[i]) + 46 + int(entries["name"][i])
        end = place + int(entries["extra"][i])
        while place + 4 <= end:
            kind, length = struct.unpack_from("<HH", directory, place)
            place += 4
            if kind == 1:
                values = iter(struct.unpack_from(f"<{length // 8}Q", directory, place))
                if entries["size"][i] == _FULL:
                    size[i] = next(values, 0)
                if entries["packed"][i] == _FULL:
                    next(values, 0)
                if entries["offset"][i] == _FULL:
                    offset[i] = next(values, 0)
            place += length
    return offset, size
