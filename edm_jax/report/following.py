"""Follows runs: notices changes on disk, and makes a line of status for each run."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm_jax.report.read import load_run
from edm_jax.report.runs import Run

FILES = [
    "config.json",
    "status.json",
    "changes.json",
    "provenance.json",
    "metrics.jsonl",
    "evaluation.json",
    "samples.png",
    "log.txt",
]


@dataclass(frozen=True)
class Following:
    """Marks a page that is rewritten while runs are in progress."""

    seconds: float  # between checks of the files
    time: datetime.datetime


class Reader:
    """Reads runs again only if their files have changed."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[Any, Run]] = {}

    def read(self, paths: Iterable[Path]) -> tuple[list[Run], bool]:
        """Returns the runs, and whether any is new, changed or gone."""
        found: dict[Path, tuple[Any, Run]] = {}
        for path in paths:
            # Marked before reading, so that a change in the meantime is read next time.
            mark = [_mark(path / name) for name in FILES]
            before = self._read.get(path)
            with contextlib.suppress(FileNotFoundError):  # removed since it was found
                known = before and before[0] == mark
                found[path] = before if before and known else (mark, load_run(path))
        marks = [
            {path: mark for path, (mark, _) in r.items()} for r in (found, self._read)
        ]
        self._read = found
        return [run for _, run in found.values()], marks[0] != marks[1]


def _mark(file: Path) -> tuple[int, int] | None:
    """A file's time and size; None if there is no file."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def follow(
    find: Callable[[], Sequence[Path]],
    write: Callable[[Sequence[Run], Following | None], object],
    show: Callable[[Sequence[str]], object],
    seconds: float,
) -> None:
    """Writes and shows the runs whenever their files change, until all have ended.

    Args:
        find: returns the runs' paths.
        write: called with the runs; at the end, and when interrupted, without Following,
            so that the page no longer reloads itself.
        show: called with `status_lines`.
        seconds: between checks of the files.
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
        if runs:
            with contextlib.suppress(OSError):
                write(runs, None)
        raise


def status_lines(runs: Sequence[Run]) -> list[str]:
    """One line per run: name, state, images, rate, and held-out loss so far."""
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
    if (loss := run.logged_loss if loss is None else loss) is not None:
        parts.append(f"held-out loss {loss:.4g}")
    if run.state in ("failed", "preempted") and status.message:
        parts.append(status.message[:80])
    return ", ".join([*parts, *map(str, run.damage)])
