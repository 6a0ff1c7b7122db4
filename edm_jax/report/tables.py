"""The numbers of a comparison: what changed, what it did, and how weights grew."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edm_jax.report.runs import Entry, Record, Run, number

# FID and best sigma_rel of ImageNet-512 at size S: Table 1 and Fig. 5a.
PAPER = {
    "a": (8.00, 0.034),
    "b": (7.24, 0.090),
    "c": (6.96, 0.075),
    "d": (3.75, 0.225),
    "e": (3.02, 0.145),
    "f": (2.71, 0.100),
    "g": (2.56, 0.130),
}
IGNORED = ("letter", "title")


@dataclass(frozen=True)
class Column:
    """One quantity of the results: its name in the CSV, its heading, its format."""

    key: str
    heading: str
    form: int | str  # of format_number
    of: Callable[[Run], float | None]


def _evaluated(*keys: str) -> Callable[[Run], float | None]:
    return lambda run: number(run.evaluation, *keys)


def _greatest(kind: str, since: float = 0.0) -> Callable[[Run], float | None]:
    def greatest(run: Run) -> float | None:
        return max(growth(run.dynamics, kind, since=since).values(), default=None)

    return greatest


COLUMNS = (
    Column("heldout_loss", "held-out loss", 4, _evaluated("best", "loss")),
    Column("sigma_rel", "best σ_rel", ".3f", _evaluated("best", "sigma_rel")),
    Column("raw_loss", "raw weights", 4, _evaluated("raw_loss")),
    Column("untrained_loss", "untrained", 4, _evaluated("untrained_loss")),
    Column(
        "pixel_frechet",
        "pixel Fréchet distance (not FID)",
        3,
        _evaluated("pixel_frechet"),
    ),
    Column("pixel_frechet_floor", "its floor", 3, _evaluated("pixel_frechet_floor")),
    Column(
        "params", "parameters", ",.0f", lambda run: number(run.provenance, "params")
    ),
    Column("images_per_s", "images/s", 3, _evaluated("images_per_s")),
)
GROWTH_COLUMNS = (
    Column("weight_growth", "weights grow by", ".2f", _greatest("weights")),
    # In its first steps a network finds its activations' level, whatever the config.
    Column(
        "activation_growth",
        "activations grow by, after the first quarter",
        ".2f",
        _greatest("activations", since=0.25),
    ),
)


@dataclass(frozen=True)
class Row:
    """One line of the results: a config's finished runs, or one unfinished run."""

    entry: Entry
    changed: list[str]
    state: str
    message: str
    runs: list[Run]
    values: dict[str, float | None]  # means over the runs
    deviations: dict[str, float | None]  # over seeds, with n - 1; None for one run

    @property
    def paper(self) -> tuple[float | None, float | None]:
        """The paper's FID and best sigma_rel, for an unaltered letter."""
        known = None if self.entry.variant else PAPER.get(self.entry.letter)
        return known or (None, None)

    def text(self, column: Column) -> str:
        """The value as every table shows it: mean, ± deviation over seeds."""
        shown = format_number(self.values[column.key], column.form)
        deviation = self.deviations[column.key]
        if deviation is None or not math.isfinite(deviation):
            return shown
        form = column.form if isinstance(column.form, str) else 2
        return f"{shown} ± {format_number(deviation, form)}"


def format_number(value: float | None, form: int | str) -> str:
    """Write a number; '—' for None, 'NaN' for NaN.

    ``form`` is a count of significant digits, or a format such as '.3f'.
    """
    if value is None:
        return "—"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:g}"
    if isinstance(form, str):
        return f"{value:{form}}"
    exponent = math.floor(math.log10(abs(value))) if value else 0
    if exponent < -5 or exponent > 14:
        return f"{value:.{form - 1}e}"
    return f"{value:,.{max(0, form - 1 - exponent)}f}"


def _flatten(config: Record, prefix: str = "") -> dict[str, str]:
    """Write a nested config as dotted names and compact values."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _compact(value)
    return flat


def _compact(value: Any) -> str:
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_compact, value))})"
    if isinstance(value, float) and value == round(value, 0) and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value).replace("Infinity", "inf")


def config_diff(before: Record, after: Record) -> list[str]:
    """List the fields that differ, as 'network.norm: group -> rms_group'.

    The letter and the title are not compared; a field that only one side has
    stands as '(absent)' on the other.
    """
    old, new = _flatten(before), _flatten(after)
    names = [*new, *(name for name in old if name not in new)]
    sides = {name: (old.get(name), new.get(name)) for name in names}
    return [
        f"{name}: {was or '(absent)'} -> {now or '(absent)'}"
        for name, (was, now) in sides.items()
        if was != now and name not in IGNORED
    ]


def growth(
    dynamics: Sequence[Record],
    kind: str,
    statistic: str = "mean",
    since: float = 0.0,
) -> dict[str, float]:
    """Divide each group's last magnitude by its first (the paper's Fig. 3).

    ``kind`` is weights or activations, ``statistic`` mean or max over the layers
    of a group such as enc_8x8, ``since`` the fraction of the images at which to
    start. Groups without two finite values, or that start at zero, are left out.
    """
    if len(dynamics) < 2:
        return {}
    last = dynamics[-1]
    begin = since * (number(last, "nimg") or 0)
    first = next(r for r in dynamics if (number(r, "nimg") or 0) >= begin)
    ratios: dict[str, float] = {}
    for group in first.get(kind) or {}:
        start = number(first, kind, group, statistic)
        end = number(last, kind, group, statistic)
        if start and end is not None and math.isfinite(end / start):
            ratios[group] = end / start
    return ratios


def results_rows(entries: Sequence[Entry]) -> list[Row]:
    """One row per config, and one for each run of it that has no numbers to show."""
    rows = []
    for entry in entries:
        changed = (
            config_diff(entry.reference.runs[0].config, entry.runs[0].config)
            if entry.reference
            else []
        )
        if entry.measured:
            rows.append(_row(entry, changed, "done", "", entry.measured))
        rows += [
            _row(entry, changed, run.state, run.message, [])
            for run in entry.runs
            if not run.measured
        ]
    return rows


def _row(
    entry: Entry, changed: list[str], state: str, message: str, runs: list[Run]
) -> Row:
    values: dict[str, float | None] = {}
    deviations: dict[str, float | None] = {}
    for column in COLUMNS + GROWTH_COLUMNS:
        found = [v for v in map(column.of, runs) if v is not None]
        several = len(found) > 1 and len(set(found)) > 1
        values[column.key] = float(np.mean(found)) if found else None
        deviations[column.key] = float(np.std(found, ddof=1)) if several else None
    return Row(entry, changed, state, message, runs, values, deviations)


def change_text(row: Row) -> str:
    """What changed, on one line, naming the reference if it is not the letter before."""
    if row.entry.reference is None:
        return "—"
    changes = "; ".join(row.changed) or "nothing"
    return f"{reference_text(row)}{changes}"


def reference_text(row: Row) -> str:
    """'against A: ' where the reference is not the letter before, else ''."""
    reference = row.entry.reference
    if reference is None or not row.entry.letter:
        return ""
    follows = ord(row.entry.letter[0]) == ord(reference.letter[0]) + 1
    return "" if follows else f"against {reference.label}: "


def paper_text(row: Row) -> list[str]:
    """The paper's FID and best sigma_rel as tables show them."""
    fid, sigma_rel = row.paper
    return [format_number(fid, ".2f"), format_number(sigma_rel, ".3f")]
