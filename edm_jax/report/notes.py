"""What a reader of the results must know: how they were tested, and what is doubtful."""

import math
from collections.abc import Iterable, Iterator, Sequence

from edm_jax.report.columns import ALL_COLUMNS
from edm_jax.report.runs import Run
from edm_jax.report.statistics import CONFIDENCE, LEVEL, Difference
from edm_jax.report.tables import Row, baseline_label, compared_columns

ENOUGH_SEEDS = 3
_NAMED = 6  # in one sentence; of more the count is enough


def table_notes(rows: Sequence[Row]) -> list[str]:
    """Sentences below every table of results; the warnings come last."""
    return [*_intervals(rows), *_tests(rows), *table_warnings(rows)]


def table_warnings(rows: Sequence[Row]) -> list[str]:
    """One sentence for each thing that makes the results doubtful."""
    measured = [row for row in rows if row.runs]
    return [
        *_few_seeds(measured),
        *_not_finite(measured),
        *_left_out(rows),
        *_other_code(measured),
        *_unknown_data(measured),
        *_changed_on_the_way(measured),
        *_damaged(rows),
    ]


def _intervals(rows: Sequence[Row]) -> Iterator[str]:
    if any(len(row.runs) > 1 for row in rows):
        yield (
            f"± is the half width of the {CONFIDENCE:.0%} confidence interval of the "
            "mean over n seeds (Student’s t with n − 1 degrees of freedom)."
        )


def _tests(rows: Sequence[Row]) -> Iterator[str]:
    """Which tests were made, of how many differences, and which were not."""
    columns = compared_columns(rows)
    if not columns:
        return
    pairs = [
        (row, column, row.differences[column.key])
        for row in rows
        for column in columns
        if row.runs and not row.is_baseline
    ]
    tested = [found for *_, found in pairs if found and found.p is not None]
    label = baseline_label(rows)
    if tested:
        many = f"all {len(tested)} comparisons" if len(tested) > 1 else "1 comparison"
        yield (
            f"Differences are against {label}, tested two-sided: {_kinds(tested)}. "
            f"The p-values are corrected for {many} of the table (Holm); * marks a "
            f"corrected p < {LEVEL:g}. Intervals of differences are not corrected."
        )
    if any(found.paired and found.n < max(found.of) for found in tested):
        yield (
            "A paired difference is over the seeds that both have, n of them, and so not "
            "that of the means in the table."
        )
    reasons: dict[str, list[str]] = {}
    for row, column, found in pairs:
        if column.measured and (found is None or found.p is None):
            place = row.entry.label
            place += f" ({column.heading})" if len(columns) > 1 else ""
            reasons.setdefault(_why_untested(row, found), []).append(place)
    for reason, places in reasons.items():
        yield f"Not tested against {label}, {reason}: {_listed(places)}."


def _kinds(tested: Sequence[Difference]) -> str:
    paired = sum(found.paired for found in tested)
    pairing = "a t-test paired by seed"
    welch = "Welch’s t-test, where fewer than two seeds are common"
    if paired == len(tested):
        return pairing
    if not paired:
        return welch
    return f"{paired} by {pairing}, {len(tested) - paired} by {welch}"


def _why_untested(row: Row, found: Difference | None) -> str:
    if row.entry.other_data:
        return "as the data are others"
    if found is None:
        return "as a value is missing"
    if not math.isfinite(found.mean):
        return "as a value is not finite"
    if found.n < 2:
        return "as one seed says nothing of the spread"
    return "as the values have no spread"


def _few_seeds(measured: Sequence[Row]) -> Iterator[str]:
    few = [
        f"{r.entry.label}: {len(r.runs)}"
        for r in measured
        if len(r.runs) < ENOUGH_SEEDS
    ]
    if few:
        yield (
            f"Fewer than {ENOUGH_SEEDS} seeds ({_listed(few)}) say little of the spread: "
            "one has no interval, and that of two is wide."
        )


def _not_finite(measured: Sequence[Row]) -> Iterator[str]:
    for row in measured:
        for run in row.runs:
            values = [(c, c.of(run)) for c in ALL_COLUMNS]
            bad = [
                f"{c.heading} is {v}" for c, v in values if not math.isfinite(v or 0)
            ]
            if bad:
                yield f"{run.name} is in the means of {row.entry.label} though its " + (
                    f"{_listed(bad)}."
                )


def _left_out(rows: Sequence[Row]) -> Iterator[str]:
    """Runs in no mean: one sentence for those unfinished, one for each other."""
    unfinished: list[str] = []
    for entry in {id(row.entry): row.entry for row in rows}.values():
        for aside in entry.aside:
            if aside.state in ("other data", "same seed", "damaged"):
                yield f"{aside.run.name} is not counted: {aside.state}: {aside.message}."
            else:
                unfinished.append(f"{aside.run.name}: {aside.state}")
        if entry.other_data and entry.measured:
            yield (
                f"{entry.label} has other data than {baseline_label(rows)} and cannot "
                f"be compared with it: {entry.other_data}."
            )
    if unfinished:
        yield f"In no mean, as they have no results: {_listed(unfinished)}."


def _other_code(measured: Sequence[Row]) -> Iterator[str]:
    by_code: dict[str, dict[str, None]] = {}
    for row, run in _runs(measured):
        for code in run.codes:
            by_code.setdefault(code, {})[row.entry.label] = None
    if len(by_code) > 1:
        said = [f"{code} ({_listed(who)})" for code, who in by_code.items()]
        yield f"The code is not the same for all runs: {_listed(said)}."


def _unknown_data(measured: Sequence[Row]) -> Iterator[str]:
    runs = [run for _, run in _runs(measured)]
    unknown = [run.name for run in runs if run.data is None]
    if unknown and len(unknown) < len(runs):
        yield (
            "Which data they were trained on is not recorded, and taken to be the same: "
            f"{_listed(unknown)}."
        )


def _changed_on_the_way(measured: Sequence[Row]) -> Iterator[str]:
    for _, run in _runs(measured):
        if run.changed_fields:
            yield f"{run.name} changed on the way: {_listed(run.changed_fields)}."


def _damaged(rows: Sequence[Row]) -> Iterator[str]:
    """Files of runs that count all the same; the others are told as left out."""
    runs = {id(r): r for row in rows for r in row.entry.runs if r.state != "damaged"}
    for run in runs.values():
        if run.damage:
            yield f"{run.name}: {run.damaged}."


def _runs(measured: Sequence[Row]) -> Iterator[tuple[Row, Run]]:
    return ((row, run) for row in measured for run in row.runs)


def _listed(words: Iterable[str]) -> str:
    every = list(words)
    shown = ", ".join(every[:_NAMED])
    return shown if len(every) <= _NAMED else f"{shown} and {len(every) - _NAMED} more"
