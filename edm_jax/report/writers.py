"""The results as files for other programs: CSV and Markdown."""

import csv
import io
from collections.abc import Sequence

from edm_jax.report.tables import (
    COLUMNS,
    GROWTH_COLUMNS,
    Column,
    Row,
    change_text,
    paper_text,
)


def results_csv(rows: Sequence[Row]) -> str:
    """The results as CSV, numbers to nine significant digits, absent ones empty."""

    def plain(value: float | None) -> str:
        return "" if value is None else f"{value:.9g}"

    columns = COLUMNS + GROWTH_COLUMNS
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["config", "title", "changed", "paper_fid", "paper_sigma_rel", "runs"]
        + [name for c in columns for name in (c.key, f"{c.key}_sd")]
        + ["state", "message"]
    )
    for row in rows:
        numbers = [
            plain(of[c.key]) for c in columns for of in (row.values, row.deviations)
        ]
        writer.writerow(
            [row.entry.label, row.entry.title, change_text(row)]
            + [plain(value) for value in row.paper]
            + [len(row.runs), *numbers, row.state, row.message]
        )
    return out.getvalue()


def results_markdown(study: str, rows: Sequence[Row]) -> str:
    """The results as Markdown: one table of quality, one of growth."""

    def line(cells: Sequence[str]) -> str:
        clean = (" ".join(c.split()).replace("|", "\\|") for c in cells)
        return "| " + " | ".join(c.replace("<", "&lt;") for c in clean) + " |"

    def table(columns: Sequence[Column], front: list[str], back: list[str]) -> list:
        heads = [*front, *(c.heading for c in columns), *back]
        return [line(heads), "|" + "---|" * len(heads)]

    result = table(
        COLUMNS,
        ["config", "what changed", "FID, paper", "σ_rel, paper"],
        ["state"],
    )
    for row in rows:
        paper = paper_text(row)
        name = f"{row.entry.label} {row.entry.title}"
        state = f"{row.state}: {row.message}" if row.message else row.state
        numbers = [row.text(c) for c in COLUMNS]
        result.append(line([name, change_text(row), *paper, *numbers, state]))
    grown = table(GROWTH_COLUMNS, ["config"], [])
    for row in rows:
        grown.append(line([row.entry.label, *(row.text(c) for c in GROWTH_COLUMNS)]))
    return "\n".join(
        [f"# {study}", "", *result, "", "Growth over training, largest group:", ""]
        + [*grown, ""]
    )
