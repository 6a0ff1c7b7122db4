"""The results of a comparison: what changed, what it did, and how sure that is."""

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from edm_jax.report.changes import config_diff
from edm_jax.report.columns import ALL_COLUMNS, Column, format_number, pick
from edm_jax.report.grouping import ladder
from edm_jax.report.read import identity
from edm_jax.report.runs import Entry, Run
from edm_jax.report.statistics import (
    Difference,
    Estimate,
    difference,
    estimate,
    holm,
)

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
METRICS = ("heldout_loss",)  # what is compared with the baseline unless one says


@dataclass(frozen=True)
class Row:
    """One line of the results: a config's finished runs, or one run left out."""

    entry: Entry
    changed: list[str]  # against the reference
    changed_from_baseline: list[str]
    state: str
    message: str
    runs: list[Run]
    estimates: dict[str, Estimate | None]
    # Against the baseline's runs; None for the baseline, and for what is not compared.
    differences: dict[str, Difference | None]

    @property
    def is_baseline(self) -> bool:
        """Whether the others are compared with it."""
        return self.entry.is_baseline and bool(self.runs)

    @property
    def paper(self) -> tuple[float | None, float | None]:
        """The paper's FID and best sigma_rel, for an unaltered letter."""
        known = None if self.entry.variant else PAPER.get(self.entry.letter)
        return known or (None, None)

    def mean(self, key: str) -> float | None:
        """The mean of a column over seeds; None where no run has a value."""
        found = self.estimates[key]
        return found.mean if found else None

    def text(self, column: Column) -> str:
        """The value as every table shows it: mean ± half width of the 95% interval.

        It says of how many runs where that is not all of the row's.
        """
        found = self.estimates[column.key]
        if found is None:
            return format_number(None, column.form)
        shown = format_number(found.mean, column.form)
        if column.measured:
            shown += _plus_minus(found.half_width, column)
        return shown if found.n == len(self.runs) else f"{shown} (n = {found.n})"

    def difference_text(self, column: Column) -> str:
        """The difference to the baseline as tables show it, '*' where significant."""
        found = self.differences[column.key]
        if found is None:
            return "—"
        shown = _signed(found.mean, column) + _plus_minus(found.half_width, column)
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


def _signed(value: float, column: Column) -> str:
    """A difference with its sign."""
    form = column.form if isinstance(column.form, str) else 3
    text = format_number(value, form)
    return f"+{text}" if value > 0 else text.replace("-", "−")


@dataclass(frozen=True)
class Comparison:
    """Runs as configs, and their results."""

    study: str
    entries: list[Entry]
    rows: list[Row]
    columns: list[Column]  # those that the tables for papers show


def compare(
    runs: Sequence[Run],
    baseline: str | None = None,
    metrics: Sequence[str] = METRICS,
    columns: Sequence[str] = (),
) -> Comparison:
    """Group runs to configs and compare these with the baseline.

    Args:
        runs: at least one.
        baseline: a letter, a label or a run's name; the first config if None.
        metrics: keys of the columns to compare with the baseline's.
        columns: keys of those that results.md and .tex show, all if none.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the baseline or a column does not exist.
    """
    if not runs:
        raise FileNotFoundError("No run to compare: give at least one run directory.")
    pick(metrics)  # refuses unknown ones
    shown = pick(columns) or list(ALL_COLUMNS)
    entries = ladder(runs, baseline)
    rows = results_rows(entries, metrics)
    return Comparison(runs[0].parent, entries, rows, shown)


def compared_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that are compared with the baseline's in any row."""
    return [c for c in ALL_COLUMNS if any(row.differences[c.key] for row in rows)]


def baseline_label(rows: Sequence[Row]) -> str:
    """What the others are compared with is called."""
    return next((row.entry.label for row in rows if row.entry.is_baseline), "—")


def results_rows(
    entries: Sequence[Entry], metrics: Sequence[str] = METRICS
) -> list[Row]:
    """One row per config, and one for each run of it whose numbers are not in it.

    metrics: keys of the columns to compare with the baseline's.
    """
    baseline = next((entry for entry in entries if entry.is_baseline), None)
    rows = []
    for entry in entries:
        if entry.measured:
            state = "other data" if entry.other_data else "done"
            said = [entry.other_data]
            said += [f"{r.name}: {r.damaged}" for r in entry.measured if r.damage]
            message = "; ".join(filter(None, said))
            rows.append(_row(entry, baseline, state, message, entry.measured))
        rows += [
            _row(entry, baseline, aside.state, aside.message, [])
            for aside in entry.aside
        ]
    if baseline is None or not baseline.measured:
        return rows
    return _corrected([_compared(row, baseline.measured, metrics) for row in rows])


def _row(
    entry: Entry, baseline: Entry | None, state: str, message: str, runs: list[Run]
) -> Row:
    against = None if baseline is entry else baseline
    return Row(
        entry=entry,
        changed=_changes(entry.reference, entry),
        changed_from_baseline=_changes(against, entry),
        state=state,
        message=message,
        runs=runs,
        estimates={
            c.key: estimate(list(_values_by_seed(runs, c).values()))
            for c in ALL_COLUMNS
        },
        differences=dict.fromkeys(c.key for c in ALL_COLUMNS),
    )


def _changes(before: Entry | None, after: Entry) -> list[str]:
    """What differs but for the seed and for how and where the runs ran."""
    if before is None:
        return []
    return config_diff(*(identity(e.runs[0].config) for e in (before, after)))


def _values_by_seed(runs: Sequence[Run], column: Column) -> dict[Hashable, float]:
    # A run without a seed has no partner.
    found = {run.path if run.seed is None else run.seed: column.of(run) for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _compared(row: Row, baseline: Sequence[Run], metrics: Sequence[str]) -> Row:
    """The row with its differences, before they are corrected for their number."""
    if row.is_baseline or row.state != "done":
        return row
    differences = dict(row.differences)
    for column in ALL_COLUMNS:
        if column.key in metrics:
            sides = (_values_by_seed(runs, column) for runs in (row.runs, baseline))
            found = difference(*sides)
            if found:
                of = len(row.runs), len(baseline)
                found = dataclasses.replace(found, of=of)
            if found and not column.measured:  # there is nothing to test
                found = dataclasses.replace(found, half_width=None, p=None)
            differences[column.key] = found
    return dataclasses.replace(row, differences=differences)


def _corrected(rows: list[Row]) -> list[Row]:
    """The rows with their p-values corrected for the number of them all."""
    tested = [
        (row.differences, key, found)
        for row in rows
        for key, found in row.differences.items()
        if found and found.p is not None
    ]
    corrected = holm([found.p for *_, found in tested if found.p is not None])
    for (differences, key, found), p in zip(tested, corrected, strict=True):
        differences[key] = dataclasses.replace(found, p_corrected=p)
    return rows


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
