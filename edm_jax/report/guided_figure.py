"""Figures of quality against both EMA lengths, the strength and interval of guidance."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from edm_jax.report.drawing import INK, MARKS, PALETTE, STYLE, WIDTH, Drawing, plain

_HALO = [withStroke(linewidth=2.5, foreground="white")]
_HIGHEST = 1.5  # times the median: what is above has one colour


def draw_guided(
    title: str, metric: str, grids: Mapping[str, Mapping[str, Any]]
) -> Drawing:
    """Draws the sweeps of guidance that there are, side by side, each with its optimum.

    Args:
        title: names the run and its guide.
        metric: what is measured; the lower, the better.
        grids: by 'lengths', 'weights' and 'interval': x, y, value (X, Y), `best`
            (x, y, value), and what was the same for all points, in words.
    """
    with rc_context(STYLE):
        wide = WIDTH * min(1.0, 0.2 + 0.4 * len(grids))
        figure = Figure(figsize=(wide, 3.9), layout="constrained")
        figure.suptitle(plain(title), x=0.01, ha="left", fontsize=9.5)
        row = figure.subplots(1, len(grids), squeeze=False)[0]
        for axes, (name, grid) in zip(row, grids.items(), strict=True):
            if name == "weights":
                _curve(axes, grid)
                axes.set_ylabel(metric)
                axes.set_xlabel("guidance w (1: none)")
            else:
                image = _map(axes, grid)
                figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, extend="max")
                names = (
                    ("EMA length σ_rel", "EMA length σ_rel of the guide")
                    if name == "lengths"
                    else ("interval from σ =", "interval to σ =")
                )
                axes.set_xlabel(plain(names[0]))
                axes.set_ylabel(plain(names[1]))
            axes.set_title(plain(grid["fixed"]), fontsize=8.5)
    return Drawing("guidance", figure)


def _map(axes: Axes, grid: Mapping[str, Any]) -> Any:
    value = np.array(grid["value"]).T  # rows are y
    finite = value[np.isfinite(value)]
    low = finite.min()
    high = max(min(finite.max(), _HIGHEST * np.median(finite)), low * 1.01)
    image = axes.imshow(
        value, origin="lower", aspect="auto", cmap="viridis_r", vmin=low, vmax=high
    )
    axes.grid(False)
    for axis, ticks in ((axes.xaxis, grid["x"]), (axes.yaxis, grid["y"])):
        named = ["∞" if math.isinf(tick) else f"{tick:g}" for tick in ticks]
        step = -(-len(ticks) // 9)
        axis.set_ticks(range(0, len(ticks), step), named[::step])
    x, y, best = grid["best"]
    place = grid["x"].index(x), grid["y"].index(y)
    ring = MARKS["ring"] | {"mfc": "none", "ms": 10}
    axes.plot(*place, ls="", mec=INK, path_effects=_HALO, **ring)
    _note(axes, place, best, -16 if place[1] == len(grid["y"]) - 1 else 9)
    return image


def _curve(axes: Axes, grid: Mapping[str, Any]) -> None:
    x, value = np.array(grid["x"]), np.array(grid["value"])[:, 0]
    axes.plot(x, value, color=PALETTE[1], marker=".", ms=4)
    best = grid["best"]
    axes.plot(best[0], best[2], ls="", mec=PALETTE[1], **MARKS["ring"])
    _note(axes, (best[0], best[2]), best[2], -16)
    finite = value[np.isfinite(value)]
    axes.set_ylim(0, min(finite.max(), 3 * np.median(finite)) * 1.05)


def _note(axes: Axes, place: Any, best: float, above: float) -> None:
    style: dict[str, Any] = {"ha": "center", "fontweight": "bold", "fontsize": 8.5}
    at = {"xytext": (0, above), "textcoords": "offset points"}
    axes.annotate(f"{best:.3g}", place, path_effects=_HALO, color=INK, **style, **at)
