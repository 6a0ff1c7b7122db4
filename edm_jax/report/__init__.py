"""The comparison of runs: tables, figures and one self-contained page."""

from collections.abc import Sequence
from pathlib import Path

from edm_jax.report.figures import draw
from edm_jax.report.page import render
from edm_jax.report.runs import find_runs, ladder, load_run
from edm_jax.report.sweeps import draw_sweeps
from edm_jax.report.tables import (
    config_diff,
    growth,
    results_rows,
)
from edm_jax.report.writers import results_csv, results_markdown

__all__ = [
    "build",
    "config_diff",
    "draw_sweeps",
    "find_runs",
    "growth",
    "ladder",
    "load_run",
    "results_csv",
    "results_markdown",
    "results_rows",
]


def build(run_dirs: Sequence[Path], out: Path) -> Path:
    """Compare run directories and return the path of the page.

    Writes index.html (self-contained), results.csv, results.md and figures/*.png
    under ``out``. Raises FileNotFoundError when no directory is given.
    """
    if not run_dirs:
        raise FileNotFoundError("No run to compare: give at least one run directory.")
    runs = [load_run(Path(path)) for path in run_dirs]
    entries = ladder(runs)
    rows = results_rows(entries)
    study = Path(run_dirs[0]).resolve().parent.name
    drawings = draw(entries)

    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        (figures / f"{drawing.name}.png").write_bytes(drawing.png())
    (out / "results.csv").write_text(results_csv(rows), encoding="utf-8", newline="")
    (out / "results.md").write_text(results_markdown(study, rows), encoding="utf-8")
    page = out / "index.html"
    page.write_text(render(study, entries, rows, drawings), encoding="utf-8")
    return page
