"""The results as files for other programs: CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edm_jax.report.grouping import compact, field_of
from edm_jax.report.notes import table_notes
from edm_jax.report.tables import Comparison, Row, change_text

_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")
# Underscores within words need no escape; `://`, `www.` and `@` would become links.
_MARKS = re.compile(r"[\\`*\[\]|~@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")
_BEGINNING = re.compile(r"^(\d*)([#>+\-=]|(?<=\d)[.)])")


def results_csv(comparison: Comparison) -> str:
    """The results as CSV, with nine significant digits; missing values are empty.

    Each column has the mean, the half width of the 95% interval and n; the same for the
    difference to the baseline; the test, and p before and after the correction.
    """
    return csv_text([_record(comparison, row) for row in comparison.rows])


def _record(comparison: Comparison, row: Row) -> dict[str, Any]:
    """A row's values, by the CSV's headings."""
    record: dict[str, Any] = {
        "config": row.entry.label,
        "title": row.entry.title,
        "changed": change_text(row),
        "changed_from_baseline": "; ".join(row.changed_from_baseline),
        "baseline": comparison.baseline,
    }
    record |= {name: _plain(field_of(row.entry, name)) for name in comparison.fields}
    fid, sigma_rel = row.paper
    record |= {"paper_fid": fid, "paper_sigma_rel": sigma_rel, "runs": len(row.runs)}
    for key in (column.key for column in comparison.columns):
        mean, found = row.estimates[key], row.differences[key]
        kind = "paired" if found and found.paired else "welch"
        record |= {
            key: mean and mean.mean,
            f"{key}_ci95": mean and mean.half_width,
            f"{key}_n": mean and mean.n,
            f"{key}_diff": found and found.mean,
            f"{key}_diff_ci95": found and found.half_width,
            f"{key}_diff_n": found and found.n,
            f"{key}_test": None if found is None or found.p is None else kind,
            f"{key}_p": found and found.p,
            f"{key}_p_holm": found and found.p_corrected,
        }
    return record | {"state": row.state, "message": row.message}


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """A CSV table of one or more records; text cannot act as a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for line in [records[0].keys(), *(record.values() for record in records)]:
        writer.writerow([_cell(value) for value in line])
    return out.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text


def _plain(value: Any) -> Any:
    """A config's value: numbers unchanged, other values as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number or value is None else compact(value)


def _inline(text: str) -> str:
    """Escapes text for a line of Markdown: no link, no markup, no end of a cell."""
    text = _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _block(text: str) -> str:
    """Escapes text for the start of a line: no heading, list or quotation either."""
    return _BEGINNING.sub(r"\1\\\2", _inline(text), count=1)


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    rows = [f"| {' | '.join(map(_inline, cells))} |" for cells in [heads, *lines]]
    return [rows[0], "|" + "---|" * len(heads), *rows[1:]]


def results_markdown(comparison: Comparison) -> str:
    """The results as Markdown: a table, the notes, and what changed."""
    rows = comparison.rows
    cells = [comparison.cells(row, comparison.shown) for row in rows]
    table = markdown_table(
        ["config", *(cell.heading for cell in cells[0]), "state"],
        [
            [f"{row.entry.label} {row.entry.title}", *(c.text for c in each), row.said]
            for row, each in zip(rows, cells, strict=True)
        ],
    )
    notes = [f"{_block(note)}\n" for note in table_notes(comparison)]
    said = [_block(f"{row.entry.label}: {change_text(row)}") for row in rows]
    changes = dict.fromkeys(f"- {each}" for each in said)
    if comparison.by_field:
        table += ["", *markdown_table(*comparison.by_field.table())]
    title = f"# {_block(comparison.study)}"
    return "\n".join([title, "", *table, "", *notes, "What changed:", "", *changes, ""])


SYMBOLS = {
    "σ_rel": r"$\sigma_\mathrm{rel}$",
    "->": r"$\to$",
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "σ": r"$\sigma$",
    "λ": r"$\lambda$",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "→": r"$\to$",
    "—": "---",
    "“": "``",
    "”": "''",
    "’": "'",
    "…": r"\ldots{}",
}
_SYMBOL = re.compile("|".join(map(re.escape, SYMBOLS)))


def latex(text: str) -> str:
    """Escapes text for LaTeX, on one line, with σ_rel as a formula."""
    printable = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return _SYMBOL.sub(lambda found: SYMBOLS[found[0]], printable)


def results_latex(comparison: Comparison) -> str:
    """The results as a LaTeX table, for \\input."""
    lines, heads = [], []
    for row in comparison.rows:
        cells = comparison.cells(row, comparison.shown)
        cells = [cell for cell in cells if cell.group != "paper"]
        heads = [cell.heading for cell in cells]
        line = [latex(_name(row)), *(latex(cell.text) for cell in cells)]
        if not row.has_numbers:
            span = rf"\multicolumn{{{len(heads)}}}{{l}}"
            line[1:] = [rf"{span}{{\emph{{{latex(row.said)}}}}}"]
        # LaTeX would read these as arguments of the previous line's \\.
        guard = "{}" if line[0][:1] in ("[", "*") else ""
        lines.append(rf"{guard}{' & '.join(line)} \\")
    # Headings are broken into short lines, above columns of numbers.
    over = " & ".join(rf"\shortstack[r]{{{_broken(head)}}}" for head in heads)
    return rf"""% Needs \usepackage{{booktabs,graphicx}}; with pdfLaTeX also [T1]{{fontenc}}.
\begin{{table}}
\centering
\caption{{{latex(comparison.study)}.}}
\resizebox{{\linewidth}}{{!}}{{%
\begin{{tabular}}{{l{"r" * len(heads)}}}
\toprule
config & {over} \\
\midrule
{chr(10).join(lines)}
\bottomrule
\end{{tabular}}}}
\par\medskip\footnotesize {latex(" ".join(table_notes(comparison)))}
\end{{table}}
"""


def _name(row: Row) -> str:
    """The letter with its title; for an altered config, the changes."""
    altered = row.entry.variant and row.entry.reference
    other = f" ({row.said})" if row.message and row.has_numbers else ""
    said = change_text(row) if altered else row.entry.title
    return f"{row.entry.label} {said}{other}"


def _broken(head: str) -> str:
    """Breaks a heading into lines of a few words."""
    lines = [""]
    for word in head.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if len(longer) <= 14 else [lines[-1], word]
    return r"\\".join(latex(line) for line in lines if line)
