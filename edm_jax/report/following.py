"""Following runs: what changed on disk, and one line of status for each."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edm_jax.report.read import load_run
from edm_jax.report.runs import Run

FILES = (
    "config.json",
    "status.json",
    "changes.json",
    "provenance.json",
    "metrics.jsonl",
    "evaluation.json",
    "samples.png",
    "log.txt",
)
Mark = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Following:
    """What a page says that is written again while runs go on."""

    seconds: float  # from one look at the files to the next
    time: datetime.datetime


class Reader:
    """Reads runs again only where their files changed."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[Mark, Run]] = {}

    def read(self, paths: Iterable[Path]) -> tuple[list[Run], bool]:
        """The runs there are, and whether one is new, changed or gone."""
        found: dict[Path, tuple[Mark, Run]] = {}
        for path in paths:
            # Before reading: what changes while it is read, is read next time.
            mark = _mark(path)
            before = self._read.get(path)
            if before and before[0] == mark:
                found[path] = before
                continue
            try:
                found[path] = mark, load_run(path)
            except FileNotFoundError:  # removed since it was found
                continue
        marks = {path: mark for path, (mark, _) in found.items()}
        changed = marks != {path: mark for path, (mark, _) in self._read.items()}
        self._read = found
        return [run for _, run in found.values()], changed


def _mark(path: Path) -> Mark:
    """Times and sizes of a run's files; None for one that is not there."""

    def of(file: Path) -> tuple[int, int] | None:
        try:
            stat = file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    return tuple(of(path / name) for name in FILES)


def follow(
    find: Callable[[], Sequence[Path]],
    write: Callable[[Sequence[Run], Following | None], object],
    show: Callable[[Sequence[str]], object],
    seconds: float,
) -> None:
    """Write and show the runs whenever their files change, until all have ended.

    The last time, and when interrupted, it is written without Following.
    """
    reader = Reader()
    runs: Sequence[Run] = []
    try:
        while True:
            runs, changed = reader.read(find())
            if changed:
                ended = all(run.ended for run in runs)
                now = datetime.datetime.now().astimezone()
                write(runs, None if ended else Following(seconds, now))
                show(status_lines(runs))
                if ended:
                    return
            time.sleep(seconds)
    except BaseException:
        # The page is not to load itself again for ever.
        if runs:
            with contextlib.suppress(OSError):
                write(runs, None)
        raise


def status_lines(runs: Sequence[Run]) -> list[str]:
    """For each run its name, state, images and rate, and its held-out loss so far."""
    width = max((len(run.name) for run in runs), default=0)
    return [f"{run.name:<{width}}  {_status(run)}" for run in runs]


def _status(run: Run) -> str:
    status = run.status
    with_stage = status.stage and not run.ended
    parts = [f"{run.state} ({status.stage})" if with_stage else run.state]
    if status.total_nimg:
        parts.append(f"{status.nimg or 0:,} of {status.total_nimg:,} images")
    if status.images_per_s and not run.ended:
        parts.append(f"{status.images_per_s:,.0f} img/s")
    measured = run.evaluation if run.measured else None
    loss = measured.values.get(("best", "loss")) if measured else None
    if loss is None and len(run.logs["heldout"]):
        loss = run.logs["heldout"].column("loss_per_element")[-1]
    if loss is not None:
        parts.append(f"held-out loss {loss:.4g}")
    if run.state in ("failed", "preempted") and status.message:
        parts.append(status.message[:80])
    return ", ".join([*parts, *map(str, run.damage)])
