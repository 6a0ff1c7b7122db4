"""How figures on paper look: their files, axes, legends, end labels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from edm_jax.report.looks import Look
from edm_jax.report.runs import Entry

WIDTH = 10.4  # inches
INK, RULE, CARD = "#24262b", "#dcdee3", "#fefefe"
MOST_NAMED = 20  # configs in a legend
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
    "pdf.fonttype": 42,  # as TrueType: journals refuse others
    "svg.hashsalt": "edm_jax",
}


@dataclass(frozen=True)
class Drawing:
    """One figure and its file's name."""

    name: str
    figure: Figure
    formats: tuple[str, ...] = ("png", "pdf", "svg")

    def png(self) -> bytes:
        """Render as PNG on white, at twice the size that a page shows."""
        return self.render("png")

    def render(self, form: str) -> bytes:
        """Render as 'png', 'pdf' or 'svg' on white, the same bytes every time."""
        out = io.BytesIO()
        undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(
                out, format=form, dpi=200, facecolor="white", metadata=undated[form]
            )
        return out.getvalue()


def line_style(look: Look) -> dict:
    """Plot arguments: a config's colour and dash."""
    return {"color": look.colour, "linestyle": DASHES[look.dash]}


def plain(text: str) -> str:
    """Keep matplotlib from reading a user's text as mathematics; set σ_rel as such."""
    return text.replace("$", r"\$").replace("σ_rel", r"$\sigma_\mathrm{rel}$")


def ring(axes: Axes, x: float, y: float, colour: Any) -> None:
    """Mark an optimum."""
    axes.plot(x, y, "o", ms=6, mfc=CARD, mew=1.6, color=colour)


def config_legend(
    figure: Figure, entries: Sequence[Entry], looks: Sequence[Look], **options
) -> None:
    """A legend of configs at the top of a figure, if they are few enough for one."""
    if len(entries) > MOST_NAMED:
        note = f"{len(entries)} configs, without a legend: the page beside names them"
        figure.text(0.06, 0.93, note, fontsize=8.5)
        return
    lines, names = [], []
    for entry, look in zip(entries, looks, strict=True):
        lines.append(Line2D([], [], **line_style(look)))
        unfinished = "" if entry.measured else f" ({entry.runs[0].state})"
        names.append(_short(plain(f"{entry.label}  {entry.title}{unfinished}")))
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


def _short(name: str) -> str:
    return name if len(name) <= 52 else f"{name[:51]}…"


def end_labels(
    axes: Axes, ends: Sequence[tuple[float, float, Entry]], looks: Sequence[Look]
) -> None:
    """Write each config's label at the end of its curve, pushed apart."""
    if len(ends) > MOST_NAMED or any(len(e.label) > 12 for *_, e in ends):
        return
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
            color=looks[index].colour,
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
