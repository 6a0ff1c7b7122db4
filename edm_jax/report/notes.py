"""Notes for readers of the results: how they were tested, and what is doubtful."""

import math
from collections.abc import Iterable, Iterator, Sequence

from edm_jax.report.statistics import CONFIDENCE, LEVEL, Difference
from edm_jax.report.tables import Comparison, Row

ENOUGH_SEEDS = 3
_NAMED = 6  # names in one sentence; the rest is counted


def table_notes(comparison: Comparison) -> list[str]:
    """Sentences below every table of results; the warnings come last."""
    notes = []
    if any(len(row.runs) > 1 for row in comparison.rows):
        notes.append(
            f"± is the half width of the {CONFIDENCE:.0%} confidence interval of the "
            "mean over n seeds (Student’s t with n − 1 degrees of freedom)."
        )
    if comparison.compared:
        notes += _tests(comparison)
    early = [
        f"{run.name} at {run.status.best_nimg:,} of {run.status.nimg or 0:,} images"
        for row in comparison.rows
        for run in row.runs
        if run.status.best_nimg
    ]
    if early:
        notes.append(f"Stopped early, and measured at their best: {_listed(early)}.")
    return notes + table_warnings(comparison)


def table_warnings(comparison: Comparison) -> list[str]:
    """One sentence for each thing that makes the results doubtful."""
    rows = comparison.rows
    measured = [row for row in rows if row.runs]
    runs = [run for row in measured for run in row.runs]
    every = {id(run): run for row in rows for run in row.entry.runs}.values()
    few = [row for row in measured if len(row.runs) < ENOUGH_SEEDS]
    unknown = [run.name for run in runs if run.data is None]
    notes = []
    if few:
        said = _listed(f"{row.entry.label}: {len(row.runs)}" for row in few)
        notes.append(
            f"Fewer than {ENOUGH_SEEDS} seeds ({said}) say little about the spread: one "
            "seed has no interval, and the interval of two is wide."
        )
    notes += _not_finite(comparison, measured)
    notes += _left_out(comparison)
    notes += _other_code(measured)
    if 0 < len(unknown) < len(runs):
        notes.append(
            "These runs do not record their data, which are assumed to be the same: "
            f"{_listed(unknown)}."
        )
    notes += [
        f"{run.name} was changed during training: {_listed(run.changed_fields)}."
        for run in runs
        if run.changed_fields
    ]
    # Damaged files of runs that still count; the other runs are listed as left out.
    damaged = [run for run in every if run.damage and run.state != "damaged"]
    return notes + [f"{run.name}: {run.damaged}." for run in damaged]


def _tests(comparison: Comparison) -> Iterator[str]:
    """Says which differences were tested and how, and which were not."""
    columns, label = comparison.compared, comparison.baseline
    pairs = [
        (row, column, row.differences[column.key])
        for row in comparison.rows
        for column in columns
        if row.runs and not row.is_baseline
    ]
    tested = [found for *_, found in pairs if found and found.p is not None]
    if tested:
        many = f"all {len(tested)} comparisons" if len(tested) > 1 else "1 comparison"
        yield (
            f"Differences are against {label}, tested two-sided: {_kinds(tested)}. "
            f"The p-values are corrected for {many} of the table (Holm); * marks a "
            f"corrected p < {LEVEL:g}. Intervals of differences are not corrected."
        )
    if any(found.paired and found.n < max(found.of) for found in tested):
        yield (
            "A paired difference uses only the n seeds that both configs have, so it may "
            "not equal the difference of the means in the table."
        )
    reasons: dict[str, list[str]] = {}
    for row, column, found in pairs:
        if column.measured and (found is None or found.p is None):
            place = row.entry.label
            place += f" ({column.heading})" if len(columns) > 1 else ""
            reasons.setdefault(_why_untested(row, found), []).append(place)
    for reason, places in reasons.items():
        yield f"Not tested against {label}, because {reason}: {_listed(places)}."


def _kinds(tested: Sequence[Difference]) -> str:
    paired = sum(found.paired for found in tested)
    pairing = "a t-test paired by seed"
    welch = "Welch’s t-test, if they share fewer than two seeds"
    if paired == len(tested):
        return pairing
    if not paired:
        return welch
    return f"{paired} by {pairing}, {len(tested) - paired} by {welch}"


def _why_untested(row: Row, found: Difference | None) -> str:
    if row.entry.other_data:
        return "the data differ"
    if found is None:
        return "a value is missing"
    if not math.isfinite(found.mean):
        return "a value is not finite"
    if found.n < 2:
        return "one seed says nothing about the spread"
    return "the values have no spread"


def _not_finite(comparison: Comparison, measured: Sequence[Row]) -> Iterator[str]:
    for row in measured:
        for run in row.runs:
            values = [(c.heading, c.of(run) or 0.0) for c in comparison.columns]
            bad = [f"{name} is {v}" for name, v in values if not math.isfinite(v)]
            if bad:
                label = row.entry.label
                yield f"{run.name} counts in the means of {label}, but {_listed(bad)}."


def _left_out(comparison: Comparison) -> Iterator[str]:
    """Runs left out of the means: one sentence for unfinished ones, one per other run."""
    unfinished: list[str] = []
    for entry in {id(row.entry): row.entry for row in comparison.rows}.values():
        for aside in entry.aside:
            if aside.state in ("other data", "same seed", "damaged"):
                yield f"{aside.run.name} is not counted: {aside.state}: {aside.message}."
            else:
                unfinished.append(f"{aside.run.name}: {aside.state}")
        if entry.other_data and entry.measured:
            yield (
                f"{entry.label} was trained on other data than {comparison.baseline}, so "
                f"they cannot be compared: {entry.other_data}."
            )
    if unfinished:
        yield f"Left out of the means, without results: {_listed(unfinished)}."


def _other_code(measured: Sequence[Row]) -> Iterator[str]:
    by_code: dict[str, dict[str, None]] = {}
    for row in measured:
        for code in (code for run in row.runs for code in run.codes):
            by_code.setdefault(code, {})[row.entry.label] = None
    if len(by_code) > 1:
        said = [f"{code} ({_listed(who)})" for code, who in by_code.items()]
        yield f"The runs used different versions of the code: {_listed(said)}."


def _listed(words: Iterable[str]) -> str:
    every = list(words)
    shown = ", ".join(every[:_NAMED])
    return shown if len(every) <= _NAMED else f"{shown} and {len(every) - _NAMED} more"
