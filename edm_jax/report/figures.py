"""The figures of a comparison, after the paper's Fig. 3, 5a and 15."""

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from edm_jax.report.drawing import (
    CARD,
    INK,
    PALETTE,
    STYLE,
    WIDTH,
    Drawing,
    colour_of,
    config_legend,
    end_labels,
    line_style,
    log_axis,
    plain,
)
from edm_jax.report.magnitudes import dynamics
from edm_jax.report.runs import Entry, Run, number
from edm_jax.report.series import curve, image_unit, smooth, thin


def draw(entries: Sequence[Entry]) -> list[Drawing]:
    """Draw every figure that the runs have data for."""
    with matplotlib.rc_context(STYLE):
        drawings = (figure(entries) for figure in (loss, ema, dynamics, samples))
        return [drawing for drawing in drawings if drawing is not None]


def loss(entries: Sequence[Entry]) -> Drawing | None:
    """Held-out and training loss against images trained."""
    pairs = [(entry, run) for entry in entries for run in entry.runs]
    runs = [run for _, run in pairs]
    if not any(run.train or run.heldout for run in runs):
        return None
    unit, label = image_unit(runs)
    figure, left, right = _pair(entries)
    left.set_title("Held-out loss of the averaged weights", loc="left")
    right.set_title("Training loss, smoothed", loc="left")
    left.set_ylabel("λ-weighted loss per element")
    for axes, log in ((left, "heldout"), (right, "train")):
        ends = {}
        for entry, run in pairs:
            x, y = curve(getattr(run, log), "loss_per_element")
            if log == "train":
                x, y = smooth(x, y)
            x, y = thin(x[y > 0] / unit, y[y > 0])
            if len(x):
                axes.plot(x, y, **line_style(entry))
                ends[entry.label] = (x[-1], y[-1], entry)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        if ends:
            log_axis(axes)
        end_labels(axes, list(ends.values()))
    caption = (
        "Loss per element, weighted by λ(σ), against images trained, on a logarithmic "
        "axis. The held-out loss uses fixed noise and compares across configs; the "
        "training loss, a trailing mean over a thirtieth of the run, does so only for "
        "equal P_mean and P_std, which A does not share. By the paper’s FID each letter "
        "should end below the one before."
    )
    return Drawing("loss", figure, "Loss against images trained", caption)


def _pair(entries: Sequence[Entry]) -> tuple[Figure, Axes, Axes]:
    """Two panels side by side under one legend of configs."""
    figure = Figure(figsize=(WIDTH, 4.5))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(0.06, 0.105, 0.965, 0.78, wspace=0.2)
    config_legend(figure, entries, bbox_to_anchor=(0.05, 1.0))
    return figure, left, right


def traditional_sigma_rel(halflife: float, rampup: float, duration: float) -> float:
    """The relative standard deviation of an exponential EMA (Sec. 3, App. C).

    A half-life that is still rampup · nimg at the end leaves a power function with
    γ + 1 = ln 2 / rampup. Half-life and duration are in the same unit.
    """
    if 0 < rampup * duration < halflife:
        gamma = math.log(2) / rampup - 1
        return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    return halflife / (math.log(2) * duration)


def sweep(run: Run) -> np.ndarray:
    """The finite (sigma_rel, loss) of a run's sweep, in order of sigma_rel."""
    records = run.evaluation.get("sweep") or []
    pairs = [(number(r, "sigma_rel"), number(r, "loss")) for r in records]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)  # None becomes NaN
    points = points[np.isfinite(points).all(axis=1)]
    return points[points[:, 0].argsort()]


def ema(entries: Sequence[Entry]) -> Drawing | None:
    """Held-out loss against EMA length (Fig. 5a)."""
    pairs = [(e, run) for e in entries for run in e.measured if len(sweep(run))]
    if not pairs:
        return None
    entries = [entry for entry in entries if any(e is entry for e, _ in pairs)]
    figure, left, right = _pair(entries)
    left.set_title("Held-out loss", loc="left")
    right.set_title("Excess over each config’s own best, in percent", loc="left")
    left.set_ylabel("λ-weighted loss per element")
    for axes in (left, right):
        ends = {}
        for entry, run in pairs:
            x, y = sweep(run).T
            best = y.argmin()
            if axes is right:
                y = 100 * (y / y[best] - 1)
            axes.plot(x, y, **line_style(entry))
            ring = {"marker": "o", "ms": 6, "mfc": CARD, "mew": 1.6, "ls": ""}
            axes.plot(x[best], y[best], color=colour_of(entry), **ring)
            ends[entry.label] = (x[-1], y[-1], entry)
            if axes is left:
                _traditional(axes, run)
        axes.set_xlim(left=0)
        axes.set_xlabel(r"EMA length $\sigma_\mathrm{rel}$")
        if axes is left:
            log_axis(axes)
        end_labels(axes, list(ends.values()))
    caption = (
        "Held-out loss of averages rebuilt after training against the EMA length σ_rel, "
        "the standard deviation of the averaging profile over the training length; rings "
        "mark the optimum, diamonds the traditional EMA of config A at its half-life’s "
        "σ_rel. In the paper’s Fig. 5a the optimum differs between configs and narrows "
        "from B to G."
    )
    return Drawing("ema", figure, "Quality against EMA length", caption)


def _traditional(axes: Axes, run: Run) -> None:
    """Mark a run's traditional EMAs, by diamonds in ink."""
    duration = (number(run.evaluation, "nimg") or 0) / 1e6
    rampup = number(run.config, "ema", "halflife_rampup") or 0.0
    for record in run.evaluation.get("traditional") or []:
        halflife, value = number(record, "halflife_mimg"), number(record, "loss")
        if halflife and duration and value is not None and math.isfinite(value):
            x = traditional_sigma_rel(halflife, rampup, duration)
            style = {"marker": "D", "ms": 5, "mfc": PALETTE[0], "mew": 1.0}
            axes.plot(x, value, mec=INK, ls="", **style)


def samples(entries: Sequence[Entry]) -> Drawing | None:
    """The sample grids of the finished runs, side by side."""
    grids = [
        (entry, run.samples)
        for entry in entries
        for run in entry.measured[:1]
        if run.samples
    ]
    if not grids:
        return None
    columns = min(4, len(grids))
    rows = -(-len(grids) // columns)
    figure = Figure(figsize=(WIDTH, WIDTH / columns * rows * 1.06))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.96, wspace=0.04, hspace=0.1)
    for axes in panels:
        axes.set_axis_off()
    for axes, (entry, png) in zip(panels, grids, strict=False):
        axes.imshow(
            imread(io.BytesIO(png)),
            cmap="gray",
            interpolation="nearest",
        )
        name = plain(f"{entry.label}   {entry.title}")
        axes.set_title(name, loc="left", fontweight="bold", fontsize=7)
    caption = (
        "Samples of the finished runs, one class to a row. The paper’s claim is one of "
        "statistics (FID): a letter’s step need not be seen in a few pictures."
    )
    return Drawing("samples", figure, "Samples", caption)
