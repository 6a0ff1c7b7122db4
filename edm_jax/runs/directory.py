"""A run directory: config, provenance, status and metrics as files.

Files are the interface between commands: comparing and reconstructing read only these.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from edm_jax import files
from edm_jax.runs.provenance import provenance, utc_now

# What may change where a run goes on: where things lie, and how it runs.
FREE = {
    "data.data_dir",
    "training.snapshot_dir",
    "training.checkpoint_mimg",
    "training.keep_checkpoints",
    "training.keep_checkpoint_mimg",
    "training.parallel",
    "training.sharding",
    "training.microbatches",
    "training.remat",
}
# Time is counted in steps of so many images.
_NEVER = "optimizer.batch_size"

Differences = dict[str, tuple[Any, Any]]  # {field: (old, new)}


class RunDir:
    """One run's directory, created with its config or opened again with the same one.

    allow: fields that may differ from what it holds. writing: whether this process
    writes, as one of a run's does. `mirror` takes every record that is logged, too.
    Raises ValueError naming the changed fields when it holds another config.
    """

    def __init__(
        self,
        path: Path,
        config: Any,
        allow: Sequence[str] = (),
        writing: bool = True,
    ):
        self.path = Path(path)
        self.mirror: Callable[[dict[str, Any]], None] = lambda record: None
        self._writing = writing
        self._status: dict[str, Any] = {"state": "queued", "stage": "train"}
        # Damaged, it is written anew; what matters is in the checkpoints.
        self._status |= read_state(self.path / "status.json")
        self._status_written = 0.0
        resolved = plain(config)
        # Accepted changes leave the identity as it was: it is still the same run.
        history = read_json(self.path / "changes.json")
        self.config_hash = history.get("config_hash") or config_hash(config)
        if recorded := read_json(self.path / "config.json"):
            self.config_hash = history.get("config_hash") or _hash(recorded)
            changed = _differences(_identity(recorded), _identity(resolved))
            self._check_changes(changed, allow)
            if changed and writing:
                change = {"nimg": self._status.get("nimg", 0), "changes": changed}
                changes = [*history.get("changes", []), change]
                fields = {"config_hash": self.config_hash, "changes": changes}
                write_json(self.path / "changes.json", fields)
        self.snapshots = snapshot_place(self.path, config.training.snapshot_dir)
        if writing:
            self.snapshots.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", resolved)

    def _check_changes(self, changed: Differences, allow: Sequence[str]) -> None:
        refused = {f: c for f, c in changed.items() if f not in allow or f == _NEVER}
        if not refused:
            return
        diff = "; ".join(
            f"{f} is {a!r} there and {b!r} here" for f, (a, b) in refused.items()
        )
        fields = ",".join(f for f in changed if f != _NEVER)
        accept = f", or accept them with --allow={fields}" if fields else ""
        if _NEVER in refused:
            accept = f" ({_NEVER} cannot change in a run: its time is counted in steps)"
        raise ValueError(
            f"{self.path} holds a run of another config: {diff}. Choose another --run "
            f"directory or restore these fields{accept}."
        )

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def status(self) -> dict[str, Any]:
        return dict(self._status)

    def set_status(self, *, now: bool = True, **fields: Any) -> None:
        """Updates status.json; at most once a second unless `now`."""
        self._status |= fields
        if not self._writing:
            return
        if now or time.monotonic() - self._status_written > 1:
            write_json(self.path / "status.json", self._status)
            self._status_written = time.monotonic()

    def record_provenance(self, **fields: Any) -> None:
        """Writes what the run is made with now, and when and where it was begun."""
        if not self._writing:
            return
        path, found = self.path / "provenance.json", provenance() | fields
        names = ("host", "git_commit", "git_changes", "command", "devices")
        start = {name: found.get(name) for name in names}
        start |= {"time": utc_now(), "nimg": self._status.get("nimg", 0)}
        starts = [*read_json(path).get("starts", []), start]
        found |= {"start_time": starts[0]["time"], "starts": starts}
        write_json(path, found)

    def log(self, kind: str, step: int, nimg: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl, whole or not at all."""
        if not self._writing:
            return
        record = {"kind": kind, "step": step, "nimg": nimg, **values}
        line = (json.dumps(record) + "\n").encode()
        with open(self.path / "metrics.jsonl", "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
            except OSError:
                file.truncate(size)
                raise
        self.mirror(record)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The complete lines of a kind, in order."""
        return [r for r in self._read_metrics() if r["kind"] == kind]

    def forget_after(self, step: int) -> None:
        """Drops metrics past a step and a torn last line, before resuming there."""
        if not self._writing:
            return
        kept = [r for r in self._read_metrics() if r["step"] <= step]
        text = "".join(json.dumps(r) + "\n" for r in kept)
        files.write_text(self.path / "metrics.jsonl", text)

    def _read_metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        # What follows the last newline is a line torn by a kill.
        return [json.loads(line) for line in lines[:-1]]


def snapshot_place(run: epath.PathLike, root: str) -> epath.Path:
    """Where a run's snapshots lie: in it, or under a root that other runs share."""
    run = epath.Path(run)
    if not root:
        return run / "snapshots"
    whole = run.absolute()
    return epath.Path(root) / whole.parent.name / whole.name


def plain(config: Any) -> dict[str, Any]:
    """A ConfigDict as the nested dict that its JSON file reads back as."""
    return json.loads(json.dumps(config.to_dict()))


def config_hash(config: Any) -> str:
    """Identity of a resolved config, but for its `FREE` fields."""
    return _hash(plain(config))


def _hash(fields: dict[str, Any]) -> str:
    text = json.dumps(_identity(fields), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(fields: Any, name: str = "") -> Any:
    """The fields but for the free ones."""
    if not isinstance(fields, dict):
        return fields
    dotted = {key: f"{name}.{key}" if name else key for key in fields}
    return {
        key: _identity(value, dotted[key])
        for key, value in fields.items()
        if dotted[key] not in FREE
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none yet. Raises files.Damaged."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        return {}


def read_state(path: Path) -> dict[str, Any]:
    """The same of a file that others write, {} where it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    files.write_json(path, value, default=_as_number)


def update_status(run: Path, **fields: Any) -> None:
    """Changes fields of a run's status.json from outside the run."""
    path = run / "status.json"
    write_json(path, read_state(path) | fields)


def _as_number(value: Any) -> Any:
    return np.asarray(value).tolist()


def _differences(old: Any, new: Any, name: str = "") -> Differences:
    if isinstance(old, dict) and isinstance(new, dict):
        found: Differences = {}
        for key in sorted(old.keys() | new.keys()):
            prefix = f"{name}.{key}" if name else key
            found |= _differences(old.get(key), new.get(key), prefix)
        return found
    return {} if old == new else {name: (old, new)}
