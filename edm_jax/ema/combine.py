"""Computes all targets in one pass over the stored averages.

Each thread takes one chunk of elements, reads it from every source in blocks, checks it
and sums it. Memory is a few blocks, whatever the size of the network.

Sources of float32 or less are multiplied in float32, 32 of them at a time, and these parts
are added up in float64: 2.2 times as fast as float64 throughout, with an error of
at most 33·2⁻²⁴ Σ|x_i θ_i|, and an RMS error like that of the sources' own rounding.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edm_jax.ema import snapshots
from edm_jax.ema.meta import unit_roundoff
from edm_jax.ema.optional import one_blas_thread, xxhash
from edm_jax.ema.snapshots import Params, Table
from edm_jax.ema.solver import Solution

FLOAT32 = np.dtype(np.float32)
_BLOCK_BYTES = 2**26  # read by a thread before it sums
_TILE_BYTES = 2**20  # of sources, parts and sums at a time: stays in the cache
_TOGETHER = 32  # sources whose products are added up in float32
_MIN_BLOCK = 2**13  # elements
_THREADS, _REMOTE_THREADS = 4, 16

OnProgress = Callable[[int, int], None]  # (bytes read, bytes in all)


class Source(Protocol):
    """A stored average: its weights as one long row of elements, and their checksums."""

    @property
    def name(self) -> str: ...
    @property
    def table(self) -> Table: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def unit_roundoff(self) -> float: ...
    @property
    def local(self) -> bool: ...
    def read(self, start: int, out: np.ndarray) -> None: ...
    def verify(self, chunk: int, digest: str) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What to sum: sources, and for each target its coefficients and errors."""

    sources: Sequence[Source]
    solutions: list[Solution]
    coefficients: np.ndarray  # (sources, targets)
    refused: Sequence[str] = ()  # a sentence for each target that was left out

    @property
    def size(self) -> int:
        """Elements in one network."""
        return sum(int(np.prod(shape)) for shape in self.sources[0].table.values())

    @property
    def bytes_to_read(self) -> int:
        return self.size * sum(source.dtype.itemsize for source in self.sources)


def combine(
    plan: Plan,
    chunks: Sequence[int],
    store: Callable[[int, np.ndarray], None],
    on_progress: OnProgress = lambda *_: None,
    dtype: np.dtype = FLOAT32,
) -> Generator[int, None, None]:
    """Sums the given chunks, and yields the number of each once it is stored.

    Args:
        plan: what to sum.
        chunks: numbers of chunks of `snapshots.CHUNK` elements.
        store: takes (start, values (targets, elements) of dtype). Several threads call
            it, in ascending order within a chunk.
        on_progress: called with the bytes read so far and in total.
        dtype: the dtype of the stored sums; float64 is computed in float64 throughout.

    Raises:
        Damaged: a source does not match its checksums.
        ValueError: weights are not finite, or too large for the dtype.
    """
    local = all(source.local for source in plan.sources)
    threads = _THREADS if local else _REMOTE_THREADS
    worker = _Worker(plan, store, on_progress, dtype)
    # These threads are the parallelism: BLAS must not start more in each of them.
    with (
        one_blas_thread(),
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        pending = [pool.submit(worker.chunk, chunk) for chunk in chunks]
        try:
            for future in concurrent.futures.as_completed(pending):
                yield future.result()
        finally:
            worker.stopped = True
            pool.shutdown(cancel_futures=True)


class _Worker:
    """Sums chunks, in threads that each have their own buffers."""

    def __init__(
        self,
        plan: Plan,
        store: Callable[[int, np.ndarray], None],
        report: OnProgress,
        dtype: np.dtype,
    ):
        self._plan, self._store, self._report = plan, store, report
        self._dtype = dtype
        count, targets = plan.coefficients.shape
        # Sources of one format are adjacent, because they are widened together.
        order = sorted(range(count), key=lambda i: plan.sources[i].dtype.str)
        self._sources = [plan.sources[i] for i in order]
        # A multiple of eight targets, so that BLAS rounds each one the same way.
        self._coefficients = np.zeros((count, -(-targets // 8) * 8))
        self._coefficients[:, :targets] = plan.coefficients[order]
        narrow = {dtype, *(source.dtype for source in self._sources)}
        self._kind = np.float64 if np.dtype(np.float64) in narrow else FLOAT32
        self._coefficients = self._coefficients.astype(self._kind)
        per_element = plan.bytes_to_read / plan.size + dtype.itemsize * targets
        fitting = int(np.log2(max(_BLOCK_BYTES / per_element, 1)))
        self._block = min(snapshots.CHUNK, max(_MIN_BLOCK, 2**fitting))
        row = 4 * min(count, _TOGETHER) + 12 * self._coefficients.shape[1]
        self._tile = int(min(2048, max(256, _TILE_BYTES // row)))
        self._buffers = threading.local()
        self._lock, self._done = threading.Lock(), 0
        self.stopped = False

    def chunk(self, chunk: int) -> int:
        """Reads, checks, sums and stores one chunk; returns its number."""
        stop = min((chunk + 1) * snapshots.CHUNK, self._plan.size)
        hashers = [xxhash.xxh3_64() for _ in self._sources]
        for start in range(chunk * snapshots.CHUNK, stop, self._block):
            if self.stopped:
                break
            self._add_up(start, min(start + self._block, stop), hashers)
        else:
            for source, hasher in zip(self._sources, hashers, strict=True):
                source.verify(chunk, hasher.hexdigest())
        return chunk

    def _add_up(self, start: int, stop: int, hashers: list[xxhash.xxh3_64]) -> None:
        groups, totals, sums = self._arrays()
        raw = [row[: stop - start] for group in groups for row in group]
        for source, row, hasher in zip(self._sources, raw, hashers, strict=True):
            source.read(start, row)
            hasher.update(snapshots.as_bytes(row))
        with np.errstate(invalid="ignore", over="ignore"):  # checked below
            for low in range(0, stop - start, self._tile):
                high = min(low + self._tile, stop - start)
                total = totals[:, : high - low]
                total[:] = 0
                for rows, coefficients in self._together(groups, low, high):
                    total += coefficients.T @ rows
                sums[:, low:high] = total[: len(sums)]
        values = sums[:, : stop - start]
        if not np.isfinite(values).all():
            self._name_culprit(raw, start)
        self._store(start, values)
        with self._lock:
            self._done += sum(row.nbytes for row in raw)
            self._report(self._done, self._plan.bytes_to_read)

    def _together(
        self, groups: list[np.ndarray], low: int, high: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Elements of up to 32 sources at a time, and the sources' coefficients."""
        first = 0
        for group in groups:
            for i in range(0, len(group), _TOGETHER):
                rows = group[i : i + _TOGETHER, low:high]
                coefficients = self._coefficients[first + i : first + i + len(rows)]
                yield rows.astype(self._kind, copy=False), coefficients
            first += len(group)

    def _arrays(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """This thread's buffers: rows by format, a tile of totals, a block of results."""
        if not hasattr(self._buffers, "arrays"):
            dtypes = [source.dtype for source in self._sources]
            kinds = sorted(set(dtypes), key=dtypes.index)
            groups = [np.empty((dtypes.count(k), self._block), k) for k in kinds]
            totals = np.empty((self._coefficients.shape[1], self._tile))
            sums = np.empty((len(self._plan.solutions), self._block), self._dtype)
            self._buffers.arrays = groups, totals, sums
        return self._buffers.arrays

    def _verify(self, source: Source, chunk: int) -> None:
        """Raises Damaged if a chunk does not match its checksum."""
        start = chunk * snapshots.CHUNK
        row = np.empty(min(snapshots.CHUNK, self._plan.size - start), source.dtype)
        source.read(start, row)
        source.verify(chunk, xxhash.xxh3_64_hexdigest(snapshots.as_bytes(row)))

    def _name_culprit(self, raw: list[np.ndarray], start: int) -> None:
        for source, row in zip(self._sources, raw, strict=True):
            bad = ~np.isfinite(row)
            if bad.any():
                self._verify(source, start // snapshots.CHUNK)
                name = _name_at(source.table, start + int(np.argmax(bad)))
                raise ValueError(
                    f"{source.name} holds weights that are not finite ({name}), so the "
                    "training diverged before it was stored: move it and all later "
                    "snapshots to another directory."
                )
        raise ValueError(
            f"The averages are too large for {self._dtype}: store them as float32."
        )


class Tree:
    """An average in memory as a source."""

    local = True

    def __init__(self, name: str, params: Params):
        flat = snapshots.flatten(params)
        self.name = name
        self.table = {key: tuple(flat[key].shape) for key in sorted(flat)}
        self._leaves = [np.asarray(flat[key]).ravel() for key in self.table]
        self._starts = np.cumsum([0, *(len(leaf) for leaf in self._leaves)])
        self.dtype = np.dtype(np.float64)
        if not self._leaves:
            raise ValueError(f"{name} holds no weights.")
        for key, leaf in zip(self.table, self._leaves, strict=True):
            if leaf.dtype.kind not in "fV":
                raise ValueError(
                    f"{name} holds {leaf.dtype} in {key}, which is not a floating-point "
                    "format: average only the weights."
                )
        dtypes = {leaf.dtype for leaf in self._leaves}
        double = self.dtype in dtypes
        self.result_dtype = self.dtype if double else FLOAT32
        self.unit_roundoff = max(unit_roundoff(dtype) for dtype in dtypes)

    def read(self, start: int, out: np.ndarray) -> None:
        stop = start + len(out)
        for leaf, first in zip(self._leaves, self._starts[:-1], strict=True):
            low, high = max(start, first), min(stop, first + len(leaf))
            if low < high:
                out[low - start : high - start] = leaf[low - first : high - first]

    def verify(self, chunk: int, digest: str) -> None:
        del chunk, digest


def _name_at(table: Table, element: int) -> str:
    for name, shape in table.items():
        element -= int(np.prod(shape))
        if element < 0:
            return name
    raise IndexError(element)
