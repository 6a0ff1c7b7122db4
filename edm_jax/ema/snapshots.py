"""Snapshots: the averaged weights of one profile at one time, in one file.

A snapshot is a safetensors file, readable with NumPy alone, locally or on an object store
(gs://, s3://). Its header gives the profile, the time and the run; checksums cover the
header and every chunk of the weights, so that any part can be verified by itself.
"""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

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
from edm_jax.ema.optional import epath, xxhash
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
        """The dtype in which elements are read: the widest format in the file."""
        return _widest(self.runs, self.meta)

    @property
    def unit_roundoff(self) -> float:
        return self.meta.unit_roundoff

    @property
    def checksum(self) -> str:
        """The checksum of the whole file: a checksum of the checksums."""
        return xxhash.xxh3_64_hexdigest("".join(self.digests).encode())

    def read(self, start: int, out: np.ndarray) -> None:
        """Fills `out` (elements,) from element `start` on; verifies nothing.

        Raises:
            Damaged: the file is too short.
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
            reason = "was removed while it was being read: restore it."
            raise Damaged(self.path, reason) from None
        if count < out.nbytes:
            reason = "was cut short while it was being read: copy it again."
            raise Damaged(self.path, reason)

    def verify(self, chunk: int, digest: str) -> None:
        """Raises Damaged if a chunk that was read does not match its checksum."""
        if digest != self.digests[chunk]:
            raise Damaged(
                self.path,
                f"is damaged: elements {chunk * CHUNK} to {(chunk + 1) * CHUNK} do not "
                "match their checksum; copy it again or move it away.",
            )


class Writer:
    """Writes a snapshot in chunks, in any order; it appears whole or not at all.

    Args:
        path: the file.
        table: names and shapes of the arrays.
        meta: its metadata.
        resume: continue the partial file of a writer with the same meta and table.
        exact: names of arrays to store as float32 whatever meta.dtype is.

    Raises:
        ValueError: the partial file's name is taken by something that is not a file.
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
        """Records the checksum of a chunk that is written."""
        self._digests[chunk] = digest

    def sync(self) -> None:
        """Flushes what is written so far to the disk."""
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
        """Keeps the partial file, for a writer that resumes."""
        os.close(self._file)

    def discard(self) -> None:
        """Removes the partial file."""
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

    The file appears whole or not at all. Leaves are fetched one at a time, by name.

    Args:
        directory: where to write.
        params: the arrays.
        meta: the metadata.
        fetch: turns a leaf into a NumPy array. If arrays are sharded over processes it is
            a collective operation, so all of them must call `write`.
        writing: whether this process writes the file.
        exact: leaves, such as 'outer/inner', to store as float32 whatever meta.dtype is.

    Raises:
        ValueError: a name contains '/', or a weight is too large for meta.dtype.
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
    return row.view(np.uint8).data  # buffers do not support bfloat16


def cast(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    """Converts values; raises ValueError if they are not real or one becomes infinite."""
    if np.asarray(values).dtype.kind in "OSUmMc":
        raise ValueError(
            f"{name} holds {values.dtype}, not real numbers: store only the weights."
        )
    with np.errstate(over="ignore"):
        stored = np.asarray(values, DTYPES[dtype], order="C")
    narrower = stored.dtype.itemsize < np.asarray(values).dtype.itemsize
    if narrower and np.any(np.isinf(stored) & np.isfinite(values)):
        raise ValueError(
            f"{name} holds weights too large for {dtype}: choose a wider format."
        )
    return stored


def read(path: PathLike) -> tuple[Params, SnapshotMeta]:
    """Reads a snapshot's weights, float32 in a nested dict, and its metadata.

    Raises:
        Damaged: the file is damaged or not a snapshot; a ValueError.
        FileNotFoundError: there is no such file.
    """
    snapshot = open_snapshot(path)
    raw = np.empty(snapshot.size, snapshot.dtype)
    for chunk in range(len(snapshot.digests)):
        part = raw[chunk * CHUNK : (chunk + 1) * CHUNK]
        snapshot.read(chunk * CHUNK, part)
        snapshot.verify(chunk, xxhash.xxh3_64_hexdigest(as_bytes(part)))
    return split(raw.astype(np.float32), snapshot.table), snapshot.meta


def split(row: np.ndarray, table: Table) -> Params:
    """One long row of elements -> nested dict of arrays, which are views of it."""
    flat, start = {}, 0
    for name, shape in table.items():
        stop = start + math.prod(shape)
        flat[name], start = row[start:stop].reshape(shape), stop
    return tree.unflatten(flat)


class Listing(NamedTuple):
    """A directory's snapshots, by nimg and then by name, and its damaged files."""

    snapshots: list[Snapshot]
    damaged: list[Damaged]


def scan(directory: PathLike) -> Listing:
    """Reads the header of every .safetensors file in a directory.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no directory of snapshots at {directory}.")

    def attempt(path: epath.Path) -> Snapshot | Damaged:
        try:
            return open_snapshot(path)
        except Damaged as error:
            return error
        except OSError as error:  # a dangling link, or a fault of an object store
            return Damaged(path, f"cannot be read ({error.strerror or error}).")

    # Not glob: epath would read the directory's own name as part of the pattern.
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
    """The snapshots that `scan` finds; raises Damaged for the first damaged file."""
    found, damaged = scan(directory)
    if damaged:
        raise damaged[0]
    return found


def open_snapshot(path: PathLike) -> Snapshot:
    """Reads only a snapshot's header; raises as `read` does."""
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
    """Splits a row of elements that begins at `start` into the file's runs."""
    for run in parts:
        low, high = max(start, run.start), min(start + len(row), run.stop)
        if low < high:
            yield run, row[low - start : high - start]


def flatten(params: Params) -> dict[str, Any]:
    """Nested dict of arrays -> {'outer/inner': array}.

    Raises:
        ValueError: a name is empty, contains '/' or is '__metadata__'.
    """
    if "__metadata__" in params:
        raise ValueError("Weights cannot have the name '__metadata__': rename them.")
    flat = {}
    for name, leaf in tree.flatten(params, "\0").items():
        if "/" in name or not all(name.split("\0")):
            raise ValueError(f"{name!r}: a name must not be empty or contain '/'.")
        array = leaf if hasattr(leaf, "shape") else np.array(leaf)
        flat[name.replace("\0", "/")] = array
    return flat
