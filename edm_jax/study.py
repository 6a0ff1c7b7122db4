"""Launching the runs of a study on this machine, and following them by their files."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from edm_jax.run_dir import read_json, update_status

LOG = "log.txt"
_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run of a study: its name there, a config reference, and overrides of it."""

    name: str
    config: str
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Job:
    """Commands to run one after the other for a run; their output goes to its log."""

    name: str
    run: Path
    commands: list[list[str]]
    process: subprocess.Popen | None = None
    cores: tuple[int, ...] = ()

    @property
    def status(self) -> dict[str, Any]:
        return read_json(self.run / "status.json")

    def start_next(self) -> None:
        """Starts the first command that is left, on `cores` where that is possible."""
        command = self.commands.pop(0)
        environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="1")
        self.run.mkdir(parents=True, exist_ok=True)
        with open(self.run / LOG, "ab") as log:
            # A session of its own: Ctrl-C reaches it through the launcher, once.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        if self.cores and hasattr(os, "sched_setaffinity"):
            # In time: it is still starting and has no threads yet.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self.process.pid, self.cores)

    def log_tail(self, lines: int = 5) -> str:
        """The last lines that it printed."""
        text = (self.run / LOG).read_text(encoding="utf-8", errors="replace")
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


class Display(Protocol):
    """What shows the jobs while they run."""

    def show(self, job: Job, note: str) -> None:
        """Shows a job's status; `note` is 'running', or how it ended."""

    def stopping(self) -> None:
        """Says that the runs were asked to save and stop."""


def is_done(run: Path) -> bool:
    """Whether a run is trained to its end and evaluated there."""
    status = read_json(run / "status.json")
    evaluation = read_json(run / "evaluation.json")
    finished = status.get("state") == "done"
    return finished and evaluation.get("nimg") == status.get("total_nimg")


def run_local(jobs: Sequence[Job], workers: int, display: Display) -> list[Job]:
    """Runs jobs, `workers` at a time on as many parts of the cores; returns the failed.

    A failure leaves the others running. SIGINT or SIGTERM is passed on, so that the
    runs save; then KeyboardInterrupt is raised.
    """
    waiting, active, failed = list(jobs), [], []
    free = _parts(sorted(_cores()), workers)
    with _interruptible():
        try:
            while waiting or active:
                while waiting and free:
                    job = waiting.pop(0)
                    job.cores = free.pop(0)
                    job.start_next()
                    active.append(job)
                time.sleep(_POLL_SECONDS)
                for job in list(active):
                    if _advance(job, display):
                        continue
                    active.remove(job)
                    free.append(job.cores)
                    if job.process and job.process.returncode:
                        failed.append(job)
        except KeyboardInterrupt:
            display.stopping()
            _stop(active)
            raise
    return failed


def _advance(job: Job, display: Display) -> bool:
    """Starts the next command where one has ended; False once there is none."""
    assert job.process is not None
    code = job.process.poll()
    if code is None:
        display.show(job, "running")
    elif code == 0 and job.commands:
        job.start_next()
    elif code == 0:
        display.show(job, "done")
        return False
    elif job.status.get("state") == "preempted":
        display.show(job, "preempted")
        return False
    else:
        update_status(job.run, state="failed", message=job.log_tail(1))
        display.show(job, "failed")
        return False
    return True


def _stop(active: Sequence[Job]) -> None:
    for job in active:
        if job.process and job.process.poll() is None:
            job.process.send_signal(signal.SIGINT)
    for job in active:
        if job.process:
            job.process.wait()


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _parts(cores: list[int], count: int) -> list[tuple[int, ...]]:
    """Even shares of the cores; more workers than cores share them all."""
    if count > len(cores):
        return [tuple(cores)] * count
    return [tuple(cores[i::count]) for i in range(count)]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Both signals raise KeyboardInterrupt, even where a shell had them ignored."""
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for each in previous:
        signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
