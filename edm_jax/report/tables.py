"""The results of a comparison: what changed, its effect, and how significant it is."""

import dataclasses
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from edm_jax.report.by_field import ByField
from edm_jax.report.columns import COLUMNS, Column, format_number, pick
from edm_jax.report.figures import FIGURES, Figure
from edm_jax.report.grouping import (
    compact,
    config_diff,
    field_of,
    ladder,
    short_names,
    varying_fields,
)
from edm_jax.report.read import identity
from edm_jax.report.runs import Entry, Run
from edm_jax.report.statistics import Difference, Estimate, difference, estimate, holm

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
METRICS = ("heldout_loss",)  # compared with the baseline by default
ALL = tuple(COLUMNS.values())
MOST_FIELDS = 6  # of the config, shown as columns


@dataclass(frozen=True)
class Cell:
    """A value in the form that all tables show."""

    group: str  # of columns: paper, config, measured or difference
    heading: str
    text: str
    value: float | None = None  # for sorting
    mark: str = ""  # best or significant


@dataclass(frozen=True)
class Row:
    """One line of the results: a config's finished runs, or one run left out."""

    entry: Entry
    state: str
    message: str
    runs: list[Run]  # the runs whose numbers it has
    about: list[Run]  # the same, or the run that is left out
    changed: list[str]  # against the reference
    changed_from_baseline: list[str]
    estimates: dict[str, Estimate | None]
    # Against the baseline's runs; None for the baseline and for other columns.
    differences: dict[str, Difference | None]

    @property
    def is_baseline(self) -> bool:
        """Whether it is the row that the others are compared with."""
        return self.entry.is_baseline and bool(self.runs)

    @property
    def paper(self) -> tuple[float | None, float | None]:
        """The paper's FID and best sigma_rel, for an unaltered letter."""
        known = None if self.entry.variant else PAPER.get(self.entry.letter)
        return known or (None, None)

    @property
    def has_numbers(self) -> bool:
        """Whether it has any number, even if it is only a logged loss."""
        return any(self.estimates.values())

    @property
    def said(self) -> str:
        """Its state, and why."""
        return f"{self.state}: {self.message}" if self.message else self.state

    def mean(self, key: str) -> float | None:
        """The mean of a column over seeds; None if no run has a value."""
        found = self.estimates[key]
        return found.mean if found else None

    def text(self, column: Column) -> str:
        """The value in all tables: mean ± half width of the 95% interval.

        It includes the number of runs if not all of the row's runs have a value. The
        held-out loss of a run that was not evaluated is the logged one, marked as such.
        """
        found = self.estimates[column.key]
        logged = self.estimates.get("logged_loss")
        if column.key == "heldout_loss" and not self.runs and logged:
            return f"{format_number(logged.mean, column.form)} (logged)"
        if found is None:
            return format_number(None, column.form)
        shown = format_number(found.mean, column.form)
        if column.measured:
            shown += _plus_minus(found.half_width, column)
        few = self.runs and found.n != len(self.runs)
        return f"{shown} (n = {found.n})" if few else shown

    def difference_text(self, column: Column) -> str:
        """The difference to the baseline in all tables, with '*' if significant."""
        found = self.differences[column.key]
        if found is None:
            return "—"
        form = column.form if isinstance(column.form, str) else 3
        text = format_number(found.mean, form)
        shown = f"+{text}" if found.mean > 0 else text.replace("-", "−")
        shown += _plus_minus(found.half_width, column)
        if found.n < max(found.of):
            shown += f" (n = {found.n})"
        if found.p_corrected is not None:
            small = found.p_corrected < 0.001
            p = "< 0.001" if small else f"= {found.p_corrected:.3f}"
            shown += f" (p {p})"
        return f"{shown} *" if found.significant else shown


def _plus_minus(half_width: float | None, column: Column) -> str:
    if not half_width:
        return "" if half_width is None else " ± 0"
    form = column.form if isinstance(column.form, str) else 2
    return f" ± {format_number(half_width, form)}"


@dataclass(frozen=True)
class Comparison:
    """Runs as configs, and their results."""

    study: str
    entries: list[Entry]
    rows: list[Row]
    columns: Sequence[Column]  # all columns that are read
    shown: Sequence[Column]  # those in the tables for papers
    by_field: ByField | None = None

    @property
    def figures(self) -> list[Figure]:
        """The figures on the page and for papers, in order."""
        return [*([self.by_field.figure()] if self.by_field else []), *FIGURES]

    @property
    def compared(self) -> list[Column]:
        """The columns that any row compares with the baseline's."""
        return [c for c in self.columns if any(r.differences[c.key] for r in self.rows)]

    @property
    def baseline(self) -> str:
        """The label of the config that the others are compared with."""
        return next((e.label for e in self.entries if e.is_baseline), "—")

    @property
    def fields(self) -> list[str]:
        """The config's fields shown as columns: those that vary within a letter."""
        asked = [self.by_field.x, *self.by_field.by] if self.by_field else []
        found = dict.fromkeys([*asked, *varying_fields(self.entries)])
        return [name for name in found if name != "letter"][:MOST_FIELDS]

    def cells(self, row: Row, columns: Sequence[Column]) -> list[Cell]:
        """A row's cells between its name and its state, in all tables."""
        fid, sigma_rel = row.paper
        cells = [
            Cell("paper", "FID, paper", format_number(fid, ".2f"), fid),
            Cell("paper", "σ_rel, paper", format_number(sigma_rel, ".3f"), sigma_rel),
        ]
        for name, heading in zip(self.fields, short_names(self.fields), strict=True):
            value = field_of(row.entry, name)
            number = value if isinstance(value, int | float) else None
            text = "—" if value is None else compact(value)
            cells.append(Cell("config", heading, text, number))
        n = len(row.runs)
        cells.append(Cell("measured", "n", str(n), n))
        losses = [r.mean("heldout_loss") for r in self.rows]
        finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
        lowest = min(finite, default=None)
        for c in columns:
            value = row.mean(c.key)
            best = c.key == "heldout_loss" and value is not None and value == lowest
            text, mark = row.text(c), "best" if best else ""
            cells.append(Cell("measured", c.heading, text, value, mark))
        for c in self.compared:
            found, text = row.differences[c.key], row.difference_text(c)
            mark = "significant" if found and found.significant else ""
            heading = f"{c.heading}, against {self.baseline}"
            value = found.mean if found else None
            cells.append(Cell("difference", heading, text, value, mark))
        return cells


def compare(
    runs: Sequence[Run],
    baseline: str | None = None,
    metrics: Sequence[str] = METRICS,
    columns: Sequence[str] = (),
    x: str = "",
    y: str = "heldout_loss",
    by: Sequence[str] = ("letter",),
) -> Comparison:
    """Groups runs into configs and compares these with the baseline.

    Args:
        runs: at least one.
        baseline: a letter, a label or a run's name; the first config if None.
        metrics: keys of the columns to compare with the baseline's.
        columns: columns of results.md and .tex, as `columns.pick` takes them.
        x: a numeric field of the config to draw results against; '' for none.
        y: the column to draw against it.
        by: fields; each combination of their values is a line of that figure.

    Raises:
        FileNotFoundError: there are no runs.
        ValueError: the baseline, a column or a field does not exist.
    """
    if not runs:
        raise FileNotFoundError("No runs to compare: give at least one run directory.")
    compared = pick(metrics, "--metric")
    picked = pick(columns)
    every = list({c.key: c for c in (*ALL, *compared, *picked)}.values())
    entries = ladder(runs, baseline)
    rows = results_rows(entries, [column.key for column in compared], every)
    shown = picked or [column for column in every if column.shown]
    by_field = ByField.of(entries, x, pick([y], "--y")[0], by) if x else None
    return Comparison(runs[0].parent, entries, rows, every, shown, by_field)


def results_rows(
    entries: Sequence[Entry],
    metrics: Sequence[str] = METRICS,
    columns: Sequence[Column] = ALL,
) -> list[Row]:
    """One row per config, and one for each of its runs that is left out.

    Args:
        entries: the configs.
        metrics: keys of the columns to compare with the baseline's.
        columns: those to read.
    """
    baseline = next((entry for entry in entries if entry.is_baseline), None)
    rows = []

    def add(entry: Entry, state: str, message: str, runs: list[Run], about: list[Run]):
        against = None if baseline is entry else baseline
        changed = _changes(entry.reference, entry)
        since = _changes(against, entry)
        each = {c.key: list(_values_by_seed(runs, c).values()) for c in columns}
        estimates = {key: estimate(values) for key, values in each.items()}
        none = dict.fromkeys(each)
        rows.append(
            Row(entry, state, message, runs, about, changed, since, estimates, none)
        )

    for entry in entries:
        if runs := entry.measured:
            damaged = [f"{run.name}: {run.damaged}" for run in runs if run.damage]
            message = "; ".join(filter(None, [entry.other_data, *damaged]))
            add(
                entry, "other data" if entry.other_data else "done", message, runs, runs
            )
        for aside in entry.aside:
            add(entry, aside.state, aside.message, [], [aside.run])
            if aside.logged is not None:
                rows[-1].estimates["logged_loss"] = estimate([aside.logged])
    if baseline is not None and baseline.measured:
        chosen = [column for column in columns if column.key in metrics]
        _compare([r for r in rows if r.state == "done"], baseline, chosen)
    return rows


def _changes(before: Entry | None, after: Entry) -> list[str]:
    """The fields that differ, except for the seed and how and where the runs executed."""
    if before is None:
        return []
    return config_diff(*(identity(e.runs[0].config) for e in (before, after)))


def _values_by_seed(runs: Sequence[Run], column: Column) -> dict[Hashable, float]:
    # A run without a seed is not paired.
    found = {run.path if run.seed is None else run.seed: column.of(run) for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _compare(rows: Sequence[Row], baseline: Entry, columns: Sequence[Column]) -> None:
    """Adds the differences to the rows, with p-values corrected for their number."""
    tested: list[tuple[Row, str, float]] = []
    for row, column in itertools.product(rows, columns):
        of = row.runs, baseline.measured
        found = difference(*(_values_by_seed(runs, column) for runs in of))
        if found is None or row.is_baseline:
            continue
        untested = {} if column.measured else {"half_width": None, "p": None}
        sizes = len(of[0]), len(of[1])
        found = dataclasses.replace(found, of=sizes, **untested)
        row.differences[column.key] = found
        if found.p is not None:
            tested.append((row, column.key, found.p))
    corrected = holm([p for *_, p in tested])
    for (row, key, _), p in zip(tested, corrected, strict=True):
        found = row.differences[key]
        row.differences[key] = found and dataclasses.replace(found, p_corrected=p)


def change_text(row: Row) -> str:
    """The changes on one line, with the reference if it is not the previous letter."""
    if row.entry.reference is None:
        return "—"
    return reference_text(row) + ("; ".join(row.changed) or "nothing")


def reference_text(row: Row) -> str:
    """'against A: ' if the reference is not the previous letter, else ''."""
    reference = row.entry.reference
    if reference is None or not row.entry.letter:
        return ""
    follows = ord(row.entry.letter[0]) == ord(reference.letter[0]) + 1
    return "" if follows else f"against {reference.label}: "
