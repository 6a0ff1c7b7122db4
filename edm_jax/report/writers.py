"""The results as files for other programs: CSV and Markdown."""

import csv
import io
import re
from collections.abc import Sequence

from edm_jax.report.columns import ALL_COLUMNS, Column
from edm_jax.report.notes import table_notes
from edm_jax.report.tables import (
    Comparison,
    Row,
    baseline_label,
    change_text,
    compared_columns,
    paper_text,
)

# After a column's key: of its mean, and of its difference to the baseline.
OF_MEAN = ("", "_ci95", "_n")
OF_DIFFERENCE = ("_diff", "_diff_ci95", "_diff_n", "_test", "_p", "_p_holm")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")
# An underscore within a word is no mark; `://`, `www.` and `@` make links by themselves.
_MARKS = re.compile(r"[\\`*\[\]|~@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")
_BEGINNING = re.compile(r"^(\d*)([#>+\-=]|(?<=\d)[.)])")


def results_csv(rows: Sequence[Row]) -> str:
    """The results as CSV, numbers to nine significant digits, absent ones empty.

    Of a column: mean, half width of the 95% interval, n; then the same of the
    difference to the baseline, the test, and p before and after the correction.
    """
    columns = ALL_COLUMNS
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["config", "title", "changed", "changed_from_baseline", "baseline"]
        + ["paper_fid", "paper_sigma_rel", "runs"]
        + [f"{c.key}{end}" for c in columns for end in OF_MEAN + OF_DIFFERENCE]
        + ["state", "message"]
    )
    for row in rows:
        numbers = [cell for c in columns for cell in _cells(row, c)]
        writer.writerow(
            [_text(row.entry.label), _text(row.entry.title), _text(change_text(row))]
            + [_text("; ".join(row.changed_from_baseline)), _text(baseline_label(rows))]
            + [_plain(value) for value in row.paper]
            + [len(row.runs), *numbers, _text(row.state), _text(row.message)]
        )
    return out.getvalue()


def _cells(row: Row, column: Column) -> list[str]:
    """What OF_MEAN and OF_DIFFERENCE name."""
    cells = [""] * len(OF_MEAN + OF_DIFFERENCE)
    if found := row.estimates[column.key]:
        cells[:3] = [_plain(found.mean), _plain(found.half_width), str(found.n)]
    if found := row.differences[column.key]:
        test = "" if found.p is None else "paired" if found.paired else "welch"
        cells[3:] = [_plain(found.mean), _plain(found.half_width), str(found.n), test]
        cells += [_plain(found.p), _plain(found.p_corrected)]
    return cells


def _text(text: str) -> str:
    """A text that a spreadsheet shows and does not take for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def _inline(text: str) -> str:
    """A text within a line of Markdown, as it is: no link, no mark, no end of a cell."""
    text = _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _block(text: str) -> str:
    """The same at the beginning of a line: no heading, list or quotation either."""
    return _BEGINNING.sub(r"\1\\\2", _inline(text), count=1)


def results_markdown(comparison: Comparison) -> str:
    """The results as Markdown: a table, the notes, and what changed."""
    rows, columns = comparison.rows, comparison.columns

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(_inline, cells))} |"

    compared = compared_columns(rows)
    against = [f"{c.heading}, against {baseline_label(rows)}" for c in compared]
    front = ["config", "FID, paper", "σ_rel, paper", "n"]
    heads = [*front, *(c.heading for c in columns), *against, "state"]
    lines = [
        [f"{row.entry.label} {row.entry.title}", *paper_text(row)]
        + [str(len(row.runs)), *(row.text(c) for c in columns)]
        + [row.difference_text(c) for c in compared]
        + [f"{row.state}: {row.message}" if row.message else row.state]
        for row in rows
    ]
    notes = [f"{_block(note)}\n" for note in table_notes(rows)]
    changes = {
        f"- {_block(f'{row.entry.label}: {change_text(row)}')}": None for row in rows
    }
    return "\n".join(
        [
            f"# {_block(comparison.study)}",
            "",
            line(heads),
            "|" + "---|" * len(heads),
            *map(line, lines),
        ]
        + ["", *notes, "What changed:", "", *changes, ""]
    )
