"""Curves as data: means over seeds, thinned for drawing."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edm_jax.report.runs import Aside, Run, Series

MAX_POINTS = 400  # per curve: more would not be visible
MIN_POINTS = 30  # per curve, however many there are
ALONE = 60  # with more runs than this, curves of single seeds are not drawn
ALONE_POINTS = 120


@dataclass(frozen=True)
class Line:
    """A mean over a config's seeds, with the lowest and highest; or a single run."""

    x: np.ndarray  # (N,), like the others
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    colour: int | str = "ink"  # a place in the palette, 'ink', 'soft' or '#rrggbb'
    dash: int = 0
    config: int | None = None  # the place of its entry
    label: str = ""  # what it shows, if the config does not say so
    seed: str = ""  # the run's name, for one seed of several
    aside: Aside | None = None  # for a run that is not in any mean
    dots: bool = False  # whether every point is marked

    def thinned(self, points: int) -> "Line":
        """The line with at most `points` points, its last one included."""
        kept = places(len(self.x), points)
        arrays = {name: getattr(self, name) for name in ("x", "y", "low", "high")}
        kept_of = {k: None if v is None else v[kept] for k, v in arrays.items()}
        return dataclasses.replace(self, **kept_of)


@dataclass(frozen=True)
class Mark:
    """One point that stands out: ring, diamond, cross, triangle or hollow."""

    kind: str
    x: float
    y: float
    colour: int | str
    config: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes; the vertical scale is 'log', 'linear', or 'zero' (from zero)."""

    title: str
    y: str
    lines: list[Line]
    scale: str = "log"
    marks: list[Mark] = field(default_factory=list)
    top: float | None = None  # the upper end of a vertical axis from zero
    at: float | None = None  # the x of a vertical rule
    x: str = ""  # the horizontal label, if it is not the chart's
    legend: bool = False  # whether the page names the lines below it


@dataclass(frozen=True)
class Chart:
    """Panels in a row with one horizontal axis, which starts at zero or is logarithmic."""

    x: str
    panels: list[Panel]
    config: int | None = None  # the place of the entry, if it shows only one
    log: bool = False
    key: Sequence[tuple[str, int | str, int]] = ()
    # (name, colour, dash) of groups of lines


def seed_lines(
    found: Sequence[tuple[Run, Series]], points: int, alone: bool, **look
) -> list[Line]:
    """The mean of a config's runs, followed by single seeds if `alone`."""
    found = [(run, curve) for run, curve in found if len(curve[0])]
    mean = over_seeds([curve for _, curve in found])
    if mean is None:
        return []
    lines = [dataclasses.replace(mean, **look).thinned(points)]
    if alone and len(found) > 1:
        each = (Line(*curve, seed=run.name, **look) for run, curve in found)
        lines += [line.thinned(ALONE_POINTS) for line in each]
    return lines


def loss_curve(run: Run, log: str, unit: float) -> Series:
    """A run's loss by images: 'heldout', or 'train', which is smoothed."""
    x, y = run.logs[log].curve("loss_per_element")
    x, y = x[y > 0] / unit, y[y > 0]  # for a logarithmic axis
    return smooth(x, y) if log == "train" else (x, y)


def smooth(x: np.ndarray, y: np.ndarray) -> Series:
    """Averages over a trailing window of a thirtieth of the points."""
    width = max(1, len(y) // 30)
    if len(y) < 2:
        return x, y
    return x[width - 1 :], np.convolve(y, np.ones(width) / width, mode="valid")


def over_seeds(curves: Sequence[Series]) -> Line | None:
    """Averages curves where all have points, at the x of the densest."""
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
    """Selects evenly spaced points of `count`, including the last one."""
    stride = -(-count // points) or 1
    return slice((count - 1) % stride if count else 0, None, stride)


def share(values: int, curves: int) -> int:
    """Points per curve that keep all curves together within a budget."""
    return max(MIN_POINTS, min(MAX_POINTS, values // max(1, curves)))


def averaged(values: np.ndarray, kept: slice) -> np.ndarray:
    """Means, without NaNs, over the records up to each kept one from the one before.

    Args:
        values: (records, quantities).
        kept: the records to draw.
    """
    ends = range(len(values))[kept]
    stretches = np.split(values, [end + 1 for end in ends[:-1]])
    present = np.array([np.isfinite(part).sum(0) for part in stretches])
    sums = np.array(
        [np.nan_to_num(part, posinf=0, neginf=0).sum(0) for part in stretches]
    )
    return np.where(present, sums / np.maximum(present, 1), np.nan)


def image_unit(runs: Iterable[Run]) -> tuple[float, str]:
    """The unit of the image axis, and its label."""
    logs = (log for run in runs for log in run.logs.values())
    most = max((log.nimg[-1] for log in logs if len(log)), default=0)
    if most >= 2e6:
        return 1e6, "images trained (millions)"
    return 1e3, "images trained (thousands)"


def sweep(run: Run) -> Series:
    """The sigma_rel of a run's sweep, ascending, and the losses; all are finite."""
    found = run.evaluation.sweep if run.evaluation else np.empty((0, 2))
    return found[:, 0], found[:, 1]


def traditional(run: Run) -> Iterator[tuple[float, float]]:
    """(sigma_rel, loss) of a run's traditional EMAs."""
    if run.evaluation and run.evaluation.nimg:
        duration = run.evaluation.nimg / 1e6
        for halflife, loss in run.evaluation.traditional:
            yield traditional_sigma_rel(halflife, run.halflife_rampup, duration), loss


def traditional_sigma_rel(halflife: float, rampup: float, duration: float) -> float:
    """The relative standard deviation of an exponential EMA (Sec. 3, App. C).

    If the half-life is still rampup · nimg at the end, the profile is a power function
    with γ + 1 = ln 2 / rampup. Half-life and duration are in the same unit.
    """
    if 0 < rampup * duration < halflife:
        gamma = math.log(2) / rampup - 1
        return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    return halflife / (math.log(2) * duration)
