"""Figures of quality against EMA length, after the paper's Fig. 5a, 5b and 5c."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edm_jax.report.drawing import CARD, INK, STYLE, WIDTH, Drawing, plain, ring
from edm_jax.report.looks import PALETTE

Curves = Sequence[dict[str, Any]]  # sweeps.Curve as JSON, with its optimum


def draw_sweeps(
    title: str, lengths: Curves, over_time: Curves, by_group: Curves
) -> list[Drawing]:
    """Draws what there is of the three sweeps."""
    with matplotlib.rc_context(STYLE):
        drawings = []
        if lengths:
            drawings.append(_length(title, lengths[0]))
        if over_time:
            labels = [f"{curve['nimg']:,} images" for curve in over_time]
            drawings.append(_over_time(title, over_time, labels))
        if by_group:
            drawings.append(_by_group(title, by_group))
    return drawings


def _length(title: str, curve: dict[str, Any]) -> Drawing:
    figure = Figure(figsize=(WIDTH * 0.62, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(plain(title), loc="left")
    _curve(axes, curve, PALETTE[1], "all weights")
    _finish(axes)
    return Drawing("ema_length", figure)


def _over_time(title: str, curves: Curves, labels: Sequence[str]) -> Drawing:
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title(plain(f"{title}: at several times"), loc="left")
    shades = matplotlib.colormaps["viridis"](np.linspace(0.9, 0.1, len(curves)))
    for curve, label, shade in zip(curves, labels, shades, strict=True):
        _curve(left, curve, shade, label)
    _finish(left)
    left.legend(fontsize=8)
    nimg = [curve["nimg"] for curve in curves]
    best = [curve["optimum"]["sigma_rel"] for curve in curves]
    fitted = [curve["optimum"]["fitted_sigma_rel"] or math.nan for curve in curves]
    right.plot(nimg, best, "o-", color=PALETTE[1], mfc=CARD, label="best measured")
    right.plot(nimg, fitted, "x", color=INK, mew=1.5, label="fitted")
    right.set_title("The best length", loc="left")
    right.set_xlabel("images trained")
    right.set_ylabel(r"EMA length $\sigma_\mathrm{rel}$")
    right.set_xlim(left=0)
    right.set_ylim(0, 1.15 * np.nanmax([*best, *fitted]))
    right.legend()
    return Drawing("training_time", figure)


def _by_group(title: str, curves: Curves) -> Drawing:
    columns = 3 if len(curves) in (3, 5, 6, 9) else min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(WIDTH, 2.3 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    fixed = curves[0]["fixed"]
    figure.suptitle(
        plain(f"{title}: one part’s EMA length, all others at {fixed:g}"),
        x=0.01,
        ha="left",
        fontsize=9.5,
    )
    for axes in panels.ravel()[len(curves) :]:
        axes.set_axis_off()
    for axes, curve in zip(panels.ravel(), curves, strict=False):
        _curve(axes, curve, PALETTE[1], "")
        axes.axvline(fixed, color=INK, lw=0.6, ls=":")
        axes.set_title(plain(_short(curve["group"])), loc="left", fontsize=8.5)
        axes.ticklabel_format(axis="y", useOffset=False)
    for axes in panels.ravel()[len(curves) - columns : len(curves)]:
        axes.set_xlabel(r"$\sigma_\mathrm{rel}$")
        axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel("held-out loss")
    return Drawing("groups", figure)


def _curve(axes: Axes, curve: dict[str, Any], colour: Any, label: str) -> None:
    best = curve["optimum"]
    axes.plot(curve["sigma_rel"], curve["loss"], ".-", ms=3, color=colour, label=label)
    ring(axes, best["sigma_rel"], best["loss"], colour)
    if best["fitted_sigma_rel"] is not None:
        cross = {"marker": "x", "ms": 6, "mew": 1.4, "ls": ""}
        axes.plot(best["fitted_sigma_rel"], best["fitted_loss"], color=INK, **cross)


def _finish(axes: Axes) -> None:
    axes.set_xlim(left=0)
    axes.set_xlabel(r"EMA length $\sigma_\mathrm{rel}$")
    axes.set_ylabel("λ-weighted held-out loss per element")
    axes.ticklabel_format(axis="y", useOffset=False)


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"…{name[-33:]}"
