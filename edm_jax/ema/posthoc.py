"""Post-hoc EMA: averaged weights of any profile from stored snapshots (App. C, Alg. 3).

NumPy only. One pass over the snapshots makes all targets: threads take one chunk of
elements each, read it from every snapshot in blocks, check it, and add it up in float64.
Memory is a few blocks, whatever the size of the network.
"""

import concurrent.futures
import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import threadpoolctl
import xxhash

from edm_jax.ema import snapshots, solver
from edm_jax.ema.container import PathLike, is_local
from edm_jax.ema.profiles import AnyProfile, PowerProfile, decimal
from edm_jax.ema.snapshots import Params, Snapshot, Table
from edm_jax.ema.solver import Solution

MAX_ERROR = 0.1  # of a fit: a target beyond it is refused unless forced [choice]
_BLOCK_BYTES = 2**26  # that a thread reads before it adds up
_TILE_ELEMENTS = 2**19  # that are widened to float64 at a time: a few MB of cache
_MIN_BLOCK = 2**13  # elements
_THREADS, _REMOTE_THREADS = 4, 16
_FLOAT32 = np.dtype(np.float32)

OnProgress = Callable[[int, int], None]  # (bytes read, bytes in all)
Target = float | AnyProfile  # a bare number is a power function's σ_rel


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
    def read(self, start: int, out: np.ndarray) -> None: ...
    def verify(self, chunk: int, digest: str) -> None: ...


class Reconstruction(NamedTuple):
    """Reconstructed weights (nested dict, float32) and how they were made."""

    params: Params
    solution: Solution


@dataclass(frozen=True)
class Plan:
    """What to add up: sources, and for each target its coefficients and errors."""

    sources: Sequence[Source]
    solutions: list[Solution]
    coefficients: np.ndarray  # (sources, targets)

    @property
    def size(self) -> int:
        """Elements of a network."""
        return sum(int(np.prod(shape)) for shape in self.sources[0].table.values())

    @property
    def bytes_to_read(self) -> int:
        return self.size * sum(source.dtype.itemsize for source in self.sources)


def make_plan(
    stored: Sequence[tuple[float, PowerProfile, Source]],
    targets: Sequence[tuple[float, AnyProfile]],
    max_error: float = MAX_ERROR,
) -> Plan:
    """Solves for targets (nimg, profile) from stored averages (nimg, profile, source).

    A target uses what was stored up to its time; sources that nothing uses are left
    out. Raises ValueError for a target whose error would be beyond max_error, saying
    what can be had, and where nothing usable is stored.
    """
    _check_times(stored, targets)
    solutions: list[Any] = [None] * len(targets)
    coefficients = np.zeros((len(stored), len(targets)))
    for nimg in {nimg for nimg, _ in targets}:
        rows = [i for i, (t, _, _) in enumerate(stored) if t <= nimg]
        columns = [k for k, (t, _) in enumerate(targets) if t == nimg]
        basis = [stored[i][:2] for i in rows]
        roundoff = [stored[i][2].unit_roundoff for i in rows]
        solved = solver.solve(basis, [targets[k] for k in columns], roundoff)
        for k, solution in zip(columns, solved, strict=True):
            if not solution.error <= max_error:
                raise ValueError(_refusal(basis, roundoff, solution, max_error))
            coefficients[rows, k], solutions[k] = solution.coefficients, solution
    used = np.flatnonzero(coefficients.any(axis=1)).tolist()
    sources = [stored[i][2] for i in used]
    tables = [source.table for source in sources]
    for source, table in zip(sources, tables, strict=True):
        if table != tables[0]:
            raise ValueError(
                f"{source.name} holds other weights than {sources[0].name}: give the "
                "snapshots of one network."
            )
    return Plan(sources, solutions, coefficients[used])


def from_files(
    stored: Iterable[Snapshot],
    targets: Sequence[tuple[float, AnyProfile]],
    max_error: float = MAX_ERROR,
) -> Plan:
    """`make_plan` for snapshots on disk; those of other than power functions are left out.

    Raises ValueError also for snapshots of different configs, or reconstructed ones.
    """
    entries, hashes = [], {}
    for snapshot in stored:
        profile, meta = snapshot.meta.profile, snapshot.meta
        if meta.ancestry is not None:
            raise ValueError(
                f"{snapshot.name} is itself reconstructed, and not what a run stored: "
                "move it away."
            )
        if isinstance(profile, PowerProfile):
            hashes.setdefault(meta.config_hash, snapshot.name)
            entries.append((float(meta.nimg), profile, snapshot))
    if len(hashes) > 1:
        which = ", ".join(f"{h} of {name}" for h, name in sorted(hashes.items()))
        raise ValueError(
            f"The snapshots come from different configs ({which}): give those of one run."
        )
    return make_plan(entries, targets, max_error)


def reconstruct(
    stored: PathLike | Sequence[Snapshot],
    targets: Sequence[Target],
    nimg: float | None = None,
    max_error: float = MAX_ERROR,
    on_progress: OnProgress = lambda *_: None,
) -> dict[Target, Reconstruction]:
    """Averaged weights of every target at nimg (the last snapshot's), in memory.

    stored is a directory or a list of snapshots; targets are σ_rel or profiles. 4 bytes
    per weight and target. Raises ValueError where nothing usable is left, for a damaged
    snapshot, for snapshots of different configs, and for a target whose error would be
    beyond max_error (math.inf takes what can be had).
    """
    if isinstance(stored, (str, os.PathLike)):
        stored = snapshots.list_snapshots(stored)
    nimg = last_nimg(stored) if nimg is None else nimg
    plan = from_files(stored, [(nimg, as_profile(each)) for each in targets], max_error)
    trees = in_memory(plan, on_progress)
    return {
        target: Reconstruction(tree, solution)
        for target, tree, solution in zip(targets, trees, plan.solutions, strict=True)
    }


def reconstruct_trees(
    trees: Sequence[tuple[float, float, Params]],
    targets: Sequence[Target],
    nimg: float | None = None,
    max_error: float = MAX_ERROR,
) -> dict[Target, Reconstruction]:
    """As reconstruct, for averages in memory: (nimg, σ_rel, nested dict of arrays).

    Averages in float64 make float64 weights.
    """
    stored = [
        (
            t,
            PowerProfile(s),
            _Tree(f"the average of sigma_rel = {s} at nimg = {t}", tree),
        )
        for t, s, tree in trees
    ]
    nimg = max((t for t, _, _ in trees), default=0) if nimg is None else nimg
    plan = make_plan(stored, [(nimg, as_profile(each)) for each in targets], max_error)
    made = in_memory(plan, dtype=max(s.result_dtype for _, _, s in stored))
    return {
        target: Reconstruction(tree, solution)
        for target, tree, solution in zip(targets, made, plan.solutions, strict=True)
    }


def as_profile(target: Target) -> AnyProfile:
    """A target's profile."""
    return PowerProfile(float(target)) if isinstance(target, (int, float)) else target


def last_nimg(stored: Sequence[Snapshot]) -> int:
    """The time of the last snapshot of a power function; 0 where there is none."""
    powers = [s for s in stored if isinstance(s.meta.profile, PowerProfile)]
    return max((s.meta.nimg for s in powers), default=0)


def in_memory(
    plan: Plan,
    on_progress: OnProgress = lambda *_: None,
    dtype: np.dtype = _FLOAT32,
) -> list[Params]:
    """The networks of a plan, nested dicts in the order of its targets."""
    rows = np.empty((len(plan.solutions), plan.size), dtype)

    def store(start: int, values: np.ndarray) -> None:
        rows[:, start : start + values.shape[1]] = values

    chunks = range(-(-plan.size // snapshots.CHUNK))
    for _ in combine(plan, chunks, store, on_progress, dtype):
        pass
    return [snapshots.split(row, plan.sources[0].table) for row in rows]


def combine(
    plan: Plan,
    chunks: Sequence[int],
    store: Callable[[int, np.ndarray], None],
    on_progress: OnProgress = lambda *_: None,
    dtype: np.dtype = _FLOAT32,
) -> Generator[int, None, None]:
    """Adds up the chunks asked for, and yields the number of each once it is stored.

    store(start, values (targets, elements) of dtype) is called by several threads, in
    rising order within a chunk. Raises Damaged where a source is not what was written,
    ValueError where weights are not finite, or too large for the dtype.
    """
    local = all(is_local(s.path) for s in plan.sources if isinstance(s, Snapshot))
    threads = _THREADS if local else _REMOTE_THREADS
    worker = _Worker(plan, store, on_progress, dtype)
    # The threads are the parallelism: BLAS must not start its own in each of them.
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
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
    """Adds up chunks, in threads that each have buffers of their own."""

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
        # Sources of one format side by side: they are widened together.
        order = sorted(range(count), key=lambda i: plan.sources[i].dtype.str)
        self._sources = [plan.sources[i] for i in order]
        # Eight targets at least: BLAS then treats each alike, however many there are.
        self._coefficients = np.zeros((count, -(-targets // 8) * 8))
        self._coefficients[:, :targets] = plan.coefficients[order]
        per_element = plan.bytes_to_read / plan.size + dtype.itemsize * targets
        fitting = int(np.log2(max(_BLOCK_BYTES / per_element, 1)))
        self._block = min(snapshots.CHUNK, max(_MIN_BLOCK, 2**fitting))
        self._tile = max(256, _TILE_ELEMENTS // max(count, self._coefficients.shape[1]))
        self._buffers = threading.local()
        self._lock, self._done = threading.Lock(), 0
        self.stopped = False

    def chunk(self, chunk: int) -> int:
        """Reads, checks, adds up and stores one chunk; returns its number."""
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
        groups, wide, sums = self._arrays()
        raw = [row[: stop - start] for group in groups for row in group]
        for source, row, hasher in zip(self._sources, raw, hashers, strict=True):
            source.read(start, row)
            hasher.update(snapshots.as_bytes(row))
        with np.errstate(invalid="ignore", over="ignore"):  # it is looked for below
            for low in range(0, stop - start, self._tile):
                high = min(low + self._tile, stop - start)
                first = 0
                for group in groups:
                    wide[first : first + len(group), : high - low] = group[:, low:high]
                    first += len(group)
                added = wide[:, : high - low].T @ self._coefficients
                sums[:, low:high] = added[:, : len(sums)].T
        values = sums[:, : stop - start]
        if not np.isfinite(values).all():
            self._name_culprit(raw, start)
        self._store(start, values)
        with self._lock:
            self._done += sum(row.nbytes for row in raw)
            self._report(self._done, self._plan.bytes_to_read)

    def _arrays(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """This thread's buffers: rows by format, a float64 tile, a block of results."""
        if not hasattr(self._buffers, "arrays"):
            dtypes = [source.dtype for source in self._sources]
            kinds = sorted(set(dtypes), key=dtypes.index)
            groups = [np.empty((dtypes.count(k), self._block), k) for k in kinds]
            wide = np.empty((len(dtypes), self._tile))
            sums = np.empty((len(self._plan.solutions), self._block), self._dtype)
            self._buffers.arrays = groups, wide, sums
        return self._buffers.arrays

    def _name_culprit(self, raw: list[np.ndarray], start: int) -> None:
        for source, row in zip(self._sources, raw, strict=True):
            bad = ~np.isfinite(row)
            if bad.any():
                name = _name_at(source.table, start + int(np.argmax(bad)))
                raise ValueError(
                    f"{source.name} holds weights that are not finite ({name}): leave "
                    "it and later ones out."
                )
        raise ValueError(
            f"The sums are too large for {self._dtype}: ask for float32 results."
        )


class _Tree:
    """An average in memory as a source."""

    def __init__(self, name: str, params: Params):
        flat = snapshots.flatten(params)
        self.name = name
        self.table = {key: tuple(flat[key].shape) for key in sorted(flat)}
        self._leaves = [np.asarray(flat[key]).ravel() for key in self.table]
        self._starts = np.cumsum([0, *(len(leaf) for leaf in self._leaves)])
        self.dtype = np.dtype(np.float64)
        dtypes = {leaf.dtype for leaf in self._leaves}
        double = self.dtype in dtypes
        self.result_dtype = self.dtype if double else _FLOAT32
        self.unit_roundoff = max(snapshots.unit_roundoff(dtype) for dtype in dtypes)

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


def _check_times(
    stored: Sequence[tuple[float, PowerProfile, Source]],
    targets: Sequence[tuple[float, AnyProfile]],
) -> None:
    if not stored:
        raise ValueError(
            "There are no snapshots of power-function profiles to reconstruct from: "
            "train with ema.sigma_rels set."
        )
    first, last = min(t for t, _, _ in stored), max(t for t, _, _ in stored)
    for nimg, _ in targets:
        if nimg > last:
            raise ValueError(
                f"nimg = {nimg:.0f} is after the last snapshot, at {last:.0f}, and no "
                f"average of the snapshots reaches it; ask for {last:.0f} or less."
            )
        if nimg < first:
            raise ValueError(
                f"There is no snapshot at or before nimg = {nimg:.0f}: the first is at "
                f"{first:.0f}."
            )


def _refusal(
    basis: Sequence[solver.Stored],
    roundoff: Sequence[float],
    solution: Solution,
    max_error: float,
) -> str:
    """Why a target is refused, and what the snapshots can express instead."""
    nimg, profile = solution.nimg, solution.profile
    times = sorted({t for t, _ in basis})
    said = (
        f"The snapshots cannot express {profile.label} at nimg = {nimg:.0f}: its error "
        f"would be {solution.error:.2g}, and {max_error:g} is allowed."
    )
    if times[-1] < nimg:
        return f"{said} The last snapshot before that time is at {times[-1]:.0f}: ask for that."
    found = solver.expressible(basis, (nimg, profile), roundoff, max_error)
    if found is None:
        return f"{said} Of {len(basis)} snapshots nothing else can be made there: store more."
    low, high = (decimal(round(value, 6)) for value in found)
    if profile.kind == "traditional":
        return f"{said} Half-lives from {low} to {high} million images can be had."
    edges = ""
    if profile.kind != "power":
        edges = ", and windows that start and end at snapshots"
    return (
        f"{said} Power functions of sigma_rel from {low} to {high} can be had{edges}."
    )
