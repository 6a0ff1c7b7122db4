"""Lets a killed job resume: partial files, a journal of complete chunks, and a lock."""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edm_jax import files
from edm_jax.ema import snapshots
from edm_jax.ema.container import partial_path
from edm_jax.ema.grammar import to_fields
from edm_jax.ema.meta import SnapshotMeta
from edm_jax.ema.optional import epath, xxhash
from edm_jax.ema.snapshots import Writer


class Sink:
    """Passes sums to the writers, and keeps the checksums of complete chunks."""

    def __init__(self, writers: dict[int, Writer], done: dict[int, dict[str, str]]):
        self._writers, self.done = writers, done  # checksums by chunk and target
        self._open: dict[int, dict[int, xxhash.xxh3_64]] = {}
        self._lock = threading.Lock()
        for chunk in done:
            self.seal(chunk)

    def store(self, start: int, values: np.ndarray) -> None:
        chunk = start // snapshots.CHUNK
        with self._lock:
            fresh = {k: xxhash.xxh3_64() for k in self._writers}
            hashers = self._open.setdefault(chunk, fresh)
        for k, writer in self._writers.items():
            writer.write(start, values[k])
            hashers[k].update(snapshots.as_bytes(values[k]))

    def seal(self, chunk: int) -> None:
        if chunk not in self.done:
            hashers = self._open.pop(chunk)
            self.done[chunk] = {str(k): h.hexdigest() for k, h in hashers.items()}
        for k, writer in self._writers.items():
            writer.seal(chunk, self.done[chunk][str(k)])

    def sync(self) -> None:
        for writer in self._writers.values():
            writer.sync()


class Journal:
    """A file beside a job's partial files that lists their complete chunks."""

    def __init__(self, metas: Sequence[SnapshotMeta], out: epath.Path):
        text = json.dumps([_identity(meta) for meta in metas])
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._path = partial_path(out / "reconstruct.journal")
        self._written = time.monotonic()

    def read(self) -> dict[int, dict[str, str]]:
        """Checksums by chunk and target; none if the journal is damaged or of another job."""
        try:
            found = files.read_json(self._path)
        except (OSError, ValueError):
            return {}
        if found.get("job") != self._key or found.get("checksum") != _checksum(found):
            return {}
        return {int(chunk): digests for chunk, digests in found["chunks"].items()}

    def write(self, sink: Sink, every: float = 0.0) -> None:
        """Records complete chunks once they are on disk, at most every `every` seconds."""
        if time.monotonic() - self._written < every:
            return
        sink.sync()
        temporary = f"{self._path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            note = {"job": self._key, "chunks": sink.done}
            json.dump(note | {"checksum": _checksum(note)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        self._written = time.monotonic()

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def _checksum(note: dict[str, Any]) -> str:
    """The checksum of a journal's contents."""
    chunks = json.loads(json.dumps(note.get("chunks")))  # turns its keys into text
    return xxhash.xxh3_64_hexdigest(json.dumps(chunks, sort_keys=True).encode())


def _identity(meta: SnapshotMeta) -> dict[str, Any]:
    fields = {"profile": to_fields(meta.profile), "versions": dict(meta.versions)}
    return vars(meta) | fields


@contextlib.contextmanager
def locked(out: epath.Path) -> Iterator[None]:
    """Keeps other processes from writing to `out` at the same time."""
    name = partial_path(out / "reconstruct.lock")
    os.makedirs(os.path.dirname(name), exist_ok=True)
    while True:
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise ValueError(
                f"Another process is writing to {out}: wait until it ends, or choose "
                "another directory."
            ) from None
        # The previous holder may have removed the file that was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(name)):
                break
        os.close(file)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        os.close(file)
