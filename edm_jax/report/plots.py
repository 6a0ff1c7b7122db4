"""What the page draws of losses and EMA lengths: plain numbers, to be sent as JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edm_jax.report.lengths import excess, sweep, traditional
from edm_jax.report.runs import Curve, Entry, Run
from edm_jax.report.series import (
    Band,
    image_unit,
    loss_curve,
    over_seeds,
    share,
    thin,
    thin_band,
)

LOSS_VALUES = 100_000  # points of the loss figure, over all configs
ALONE = 60  # runs beyond which no curve of a single seed is sent
ALONE_POINTS = 120

Json = dict[str, Any]


def rounded(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Five significant digits; None for what is not finite."""
    numbers = np.asarray(values, np.float64).tolist()
    return [float(f"{v:.5g}") if abs(v) < np.inf else None for v in numbers]


class Places:
    """Lists of x that many curves share, each kept once and named by its index."""

    def __init__(self) -> None:
        self.lists: list[list[float | None]] = []
        self._index: dict[tuple[float | None, ...], int] = {}

    def add(self, x: np.ndarray) -> int:
        """The index of a list of x."""
        found = rounded(x)
        key = tuple(found)
        if key not in self._index:
            self._index[key] = len(self.lists)
            self.lists.append(found)
        return self._index[key]


def loss(entries: Sequence[Entry], places: Places) -> Json | None:
    """Held-out and training loss by config: bands of finished runs, lines of others."""
    runs = [run for entry in entries for run in entry.runs]
    unit, label = image_unit(runs)
    points = share(LOSS_VALUES, 2 * len(entries))
    panels = []
    for log, title in (
        ("heldout", "Held-out loss of the averaged weights"),
        ("train", "Training loss, smoothed"),
    ):
        curves = []
        for index, entry in enumerate(entries):
            measured = [(run, loss_curve(run, log)) for run in entry.measured]
            found = [(run, (x / unit, y)) for run, (x, y) in measured if len(x)]
            curves += _curves(index, found, places, points, len(runs) <= ALONE)
            curves += _unfinished(index, entry, log, unit, places, points)
        panels.append({"title": title, "curves": curves})
    if not any(panel["curves"] for panel in panels):
        return None
    return {"x": label, "y": "λ-weighted loss per element", "panels": panels}


def ema(entries: Sequence[Entry], places: Places) -> Json | None:
    """Held-out loss by EMA length, its excess over the best, and both optima."""
    losses, excesses, points = [], [], []
    runs = [run for entry in entries for run in entry.measured]
    for index, entry in enumerate(entries):
        sweeps = [(run, sweep(run)) for run in entry.measured]
        found = [(run, curve) for run, curve in sweeps if len(curve[0])]
        band = over_seeds([curve for _, curve in found])
        if band is None:
            continue
        best = int(band.mean.argmin())
        alone = len(runs) <= ALONE
        losses += _curves(index, found, places, len(band.x), alone, best)
        above = [(run, (x, excess(y))) for run, (x, y) in found]
        # Of the mean, so that the ring lies on the axis; seeds have bests of their own.
        mean = Band(band.x, excess(band.mean))
        excesses += [_line(index, mean, places, best)]
        if alone and len(above) > 1:
            excesses += [_alone(index, run, curve, places) for run, curve in above]
        points += [
            {"c": index, "at": rounded(point)}
            for run in entry.measured
            for point in traditional(run)
        ]
    if not losses:
        return None
    panels = [
        {"title": "Held-out loss", "curves": losses, "traditional": points},
        {"title": "Excess over each config’s own best", "curves": excesses},
    ]
    panels[1] |= {"linear": True, "y": "percent"}
    return {
        "x": "EMA length σ<sub>rel</sub>",
        "y": "λ-weighted loss per element",
        "panels": panels,
    }


def _curves(
    index: int,
    found: Sequence[tuple[Run, Curve]],
    places: Places,
    points: int,
    alone: bool,
    best: int | None = None,
) -> list[Json]:
    """The band of a config, and the curve of each of several seeds."""
    band = over_seeds([curve for _, curve in found])
    if band is None:
        return []
    curves = [_line(index, thin_band(band, points), places, best)]
    if alone and len(found) > 1:
        curves += [_alone(index, run, curve, places) for run, curve in found]
    return curves


def _line(index: int, band: Band, places: Places, best: int | None) -> Json:
    line: Json = {"c": index, "x": places.add(band.x), "y": rounded(band.mean)}
    if band.low is not None and band.high is not None:
        line |= {"low": rounded(band.low), "high": rounded(band.high)}
    return line if best is None else line | {"best": best}


def _alone(index: int, run: Run, curve: Curve, places: Places) -> Json:
    x, y = thin(*curve, ALONE_POINTS)
    return {"c": index, "x": places.add(x), "y": rounded(y), "seed": run.name}


def _unfinished(
    index: int, entry: Entry, log: str, unit: float, places: Places, points: int
) -> list[Json]:
    """Each run whose numbers are not among its config's, as a line of its own."""
    lines = []
    for aside in entry.aside:
        x, y = thin(*loss_curve(aside.run, log), points)
        if len(x):
            line = {"c": index, "x": places.add(x / unit), "y": rounded(y)}
            lines.append(line | {"run": aside.run.name, "state": aside.state})
    return lines
