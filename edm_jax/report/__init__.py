"""The comparison of runs: tables, figures and one self-contained page."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edm_jax import files
from edm_jax.report.columns import COLUMNS, Column, growth, pick
from edm_jax.report.drawing import Drawing, draw, samples
from edm_jax.report.export import csv_text, results_csv, results_latex, results_markdown
from edm_jax.report.following import Following, follow
from edm_jax.report.grouping import config_diff, ladder
from edm_jax.report.guided_figure import draw_guided
from edm_jax.report.notes import table_notes, table_warnings
from edm_jax.report.page import render
from edm_jax.report.profile_figure import draw_plans, draw_profiles
from edm_jax.report.read import find_runs, load_run
from edm_jax.report.runs import Run
from edm_jax.report.sweep_figures import draw_sweeps
from edm_jax.report.tables import METRICS, Comparison, compare, results_rows

__all__ = [
    "COLUMNS",
    "METRICS",
    "Column",
    "Comparison",
    "Following",
    "Run",
    "compare",
    "config_diff",
    "draw_guided",
    "draw_plans",
    "draw_profiles",
    "draw_sweeps",
    "drawings",
    "find_runs",
    "follow",
    "growth",
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
    comparison: Comparison, out: Path, following: Following | None = None
) -> Path:
    """Write the page and the tables to `out`, and return the page's path.

    The files are index.html (self-contained), results.csv, results.md and results.tex;
    each is written whole or not at all.
    """
    texts = {
        "results.csv": results_csv(comparison),
        "results.md": results_markdown(comparison),
        "results.tex": results_latex(comparison),
        "index.html": render(comparison, following),
    }
    if comparison.by_field:
        texts["by_field.csv"] = csv_text(comparison.by_field.records())
    with _folder(out):
        for name, text in texts.items():
            files.write_text(out / name, text)
    return out / "index.html"


def write_figures(comparison: Comparison, out: Path) -> None:
    """Write the figures for a paper, figures/*.{png,pdf,svg}."""
    with _folder(out / "figures"):
        for drawing in drawings(comparison):
            for form in drawing.formats:
                path = out / "figures" / f"{drawing.name}.{form}"
                files.write_bytes(path, drawing.render(form))


def drawings(comparison: Comparison) -> Iterator[Drawing]:
    """Every figure for a paper that the runs have data for."""
    entries = comparison.entries
    for figure in comparison.figures:
        charts = figure.charts(entries) if figure.file else []
        if charts:
            yield draw(figure.file, charts, entries)
    if found := samples(entries):
        yield found


@contextlib.contextmanager
def _folder(directory: Path) -> Iterator[None]:
    """Makes a folder, and removes it again if nothing could be written to it."""
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f"{directory} is not a directory: remove that file, or choose another folder."
        ) from None
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # it holds something
            if is_new:
                directory.rmdir()
        raise
