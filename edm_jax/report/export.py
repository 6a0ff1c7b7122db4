"""The results as files for other programs: CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from edm_jax.report.columns import Column
from edm_jax.report.grouping import compact, field_of
from edm_jax.report.notes import table_notes
from edm_jax.report.tables import Comparison, Row, change_text

# After a column's key: of its mean, and of its difference to the baseline.
OF_MEAN = ("", "_ci95", "_n")
OF_DIFFERENCE = ("_diff", "_diff_ci95", "_diff_n", "_test", "_p", "_p_holm")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")
# An underscore within a word is no mark; `://`, `www.` and `@` make links by themselves.
_MARKS = re.compile(r"[\\`*\[\]|~@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")
_BEGINNING = re.compile(r"^(\d*)([#>+\-=]|(?<=\d)[.)])")


def results_csv(comparison: Comparison) -> str:
    """The results as CSV, numbers to nine significant digits, absent ones empty.

    Of a column: mean, half width of the 95% interval, n; then the same of the
    difference to the baseline, the test, and p before and after the correction.
    """
    columns, fields = comparison.columns, comparison.fields
    heads = ["config", "title", "changed", "changed_from_baseline", "baseline", *fields]
    heads += ["paper_fid", "paper_sigma_rel", "runs"]
    heads += [f"{c.key}{end}" for c in columns for end in OF_MEAN + OF_DIFFERENCE]
    lines = [
        [row.entry.label, row.entry.title, change_text(row)]
        + ["; ".join(row.changed_from_baseline), comparison.baseline]
        + [_plain(field_of(row.entry, name)) for name in fields]
        + [*row.paper, len(row.runs)]
        + [cell for column in columns for cell in _cells(row, column)]
        + [row.state, row.message]
        for row in comparison.rows
    ]
    return csv_text([*heads, "state", "message"], lines)


def csv_text(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A CSV table in which no text is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for line in [heads, *lines]:
        writer.writerow([_cell(value) for value in line])
    return out.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text


def _plain(value: Any) -> Any:
    """A value of a config: numbers as they are, others as texts."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number or value is None else compact(value)


def _cells(row: Row, column: Column) -> list[Any]:
    """What OF_MEAN and OF_DIFFERENCE name."""
    cells: list[Any] = [None] * len(OF_MEAN + OF_DIFFERENCE)
    if found := row.estimates[column.key]:
        cells[:3] = [found.mean, found.half_width, found.n]
    if found := row.differences[column.key]:
        test = None if found.p is None else "paired" if found.paired else "welch"
        cells[3:] = [found.mean, found.half_width, found.n, test]
        cells += [found.p, found.p_corrected]
    return cells


def _inline(text: str) -> str:
    """A text within a line of Markdown, as it is: no link, no mark, no end of a cell."""
    text = _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _block(text: str) -> str:
    """The same at the beginning of a line: no heading, list or quotation either."""
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
    """Text as LaTeX sets it, on one line, σ_rel with its index below."""
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
        # After the end of the line before these would be read as its arguments.
        guard = "{}" if line[0][:1] in ("[", "*") else ""
        lines.append(rf"{guard}{' & '.join(line)} \\")
    # Headings stand upright in two lines or more, above columns of numbers.
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
    """The letter with its title; an altered config with what was altered."""
    altered = row.entry.variant and row.entry.reference
    other = f" ({row.said})" if row.message and row.has_numbers else ""
    said = change_text(row) if altered else row.entry.title
    return f"{row.entry.label} {said}{other}"


def _broken(head: str) -> str:
    """A heading in lines of some words each."""
    lines = [""]
    for word in head.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if len(longer) <= 14 else [lines[-1], word]
    return r"\\".join(latex(line) for line in lines if line)
