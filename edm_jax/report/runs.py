"""Reading run directories: whatever a dead or unfinished run left is accepted."""

import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from edm_jax.report.records import Record, number, read_metrics
from edm_jax.runs.directory import FREE

TAIL_LINES = 30
TAIL_BYTES = 32_768  # of a log: lines may be long


@dataclass(frozen=True)
class Run:
    """The contents of one run directory; absent files are empty."""

    path: Path
    config: Record
    provenance: Record
    status: Record
    evaluation: Record
    train: list[Record] = field(repr=False)
    dynamics: list[Record] = field(repr=False)
    heldout: list[Record] = field(repr=False)
    speed: list[Record] = field(repr=False)
    alerts: list[Record] = field(repr=False)
    samples: bytes | None = field(repr=False)
    changed_fields: list[str] = field(repr=False)  # of the config, while it trained
    log_tail: str = field(repr=False)  # the last lines that it printed

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def letter(self) -> str:
        """The config's letter in lower case, or '' when it is not known."""
        return str(self.config.get("letter", "")).lower()

    @property
    def seed(self) -> int | None:
        """The seed of its weights, data and noise."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def data(self) -> Any:
        """The fingerprint of the data that it was trained on; None if not recorded."""
        return self.provenance.get("data") or None

    @property
    def state(self) -> str:
        """queued, running, preempted, failed, done, or unknown."""
        started = self.config or (self.path / "config.json").exists()
        return str(self.status.get("state", "unknown" if started else "queued"))

    @property
    def measured(self) -> bool:
        """Whether the run is done and its evaluation is of the finished run."""
        return self.state == "done" and not self._fault()

    @property
    def message(self) -> str:
        """What a reader must know about a run that has no numbers, else ''."""
        if self.state == "done":
            return self._fault()
        if not self.status and self.state != "queued":
            return "status.json is missing or unreadable"
        stage, said = self.status.get("stage"), self.status.get("message")
        nimg, total = (number(self.status, k) for k in ("nimg", "total_nimg"))
        parts = [str(stage)] if stage else []
        if nimg is not None and total:
            parts.append(f"{nimg:,.0f} of {total:,.0f} images")
        progress = ", ".join(parts)
        return ": ".join(part for part in (progress, str(said or "")) if part)

    def _fault(self) -> str:
        """Why the evaluation of a run that is done cannot be used, else ''."""
        if not self.evaluation:
            return "evaluation.json is missing or unreadable: evaluate the run"
        of, trained = number(self.evaluation, "nimg"), number(self.status, "nimg")
        if of is not None and trained is not None and of < trained:
            return (
                f"evaluation.json is of {of:,.0f} images and the run has "
                f"{trained:,.0f}: evaluate it again"
            )
        return ""


@dataclass(frozen=True)
class Aside:
    """A run whose numbers are not among its config's, and why."""

    run: Run
    state: str  # the run's, 'other data' or 'same seed'
    message: str


@dataclass(frozen=True)
class Entry:
    """One config of the comparison and its runs, which differ in seed alone."""

    letter: str
    title: str
    label: str  # what figures and tables call it: the letter, or the run's name
    variant: int  # 0 for a letter's config of the ladder, 1, 2, ... for altered ones
    runs: list[Run]
    reference: "Entry | None"  # its parent: what its changes are listed against
    is_baseline: bool = False
    other_data: str = ""  # how its data differ from the baseline's
    aside: list[Aside] = field(default_factory=list)

    @property
    def measured(self) -> list[Run]:
        """The runs whose numbers may be shown, one for each seed."""
        return [r for r in self.runs if all(aside.run is not r for aside in self.aside)]


def read_json(path: Path) -> Record:
    """Read a JSON object; {} when the file is absent, empty or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_image(path: Path) -> bytes | None:
    """Read a PNG file's bytes; None when it is absent or not a whole image."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return data


def read_tail(path: Path) -> str:
    """The last lines of a log; '' where there is none, '\ufffd' for bytes of no text."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join([line for line in lines if line][-TAIL_LINES:])


def _changed_fields(history: Record) -> list[str]:
    changes = history.get("changes")
    found = [c.get("changes") for c in changes or [] if isinstance(c, dict)]
    return sorted({name for fields in found if fields for name in fields})


def load_run(path: Path) -> Run:
    """Read one run directory; raises FileNotFoundError when there is none."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no run directory {path}: check the path.")
    metrics = read_metrics(path / "metrics.jsonl")
    return Run(
        path=path,
        config=read_json(path / "config.json"),
        provenance=read_json(path / "provenance.json"),
        status=read_json(path / "status.json"),
        evaluation=read_json(path / "evaluation.json"),
        train=metrics["train"],
        dynamics=metrics["dynamics"],
        heldout=metrics["heldout"],
        speed=metrics["speed"],
        alerts=metrics["alert"],
        samples=read_image(path / "samples.png"),
        changed_fields=_changed_fields(read_json(path / "changes.json")),
        log_tail=read_tail(path / "log.txt"),
    )


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Expand studies to their runs, which hold config.json or status.json.

    So is a directory that holds a log or a lock alone: a run that waits. Raises
    FileNotFoundError for a path that is neither a run nor holds one.
    """
    found: dict[Path, Path] = {}  # one of each, however it is named
    for path in paths:
        inside = [path] if _is_run(path) else sorted(filter(_is_run, path.glob("*/")))
        if not inside:
            raise FileNotFoundError(
                f"{path} is no run and holds none: give a study directory, or run "
                "directories with a config.json."
            )
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _is_run(path: Path) -> bool:
    if any((path / name).is_file() for name in ("config.json", "status.json")):
        return True
    inside = [p.name for p in path.iterdir()] if path.is_dir() else []
    return bool(inside) and all(
        re.fullmatch(r"log\.txt|(.*\.)?lock", n) for n in inside
    )


def identity(config: Record) -> Record:
    """A config but for its seed and for the fields of how and where a run runs."""

    def kept(fields: Record, prefix: str) -> Record:
        return {
            key: kept(value, f"{prefix}{key}.") if isinstance(value, dict) else value
            for key, value in fields.items()
            if f"{prefix}{key}" not in FREE | {"seed"}
        }

    return kept(config, "")
