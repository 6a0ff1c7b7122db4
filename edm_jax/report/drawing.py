"""Charts for papers: PNG, PDF and SVG files by matplotlib."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from scipy.optimize import isotonic_regression

from edm_jax.report.curves import Chart, Panel
from edm_jax.report.runs import Entry, with_samples

WIDTH = 10.4  # inches
# Distinct under the common colour-vision deficiencies; the page has them as --s0...
PALETTE = ["#6f7680", "#0a6cb3", "#27a3d9", "#0b8f68", "#c28e06", "#cb4f0f", "#8c45a8"]
INK, SOFT, RULE, CARD = "#24262b", "#62666f", "#dcdee3", "#fefefe"
MOST_NAMED = 20  # configs in a legend
NAME = 46  # characters of a name in it, so that three columns fit the figure's width
MOST_ENDS = 12  # curves with a label at their end
MOST_ROWS = 8  # charts below one another that fit on a sheet of paper
LABEL = 9  # points from one end label to the next
MOST_GRIDS = 24
MOST_PIXELS = 4096  # per side of a grid: more would not be visible
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
ASIDE = {"ls": (0, (3, 2)), "lw": 0.9}
MARKS: dict[str, dict[str, Any]] = {
    "ring": {"marker": "o", "ms": 6, "mfc": CARD, "mew": 1.6},
    "hollow": {"marker": "o", "ms": 4, "mfc": CARD, "mew": 1.0},
    "diamond": {"marker": "D", "ms": 5, "mec": INK, "mew": 1.0},
    "cross": {"marker": "x", "ms": 6, "mew": 1.4},
    "triangle": {"marker": ">", "ms": 5},
}
_THIN = ("axes.linewidth", "grid.linewidth", "xtick.major.width", "ytick.major.width")
STYLE: dict[Any, Any] = {
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick")},
    **{f"axes.{name}color": INK for name in ("label", "title", "edge")},
    **dict.fromkeys(_THIN, 0.6),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "font.size": 9.0,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "lines.linewidth": 1.5,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.6,
    "pdf.fonttype": 42,  # TrueType, because journals refuse other fonts
    "svg.hashsalt": "edm_jax",
}


@dataclass(frozen=True)
class Drawing:
    """One figure and the name of its file."""

    name: str
    figure: Figure
    formats: tuple[str, ...] = ("png", "pdf", "svg")

    def render(self, form: str) -> bytes:
        """Renders 'png', 'pdf' or 'svg' on white; always the same bytes."""
        out = io.BytesIO()
        undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(
                out, format=form, dpi=200, facecolor="white", metadata=undated[form]
            )
        return out.getvalue()


def draw(
    name: str,
    charts: Sequence[Chart],
    entries: Sequence[Entry] = (),
    title: str = "",
) -> Drawing:
    """Draws charts, one per row.

    Args:
        name: the file's name without its ending.
        charts: at least one, with panels.
        entries: the configs that the charts refer to by place.
        title: the title above all of them.
    """
    charts = charts[:MOST_ROWS]
    rows, columns = len(charts), max(len(chart.panels) for chart in charts)
    height = 4.5 if rows == 1 else 1.0 + (1.42 if columns > 3 else 2.3) * rows
    with matplotlib.rc_context(STYLE):
        wide = WIDTH * (0.62 if rows == columns == 1 else 1.0)
        figure = Figure(figsize=(wide, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=rows > 1)
        if title:
            figure.suptitle(plain(title), x=0.01, ha="left", fontsize=9.5)
        _legend(figure, charts, entries)
        for line, chart in zip(grid, charts, strict=True):
            for axes in line[len(chart.panels) :]:
                axes.set_axis_off()
            for axes, panel in zip(line, chart.panels, strict=False):
                axes.set_title(plain(_title(chart, panel, entries)))
                axes.set_ylabel(plain(panel.y))
                _draw_panel(axes, panel)
                _scale(axes, chart, panel)
                if chart is charts[-1] or panel.x:
                    axes.set_xlabel(plain(panel.x or chart.x))
        # Lay out once for all formats, because that takes longer than drawing.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        if rows == 1:
            _end_labels(grid[0], charts[0], entries)
    return Drawing(name, figure)


def _title(chart: Chart, panel: Panel, entries: Sequence[Entry]) -> str:
    if chart.config is None or panel is not chart.panels[0]:
        return panel.title
    entry = entries[chart.config]
    return f"{entry.label}   {entry.heading}\n{panel.title}"


def _draw_panel(axes: Axes, panel: Panel) -> None:
    # Draw runs that are not in any mean below the means.
    for line in sorted(panel.lines, key=lambda line: line.aside is None):
        if line.seed:
            continue
        style: dict[str, Any] = ASIDE if line.aside else {"ls": DASHES[line.dash]}
        style = style | ({"marker": ".", "ms": 3} if line.dots else {})
        axes.plot(line.x, line.y, color=_colour(line.colour), **style)
        if line.low is not None and line.high is not None:
            band = {"color": _colour(line.colour), "alpha": 0.18, "lw": 0}
            axes.fill_between(line.x, line.low, line.high, **band)
    for mark in panel.marks:
        style = {"mec": _colour(mark.colour), "mfc": _colour(mark.colour), "ls": ""}
        axes.plot(mark.x, mark.y, clip_on=False, **style | MARKS[mark.kind])
    if panel.at is not None:
        axes.axvline(panel.at, color=INK, lw=0.6, ls=":")


def _colour(colour: int | str) -> Any:
    named = {"ink": INK, "soft": SOFT}
    return PALETTE[colour] if isinstance(colour, int) else named.get(colour, colour)


def _scale(axes: Axes, chart: Chart, panel: Panel) -> None:
    """Sets both axes; logarithmic axes get plain numbers, even within a decade."""
    if chart.log:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    if panel.scale == "zero":
        axes.set_ylim(0, panel.top)
        axes.yaxis.set_major_locator(MaxNLocator(3 if panel.top else 6))
    elif panel.scale == "log" and axes.lines:
        axes.set_yscale("log")
    axes.autoscale_view()
    for axis, (low, high) in (
        (axes.xaxis, axes.get_xlim()),
        (axes.yaxis, axes.get_ylim()),
    ):
        if axis.get_scale() == "log":
            ratio = high / low
            # As many numbers as fit.
            subs = (1, 2, 5) if ratio < 300 else (1, 3) if ratio < 1e5 else (1,)
            ticks = LogLocator(subs=subs) if ratio > 6 else MaxNLocator(6)
            axis.set_major_locator(ticks)
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
            axis.set_tick_params(which="minor", length=0)


def _legend(figure: Figure, charts: Sequence[Chart], entries: Sequence[Entry]) -> None:
    """Adds a legend above the panels, if there are few enough lines."""
    lines = [line for chart in charts for panel in chart.panels for line in panel.lines]
    shown = {line.config for line in lines}
    key = [*charts[0].key]
    for entry in (entry for entry in entries if entry.place in shown):
        name = f"{entry.label}  {entry.heading}"
        name = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
        key.append((name, entry.look.slot, entry.look.dash))
    if len(key) > MOST_NAMED:
        said = f"{len(key)} configs, too many for a legend: see index.html"
        figure.suptitle(said, x=0.06, ha="left", fontsize=8.5)
    elif key:
        figure.legend(
            [Line2D([], [], color=_colour(c), ls=DASHES[dash]) for _, c, dash in key],
            [plain(name) for name, *_ in key],
            loc="outside upper left",
            ncols=_columns(charts[0].key) or 3,
        )


def _columns(key: Sequence[tuple[str, int | str, int]]) -> int:
    """How many entries of a key fit beside one another."""
    longest = max((len(name) for name, *_ in key), default=0)
    return min(9, len(key), max(1, 170 // (longest + 6)))


def plain(text: str) -> str:
    """Keeps matplotlib from reading text as mathematics, except for σ_rel."""
    return text.replace("$", r"\$").replace("σ_rel", r"$\sigma_\mathrm{rel}$")


def _end_labels(row: Sequence[Axes], chart: Chart, entries: Sequence[Entry]) -> None:
    """Writes each config's label at the end of its curve, without overlaps."""
    for axes, panel in zip(row, chart.panels, strict=False):
        lines = [n for n in panel.lines if n.config is not None and not n.seed]
        # The end of the mean, if there is one.
        ends = {n.config or 0: n for n in sorted(lines, key=lambda n: n.aside is None)}
        texts = {config: entries[config].label for config in ends}
        # Longer labels would reach into the next panel.
        if len(ends) > MOST_ENDS or any(len(text) > 3 for text in texts.values()):
            continue
        points = 72 / axes.figure.dpi
        at = {
            c: axes.transData.transform((n.x[-1], n.y[-1]))[1] * points
            for c, n in ends.items()
        }
        order = sorted(at, key=lambda c: at[c])
        steps = LABEL * np.arange(len(order))
        apart = isotonic_regression([at[c] for c in order] - steps).x
        # Keep labels above the axis and its numbers.
        apart = np.maximum(apart, axes.bbox.y0 * points + LABEL / 2) + steps
        for config, above in zip(order, apart, strict=True):
            line = ends[config]
            axes.annotate(
                plain(texts[config]),
                (line.x[-1], line.y[-1]),
                xytext=(4, above - at[config]),
                textcoords="offset points",
                color=_colour(line.colour),
                fontweight="bold",
                fontsize=8.5,
                va="center",
                annotation_clip=False,
            )


def samples(entries: Sequence[Entry]) -> Drawing | None:
    """Draws the sample grids of the finished runs, side by side."""
    grids = with_samples(entries)[:MOST_GRIDS]
    if not grids:
        return None
    columns = min(4, len(grids)) if len(grids) <= 12 else 8
    rows = -(-len(grids) // columns)
    with matplotlib.rc_context(STYLE):
        size = (WIDTH, WIDTH / columns * rows * 1.06)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, (entry, run) in zip(panels, grids, strict=False):
            with Image.open(io.BytesIO(run.samples or b"")) as image:
                grid = image.convert("RGB")
            grid.thumbnail((MOST_PIXELS, MOST_PIXELS))
            axes.imshow(np.asarray(grid), interpolation="nearest")
            name = f"{entry.label}   {entry.title}"
            lines = textwrap.wrap(name, 160 // columns, max_lines=3, placeholder=" …")
            axes.set_title(plain("\n".join(lines)), fontweight="bold", fontsize=7)
    return Drawing("samples", figure, ("png", "pdf"))
