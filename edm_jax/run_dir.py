"""A run directory: config, provenance, status and metrics as files.

Files are the interface between commands: comparing and reconstructing read only these.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "grain",
    "ml-collections",
    "numpy",
)


class RunDir:
    """One run's directory, created with its config or opened again with the same one.

    Raises ValueError naming the changed fields when it holds another config.
    """

    def __init__(self, path: Path, config: Any):
        self.path = Path(path)
        self.config_hash = config_hash(config)
        self._status: dict[str, Any] = {"state": "queued", "stage": "train"}
        self._status |= read_json(self.path / "status.json")
        self._status_written = 0.0
        recorded = read_json(self.path / "config.json")
        resolved = plain(config)
        known = _identity(recorded) if recorded else {}
        changed = _differences(known, _identity(resolved)) if recorded else []
        if changed:
            raise ValueError(
                f"{self.path} holds a run of another config: {'; '.join(changed)}. "
                "Choose another --run directory or restore these fields."
            )
        self.snapshots = snapshot_place(self.path, config.training.snapshot_dir)
        self.snapshots.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "config.json", resolved)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def status(self) -> dict[str, Any]:
        return dict(self._status)

    def set_status(self, *, now: bool = True, **fields: Any) -> None:
        """Updates status.json; at most once a second unless `now`."""
        self._status |= fields
        if now or time.monotonic() - self._status_written > 1:
            write_json(self.path / "status.json", self._status)
            self._status_written = time.monotonic()

    def record_provenance(self, **fields: Any) -> None:
        """Writes what the run was made with; the first start's time is kept."""
        path = self.path / "provenance.json"
        fields["start_time"] = read_json(path).get("start_time") or _utc_now()
        write_json(path, provenance() | fields)

    def log(self, kind: str, step: int, nimg: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl."""
        record = {"kind": kind, "step": step, "nimg": nimg, **values}
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The complete lines of a kind, in order."""
        return [r for r in self._read_metrics() if r["kind"] == kind]

    def forget_after(self, step: int) -> None:
        """Drops metrics past a step and a torn last line, before resuming there."""
        kept = [r for r in self._read_metrics() if r["step"] <= step]
        text = "".join(json.dumps(r) + "\n" for r in kept)
        _write(self.path / "metrics.jsonl", text)

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
    """Identity of a resolved config; where data and snapshots lie does not change it."""
    text = json.dumps(_identity(plain(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields but for places: data and snapshots may be moved."""
    places = {"data": "data_dir", "training": "snapshot_dir"}
    kept = dict(fields)
    for group, place in places.items():
        kept[group] = {k: v for k, v in fields.get(group, {}).items() if k != place}
    return kept


def provenance() -> dict[str, Any]:
    """Versions, machine, commit and command line of this process."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
        commit = found.stdout.strip()
    except OSError:  # no git here
        commit = ""
    return {
        "python": platform.python_version(),
        "versions": versions,
        "git_commit": commit,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "command": sys.argv,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    _write(path, json.dumps(value, indent=1, default=_as_number) + "\n")


def update_status(run: Path, **fields: Any) -> None:
    """Changes fields of a run's status.json from outside the run."""
    path = run / "status.json"
    write_json(path, read_json(path) | fields)


def _as_number(value: Any) -> Any:
    return np.asarray(value).tolist()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            prefix = f"{name}.{key}" if name else key
            found += _differences(old.get(key), new.get(key), prefix)
        return found
    return [] if old == new else [f"{name} is {old!r} there and {new!r} here"]
