"""A task: what one run of a study takes, in a process that every back-end can start.

It claims the run, trains and evaluates, and writes how that ended. It ends with its
parent, and its commands end with it: nothing keeps running unseen.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edm_jax.runs import claims, signals
from edm_jax.runs.directory import read_state, read_status, update_status

LOG = "log.txt"
_POLL_S = 0.2
_JOIN_S = 120.0
_LOOK_AGAIN_S = 10.0
_PREEMPTED = {75, 130}  # what train.py and an interrupted command end with
# Becomes the command that follows, which ends with its parent, where the kernel can do
# that. SLURM sends its notice to every process of a job; the parent takes it.
_AS_CHILD = """
import ctypes, os, signal, sys
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclasses.dataclass
class Task:
    """Commands to run one after the other for a run; their output goes to its log."""

    name: str
    run: str
    commands: list[list[str]]
    by: str = "a launcher"  # who runs it, as its claim says
    expiry_s: float = claims.EXPIRY_S
    attempts: int = 0  # claims of it that had ended when it was planned
    nimg: int = 0  # images that it is to be trained on

    @property
    def path(self) -> Path:
        return Path(self.run)

    @property
    def status(self) -> dict[str, Any]:
        return read_status(self.path)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return is_done(self.path, self.nimg)

    def log_tail(self, lines: int = 5) -> str:
        """The last lines that it printed."""
        log = self.path / LOG
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])

    def process_command(
        self, python: str = sys.executable, rank_variable: str = ""
    ) -> list[str]:
        """What starts this task in a process of its own, or on each of several hosts.

        rank_variable: the environment variable that numbers those hosts.
        """
        # Not `-m`, which would import the package before it is asked to.
        start = "from edm_jax.studies import task; task.main()"
        fields = json.dumps(dataclasses.asdict(self))
        variable = [rank_variable] if rank_variable else []
        return [python, "-c", start, fields, *variable]

    def __call__(self, stopped: Callable[[], bool] = lambda: False) -> str:
        """Runs what is left to do; returns done, failed, preempted or held.

        Once `stopped`, the command that runs saves and ends.
        """
        try:
            claim = claims.take(self.path, self.by, self.expiry_s)
        except OSError as error:
            self._say("failed", f"it could not be claimed: {error}")
            return "failed"
        if isinstance(claim, dict):
            return "held"
        os.environ[claims.CLAIM] = claim.fields["id"]
        outcome = "preempted"  # if this process is asked to leave
        try:
            outcome = self._run_claimed(claim, stopped)
        finally:
            claim.release(outcome)
        return outcome

    def when_free(self, stopped: Callable[[], bool]) -> str:
        """Runs the task once nobody holds the run; an earlier start of this job may."""
        while (outcome := self(stopped)) == "held" and not stopped():
            time.sleep(_LOOK_AGAIN_S)
        return outcome

    def follow_first(
        self, rank: int, stopped: Callable[[], bool] = lambda: False
    ) -> str:
        """Another host's part in a run that the first host's process has claimed."""
        deadline = time.monotonic() + _JOIN_S
        while claims.holder(self.path).get("by") != self.by:
            if self.is_done:
                return "done"
            if stopped() or time.monotonic() > deadline:
                return "held"
            time.sleep(1)
        log = self.path / f"log-{rank}.txt"
        code = follow(self.commands[0], log, lambda: True, stopped)
        if code in _PREEMPTED or (code and stopped()):
            return "preempted"
        return "failed" if code else "done"

    def _run_claimed(self, claim: claims.Claim, stopped: Callable[[], bool]) -> str:
        for command in self.commands:
            # Another launcher may have done it between the plan and the claim.
            if self.is_done:
                break
            code = follow(command, self.path / LOG, claim.renew, stopped)
            if code is None:
                return "held"
            if code in _PREEMPTED or (code and stopped()):
                self._say("preempted", "stopped by a signal")
                return "preempted"
            if code:
                killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
                self._say("failed", killed or self.log_tail(1))
                return "failed"
        return "done"

    def _say(self, state: str, message: str) -> None:
        with contextlib.suppress(OSError):
            update_status(self.path, state=state, message=message)


def is_done(run: Path, nimg: int = 0) -> bool:
    """Whether a run is trained to its end, of `nimg` images at least, and evaluated.

    A run that stopped early, because its loss no longer fell, ended before `nimg`, and
    is evaluated at its best.
    """
    status = read_status(run)
    evaluation = read_state(run / "evaluation.json")
    total = status.get("total_nimg", 0)
    evaluated = status.get("best_nimg") or total
    if status.get("state") != "done" or evaluation.get("nimg") != evaluated:
        return False
    return total >= nimg or bool(status.get("stopped_early"))


def follow(
    command: list[str],
    log: Path,
    may_go_on: Callable[[], bool],
    stopped: Callable[[], bool],
) -> int | None:
    """A command's exit status; None if it lost its claim and was killed."""
    with open(log, "ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-c", _AS_CHILD, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="1"),
            # Ctrl-C reaches it through the launcher, once.
            start_new_session=True,
        )
    asked = False
    try:
        while (code := child.poll()) is None:
            if not may_go_on():
                return None
            if stopped() and not asked:
                asked = True
                child.send_signal(signal.SIGINT)
            time.sleep(_POLL_S)
        return code
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT, SIGTERM or SIGHUP came."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        if number == signal.SIGHUP:
            signals.leave_terminal()

    previous = {s: signal.signal(s, note) for s in signals.stop_numbers()}
    try:
        yield lambda: bool(came)
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


EXIT = {"done": 0, "failed": 1, "preempted": 75, "held": 73}


def main() -> None:
    """Runs the task that is the first argument, as JSON.

    The second names the variable that holds this host's number among those of the run.
    """
    fields, *variable = sys.argv[1:]
    task = Task(**json.loads(fields))
    with _stop_signals() as stopped:
        parent = os.getppid()

        def must_stop() -> bool:
            # A launcher that is killed preempts its runs.
            return stopped() or os.getppid() != parent

        if not variable:
            outcome = task(must_stop)
        elif rank := int(os.environ.get(variable[0], "0")):
            outcome = task.follow_first(rank, must_stop)
        else:
            outcome = task.when_free(must_stop)
    sys.exit(EXIT[outcome])
