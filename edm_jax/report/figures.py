"""The figures of a comparison on paper, after the paper's Fig. 3, 5a and 15."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from edm_jax.report import curves
from edm_jax.report.curves import Chart, Panel
from edm_jax.report.drawing import (
    INK,
    STYLE,
    WIDTH,
    Drawing,
    config_legend,
    end_labels,
    line_style,
    log_axis,
    plain,
    ring,
)
from edm_jax.report.looks import PALETTE, Look, assign
from edm_jax.report.magnitudes import dynamics
from edm_jax.report.runs import Entry, with_samples

MOST_GRIDS = 24
MOST_PIXELS = 4096  # to a side of a grid: more do not show


def draw(entries: Sequence[Entry]) -> list[Drawing]:
    """Draw every figure that the runs have data for."""
    looks = assign(entries)
    with matplotlib.rc_context(STYLE):
        drawings = [
            chart("loss", curves.losses(entries), entries, looks),
            chart("ema", curves.ema(entries), entries, looks),
            dynamics(entries),
            samples(entries),
        ]
    return [drawing for drawing in drawings if drawing is not None]


def chart(
    name: str, data: Chart | None, entries: Sequence[Entry], looks: Sequence[Look]
) -> Drawing | None:
    """Two panels side by side under one legend of the configs in them."""
    if data is None:
        return None
    shown = {line.config for panel in data.panels for line in panel.lines}
    named = [i for i in range(len(entries)) if i in shown or name == "loss"]
    figure = Figure(figsize=(WIDTH, 4.5))
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(0.07, 0.105, 0.965, 0.78, wspace=0.2)
    config_legend(
        figure,
        [entries[i] for i in named],
        [looks[i] for i in named],
        bbox_to_anchor=(0.05, 1.0),
    )
    for axes, panel in zip(panels, data.panels, strict=True):
        axes.set_title(panel.title, loc="left")
        axes.set_ylabel(panel.y)
        ends = _curves(axes, panel, looks)
        axes.set_xlim(left=0)
        axes.set_xlabel(plain(data.x))
        if ends and not panel.linear:
            log_axis(axes)
        for config, x, y in panel.marks:
            style = {"marker": "D", "ms": 5, "mfc": PALETTE[0], "mew": 1.0}
            axes.plot(x, y, mec=INK, ls="", **style)
        labels = [(*at, entries[config]) for config, at in ends.items()]
        end_labels(axes, labels, [looks[config] for config in ends])
    return Drawing(name, figure)


def _curves(
    axes: Axes, panel: Panel, looks: Sequence[Look]
) -> dict[int, tuple[float, float]]:
    """Draw the means and the runs aside; where each config's curve ends."""
    ends: dict[int, tuple[float, float]] = {}
    means = [line for line in panel.lines if not line.seed and not line.aside]
    for line in [line for line in panel.lines if line.aside] + means:
        look = looks[line.config]
        ends[line.config] = line.x[-1], line.y[-1]
        if line.aside:
            axes.plot(line.x, line.y, color=look.colour, ls=(0, (3, 2)), lw=0.9)
            continue
        axes.plot(line.x, line.y, **line_style(look))
        if line.low is not None and line.high is not None:
            sides = line.x, line.low, line.high
            axes.fill_between(*sides, color=look.colour, alpha=0.18, lw=0)
        if line.best is not None:
            ring(axes, line.x[line.best], line.y[line.best], look.colour)
    return dict(sorted(ends.items()))


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
    return Drawing("samples", figure, ("png", "pdf"))
