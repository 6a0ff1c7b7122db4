"""Claims: of all launchers on all hosts, one runs a run.

A claim is a file RUN/claims/NNNN.json, and the highest number counts. To claim is to link
the next number, which one process alone can do, on shared file systems, too. Its holder
touches the file now and then; one that was not touched for its `expiry_s` is forfeit, and
that of a dead process of this machine at once. Only the holder writes to its file, no file
is removed, and so there is nothing to steal: who held a run, and when, stays on record.
"""

import contextlib
import dataclasses
import functools
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from edm_jax.runs.directory import read_state, write_json
from edm_jax.runs.provenance import utc_now

EXPIRY_S = 60.0


@dataclasses.dataclass
class Claim:
    """The right to run a run, as long as it is renewed."""

    path: Path
    fields: dict[str, Any]
    _renewed: float = dataclasses.field(default_factory=lambda: _clock())

    def renew(self) -> bool:
        """Says that the holder lives; False once it is no longer the holder.

        Looks and touches a few times in an expiry, however often it is called.
        """
        if _clock() - self._renewed < self.fields["expiry_s"] / 6:
            return True
        self._renewed = _clock()
        try:
            if not self._is_mine():
                return False
            os.utime(self.path)
        except OSError:  # a file system that is away for a moment
            pass
        return True

    def release(self, outcome: str) -> None:
        """Gives the run back, and says how it went."""
        # A disk that is full leaves the claim to expire.
        with contextlib.suppress(OSError):
            if self._is_mine():
                ended = {"outcome": outcome, "end_time": utc_now()}
                write_json(self.path, self.fields | ended)

    def _is_mine(self) -> bool:
        # By its id, too: the directory may have been deleted and begun anew.
        latest = _latest(self.path.parent) == self.path
        return latest and read_state(self.path).get("id") == self.fields["id"]


def take(run: Path, by: str, expiry_s: float = EXPIRY_S) -> Claim | dict[str, Any]:
    """Claims a run; where somebody holds it, the fields of their claim instead."""
    directory = run / "claims"
    directory.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    fields = {
        "id": name,
        "by": by,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "machine": _machine(),
        "start_time": utc_now(),
        "expiry_s": expiry_s,
    }
    candidate = directory / f".{name}"
    write_json(candidate, fields)
    try:
        latest = _latest(directory)
        # The file system's clock, not this host's: they may differ.
        if latest and (held := _held(latest, candidate.stat().st_mtime)):
            return held
        number = int(latest.stem) + 1 if latest else 1
        path = directory / f"{number:04}.json"
        if _enter(candidate, path):
            return Claim(path, fields)
        return _held(path, candidate.stat().st_mtime) or {"by": "another"}
    finally:
        candidate.unlink(missing_ok=True)


def _enter(candidate: Path, path: Path) -> bool:
    """Gives a claim its number, which only one of many gets."""
    try:
        os.link(candidate, path)
    except FileExistsError:
        # An answer may be lost on the network, and the question put twice.
        return candidate.stat().st_nlink == 2
    except OSError:
        # Without hard links: an empty file is a claim as well, until it is filled.
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(candidate.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def holder(run: Path) -> dict[str, Any]:
    """The fields of the claim that holds a run now; {} for a run that nobody holds."""
    latest = _latest(run / "claims")
    return _held(latest, time.time()) if latest else {}


def count(run: Path) -> int:
    """How often a run was claimed."""
    latest = _latest(run / "claims")
    return int(latest.stem) if latest else 0


def who(claim: dict[str, Any]) -> str:
    """'launcher 12 on host'."""
    return f"{claim.get('by')} on {claim.get('host')}"


def _held(path: Path, now: float) -> dict[str, Any]:
    fields = _UNREADABLE | read_state(path)
    if "outcome" in fields:
        return {}
    if fields["machine"] and fields["machine"] == _machine():
        # Here it is known, whatever the clock does meanwhile.
        lives = _process_start(fields["pid"]) == fields["process_start"] != ""
        return fields if lives else {}
    # The clock may have been set back, too.
    return fields if abs(now - path.stat().st_mtime) <= fields["expiry_s"] else {}


# What is being written, or is damaged, holds until it expires.
_UNREADABLE = {"expiry_s": EXPIRY_S, "machine": "", "pid": 0, "process_start": ""}


def _latest(directory: Path) -> Path | None:
    claims = [p for p in directory.glob("*.json") if p.stem.isdecimal()]
    return max(claims, key=lambda p: int(p.stem), default=None)


def _clock() -> float:
    """Seconds that a machine's sleep counts in, where it can tell."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def _process_start(pid: int) -> str:
    """When a process of this machine began, in its own units; '' for none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # Its name, in parentheses, may hold anything. A zombie has ended.
    state, *rest = text.rpartition(")")[2].split()
    return "" if state == "Z" else rest[18]


@functools.cache
def _machine() -> str:
    """Where process ids mean the same: this boot and this container; '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"{boot.strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
