"""The curves of losses and EMA lengths, as the page and the figures draw them."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edm_jax.report.runs import Aside, Entry, Run, Series

MAX_POINTS = 400  # of one curve: more cannot be seen
MIN_POINTS = 30  # of one curve among very many
LOSS_VALUES = 100_000  # points of the losses, over all configs
ALONE = 60  # runs beyond which no curve of a single seed is drawn
ALONE_POINTS = 120
LOSSES = {
    "heldout": "Held-out loss of the averaged weights",
    "train": "Training loss, smoothed",
}


@dataclass(frozen=True)
class Line:
    """A mean over a config's seeds, with its lowest and highest; or one run alone."""

    x: np.ndarray  # (N,), as all others
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    config: int = 0  # the place of its entry
    best: int | None = None  # the place of the optimum
    seed: str = ""  # the run's name, of one seed of several
    aside: Aside | None = None  # of a run that is in no mean

    def thinned(self, points: int) -> "Line":
        """Thinned to a given number of points, which keeps the last."""
        kept = places(len(self.x), points)
        arrays = {name: getattr(self, name) for name in ("x", "y", "low", "high")}
        kept_of = {k: None if v is None else v[kept] for k, v in arrays.items()}
        return dataclasses.replace(self, **kept_of)


@dataclass(frozen=True)
class Panel:
    """Axes of a figure; the vertical one is logarithmic unless `linear`, from zero."""

    title: str
    y: str
    lines: list[Line]
    linear: bool = False
    marks: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)
    # (config, x, y) of each traditional EMA


@dataclass(frozen=True)
class Chart:
    """Two panels and the label of their horizontal axes, which begin at zero."""

    x: str
    panels: list[Panel]


def losses(entries: Sequence[Entry]) -> Chart | None:
    """Held-out and training loss by config: means of finished runs, lines of others."""
    runs = [run for entry in entries for run in entry.runs]
    unit, label = image_unit(runs)
    points = share(LOSS_VALUES, 2 * len(entries))
    panels = []
    for log, title in LOSSES.items():
        lines = []
        for config, entry in enumerate(entries):
            found = [(run, loss_curve(run, log, unit)) for run in entry.measured]
            lines += _lines(config, found, points, len(runs) <= ALONE)
            for aside in entry.aside:
                x, y = loss_curve(aside.run, log, unit)
                if len(x):
                    line = Line(x, y, config=config, aside=aside)
                    lines.append(line.thinned(points))
        panels.append(Panel(title, "λ-weighted loss per element", lines))
    return Chart(label, panels) if any(panel.lines for panel in panels) else None


def ema(entries: Sequence[Entry]) -> Chart | None:
    """Held-out loss by EMA length, its excess over the best, and both optima."""
    lines, excesses, marks = [], [], []
    alone = sum(len(entry.measured) for entry in entries) <= ALONE
    for config, entry in enumerate(entries):
        found = [(run, sweep(run)) for run in entry.measured]
        of_config = _lines(config, found, MAX_POINTS, alone)
        if not of_config:
            continue
        mean, *seeds = of_config
        mean = dataclasses.replace(mean, best=int(mean.y.argmin()))
        lines += [mean, *seeds]
        # Of the mean, so that the ring lies on the axis; seeds have bests of their own.
        mean = dataclasses.replace(mean, y=excess(mean.y), low=None, high=None)
        excesses += [mean, *(dataclasses.replace(s, y=excess(s.y)) for s in seeds)]
        marks += [(config, *at) for run in entry.measured for at in traditional(run)]
    if not lines:
        return None
    first = Panel("Held-out loss", "λ-weighted loss per element", lines, marks=marks)
    title = "Excess over each config’s own best"
    return Chart("EMA length σ_rel", [first, Panel(title, "percent", excesses, True)])


def _lines(
    config: int, found: Sequence[tuple[Run, Series]], points: int, alone: bool
) -> list[Line]:
    """The mean of a config, and the curve of each of several seeds if `alone`."""
    found = [(run, curve) for run, curve in found if len(curve[0])]
    mean = over_seeds([curve for _, curve in found])
    if mean is None:
        return []
    lines = [dataclasses.replace(mean, config=config).thinned(points)]
    if alone and len(found) > 1:
        each = (Line(*curve, config=config, seed=run.name) for run, curve in found)
        lines += [line.thinned(ALONE_POINTS) for line in each]
    return lines


def loss_curve(run: Run, log: str, unit: float) -> Series:
    """A run's loss by images, 'heldout' or 'train'; the latter smoothed."""
    x, y = run.logs[log].curve("loss_per_element")
    x, y = x[y > 0] / unit, y[y > 0]  # for a logarithmic axis
    return smooth(x, y) if log == "train" else (x, y)


def smooth(x: np.ndarray, y: np.ndarray) -> Series:
    """Average over a trailing window of a thirtieth of the points."""
    width = max(1, len(y) // 30)
    if len(y) < 2:
        return x, y
    return x[width - 1 :], np.convolve(y, np.ones(width) / width, mode="valid")


def over_seeds(curves: Sequence[Series]) -> Line | None:
    """Average curves where all have points, on the places of the densest."""
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    x = max((x for x, _ in curves), key=len)
    begin = max(x[0] for x, _ in curves)
    end = min(x[-1] for x, _ in curves)
    shared = x[(begin <= x) & (x <= end)]
    if len(curves) == 1 or not len(shared):
        return Line(*curves[0])
    values = np.array([np.interp(shared, x, y) for x, y in curves])
    return Line(shared, values.mean(0), values.min(0), values.max(0))


def places(count: int, points: int = MAX_POINTS) -> slice:
    """Which of `count` points are kept: evenly spaced ones, the last among them."""
    stride = -(-count // points) or 1
    return slice((count - 1) % stride if count else 0, None, stride)


def share(values: int, curves: int) -> int:
    """Points per curve, so that all curves together stay within a budget."""
    return max(MIN_POINTS, min(MAX_POINTS, values // max(1, curves)))


def image_unit(runs: Iterable[Run]) -> tuple[float, str]:
    """The unit of the image axis and its label."""
    logs = (log for run in runs for log in run.logs.values())
    most = max((log.nimg[-1] for log in logs if len(log)), default=0)
    if most >= 2e6:
        return 1e6, "images trained (millions)"
    return 1e3, "images trained (thousands)"


def sweep(run: Run) -> Series:
    """The sigma_rel of a run's sweep, rising, and the losses, all finite."""
    found = run.evaluation.sweep if run.evaluation else np.empty((0, 2))
    return found[:, 0], found[:, 1]


def traditional(run: Run) -> Iterator[tuple[float, float]]:
    """(sigma_rel, loss) of a run's traditional EMAs."""
    if run.evaluation and run.evaluation.nimg:
        duration = run.evaluation.nimg / 1e6
        for halflife, loss in run.evaluation.traditional:
            if math.isfinite(loss):
                yield (
                    traditional_sigma_rel(halflife, run.halflife_rampup, duration),
                    loss,
                )


def traditional_sigma_rel(halflife: float, rampup: float, duration: float) -> float:
    """The relative standard deviation of an exponential EMA (Sec. 3, App. C).

    A half-life that is still rampup · nimg at the end leaves a power function with
    γ + 1 = ln 2 / rampup. Half-life and duration are in the same unit.
    """
    if 0 < rampup * duration < halflife:
        gamma = math.log(2) / rampup - 1
        return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    return halflife / (math.log(2) * duration)


def excess(y: np.ndarray) -> np.ndarray:
    """How much each loss lies above the lowest, in percent."""
    return 100 * (y / y.min() - 1)
