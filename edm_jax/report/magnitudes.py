"""The figure of activation and weight magnitudes, after Fig. 3 and 15."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from edm_jax.report.curves import image_unit, places
from edm_jax.report.drawing import INK, WIDTH, Drawing, plain
from edm_jax.report.looks import PALETTE
from edm_jax.report.plots import PANELS, group_sides, shown_run
from edm_jax.report.runs import Entry

MOST_ROWS = 8  # configs drawn: more fit no sheet of paper
POINTS = 200  # of one curve in a panel an inch or two wide
SHARED_RANGE = 8.0  # rows whose largest values differ more get their own axis


def dynamics(entries: Sequence[Entry]) -> Drawing | None:
    """Magnitudes of activations and weights against images (Fig. 3 and 15)."""
    shown = [(entry, shown_run(entry)) for entry in entries]
    shown = [(entry, run) for entry, run in shown if len(run.logs["dynamics"])][
        :MOST_ROWS
    ]
    if not shown:
        return None
    unit, label = image_unit(run for _, run in shown)
    each = (group_sides(run.logs["dynamics"]) for _, run in shown)
    groups = dict(sorted({k: v for sides in each for k, v in sides.items()}.items()))
    resolutions = sorted({r for _, r in groups.values()}, reverse=True)
    colours = {
        r: PALETTE[(1, 3, 4, 5, 6, 2, 0)[i % 7]] for i, r in enumerate(resolutions)
    }
    height = 1.42 * len(shown) + 1.0
    figure = Figure(figsize=(WIDTH, height))
    grid = figure.subplots(len(shown), 4, squeeze=False, sharex=True)
    figure.subplots_adjust(
        0.055, 0.5 / height, 0.99, 1 - 0.85 / height, wspace=0.22, hspace=0.42
    )
    for axes_row, (entry, run) in zip(grid, shown, strict=True):
        for axes, (kind, statistic) in zip(axes_row, PANELS, strict=True):
            for group, (side, resolution) in groups.items():
                x, y = run.logs["dynamics"].curve(kind, group, statistic)
                kept = places(len(x), POINTS)
                style = {"color": colours[resolution], "lw": 1.2}
                axes.plot(
                    x[kept] / unit, y[kept], ls="-" if side == "enc" else "--", **style
                )
            axes.tick_params(labelsize=8)
        state = "" if run.measured else f" ({run.state})"
        name = plain(f"{entry.label}   {entry.title}{state}")
        axes_row[0].set_title(name, loc="left", fontweight="bold", fontsize=9)
    _share_columns(grid)
    for axes, (kind, statistic) in zip(grid[0], PANELS, strict=True):
        x = axes.get_position().x0
        head = f"{kind.capitalize()}, {statistic}"
        figure.text(x, 1 - 0.52 / height, head, fontsize=10)
    figure.text(0.52, 0.1 / height, label, ha="center")
    lines = [Line2D([], [], color=colours[r]) for r in resolutions]
    lines += [Line2D([], [], color=INK, ls=ls) for ls in ("-", "--")]
    names = [f"{r}×{r}" for r in resolutions] + ["encoder", "decoder"]
    figure.legend(lines, names, loc="upper left", ncols=len(lines), fontsize=8.5)
    return Drawing("dynamics", figure)


def _share_columns(grid: np.ndarray) -> None:
    """Give each column one y axis from zero, or each of its rows if they differ."""
    for column in grid.T:
        tops = [
            max(
                (line.get_ydata().max() for line in a.lines if len(line.get_ydata())),
                default=0.0,
            )
            for a in column
        ]
        positive = [top for top in tops if top > 0] or [1.0]
        alone = max(positive) / min(positive) > SHARED_RANGE
        for axes, top in zip(column, tops, strict=True):
            axes.set_ylim(0, 1.08 * ((top or 1.0) if alone else max(positive)))
            axes.yaxis.set_major_locator(MaxNLocator(3))
