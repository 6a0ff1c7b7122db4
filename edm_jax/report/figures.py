"""The figures of a comparison on paper, after the paper's Fig. 3, 5a and 15."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from edm_jax.report.drawing import (
    CARD,
    INK,
    STYLE,
    WIDTH,
    Drawing,
    config_legend,
    end_labels,
    line_style,
    log_axis,
    plain,
)
from edm_jax.report.grids import with_samples
from edm_jax.report.lengths import excess, sweep, traditional
from edm_jax.report.looks import PALETTE, Look, assign
from edm_jax.report.magnitudes import dynamics
from edm_jax.report.runs import Entry
from edm_jax.report.series import (
    Band,
    image_unit,
    loss_curve,
    over_seeds,
    share,
    thin,
    thin_band,
)

VALUES = 30_000  # points of all curves of a panel
MOST_GRIDS = 24
MOST_PIXELS = 4096  # to a side of a grid: more do not show
_SEEDS = (
    "Lines are means over a config’s finished seeds, bands reach from the lowest to the "
    "highest seed."
)


def draw(entries: Sequence[Entry]) -> list[Drawing]:
    """Draw every figure that the runs have data for."""
    with matplotlib.rc_context(STYLE):
        drawings = (figure(entries) for figure in (loss, ema, dynamics, samples))
        return [drawing for drawing in drawings if drawing is not None]


def loss(entries: Sequence[Entry]) -> Drawing | None:
    """Held-out and training loss against images trained."""
    runs = [run for entry in entries for run in entry.runs]
    if not any(len(run.logs[k]) for run in runs for k in ("train", "heldout")):
        return None
    looks = assign(entries)
    figure, left, right = _pair(entries, looks)
    left.set_title("Held-out loss of the averaged weights", loc="left")
    right.set_title("Training loss, smoothed", loc="left")
    left.set_ylabel("λ-weighted loss per element")
    _, label = image_unit(runs)
    for axes, log in ((left, "heldout"), (right, "train")):
        ends = _losses(axes, log, entries, looks)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        if ends:
            log_axis(axes)
        _label_ends(axes, ends)
    caption = (
        "Loss per element, weighted by λ(σ), against images trained, on a logarithmic "
        f"axis. {_SEEDS} Thin dashed lines are runs that are not finished. The held-out "
        "loss uses fixed noise and compares across configs; the training loss, a "
        "trailing mean over a thirtieth of the run, does so only for equal P_mean and "
        "P_std, which A does not share."
    )
    return Drawing("loss", figure, "Loss against images trained", caption)


Ends = list[tuple[float, float, Entry, Look]]


def _losses(
    axes: Axes, log: str, entries: Sequence[Entry], looks: Sequence[Look]
) -> Ends:
    """Draw each config's losses; returns the ends of the curves."""
    unit, _ = image_unit(run for entry in entries for run in entry.runs)
    points = share(VALUES, len(entries))
    ends: Ends = []
    for entry, look in zip(entries, looks, strict=True):
        band = over_seeds([loss_curve(run, log) for run in entry.measured])
        last = None
        for aside in entry.aside:
            x, y = thin(*loss_curve(aside.run, log), points)
            if len(x):
                axes.plot(x / unit, y, color=look.colour, ls=(0, (3, 2)), lw=0.9)
                last = (x[-1] / unit, y[-1], entry, look)
        if band:
            _draw_band(axes, thin_band(band, points), look, unit)
            last = (band.x[-1] / unit, band.mean[-1], entry, look)
        ends += [last] if last else []
    return ends


def _draw_band(axes: Axes, band: Band, look: Look, unit: float = 1.0) -> None:
    axes.plot(band.x / unit, band.mean, **line_style(look))
    if band.low is not None and band.high is not None:
        sides = band.x / unit, band.low, band.high
        axes.fill_between(*sides, color=look.colour, alpha=0.18, lw=0)


def _label_ends(axes: Axes, ends: Ends) -> None:
    end_labels(axes, [end[:3] for end in ends], [end[3] for end in ends])


def _pair(entries: Sequence[Entry], looks: Sequence[Look]) -> tuple[Figure, Axes, Axes]:
    """Two panels side by side under one legend of configs."""
    figure = Figure(figsize=(WIDTH, 4.5))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(0.07, 0.105, 0.965, 0.78, wspace=0.2)
    config_legend(figure, entries, looks, bbox_to_anchor=(0.05, 1.0))
    return figure, left, right


def ema(entries: Sequence[Entry]) -> Drawing | None:
    """Held-out loss against EMA length (Fig. 5a)."""
    bands = [
        (
            entry,
            look,
            over_seeds([sweep(run) for run in entry.measured]),
        )
        for entry, look in zip(entries, assign(entries), strict=True)
    ]
    found = [(entry, look, band) for entry, look, band in bands if band]
    if not found:
        return None
    shown, looks = [entry for entry, *_ in found], [look for _, look, _ in found]
    figure, left, right = _pair(shown, looks)
    left.set_title("Held-out loss", loc="left")
    right.set_title("Excess over each config’s own best, in percent", loc="left")
    left.set_ylabel("λ-weighted loss per element")
    for axes in (left, right):
        ends: Ends = []
        for entry, look, band in found:
            best = band.mean.argmin()
            if axes is right:
                band = Band(band.x, excess(band.mean))
            _draw_band(axes, band, look)
            ring = {"marker": "o", "ms": 6, "mfc": CARD, "mew": 1.6, "ls": ""}
            axes.plot(band.x[best], band.mean[best], color=look.colour, **ring)
            ends.append((band.x[-1], band.mean[-1], entry, look))
            if axes is left:
                _traditional(axes, entry)
        axes.set_xlim(left=0)
        axes.set_xlabel(r"EMA length $\sigma_\mathrm{rel}$")
        if axes is left:
            log_axis(axes)
        _label_ends(axes, ends)
    caption = (
        "Held-out loss of averages rebuilt after training against the EMA length σ_rel, "
        "the standard deviation of the averaging profile over the training length. "
        f"{_SEEDS} Rings mark the optimum of the mean, diamonds the traditional EMA of "
        "config A at its half-life’s σ_rel. In the paper’s Fig. 5a the optimum differs "
        "between configs and narrows from B to G."
    )
    return Drawing("ema", figure, "Quality against EMA length", caption)


def _traditional(axes: Axes, entry: Entry) -> None:
    """Mark the traditional EMAs of a config's runs, by diamonds in ink."""
    for run in entry.measured:
        for x, value in traditional(run):
            style = {"marker": "D", "ms": 5, "mfc": PALETTE[0], "mew": 1.0}
            axes.plot(x, value, mec=INK, ls="", **style)


def samples(entries: Sequence[Entry]) -> Drawing | None:
    """The sample grids of the finished runs, side by side."""
    grids = with_samples(entries)[:MOST_GRIDS]
    if not grids:
        return None
    columns = min(4, len(grids)) if len(grids) <= 12 else 8
    rows = -(-len(grids) // columns)
    figure = Figure(figsize=(WIDTH, WIDTH / columns * rows * 1.06))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.96, wspace=0.04, hspace=0.1)
    for axes in panels:
        axes.set_axis_off()
    for axes, (entry, run) in zip(panels, grids, strict=False):
        with Image.open(io.BytesIO(run.samples or b"")) as image:
            grid = image.convert("RGB")
        grid.thumbnail((MOST_PIXELS, MOST_PIXELS))
        axes.imshow(np.asarray(grid), interpolation="nearest")
        name = plain(f"{entry.label}   {entry.title}")
        axes.set_title(name[:60], loc="left", fontweight="bold", fontsize=7)
    caption = (
        "Samples of the finished runs, one class to a row. The paper’s claim is one of "
        "statistics (FID): a letter’s step need not be seen in a few pictures."
    )
    return Drawing("samples", figure, "Samples", caption, ("png", "pdf"))
