"""Writes reconstructed networks to files, resumable after a kill, with full ancestry."""

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax.ema import combine, posthoc, snapshots
from edm_jax.ema.combine import OnProgress, Plan
from edm_jax.ema.container import is_local, partial_path
from edm_jax.ema.grammar import AnyProfile, to_fields
from edm_jax.ema.journal import Journal, Sink, locked
from edm_jax.ema.optional import epath
from edm_jax.ema.posthoc import MAX_ERROR
from edm_jax.ema.snapshots import Snapshot, SnapshotMeta, Writer
from edm_jax.files import Damaged, PathLike, human

METHOD = "post-hoc EMA (Karras et al., arXiv 2312.02696, App. C, Alg. 3)"
JOURNAL_SECONDS = 2.0


@dataclass(frozen=True)
class Request:
    """What to rebuild.

    Attributes:
        targets: (nimg, profile); None is the last snapshot's nimg.
        dtype: the format of the outputs.
        max_error: targets with a larger error are left out.
        strict: refuse a damaged snapshot instead of leaving it out.
    """

    targets: Sequence[tuple[int | None, AnyProfile]]
    dtype: str = "float32"
    max_error: float = MAX_ERROR
    strict: bool = False


@dataclass(frozen=True)
class Job:
    """A plan for files, with the metadata of its outputs."""

    plan: Plan
    metas: list[SnapshotMeta]
    stored: Sequence[Snapshot]  # all snapshots that were not left out
    left_out: list[Damaged]
    dtype: str  # of the outputs

    def paths(self, out: PathLike) -> list[epath.Path]:
        return [epath.Path(out) / meta.filename for meta in self.metas]

    @property
    def bytes_to_write(self) -> int:
        itemsize = snapshots.DTYPES[self.dtype].itemsize
        return self.plan.size * len(self.metas) * itemsize


def prepare(directory: PathLike, request: Request) -> Job:
    """Lists the snapshots of a directory and solves; reads only their headers.

    Targets that the snapshots cannot express are left out: `plan.refused` says why.

    Raises:
        ValueError: as `posthoc.from_files`, or no target is left.
        Damaged: a snapshot is damaged, and the request is `strict`.
    """
    listing = snapshots.scan(directory)
    if request.strict and listing.damaged:
        raise listing.damaged[0]
    return _job(listing.snapshots, listing.damaged, request)


def _job(stored: Sequence[Snapshot], left_out: list[Damaged], request: Request) -> Job:
    if not stored and left_out:
        raise left_out[0]
    # "The last" means the last one that was stored, even if it is damaged.
    last = max([posthoc.last_nimg(stored), *map(_nimg_of, left_out)])
    targets = [(last if t is None else t, profile) for t, profile in request.targets]
    try:
        plan = posthoc.from_files(stored, targets, request.max_error, partial=True)
    except ValueError as refusal:
        if not left_out:
            raise
        said = " ".join(map(str, left_out[:3]))
        more = f" So are {len(left_out) - 3} more." if len(left_out) > 3 else ""
        raise ValueError(f"{said}{more} Without them: {refusal}") from refusal
    first = plan.sources[0]
    assert isinstance(first, Snapshot)
    metas = [
        SnapshotMeta(
            profile=solution.profile,
            nimg=int(solution.nimg) - first.meta.before_nimg,
            update_interval=first.meta.update_interval,
            config_hash=first.meta.config_hash,
            dtype=request.dtype,
            ancestry=_ancestry(plan, k, left_out),
            base=first.meta.base,
        )
        for k, solution in enumerate(plan.solutions)
    ]
    (name, count), *_ = Counter(meta.filename for meta in metas).most_common(1)
    if count > 1:
        raise ValueError(
            f"Two of the targets would be stored as {name}: make them in two commands "
            "with different --out."
        )
    return Job(plan, metas, stored, left_out, request.dtype)


def _nimg_of(damaged: Damaged) -> int:
    """The time in a damaged file's name; 0 if there is none."""
    found = re.search(r"-(\d{12})\.safetensors$", os.fspath(damaged.path))
    return int(found[1]) if found else 0


def run(
    directory: PathLike,
    request: Request,
    out: PathLike,
    on_progress: OnProgress = lambda *_: None,
    on_damage: Callable[[Damaged, Job], None] = lambda *_: None,
    job: Job | None = None,
) -> tuple[Job, list[epath.Path]]:
    """Writes a file for every target to `out`.

    Outputs already made from the same snapshots are kept. A kill leaves partial files and
    a journal, from which the same call resumes.

    Args:
        directory: where the snapshots are.
        request: what to rebuild.
        out: where to write.
        on_progress: called with the bytes read so far and in total.
        on_damage: called with a snapshot found damaged while reading, and the job solved
            again without it. With `strict` an error is raised instead.
        job: the result of `prepare` for the request, to avoid listing again.

    Returns:
        The job as it was done, and the paths.

    Raises:
        ValueError: as `prepare`; or `out` is the directory of the snapshots, or another
            process is writing to it.
    """
    out = epath.Path(out)
    if _place(out) == _place(directory):
        raise ValueError(
            f"{out} holds the snapshots themselves: choose another directory for the "
            "outputs."
        )
    job = job or prepare(directory, request)
    with locked(out):
        while True:
            try:
                return job, _write(job, out, on_progress)
            except Damaged as error:
                if request.strict:
                    raise
                stored = [s for s in job.stored if s.name != os.fspath(error.path)]
                job = _job(stored, [*job.left_out, error], request)
                on_damage(error, job)


def _place(directory: PathLike) -> str:
    """A canonical name of a directory."""
    name = os.fspath(directory).rstrip("/")
    return os.path.realpath(name) if is_local(epath.Path(directory)) else name


def check_space(job: Job, out: PathLike) -> None:
    """Raises ValueError if the outputs do not fit on the disk."""
    place = epath.Path(out)
    if not is_local(place):
        place = epath.Path(partial_path(place)).parent
    place = next(p for p in (place, *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if epath.Path(out).exists() and not epath.Path(out).is_dir():
        raise ValueError(f"{out} is a file: choose a directory for the outputs.")
    for path in job.paths(out):
        if path.is_dir():
            raise ValueError(f"{path} is a directory: move it away, or choose another.")
    if job.bytes_to_write > free:
        raise ValueError(
            f"The outputs need {human(job.bytes_to_write)}, but {place} has "
            f"{human(free)} free: make room, or choose fewer targets or float16."
        )


def _ancestry(plan: Plan, column: int, left_out: Sequence[Damaged]) -> dict[str, Any]:
    solution = plan.solutions[column]
    inputs = []
    rows = plan.coefficients[:, column]
    for source, coefficient in zip(plan.sources, rows, strict=True):
        assert isinstance(source, Snapshot)
        if coefficient:
            inputs.append(
                {
                    "file": source.path.name,
                    "checksum": source.checksum,
                    "nimg": source.meta.nimg,
                    "profile": to_fields(source.meta.profile),
                    "dtype": source.meta.dtype,
                    "coefficient": float(coefficient),
                }
            )
    return {
        "method": METHOD,
        "fit_error": solution.fit_error,
        "rounding_error": solution.rounding_error,
        "sum_abs": solution.sum_abs,
        "left_out": sorted(os.path.basename(os.fspath(e.path)) for e in left_out),
        "inputs": inputs,
    }


def _write(job: Job, out: epath.Path, on_progress: OnProgress) -> list[epath.Path]:
    plan, paths, journal = job.plan, job.paths(out), Journal(job.metas, out)
    todo = [k for k, path in enumerate(paths) if not _is_made(path, job.metas[k])]
    if not todo:
        journal.remove()
        return paths
    table = plan.sources[0].table
    writers = {k: Writer(paths[k], table, job.metas[k], resume=True) for k in todo}
    resumed = all(writer.resumed for writer in writers.values())
    sink = Sink(writers, journal.read() if resumed else {})
    starts = range(0, plan.size, snapshots.CHUNK)
    left = [chunk for chunk in range(len(starts)) if chunk not in sink.done]
    done = sum(min(snapshots.CHUNK, plan.size - starts[chunk]) for chunk in sink.done)
    before = plan.bytes_to_read * done // plan.size

    def report(done: int, total: int) -> None:
        on_progress(before + done, total)

    dtype = snapshots.DTYPES[job.dtype]
    try:
        # Finished targets stay in the plan, so that the others' sums do not change.
        chunks = combine.combine(plan, left, sink.store, report, dtype)
        with contextlib.closing(chunks):
            for chunk in chunks:
                sink.seal(chunk)
                journal.write(sink, every=JOURNAL_SECONDS)
        journal.write(sink)
    except ValueError:  # including Damaged: resuming would end the same way
        for writer in writers.values():
            writer.discard()
        journal.remove()
        raise
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk, say
            journal.write(sink)
        for writer in writers.values():
            writer.close()
        raise
    for writer in writers.values():
        writer.finish()
    journal.remove()
    if is_local(out):  # left over from a job whose journal this one replaced
        for stale in Path(out).glob(".*.safetensors.partial"):
            stale.unlink()
    return paths


def _is_made(path: epath.Path, meta: SnapshotMeta) -> bool:
    """Whether the file exists, made from the same snapshots by the same libraries.

    The coefficients may differ by as much as other targets in the plan change them.
    """
    try:
        found = snapshots.open_snapshot(path).meta
    except (FileNotFoundError, Damaged):
        return False
    if found.ancestry is None or meta.ancestry is None:
        return False
    same = replace(found, profile=meta.profile, ancestry=meta.ancestry) == meta
    if not same or to_fields(found.profile) != to_fields(meta.profile):
        return False
    try:
        (before, words), (now, wanted) = map(_parts, (found.ancestry, meta.ancestry))
        change = np.abs(before - now).sum()
    except (KeyError, TypeError, ValueError, AttributeError):  # another's ancestry
        return False
    return words == wanted and bool(change <= 1e-9 * meta.ancestry["sum_abs"])


def _parts(ancestry: Mapping[str, Any]) -> tuple[np.ndarray, Any]:
    """The coefficients of an ancestry, and the parts that must be equal in both."""
    coefficients = [each["coefficient"] for each in ancestry["inputs"]]
    inputs = [{**each, "coefficient": None} for each in ancestry["inputs"]]
    words = [ancestry[word] for word in ("method", "left_out")]
    return np.array(coefficients, np.float64), (inputs, words)
