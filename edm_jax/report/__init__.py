"""The comparison of runs: tables, figures and one self-contained page."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edm_jax.report.changes import config_diff
from edm_jax.report.columns import ALL_COLUMNS, growth, pick
from edm_jax.report.figures import draw
from edm_jax.report.following import Following, follow, has_ended
from edm_jax.report.grouping import ladder
from edm_jax.report.latex import results_latex
from edm_jax.report.notes import table_notes, table_warnings
from edm_jax.report.page import render
from edm_jax.report.runs import Run, find_runs, load_run
from edm_jax.report.sweeps import draw_sweeps
from edm_jax.report.tables import METRICS, results_rows
from edm_jax.report.writers import results_csv, results_markdown

__all__ = [
    "METRICS",
    "Following",
    "config_diff",
    "draw_sweeps",
    "find_runs",
    "follow",
    "growth",
    "has_ended",
    "ladder",
    "load_run",
    "pick",
    "results_csv",
    "results_latex",
    "results_markdown",
    "results_rows",
    "table_notes",
    "table_warnings",
    "write",
    "write_figures",
]


def write(
    runs: Sequence[Run],
    out: Path,
    baseline: str | None = None,
    metrics: Sequence[str] = METRICS,
    columns: Sequence[str] = (),
    warn: Callable[[str], object] = lambda warning: None,
    following: Following | None = None,
) -> Path:
    """Write the page and the tables of runs, and return the path of the page.

    index.html (self-contained), results.csv, results.md and results.tex under ``out``,
    each whole or not at all; ``warn`` is told what a reader must beware of. columns:
    those of results.md and .tex, all if none. Raises FileNotFoundError without a run,
    ValueError for a baseline or a column that does not exist.
    """
    if not runs:
        raise FileNotFoundError("No run to compare: give at least one run directory.")
    pick(metrics)  # refuses those there are not
    shown = pick(columns) or ALL_COLUMNS
    entries = ladder(runs, baseline)
    rows = results_rows(entries, metrics)
    study = runs[0].path.resolve().parent.name
    for warning in table_warnings(rows):
        warn(warning)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "results.csv": results_csv(rows),
        "results.md": results_markdown(study, rows, shown),
        "results.tex": results_latex(study, rows, shown),
        "index.html": render(study, entries, rows, following),
    }.items():
        # Half a pair of surrogates, which JSON may hold, is no text.
        _replace(out / name, text.encode(errors="replace"))
    return out / "index.html"


def write_figures(runs: Sequence[Run], out: Path, baseline: str | None = None) -> None:
    """Write the figures for a paper, figures/*.{png,pdf,svg}."""
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for drawing in draw(ladder(runs, baseline)):
        for form in drawing.formats:
            _replace(figures / f"{drawing.name}.{form}", drawing.render(form))


def _replace(path: Path, data: bytes) -> None:
    """Write a file that may be read meanwhile."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data)
    os.replace(temporary, path)
