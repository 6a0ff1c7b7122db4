"""Snapshots: the averaged weights of one profile at one time, in one file.

A snapshot is a safetensors file, readable with NumPy alone, here or on an object store
(gs://, s3://). Its header says which profile it holds, when, and of which run; checksums
cover the header and every chunk of the weights, so that a reader of any part can tell
whether that part is what was written.
"""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash
from etils import epath

from edm_jax import tree
from edm_jax.ema import container
from edm_jax.ema.container import ITEMSIZE, NO_DIGEST, Run, Table, runs
from edm_jax.ema.meta import (
    BY_CODE,
    DTYPES,
    SnapshotMeta,
    encode,
    formats,
    parse,
    refuse,
)
from edm_jax.files import Damaged, PathLike, kind_of

CHUNK = 2**20  # elements under one checksum

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk: its header, and its weights as one long row of elements."""

    path: epath.Path
    meta: SnapshotMeta
    table: Table
    runs: tuple[Run, ...]
    data_start: int  # bytes
    digests: tuple[str, ...]  # one for each CHUNK elements

    @property
    def name(self) -> str:
        return os.fspath(self.path)

    @property
    def local(self) -> bool:
        return container.is_local(self.path)

    @property
    def size(self) -> int:
        """Elements in all."""
        return sum(math.prod(shape) for shape in self.table.values())

    @property
    def dtype(self) -> np.dtype:
        """What elements are read as: the widest format of the file."""
        return _widest(self.runs, self.meta)

    @property
    def unit_roundoff(self) -> float:
        return self.meta.unit_roundoff

    @property
    def checksum(self) -> str:
        """Of the whole file: a checksum of the checksums."""
        return xxhash.xxh3_64_hexdigest("".join(self.digests).encode())

    def read(self, start: int, out: np.ndarray) -> None:
        """Fills `out` (elements,) from element `start` on; verifies nothing.

        Raises Damaged where the file ends before.
        """
        for run, part in _parts(self.runs, start, out):
            low = max(start, run.start)
            offset = run.offset + (low - run.start) * ITEMSIZE[run.code]
            dtype = BY_CODE[run.code]
            raw = part if part.dtype == dtype else np.empty(len(part), dtype)
            self._read_bytes(self.data_start + offset, as_bytes(raw))
            if raw is not part:
                part[:] = raw

    def _read_bytes(self, offset: int, out: memoryview) -> None:
        try:
            count = container.read_range(self.path, offset, out)
        except FileNotFoundError:
            reason = "was removed while it was being read: put it back."
            raise Damaged(self.path, reason) from None
        if count < out.nbytes:
            reason = "was cut short while it was being read: copy it again."
            raise Damaged(self.path, reason)

    def verify(self, chunk: int, digest: str) -> None:
        """Raises Damaged where a chunk read has another checksum than the one written."""
        if digest != self.digests[chunk]:
            raise Damaged(
                self.path,
                f"is damaged: elements {chunk * CHUNK} to {(chunk + 1) * CHUNK} do not "
                "match their checksum; copy it again or move it away.",
            )


class Writer:
    """A snapshot being written in chunks, in any order; it appears whole or not at all.

    resume continues the partial file of a writer of the same meta and table. Raises
    ValueError where something that is not a file has the partial file's name.
    """

    def __init__(
        self,
        path: epath.Path,
        table: Table,
        meta: SnapshotMeta,
        resume: bool = False,
        exact: Container[str] = (),
    ):
        self.path, self._table, self.meta = path, table, meta
        self._formats = formats(table, meta, exact)
        self._runs = runs(table, self._formats)
        self.dtype = _widest(self._runs, meta)
        size = sum(math.prod(shape) for shape in table.values())
        self._digests = [NO_DIGEST] * -(-size // CHUNK)
        header = encode(table, self._formats, meta, self._digests, CHUNK)
        self._data_start = len(header)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = container.partial_path(path)
        data = sum((run.stop - run.start) * ITEMSIZE[run.code] for run in self._runs)
        total = len(header) + data
        whole = resume and os.path.exists(self._partial)
        whole = whole and os.path.getsize(self._partial) == total
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666)
        if kind := kind_of(self._file):
            os.close(self._file)
            raise ValueError(
                f"{self._partial} is {kind}, not a file: remove it, then run the same "
                "command again."
            )
        if not whole:
            os.truncate(self._file, 0)
            os.truncate(self._file, total)
        self.resumed = whole

    def write(self, start: int, values: np.ndarray) -> None:
        """Puts values (elements,) of the writer's dtype at element `start`."""
        for run, part in _parts(self._runs, start, values):
            low = max(start, run.start) - run.start
            offset = self._data_start + run.offset + low * ITEMSIZE[run.code]
            left = as_bytes(np.ascontiguousarray(part, BY_CODE[run.code]))
            while left:
                count = os.pwrite(self._file, left, offset)
                left, offset = left[count:], offset + count

    def seal(self, chunk: int, digest: str) -> None:
        """Notes the checksum of a chunk that is written."""
        self._digests[chunk] = digest

    def sync(self) -> None:
        """Puts what is written so far on the disk."""
        os.fsync(self._file)

    def finish(self) -> epath.Path:
        """Writes the checksums, and moves the file to its name."""
        header = encode(self._table, self._formats, self.meta, self._digests, CHUNK)
        os.pwrite(self._file, header, 0)
        os.fsync(self._file)
        os.close(self._file)
        container.publish(self._partial, self.path)
        return self.path

    def close(self) -> None:
        """Leaves the partial file for a writer that resumes."""
        os.close(self._file)

    def discard(self) -> None:
        """Leaves nothing behind."""
        os.close(self._file)
        os.unlink(self._partial)


def write(
    directory: PathLike,
    params: Params,
    meta: SnapshotMeta,
    fetch: Callable[[Any], Any] = np.asarray,
    writing: bool = True,
    exact: Container[str] = (),
) -> epath.Path:
    """Stores a nested dict of arrays as meta.filename in directory; returns the path.

    The file appears whole or not at all. Leaves are taken one after the other, by
    name, each through `fetch`: where arrays are spread over several processes that is a
    collective operation, and all call this, one of them with `writing`. Those named in
    `exact`, such as 'outer/inner', are stored as float32 whatever meta.dtype is. Raises
    ValueError for a name that holds '/' and for a weight too large for meta.dtype.
    """
    flat = flatten(params)
    table = {name: tuple(flat[name].shape) for name in sorted(flat)}
    path = epath.Path(directory) / meta.filename
    writer = Writer(path, table, meta, exact=exact) if writing else None
    try:
        position, hasher = 0, xxhash.xxh3_64()
        for name in table:
            values = np.asarray(fetch(flat[name])).ravel()
            if writer is None:
                continue
            stored = cast(name, values, "float32" if name in exact else meta.dtype)
            values = stored.astype(writer.dtype, copy=False)
            while len(values):
                room = CHUNK - position % CHUNK
                part, values = values[:room], values[room:]
                writer.write(position, part)
                hasher.update(as_bytes(part))
                position += len(part)
                if position % CHUNK == 0:
                    writer.seal(position // CHUNK - 1, hasher.hexdigest())
                    hasher.reset()
        if writer is not None and position % CHUNK:
            writer.seal(position // CHUNK, hasher.hexdigest())
    except BaseException:
        if writer is not None:
            writer.discard()
        raise
    return path if writer is None else writer.finish()


def as_bytes(row: np.ndarray) -> memoryview:
    """The bytes of a contiguous row of any format, not copied."""
    return row.view(np.uint8).data  # no buffer knows bfloat16


def cast(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    """Values in a storage format; raises ValueError for what are no real numbers, and
    where one becomes infinite."""
    if np.asarray(values).dtype.kind in "OSUmMc":
        raise ValueError(
            f"{name} holds {values.dtype}, not real numbers: store the weights alone."
        )
    with np.errstate(over="ignore"):
        stored = np.asarray(values, DTYPES[dtype], order="C")
    narrower = stored.dtype.itemsize < np.asarray(values).dtype.itemsize
    if narrower and np.any(np.isinf(stored) & np.isfinite(values)):
        raise ValueError(
            f"{name} holds weights too large for {dtype}: store a wider format."
        )
    return stored


def read(path: PathLike) -> tuple[Params, SnapshotMeta]:
    """The weights of a snapshot, float32 in a nested dict, and its header.

    Raises Damaged, a ValueError, for a file that is damaged or not a snapshot, and
    FileNotFoundError where there is no file.
    """
    snapshot = open_snapshot(path)
    raw = np.empty(snapshot.size, snapshot.dtype)
    for chunk in range(len(snapshot.digests)):
        part = raw[chunk * CHUNK : (chunk + 1) * CHUNK]
        snapshot.read(chunk * CHUNK, part)
        snapshot.verify(chunk, xxhash.xxh3_64_hexdigest(as_bytes(part)))
    return split(raw.astype(np.float32), snapshot.table), snapshot.meta


def split(row: np.ndarray, table: Table) -> Params:
    """One long row of elements -> nested dict of arrays, views of it."""
    flat, start = {}, 0
    for name, shape in table.items():
        stop = start + math.prod(shape)
        flat[name], start = row[start:stop].reshape(shape), stop
    return tree.unflatten(flat)


class Listing(NamedTuple):
    """The snapshots of a directory, by nimg and then by name, and the files that are
    none."""

    snapshots: list[Snapshot]
    damaged: list[Damaged]


def scan(directory: PathLike) -> Listing:
    """Reads the header of every .safetensors file of a directory.

    Raises FileNotFoundError where there is no such directory.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no directory of snapshots at {directory}.")

    def attempt(path: epath.Path) -> Snapshot | Damaged:
        try:
            return open_snapshot(path)
        except Damaged as error:
            return error
        except OSError as error:  # a dangling link, an object store's fault
            return Damaged(path, f"cannot be read ({error.strerror or error}).")

    # Not glob: in epath the directory's own name would be part of the pattern.
    paths = sorted(
        path
        for path in directory.iterdir()
        if path.name.endswith(".safetensors") and path.name[0] != "."
    )
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(attempt, paths))
    good = [each for each in found if isinstance(each, Snapshot)]
    good.sort(key=lambda snapshot: (snapshot.meta.nimg, snapshot.path.name))
    return Listing(good, [each for each in found if isinstance(each, Damaged)])


def list_snapshots(directory: PathLike) -> list[Snapshot]:
    """The snapshots that `scan` finds; raises Damaged for the first file that is none."""
    found, damaged = scan(directory)
    if damaged:
        raise damaged[0]
    return found


def open_snapshot(path: PathLike) -> Snapshot:
    """The header of a snapshot; its weights stay where they are. Raises as read does."""
    path = epath.Path(path)
    header = container.read_header(path, refuse)
    meta, digests, chunk = parse(path, header)
    parts = runs(header.table, header.formats)
    size = parts[-1].stop if parts else 0
    if chunk != CHUNK or len(digests) != -(-size // CHUNK):
        reason = "has checksums for chunks of another size: copy it again."
        raise Damaged(path, reason)
    return Snapshot(path, meta, header.table, parts, header.data_start, digests)


def _widest(parts: Sequence[Run], meta: SnapshotMeta) -> np.dtype:
    dtypes = [BY_CODE[run.code] for run in parts] or [DTYPES[meta.dtype]]
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def _parts(
    parts: Sequence[Run], start: int, row: np.ndarray
) -> Iterator[tuple[Run, np.ndarray]]:
    """The runs that elements `start` on, (elements,), belong to, each with its own."""
    for run in parts:
        low, high = max(start, run.start), min(start + len(row), run.stop)
        if low < high:
            yield run, row[low - start : high - start]


def flatten(params: Params) -> dict[str, Any]:
    """Nested dict of arrays -> {'outer/inner': array}.

    Raises ValueError for a name that is empty, holds '/' or is '__metadata__'.
    """
    if "__metadata__" in params:
        raise ValueError("No weights can be stored under the name '__metadata__'.")
    flat = {}
    for name, leaf in tree.flatten(params, "\0").items():
        if "/" in name or not all(name.split("\0")):
            raise ValueError(f"{name!r}: a name must not be empty or hold '/'.")
        array = leaf if hasattr(leaf, "shape") else np.array(leaf)
        flat[name.replace("\0", "/")] = array
    return flat
