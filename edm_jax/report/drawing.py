"""How figures look: colours that the page can re-theme, axes, end labels."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from edm_jax.report.runs import Entry

WIDTH = 10.4  # inches
INK, RULE, CARD = "#24262b", "#dcdee3", "#fefefe"
# Told apart under the common colour-vision deficiencies, and by end labels.
PALETTE = (
    "#6f7680",
    "#0a6cb3",
    "#27a3d9",
    "#0b8f68",
    "#c28e06",
    "#cb4f0f",
    "#8c45a8",
)
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "edm_jax",
}


@dataclass(frozen=True)
class Drawing:
    """One figure: its file's name, its heading and its caption."""

    name: str
    figure: Figure
    title: str
    caption: str

    def png(self) -> bytes:
        """Render as PNG on white, at twice the size that a page shows."""
        out = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(out, format="png", dpi=200, facecolor="white")
        return out.getvalue()

    def svg(self) -> str:
        """Render as an inline SVG element whose colours are CSS variables."""
        out = io.StringIO()
        no_dates = {"Date": None, "Creator": None, "Format": None, "Type": None}
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(out, format="svg", transparent=True, metadata=no_dates)
        svg = out.getvalue()
        svg = svg[svg.index("<svg") :]
        for index, colour in enumerate(PALETTE):
            svg = svg.replace(colour, f"var(--s{index})")
        svg = svg.replace(INK, "currentColor").replace(RULE, "var(--rule)")
        svg = svg.replace(CARD, "var(--card)")
        # Ids are unique within a figure only, and the page holds several.
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{self.name}-", svg)
        return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)


def colour_of(entry: Entry) -> str:
    """One colour per letter, in every figure."""
    return PALETTE[(ord(entry.letter[0]) - ord("a")) % 7 if entry.letter else 0]


def line_style(entry: Entry) -> dict:
    """Plot arguments: the letter's colour, dashed for its altered configs."""
    return {
        "color": colour_of(entry),
        "linestyle": DASHES[entry.variant % len(DASHES)],
    }


def plain(text: str) -> str:
    """Keep matplotlib from reading a user's text as mathematics."""
    return text.replace("$", r"\$")


def config_legend(figure: Figure, entries: Sequence[Entry], **options) -> None:
    """A legend of configs at the top of a figure, with the state if unfinished."""
    lines, names = [], []
    for entry in entries:
        lines.append(Line2D([], [], **line_style(entry)))
        unfinished = "" if entry.measured else f" ({entry.runs[0].state})"
        names.append(plain(f"{entry.label}  {entry.title}{unfinished}"))
    figure.legend(
        lines,
        names,
        loc="upper left",
        ncols=3,
        handlelength=1.6,
        columnspacing=1.6,
        fontsize=8.5,
        **options,
    )


def end_labels(axes: Axes, ends: Sequence[tuple[float, float, Entry]]) -> None:
    """Write each config's label at the end of its curve, pushed apart."""
    axes.autoscale_view()
    to_points = 72 / axes.figure.dpi
    heights = {
        index: axes.transData.transform((x, y))[1] * to_points
        for index, (x, y, _) in enumerate(ends)
    }
    floor = -float("inf")
    for index in sorted(heights, key=heights.__getitem__):
        x, y, entry = ends[index]
        height = max(heights[index], floor)
        floor = height + 9
        axes.annotate(
            plain(entry.label),
            (x, y),
            xytext=(4, height - heights[index]),
            textcoords="offset points",
            color=colour_of(entry),
            fontweight="bold",
            fontsize=8.5,
            va="center",
            annotation_clip=False,
        )


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, also over less than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wide = high / low > 6
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)
