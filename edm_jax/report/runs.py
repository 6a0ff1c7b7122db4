"""Reading run directories: whatever a dead or unfinished run left is accepted."""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

Record = dict[str, Any]


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
    samples: bytes | None = field(repr=False)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def letter(self) -> str:
        """The config's letter in lower case, or '' when it is not known."""
        return str(self.config.get("letter", "")).lower()

    @property
    def state(self) -> str:
        """queued, running, preempted, failed, done, or unknown."""
        return str(self.status.get("state", "unknown"))

    @property
    def measured(self) -> bool:
        """Whether the run is done and its evaluation is of the finished run."""
        return self.state == "done" and not self._fault()

    @property
    def message(self) -> str:
        """What a reader must know about a run that has no numbers, else ''."""
        if self.state == "done":
            return self._fault()
        if not self.status:
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
class Entry:
    """One config of the comparison and its runs, which differ in seed alone."""

    letter: str
    title: str
    variant: int  # 0 for a letter's first config, 1, 2, ... for altered ones
    runs: list[Run]
    reference: "Entry | None"  # what it is compared with: the letter before

    @property
    def label(self) -> str:
        """What figures and tables call it: the letter, or the run's name."""
        if self.letter and self.variant == 0:
            return self.letter.upper()
        return self.runs[0].name

    @property
    def measured(self) -> list[Run]:
        """The runs whose numbers may be shown."""
        return [run for run in self.runs if run.measured]


def number(record: Record, *keys: str) -> float | None:
    """Follow keys into nested records; None unless a number lies there."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value


def read_json(path: Path) -> Record:
    """Read a JSON object; {} when the file is absent, empty or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_metrics(path: Path) -> dict[str, list[Record]]:
    """Read metrics.jsonl by kind, in order of nimg; unreadable lines are skipped.

    A resumed run may log the same nimg twice: the later line counts.
    """
    kinds: dict[str, dict[float, Record]] = {"train": {}, "dynamics": {}, "heldout": {}}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or record.get("kind") not in kinds:
            continue
        nimg = number(record, "nimg")
        if nimg is not None:
            kinds[record["kind"]][nimg] = record
    return {kind: [by[nimg] for nimg in sorted(by)] for kind, by in kinds.items()}


def read_image(path: Path) -> bytes | None:
    """Read a PNG file's bytes; None when it is absent or not a whole image."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return data


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
        samples=read_image(path / "samples.png"),
    )


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Expand studies to their runs: a run holds config.json or status.json.

    Raises FileNotFoundError for a path that is neither a run nor holds one.
    """

    def is_run(path: Path) -> bool:
        return any((path / f).is_file() for f in ("config.json", "status.json"))

    found: list[Path] = []
    for path in paths:
        inside = [path] if is_run(path) else sorted(filter(is_run, path.glob("*/")))
        if not inside:
            raise FileNotFoundError(
                f"{path} is no run and holds none: give a study directory, or run "
                "directories with a config.json."
            )
        found += [run for run in inside if run not in found]
    return found


def ladder(runs: Sequence[Run]) -> list[Entry]:
    """Group runs that differ in seed alone and order them by letter.

    A letter's first config is compared with the nearest letter before it, an
    altered config of the same letter with that letter's first.
    """
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.letter or "~", run.name)):
        same = {k: v for k, v in run.config.items() if k != "seed"}
        key = json.dumps(same, sort_keys=True) if same else str(run.path)
        groups.setdefault(key, []).append(run)
    entries: list[Entry] = []
    for group in groups.values():
        letter = group[0].letter
        firsts = [entry for entry in entries if entry.variant == 0 and entry.letter]
        variant = sum(entry.letter == letter for entry in entries) if letter else 0
        title = str(group[0].config.get("title", group[0].name))
        reference = firsts[-1] if firsts and group[0].config else None
        entries.append(Entry(letter, title, variant, group, reference))
    return entries
