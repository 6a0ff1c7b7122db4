"""The results as LaTeX tables, to be included in a paper."""

import re

from edm_jax.report.notes import table_notes
from edm_jax.report.tables import (
    Comparison,
    Row,
    baseline_label,
    change_text,
    compared_columns,
)

SYMBOLS = {
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
_SYMBOL = re.compile("σ_rel|->|" + "|".join(map(re.escape, SYMBOLS)))


def escape(text: str) -> str:
    """Text as LaTeX sets it, on one line, σ_rel with its index below."""
    longer = {"σ_rel": r"$\sigma_\mathrm{rel}$", "->": r"$\to$"}
    symbols = SYMBOLS | longer
    printable = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return _SYMBOL.sub(lambda found: symbols[found[0]], printable)


def results_latex(comparison: Comparison) -> str:
    """The results as a table, for \\input."""
    needs = (
        "% Needs \\usepackage{booktabs,graphicx}; with pdfLaTeX also [T1]{fontenc}.\n"
    )
    return needs + _table(comparison)


def _table(comparison: Comparison) -> str:
    rows, columns = comparison.rows, comparison.columns
    compared = compared_columns(rows)
    against = [f"{c.heading}, against {baseline_label(rows)}" for c in compared]
    heads = ["config", "n", *(c.heading for c in columns), *against]
    lines = []
    for row in rows:
        cells = [str(len(row.runs)), *(row.text(c) for c in columns)]
        cells += [row.difference_text(c) for c in compared]
        line = " & ".join(map(escape, [_name(row), *cells]))
        if not row.runs:
            said = f"{row.state}: {row.message}" if row.message else row.state
            span = rf"\multicolumn{{{len(heads) - 1}}}{{l}}"
            line = rf"{escape(_name(row))} & {span}{{\emph{{{escape(said)}}}}}"
        # After the end of the line before these would be read as its arguments.
        guard = "{}" if line[:1] in ("[", "*") else ""
        lines.append(rf"{guard}{line} \\")
    # Headings stand upright in two lines or more, above columns of numbers.
    over = " & ".join(rf"\shortstack[r]{{{_broken(head)}}}" for head in heads[1:])
    notes = escape(" ".join(table_notes(rows)))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(comparison.study)}.}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            rf"{heads[0]} & {over} \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\par\medskip\footnotesize {notes}",
            r"\end{table}",
            "",
        ]
    )


def _name(row: Row) -> str:
    """The letter with its title; an altered config with what was altered."""
    altered = row.entry.variant and row.entry.reference
    other = f" ({row.state}: {row.message})" if row.runs and row.message else ""
    said = change_text(row) if altered else row.entry.title
    return f"{row.entry.label} {said}{other}"


def _broken(head: str) -> str:
    """A heading in lines of some words each."""
    lines = [""]
    for word in head.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if len(longer) <= 14 else [lines[-1], word]
    return r"\\".join(escape(line) for line in lines if line)
