"""Guidance in the plane as one picture: samples, errors of the networks, and paths."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from edm_jax.report.drawing import INK, PALETTE, SOFT, STYLE, WIDTH, Drawing

_DATA, _FAR = PALETTE[1], PALETTE[5]
_CONTOUR = -2.5  # ln p at the noise level of the outline


class Cloud(NamedTuple):
    """Samples (N, 2) of one kind, and which of them are outliers (N,)."""

    title: str
    points: np.ndarray
    outlier: np.ndarray


class Field(NamedTuple):
    """A positive quantity (n, n) over the grid of the picture."""

    title: str
    values: np.ndarray


class Paths(NamedTuple):
    """Where points are at each noise level, (levels, N, 2)."""

    title: str
    places: np.ndarray


def draw_toy(
    clouds: Sequence[Cloud],
    fields: Sequence[Field],
    paths: Sequence[Paths],
    grid: tuple[np.ndarray, np.ndarray],
    log_density: np.ndarray,
) -> Drawing:
    """Draws clouds above, and fields and paths below.

    Args:
        clouds: as many as there are fields and paths together.
        fields: share one scale of colours.
        paths: of the same starts.
        grid: x (n,) and y (n,).
        log_density: ln p (n, n) on the grid, whose outline lies below everything.
    """
    columns = len(clouds)
    x, y = grid
    tall = WIDTH / columns * np.ptp(y) / np.ptp(x)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2 * tall + 0.9), layout="constrained")
        axes = figure.subplots(2, columns)
        for each in axes.ravel():
            each.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")
            each.set(xticks=[], yticks=[])
            each.grid(False)
            each.spines[["top", "right"]].set_visible(True)
        for each, cloud in zip(axes[0], clouds, strict=True):
            _outline(each, grid, log_density)
            _scatter(each, cloud)
        lowest, highest = np.quantile([field.values for field in fields], [0.05, 0.995])
        below: list[Any] = [*axes[1]]
        norm = LogNorm(lowest, highest)
        look: dict[str, Any] = {"cmap": "magma", "norm": norm, "rasterized": True}
        for each, field in zip(below, fields, strict=False):
            each.pcolormesh(x, y, field.values, **look)
            _outline(each, grid, log_density, "white")
            each.set_title(field.title)
        scale = below[0].inset_axes([0.05, 0.12, 0.4, 0.03])
        bar = figure.colorbar(
            ScalarMappable(norm, "magma"), cax=scale, orientation="horizontal"
        )
        bar.ax.tick_params(colors="white", labelsize=7)
        bar.outline.set_visible(False)
        for each, path in zip(below[len(fields) :], paths, strict=True):
            _outline(each, grid, log_density)
            for i in range(path.places.shape[1]):
                each.plot(*path.places[:, i].T, color=SOFT, lw=0.5, alpha=0.7)
            each.plot(*path.places[-1].T, ".", ms=3, color=_DATA)
            each.set_title(path.title)
    return Drawing("toy", figure)


def _outline(axes: Axes, grid: Any, log_density: np.ndarray, colour: str = INK) -> None:
    style: dict[str, Any] = {"linestyles": "solid", "linewidths": 0.5}
    axes.contour(*grid, log_density, levels=[_CONTOUR], colors=colour, **style)


def _scatter(axes: Axes, cloud: Cloud) -> None:
    for chosen, colour in ((~cloud.outlier, _DATA), (cloud.outlier, _FAR)):
        points = cloud.points[chosen]
        style: dict[str, Any] = {"color": colour, "rasterized": True}
        axes.plot(*points.T, ls="", marker=".", ms=2, mew=0, **style)
    axes.set_title(cloud.title)
