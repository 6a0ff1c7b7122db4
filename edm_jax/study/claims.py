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

from edm_jax.provenance import utc_now
from edm_jax.run_dir import read_json, write_json

EXPIRY_S = 60.0


@dataclasses.dataclass
class Claim:
    """The right to run a run, as long as it is renewed."""

    path: Path
    fields: dict[str, Any]
    _renewed: float = dataclasses.field(default_factory=time.monotonic)

    def renew(self) -> bool:
        """Says that the holder lives; False once another has taken over.

        Looks and touches a few times in an expiry, however often it is called.
        """
        if time.monotonic() - self._renewed < self.fields["expiry_s"] / 6:
            return True
        self._renewed = time.monotonic()
        if _latest(self.path.parent) != self.path:
            return False
        os.utime(self.path)
        return True

    def release(self, outcome: str) -> None:
        """Gives the run back, and says how it went."""
        # A disk that is full leaves the claim to expire.
        with contextlib.suppress(OSError):
            ended = {"outcome": outcome, "end_time": utc_now()}
            write_json(self.path, self.fields | ended)


def take(
    run: Path, by: str, expiry_s: float = EXPIRY_S, **fields: Any
) -> Claim | dict[str, Any]:
    """Claims a run; where somebody holds it, the fields of their claim instead."""
    directory = run / "claims"
    directory.mkdir(parents=True, exist_ok=True)
    fields |= {
        "by": by,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": _machine(),
        "start_time": utc_now(),
        "expiry_s": expiry_s,
    }
    candidate = directory / f".{uuid.uuid4().hex}"
    write_json(candidate, fields)
    try:
        latest = _latest(directory)
        # The file system's clock, not this host's: they may differ.
        if latest and (held := _held(latest, candidate.stat().st_mtime)):
            return held
        number = int(latest.stem) + 1 if latest else 1
        path = directory / f"{number:04}.json"
        try:
            os.link(candidate, path)
        except FileExistsError:
            return read_json(path)
        return Claim(path, fields)
    finally:
        candidate.unlink(missing_ok=True)


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
    fields = read_json(path)
    if "outcome" in fields or not fields or _is_dead(fields):
        return {}
    return fields if now - path.stat().st_mtime <= fields["expiry_s"] else {}


def _latest(directory: Path) -> Path | None:
    return max(directory.glob("[0-9]*.json"), key=lambda p: int(p.stem), default=None)


def _is_dead(fields: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, and is no more."""
    if not fields["machine"] or fields["machine"] != _machine():
        return False
    try:
        os.kill(fields["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


@functools.cache
def _machine() -> str:
    """Where process ids mean the same: this boot and this container; '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"{boot.strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
