"""Claims make sure that only one process works on a run at a time.

A claim is a file RUN/claims/NNNN.json; the highest number counts. To claim a run, a
process links the next number, which only one process can do, even on shared file systems.
The holder touches its file at intervals. A claim that was not touched for its `expiry_s`
has expired, and the claim of a dead process on this machine expires at once. Only the
holder writes to its file, and no file is removed, so no claim can be stolen, and the files
record who held a run and when.
"""

import contextlib
import dataclasses
import functools
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edm_jax import files
from edm_jax.runs.directory import read_state, write_json
from edm_jax.runs.provenance import utc_now

EXPIRY_S = 60.0
CLAIM = "EDM_JAX_CLAIM"  # environment variable: the claim that covers a command


@dataclasses.dataclass
class Claim:
    """The right to work on a run, for as long as it is renewed."""

    path: Path
    fields: dict[str, Any]
    _renewed: float = dataclasses.field(default_factory=lambda: _clock())

    def renew(self) -> bool:
        """Shows that the holder is alive; False if another process has the run now.

        However often it is called, it touches the file only a few times per expiry.
        """
        if _clock() - self._renewed < self.fields["expiry_s"] / 6:
            return True
        self._renewed = _clock()
        try:
            if not self._is_mine():
                return False
            os.utime(self.path)
        except OSError:  # a file system that is unavailable for a moment
            pass
        return True

    def release(self, outcome: str) -> None:
        """Releases the run and records the outcome."""
        # On a full disk the claim is left to expire.
        with contextlib.suppress(OSError):
            if self._is_mine():
                ended = {"outcome": outcome, "end_time": utc_now()}
                write_json(self.path, self.fields | ended)

    def _is_mine(self) -> bool:
        # Compare the id, too: the directory may have been deleted and created again.
        latest = last_file(self.path.parent.parent) == self.path
        return latest and read_state(self.path).get("id") == self.fields["id"]


def take(run: Path, by: str, expiry_s: float = EXPIRY_S) -> Claim | dict[str, Any]:
    """Claims a run; if another process holds it, returns the fields of that claim."""
    directory = run / "claims"
    new = [each for each in (run.parent, run, directory) if not each.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    fields = new_fields(by, expiry_s)
    candidate = directory / f".{fields['id']}"
    try:
        write_json(candidate, fields)
        latest = last_file(run)
        # The file system's clock, not this host's: they may differ.
        if latest and (found := _held(latest, candidate.stat().st_mtime)):
            return found
        number = int(latest.stem) + 1 if latest else 1
        path = directory / f"{number:04}.json"
        if _enter(candidate, path):
            return Claim(path, fields)
        return _held(path, candidate.stat().st_mtime) or {"by": "another"}
    finally:
        candidate.unlink(missing_ok=True)
        for each in reversed(new):  # a full disk leaves no empty directory behind
            with contextlib.suppress(OSError):
                each.rmdir()


def new_fields(by: str, expiry_s: float = EXPIRY_S) -> dict[str, Any]:
    """The fields of a claim by this process."""
    return {
        "id": uuid.uuid4().hex,
        "by": by,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "machine": _machine(),
        "start_time": utc_now(),
        "expiry_s": expiry_s,
    }


@contextlib.contextmanager
def held(
    run: Path,
    by: str,
    on_loss: Callable[[str], None],
    expiry_s: float = EXPIRY_S,
) -> Iterator[None]:
    """Holds a run while the block runs; a thread renews the claim.

    Does nothing if the launcher's claim in the environment already covers the run.

    Args:
        run: The run directory.
        by: The holder's name in messages to others.
        on_loss: Called in the thread, with a sentence, if another process takes the run,
            as happens when this machine was suspended for longer than `expiry_s`.
        expiry_s: How long the claim lasts, in seconds, if this process dies.

    Raises:
        ValueError: Another process holds the run.
    """
    if holder(run) and is_free(run):
        yield
        return
    claim = take(run, by, expiry_s)
    if isinstance(claim, dict):
        raise ValueError(refusal(run, claim))  # noqa: TRY004  no wrong type
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(expiry_s / 12):
            if not claim.renew():
                who_now = who(holder(run)) if holder(run) else "another process"
                on_loss(f"{run} was taken over by {who_now}; this process stops.")
                return

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except (SystemExit, KeyboardInterrupt):
        outcome = "preempted"
        raise
    finally:
        ended.set()
        thread.join()
        claim.release(outcome)


def is_free(run: Path) -> bool:
    """Whether nobody holds a run, except possibly the task that started this command."""
    held_now = holder(run)
    return not held_now or held_now.get("id") == os.environ.get(CLAIM)


def refusal(run: Path | str, claim: dict[str, Any]) -> str:
    """Why a run that somebody else holds cannot be had, and what to do."""
    sentence = f"{run} is in use by {who(claim)}: stop that, or wait until it ends."
    # From here we cannot see whether a process on another machine is alive.
    if claim.get("machine") != _machine() and "expiry_s" in claim:
        sentence += f" If it has died, try again in {claim['expiry_s']:.0f} s."
    return sentence


def _enter(candidate: Path, path: Path) -> bool:
    """Gives a claim its number; of several processes only one succeeds."""
    try:
        os.link(candidate, path)
    except FileExistsError:
        # The reply may have been lost on the network and the request repeated.
        return candidate.stat().st_nlink == 2
    except OSError:
        # Without hard links: an empty file is a claim, too, until it is filled.
        try:
            file = open(path, "x", encoding="utf-8")  # noqa: SIM115  closed below
        except FileExistsError:
            return False
        try:
            with file:
                file.write(candidate.read_text(encoding="utf-8"))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise files.named(error, path) from None
    return True


def holder(run: Path) -> dict[str, Any]:
    """The fields of the claim that holds a run now; {} if nobody holds it."""
    latest = last_file(run)
    return _held(latest, time.time()) if latest else {}


def count(run: Path) -> int:
    """How often a run was claimed."""
    latest = last_file(run)
    return int(latest.stem) if latest else 0


def who(claim: dict[str, Any]) -> str:
    """The holder of a claim, such as 'launcher 12 on host'."""
    return (
        f"{claim.get('by', 'another process')} on {claim.get('host', 'another host')}"
    )


def _held(path: Path, now: float) -> dict[str, Any]:
    return held_by(read_state(path), lambda: now - path.stat().st_mtime)


def held_by(found: Any, age_s: Callable[[], float]) -> dict[str, Any]:
    """The fields of a claim that still holds; {} of one that has ended or expired.

    Args:
        found: What its file or object holds.
        age_s: How many seconds ago it was renewed.
    """
    found = found if isinstance(found, dict) else {}
    sound = {k: v for k, v in found.items() if isinstance(v, _KINDS.get(k, object))}
    fields = _UNREADABLE | sound
    if "outcome" in fields:
        return {}
    if not 0 < fields["expiry_s"] < math.inf:
        fields["expiry_s"] = EXPIRY_S
    if fields["machine"] and fields["machine"] == _machine():
        # On this machine we can tell, whatever the clock says.
        lives = _process_start(fields["pid"]) == fields["process_start"] != ""
        return fields if lives else {}
    # In either direction, because a clock may have been set back.
    return fields if abs(age_s()) <= fields["expiry_s"] else {}


# A claim that is being written or is damaged holds until it expires.
_UNREADABLE = {"expiry_s": EXPIRY_S, "machine": "", "pid": 0, "process_start": ""}
_KINDS = {
    "expiry_s": (int, float),
    "pid": int,
    **dict.fromkeys(("machine", "process_start", "by", "host"), str),
}


def last_file(run: Path) -> Path | None:
    """The file of a run's last claim; None if it was never claimed."""
    found = (
        p for p in _files(run / "claims") if p.stem.isdecimal() and p.suffix == ".json"
    )
    return max(found, key=lambda p: int(p.stem), default=None)


def _files(directory: Path) -> list[Path]:
    # Not a glob pattern: the run's path may contain brackets.
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _clock() -> float:
    """Seconds, including those that the machine sleeps if the system counts them."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def _process_start(pid: int) -> str:
    """When a process on this machine started, in the system's units; '' for none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name, in parentheses, may contain anything. A zombie has ended.
    state, *rest = text.rpartition(")")[2].split()
    return "" if state == "Z" else rest[18]


@functools.cache
def _machine() -> str:
    """Identifies where process ids are valid: this boot and container; '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"{boot.strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
