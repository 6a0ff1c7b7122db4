"""A run directory: config, provenance, status and metrics as files.

Files are the interface between commands: compare.py and reconstruct.py read nothing else.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from etils import epath

from edm_jax import files
from edm_jax.runs import schema
from edm_jax.runs.provenance import provenance, utc_now

_log = logging.getLogger(__name__)
# Fields that may change when a run resumes: paths, execution and monitoring.
FREE = {
    "data.data_dir",
    "data.num_workers",
    "evaluation.decoder.name",
    "evaluation.decoder.weights",
    "evaluation.decoder.pixels",
    "training.snapshot_dir",
    "training.checkpoint_mimg",
    "training.keep_checkpoints",
    "training.keep_checkpoint_mimg",
    "training.parallel",
    "training.sharding",
    "training.shards",
    "training.microbatches",
    "training.remat",
    "training.alert_z",
    "training.alert_update",
    "training.sharpness_iterations",
    "training.evaluate_mimg",
}
# A run counts its time in steps of one batch.
_NEVER = "optimizer.batch_size"
_GROUPS = "optimizer.groups"

Differences = dict[str, tuple[Any, Any]]  # {field: (old, new)}


class Config(Protocol):
    """A run's config, which is recorded as nested dicts."""

    def to_dict(self) -> dict[str, Any]: ...


class RunDir:
    """One run's directory: created with its config, or opened again with the same one.

    `mirror` receives every record that is logged. `study` is the name and variant of the
    run's study, if it is known; `learning_rate` is the result of a learning-rate finder;
    `base` is what the weights start from.

    Args:
        path: The directory.
        config: The run's resolved config.
        allow: Fields that may differ from the recorded ones.
        writing: Whether this process writes the files; only one process of a run does.

    Raises:
        ValueError: The directory holds a trained run with another config; the message
            names the fields. An untrained one is taken over instead.
        files.Damaged: The files that identify the run cannot be read.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        allow: Sequence[str] = (),
        writing: bool = True,
    ):
        self.path = Path(path)
        self.mirror: Callable[[dict[str, Any]], None] = lambda record: None
        self.study: dict[str, str] | None = None
        self.learning_rate: dict[str, Any] | None = None
        self.base: dict[str, Any] | None = None
        self._writing = writing
        self._warned = False
        self._status = {"state": "queued", "stage": "train"} | self._read_status()
        self._status_written = 0.0
        resolved = plain(config)
        recorded, history = self._read_identity()
        self.is_taken_over = False
        changed = _differences(_identity(recorded), _identity(resolved))
        if changed and recorded and not self._was_trained(recorded):
            self.is_taken_over, recorded, history = True, {}, {}
        # Accepted changes do not change the identity: it is still the same run.
        self.config_hash = history.get("config_hash") or _hash(recorded or resolved)
        self._history = history.get("changes", [])
        if recorded:
            self._check_changes(changed, allow)
            if changed:
                change = {"nimg": self._status.get("nimg", 0), "changes": changed}
                self._history = [*self._history, change]
        self._has_changed = bool(recorded and changed)
        self._is_to_be_written = self._was_old or recorded != resolved
        self.snapshots = snapshot_place(self.path, resolved["training"]["snapshot_dir"])
        if writing:
            self._write_identity(resolved)

    def _read_identity(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """config.json and changes.json; {} for a file that does not exist yet."""
        path = self.path / "config.json"
        remedy = "Restore it, or delete it to write this command's config instead."
        try:
            recorded = read_json(path)
            schema.check(recorded, path)
            if not recorded and path.exists():
                raise files.Damaged(path, "is damaged: it holds no config.")
        except files.Damaged as error:
            raise files.Damaged(path, f"{error.reason} {remedy}") from None
        path = self.path / "changes.json"
        remedy = (
            "Restore it, or delete it: the run then counts as a different one from the "
            "run before its config was changed."
        )
        try:
            history = read_json(path)
            changes = history.get("changes", [])
            sound = isinstance(history.get("config_hash", ""), str)
            if not (sound and isinstance(changes, list)):
                raise files.Damaged(path, "is damaged: it has no list of changes.")
        except files.Damaged as error:
            raise files.Damaged(path, f"{error.reason} {remedy}") from None
        self._was_old = recorded.pop("schema", 1) != schema.SCHEMA and bool(recorded)
        if self._was_old:
            # The run's snapshots hold the hash of the old fields.
            history = {"config_hash": _hash(recorded), **history}
            recorded = schema.upgrade(recorded)
        return recorded, history

    def _was_trained(self, recorded: dict[str, Any]) -> bool:
        """Whether the run has any results of training with the recorded config."""
        training = recorded.get("training")
        root = training.get("snapshot_dir", "") if isinstance(training, dict) else ""
        for place in (epath.Path(self.checkpoints), snapshot_place(self.path, root)):
            if place.is_dir() and any(place.iterdir()):
                return True
        try:
            records, faults = self._read_metrics()
        except files.Damaged:
            return True
        return bool(faults) or any(record["step"] > 0 for record in records)

    def _check_changes(self, changed: Differences, allow: Sequence[str]) -> None:
        option = {field: _option(field) for field in changed}
        refused = {
            f: c
            for f, c in changed.items()
            if f == _NEVER or not {f, option[f]} & set(allow)
        }
        if not refused:
            return
        diff = "; ".join(
            f"{f} is {a!r} there and {b!r} here" for f, (a, b) in refused.items()
        )
        fields = ",".join(dict.fromkeys(o for o in option.values() if o != _NEVER))
        accept = f", or accept them with --allow={fields}" if fields else ""
        if _NEVER in refused:
            accept = f" ({_NEVER} cannot change in a run: its time is counted in steps)"
        raise ValueError(
            f"{self.path} holds a run with another config: {diff}. Choose another --run "
            f"directory or restore these fields{accept}."
        )

    def _write_identity(self, resolved: dict[str, Any]) -> None:
        new = [place for place in (self.path.parent, self.path) if not place.exists()]
        try:
            self.snapshots.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            if self.is_taken_over:
                (self.path / "changes.json").unlink(missing_ok=True)
            if self._has_changed or (self._was_old and not self.is_taken_over):
                self._write_changes()
            if self._is_to_be_written:
                versioned = {"schema": schema.SCHEMA, **resolved}
                write_json(self.path / "config.json", versioned)
        except OSError:
            # On a full disk, leave no empty directory behind.
            for place in (Path(self.snapshots), *reversed(new)):
                with contextlib.suppress(OSError):
                    place.rmdir()
            raise

    def _write_changes(self) -> None:
        fields = {"config_hash": self.config_hash, "changes": self._history}
        write_json(self.path / "changes.json", fields)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def status(self) -> dict[str, Any]:
        return dict(self._status)

    @property
    def best_nimg(self) -> int | None:
        """The images at the best loss of a run that stopped early; None for others."""
        best = self._status.get("best_nimg")
        return best if isinstance(best, int) else None

    def _read_status(self) -> dict[str, Any]:
        # A damaged status is not fatal: everything essential is in the checkpoints.
        path = self.path / "status.json"
        try:
            read_json(path)
        except files.Damaged as error:
            if self._writing:
                _log.warning("%s It is rewritten.", error)
        return read_status(self.path)

    def set_status(self, *, now: bool = True, **fields: Any) -> None:
        """Updates status.json; at most once a second unless `now`."""
        self._status |= fields
        if not self._writing:
            return
        if now or time.monotonic() - self._status_written > 1:
            write_json(self.path / "status.json", self._status)
            self._status_written = time.monotonic()

    def record_provenance(self, nimg: int = 0, **fields: Any) -> None:
        """Records the code, versions and machine, and this start of the run.

        Args:
            nimg: The images that it was trained on before this start.
            **fields: More to record.
        """
        if not self._writing:
            return
        if self._has_changed and self._history[-1]["nimg"] != nimg:
            self._history[-1]["nimg"] = nimg
            self._write_changes()
        path, found = self.path / "provenance.json", provenance() | fields
        names = ("host", "git_commit", "git_changes", "command", "devices")
        start = {name: found.get(name) for name in names}
        start |= {"time": utc_now(), "nimg": nimg}
        before = self._read_provenance(path)
        starts = [*before.get("starts", []), start]
        found |= {"start_time": starts[0]["time"], "starts": starts}
        found["study"] = self.study or before.get("study")
        origin = {
            "learning_rate": self.learning_rate,
            "branch": None,
            "base": self.base,
        }
        for name, new in origin.items():
            if value := new or before.get(name):
                found[name] = value
        write_json(path, found)

    def _read_provenance(self, path: Path) -> dict[str, Any]:
        try:
            before = read_json(path)
            starts = before.get("starts", [])
            if not isinstance(starts, list) or not all(
                isinstance(each, dict) and "time" in each for each in starts
            ):
                raise files.Damaged(
                    path, "is damaged: its starts are not a list of starts."
                )
        except files.Damaged as error:
            kept = self._set_aside(path)
            _log.warning("%s It is kept as %s; a new one is started.", error, kept.name)
            return {}
        return before

    def _set_aside(self, path: Path) -> Path:
        """Renames a damaged file, so that nothing is lost; returns its new path."""
        names = (f"{path.name}.damaged{i or ''}" for i in itertools.count())
        aside = next(p for p in map(path.with_name, names) if not p.exists())
        return path.rename(aside)

    def log(self, kind: str, step: int, nimg: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl, whole or not at all."""
        if not self._writing:
            return
        record = {"kind": kind, "step": step, "nimg": nimg, **values}
        line = (json.dumps(record) + "\n").encode()
        path = self.path / "metrics.jsonl"
        with open(path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                file.truncate(size)
                raise files.named(error, path) from None
        self.mirror(record)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The undamaged lines of a kind, in order; warns once of a damaged one."""
        records, faults = self._read_metrics()
        if faults and not self._warned:
            self._warned = True
            path = self.path / "metrics.jsonl"
            _log.warning("%s: %s. It is left out.", path, faults[0])
        return [r for r in records if r["kind"] == kind]

    def forget_after(self, step: int) -> None:
        """Drops metrics after a step, and an incomplete last line, before resuming there.

        If other lines are damaged, warns and keeps a copy of the file.

        Raises:
            ValueError: The run resumes, but its file is missing.
        """
        if not self._writing:
            return
        path = self.path / "metrics.jsonl"
        if step > 0 and not path.exists():
            raise ValueError(
                f"{path} is missing, but the run was trained for {step:,} steps: restore "
                f"it, or give up the curves so far with: touch {path}"
            )
        records, faults = self._read_metrics()
        if faults:
            kept = self._set_aside(path)
            more = f" and {len(faults) - 1:,} more" if len(faults) > 1 else ""
            _log.warning(
                "%s: %s%s. The other %s lines are kept; the old file is now %s.",
                path,
                faults[0],
                more,
                f"{len(records):,}",
                kept.name,
            )
        text = "".join(json.dumps(r) + "\n" for r in records if r["step"] <= step)
        files.write_text(path, text)

    def _read_metrics(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Reads the lines; returns the records, and what is wrong with other lines."""
        try:
            lines = files.read_bytes(self.path / "metrics.jsonl").split(b"\n")
        except FileNotFoundError:
            return [], []
        records, faults = [], []
        # Text after the last newline is an incomplete line, left by a kill.
        for number, line in enumerate(lines[:-1], 1):
            try:
                records.append(_record(line))
            except ValueError as error:
                faults.append(f"line {number} is damaged ({error})")
        return records, faults


def _option(field: str) -> str:
    """What --allow names: a choice with its fields, or all groups of parameters."""
    if field.startswith(f"{_GROUPS}."):
        return _GROUPS  # their names hold commas
    return field.rpartition(".")[0] if field.count(".") > 1 else field


def _record(line: bytes) -> dict[str, Any]:
    """Parses a line of metrics.jsonl; raises ValueError if it is not a record."""
    record = files.parse_json(line)
    if not isinstance(record, dict):
        raise ValueError("it is not a record")  # noqa: TRY004  no wrong type
    for name, kind in (("kind", str), ("step", int), ("nimg", int)):
        if not isinstance(record.get(name), kind):
            raise ValueError(f"it has no {name}")  # noqa: TRY004
    return record


def snapshot_place(run: epath.PathLike, root: str) -> epath.Path:
    """Where a run's snapshots are: inside it, or under a root shared with other runs."""
    run = epath.Path(run)
    if not root:
        return run / "snapshots"
    whole = run.absolute()
    return epath.Path(os.path.expanduser(root)) / whole.parent.name / whole.name


def plain(config: Config) -> dict[str, Any]:
    """A config as nested dicts, in the form in which its JSON file reads back."""
    return json.loads(json.dumps(config.to_dict()))


def config_hash(config: Config) -> str:
    """A hash of a resolved config without its `FREE` fields."""
    return _hash(plain(config))


def _hash(fields: dict[str, Any]) -> str:
    text = json.dumps(_identity(fields), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(fields: Any, name: str = "") -> Any:
    """The fields without the free ones."""
    if not isinstance(fields, dict):
        return fields
    dotted = {key: f"{name}.{key}" if name else key for key in fields}
    return {
        key: _identity(value, dotted[key])
        for key, value in fields.items()
        if dotted[key] not in FREE
    }


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; {} if there is no file yet. Raises files.Damaged."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        return {}


def read_state(path: Path, kinds: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads a JSON object that another process writes; {} if it cannot be read now.

    Fields with another type than in `kinds` are left out.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    kinds = kinds or {}
    return {k: v for k, v in found.items() if isinstance(v, kinds.get(k, object))}


_STATUS = {
    "state": str,
    "stage": str,
    "message": str,
    "nimg": int,
    "total_nimg": int,
    "best_nimg": (int, type(None)),
    "images_per_s": (int, float),
}


def read_status(run: Path) -> dict[str, Any]:
    """A run's status.json, without fields of the wrong type."""
    return read_state(run / "status.json", _STATUS)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    files.write_json(path, value, default=_as_number)


def update_status(run: Path, **fields: Any) -> None:
    """Changes fields of a run's status.json from another process."""
    write_json(run / "status.json", read_status(run) | fields)


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
