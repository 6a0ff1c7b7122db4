"""Quality against diversity: what samples gain in one and lose in the other."""

from collections.abc import Iterator, Sequence

import numpy as np

from edm_jax.report.curves import Chart, Line, Mark, Panel
from edm_jax.report.runs import Entry, Run, Series

# (quality, diversity): arXiv 1904.06991 and 2002.09797.
PAIRS = (("precision", "recall"), ("density", "coverage"))


def quality(entries: Sequence[Entry]) -> list[Chart]:
    """Samples of each evaluated run as a point, a panel for each feature network.

    Rings are means over a config's seeds. What training logged is a path of points.
    """
    runs = [run for entry in entries for run in entry.measured]
    charts = []
    for fine, wide in PAIRS:
        panels = []
        for network in _networks(runs, f"{wide}_"):
            keys = f"{wide}_{network}", f"{fine}_{network}"
            lines, marks = [], []
            for entry in entries:
                slot, dash, place = entry.look.slot, entry.look.dash, entry.place
                lines += [
                    Line(x, y, colour=slot, dash=dash, config=place, dots=True)
                    for x, y in _curves(entry, keys)
                ]
                ends = [end for run in entry.measured if (end := _end(run, keys))]
                if ends:
                    x, y = np.mean(ends, axis=0).tolist()
                    marks.append(Mark("ring", x, y, slot, place, "mean over seeds"))
            if lines:
                title = f"{fine.capitalize()} against {wide}, {network}"
                panels.append(Panel(title, fine, lines, "linear", marks))
        if panels:
            charts.append(Chart(wide, panels))
    return charts


def _networks(runs: Sequence[Run], prefix: str) -> list[str]:
    """The feature networks of which a run has a quantity with this prefix."""
    names = {name for run in runs for name in run.logs["evaluation"].values}
    names |= {name for run in runs if run.evaluation for name in run.evaluation.values}
    texts = {str(name[0]) for name in names if len(name) == 1}
    return sorted(n.removeprefix(prefix) for n in texts if n.startswith(prefix))


def _curves(entry: Entry, keys: tuple[str, str]) -> Iterator[Series]:
    """(x, y) of each run: its path through the training, and where it ended."""
    for run in entry.measured:
        log = run.logs["evaluation"]
        x, y = (log.column(key) for key in keys)
        kept = np.isfinite(x) & np.isfinite(y)
        if kept.any():
            yield x[kept], y[kept]
        if end := _end(run, keys):
            yield np.array(end[:1]), np.array(end[1:])


def _end(run: Run, keys: tuple[str, str]) -> tuple[float, float] | None:
    """Both quantities as evaluated; None without them."""
    found = run.evaluation.values if run.evaluation else {}
    x, y = (found.get((key,), np.nan) for key in keys)
    return (x, y) if np.isfinite([x, y]).all() else None
