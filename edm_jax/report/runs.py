"""Runs as data: the contents of a run directory's files, checked on reading."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax import files

Json = dict[str, Any]
Name = tuple[str | int, ...]  # the keys that lead to a number in a record
Series = tuple[np.ndarray, np.ndarray]  # x and y of a curve


@dataclass(frozen=True)
class Log:
    """Records of one kind, in order of images trained."""

    nimg: np.ndarray  # (N,)
    values: dict[Name, np.ndarray]  # (N,) each; NaN where a record has no number

    def __len__(self) -> int:
        return len(self.nimg)

    def __getitem__(self, kept: slice | np.ndarray) -> "Log":
        return Log(self.nimg[kept], {k: v[kept] for k, v in self.values.items()})

    def column(self, *name: str | int) -> np.ndarray:
        """One quantity from all records, (N,)."""
        found = self.values.get(name)
        return np.full(len(self), np.nan) if found is None else found

    def curve(self, *name: str | int) -> Series:
        """Images trained and a quantity, at records where it is finite."""
        values = self.column(*name)
        kept = np.isfinite(values)
        return self.nimg[kept], values[kept]


@dataclass(frozen=True)
class Status:
    """status.json."""

    state: str = ""
    stage: str = ""
    message: str = ""
    nimg: int | None = None
    total_nimg: int | None = None
    best_nimg: int | None = None  # images at the best loss of a run that stopped early
    images_per_s: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json."""

    nimg: int | None
    values: dict[Name, float]  # every number in it
    sweep: np.ndarray  # (N, 2): sigma_rel, ascending, and loss, both finite
    traditional: list[tuple[float, float]]  # half-life in millions of images, loss
    time: float  # when the file was written


@dataclass(frozen=True)
class Damage:
    """A file with wrong contents."""

    file: str
    reason: str

    @property
    def spoils(self) -> bool:
        """Whether the run's numbers cannot be used without this file."""
        return self.file in (
            "config.json",
            "evaluation.json",
            "provenance.json",
            "status.json",
        )

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


@dataclass(frozen=True)
class Run:
    """One run directory; missing or damaged parts are empty."""

    path: Path
    letter: str  # of the config, in lower case; '' when it is not known
    title: str
    workload: str
    seed: int | None  # of its weights, data and noise
    halflife_rampup: float  # of its traditional EMAs
    data: Json | None  # the fingerprint of its training data, if recorded
    params: int | None
    codes: list[str]  # commits of its starts, with a hash of uncommitted changes
    command: list[str]
    start_time: str
    recorded_study: str  # '' when the run does not say
    recorded_variant: str
    status: Status
    evaluation: Evaluation | None = field(repr=False)
    files: dict[str, Json] = field(repr=False)  # config, provenance and status, whole
    logs: dict[str, Log] = field(repr=False)  # by kind
    alerts: list[dict[str, str]] = field(repr=False)
    samples: bytes | None = field(repr=False)
    changed_fields: list[str] = field(repr=False)  # of the config, while it trained
    log_tail: str = field(repr=False)  # the last lines that it printed
    damage: list[Damage]
    name: str  # the directory's, safe to print
    parent: str  # of the directory, likewise

    @property
    def config(self) -> Json:
        """The config as recorded."""
        return self.files["config"]

    @property
    def study(self) -> str:
        """The study's name: as the run records it, or else its directory."""
        return self.recorded_study or self.parent

    @property
    def variant(self) -> str:
        """The run's name without its seed: as recorded, or else from its directory."""
        by_name = re.sub(rf"[-_]s(eed)?{self.seed}$", "", self.name)
        return self.recorded_variant or by_name or self.name

    @property
    def state(self) -> str:
        """queued, running, preempted, failed, done, damaged, or unknown."""
        if any(damage.spoils for damage in self.damage):
            return "damaged"
        return self.status.state or ("unknown" if self.config else "queued")

    @property
    def measured(self) -> bool:
        """Whether the run is done and was evaluated after it finished."""
        return self.state == "done" and not self._not_evaluated()

    @property
    def ended(self) -> bool:
        """Whether the run will produce no more results."""
        return self.measured or self.state in ("failed", "damaged")

    @property
    def logged_loss(self) -> float | None:
        """The last held-out loss that it logged during training."""
        _, losses = self.logs["heldout"].curve("loss_per_element")
        return float(losses[-1]) if len(losses) else None

    @property
    def message(self) -> str:
        """Why a run has no numbers, or ''."""
        if self.state == "damaged":
            return self.damaged
        if self.state == "done":
            return "; ".join(filter(None, (self._not_evaluated(), self.damaged)))
        if self.state == "unknown":
            return "; ".join(filter(None, ("status.json is missing", self.damaged)))
        status = self.status
        parts = [status.stage] if status.stage else []
        if status.nimg is not None and status.total_nimg:
            parts.append(f"{status.nimg:,} of {status.total_nimg:,} images")
        said = ": ".join(filter(None, (", ".join(parts), status.message)))
        return "; ".join(filter(None, (said, self.damaged)))

    @property
    def damaged(self) -> str:
        """Which files are damaged and why, else ''."""
        return "; ".join(map(str, self.damage))

    def _not_evaluated(self) -> str:
        """Why a run that is done has no usable numbers, or ''."""
        if self.evaluation is None:
            return f"evaluation.json is missing: {self._evaluate}"
        of, trained = self.evaluation.nimg, self.status.best_nimg or self.status.nimg
        if of is not None and trained is not None and of < trained:
            return (
                f"evaluation.json is for {of:,} images, but the run has "
                f"{trained:,}: {self._evaluate}"
            )
        return ""

    @property
    def _evaluate(self) -> str:
        path = files.printable(shlex.quote(str(self.path)))
        return f"run python experiments/evaluate.py --run={path}"


@dataclass(frozen=True)
class Aside:
    """A run that is left out of its config's numbers, and why."""

    run: Run
    state: str  # the run's, 'not evaluated', 'other data' or 'same seed'
    message: str
    logged: float | None = None  # its logged held-out loss, if it was not evaluated


@dataclass(frozen=True)
class Look:
    """A config's look in figures: a colour's place in the palette, and a kind of line."""

    slot: int = 0
    dash: int = 0  # a solid line


@dataclass(eq=False)
class Entry:
    """One config of the comparison and its runs, which differ only in seed."""

    letter: str
    title: str
    label: str  # its name in figures and tables: the letter, or the variant's name
    variant: int  # 0 for a letter's config of the ladder, 1, 2, ... for altered ones
    runs: list[Run]
    reference: "Entry | None"  # its parent, against which its changes are listed
    is_baseline: bool = False
    other_data: str = ""  # how its data differ from the baseline's
    aside: list[Aside] = field(default_factory=list)
    place: int = 0  # among the entries of a comparison
    look: Look = Look()

    @property
    def measured(self) -> list[Run]:
        """The runs whose numbers count, one for each seed."""
        return [r for r in self.runs if all(aside.run is not r for aside in self.aside)]

    @property
    def heading(self) -> str:
        """Its title, and its state if it has no numbers."""
        return self.title if self.measured else f"{self.title} ({self.aside[0].state})"


def with_samples(entries: Sequence[Entry]) -> list[tuple[Entry, Run]]:
    """The first finished run of each config, if it has samples."""
    measured = [(entry, entry.measured[0]) for entry in entries if entry.measured]
    return [(entry, run) for entry, run in measured if run.samples]
