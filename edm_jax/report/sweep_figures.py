"""Figures of quality against EMA length, after the paper's Fig. 5a, 5b and 5c."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from edm_jax.report.curves import Chart, Line, Mark, Panel
from edm_jax.report.drawing import Drawing, draw

Curves = Sequence[dict[str, Any]]  # sweeps.Curve as JSON, with its optimum
SIGMA_REL = "EMA length σ_rel"
LOSS = "λ-weighted held-out loss per element"


def draw_sweeps(
    title: str, lengths: Curves, over_time: Curves, by_group: Curves
) -> list[Drawing]:
    """Draws those of the three sweeps that have data.

    Args:
        title: names the run.
        lengths: one curve, over the EMA length of all weights.
        over_time: curves at several images trained.
        by_group: curves over the EMA length of one part of the weights.
    """
    drawings = []
    if lengths:
        chart = Chart(SIGMA_REL, [_panel(title, lengths[:1], [1])])
        drawings.append(draw("ema_length", [chart]))
    if over_time:
        shades = matplotlib.colormaps["viridis"](np.linspace(0.9, 0.1, len(over_time)))
        colours = [to_hex(shade) for shade in shades]
        key = [
            (f"{curve['nimg']:,} images", colour, 0)
            for curve, colour in zip(over_time, colours, strict=True)
        ]
        left = _panel(f"{title}: at several times", over_time, colours)
        charts = [Chart(SIGMA_REL, [left, _best_length(over_time)], key=key)]
        drawings.append(draw("training_time", charts))
    if by_group:
        columns = 3 if len(by_group) in (3, 5, 6, 9) else min(4, len(by_group))
        fixed = by_group[0]["fixed"]
        panels = [_panel(_short(c["group"]), [c], [1], at=fixed) for c in by_group]
        starts = range(0, len(panels), columns)
        charts = [Chart(SIGMA_REL, panels[i : i + columns]) for i in starts]
        said = f"{title}: one part’s EMA length, all others at {fixed:g}"
        drawings.append(draw("groups", charts, title=said))
    return drawings


def _panel(title: str, curves: Curves, colours: Sequence[int | str], at=None) -> Panel:
    lines, marks = [], []
    for curve, colour in zip(curves, colours, strict=True):
        x, y = np.array(curve["sigma_rel"]), np.array(curve["loss"])
        lines.append(Line(x, y, colour=colour, dots=True))
        best = curve["optimum"]
        marks.append(Mark("ring", best["sigma_rel"], best["loss"], colour))
        if best["fitted_sigma_rel"] is not None:
            fitted = best["fitted_sigma_rel"], best["fitted_loss"]
            marks.append(Mark("cross", *fitted, "ink"))
    return Panel(title, "held-out loss" if at else LOSS, lines, "linear", marks, at=at)


def _best_length(curves: Curves) -> Panel:
    """The best EMA length by images trained: measured as a line, fitted as crosses."""
    nimg = np.array([curve["nimg"] for curve in curves], float)
    best = [curve["optimum"] for curve in curves]
    measured = np.array([each["sigma_rel"] for each in best])
    marks = [
        Mark("cross", x, each["fitted_sigma_rel"], "ink")
        for x, each in zip(nimg, best, strict=True)
        if each["fitted_sigma_rel"] is not None
    ]
    line = Line(nimg, measured, colour=1, dots=True)
    top = 1.15 * max([*measured, *(mark.y for mark in marks)])
    title = "The best length (crosses: fitted)"
    return Panel(title, SIGMA_REL, [line], "zero", marks, top, x="images trained")


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"…{name[-33:]}"
