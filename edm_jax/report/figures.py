"""The figures of a comparison as data, which the page and the files for papers draw.

To add one, write a function that returns its charts, and add an entry to FIGURES.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edm_jax.report import curves
from edm_jax.report.columns import COLUMNS
from edm_jax.report.curves import Chart, Line, Mark, Panel
from edm_jax.report.quality import quality
from edm_jax.report.runs import Entry, Log, Run

LOSS_VALUES = 100_000  # points of loss curves, over all configs
VALUES = 400_000  # points of all other curves together, at 7 bytes each
CURVES = 58  # such curves of a config with the most resolutions
SHARED_RANGE = 8.0  # configs whose largest values differ by more get their own axes
RESOLUTION_SLOTS = (1, 3, 4, 5, 6, 2, 0)
RAMP = [
    "#5e4fa2",
    "#3d7fbd",
    "#38a09a",
    "#63a644",
    "#b59a16",
    "#d97a1c",
    "#cf4a3c",
    "#a6325f",
]  # by σ, rising
ELEMENT_LOSS = "λ-weighted loss per element"
LOSSES = {
    "heldout": "Held-out loss of the averaged weights",
    "train": "Training loss, smoothed",
}
METRICS = 24  # panels at most, of whatever evaluators log
UNDRAWN = ("step", "nimg", "num_samples", "pixel_frechet_floor")  # no results
PANELS = (
    ("activations", "max"),
    ("activations", "mean"),
    ("weights", "max"),
    ("weights", "mean"),
)


@dataclass(frozen=True)
class Figure:
    """One figure: its texts, and a function that makes its charts."""

    name: str
    title: str
    caption: str
    charts: Callable[[Sequence[Entry]], list[Chart]]
    file: str = ""  # its name in figures/; '' for none
    one_config: bool = False  # whether the page shows one config at a time


def losses(entries: Sequence[Entry]) -> list[Chart]:
    """Held-out and training loss: means of finished runs, lines of the others."""
    runs = [run for entry in entries for run in entry.runs]
    unit, label = curves.image_unit(runs)
    points = curves.share(LOSS_VALUES, 2 * len(entries))
    panels = []
    for log, title in LOSSES.items():
        lines, marks = [], []
        for entry in entries:
            look = _look(entry)
            found = [(run, curves.loss_curve(run, log, unit)) for run in entry.measured]
            alone = len(runs) <= curves.ALONE
            lines += curves.seed_lines(found, points, alone, **look)
            for aside in entry.aside:
                x, y = curves.loss_curve(aside.run, log, unit)
                if len(x):
                    lines.append(Line(x, y, aside=aside, **look).thinned(points))
                    kind = "triangle" if aside.state == "running" else "cross"
                    at = x[-1], y[-1]
                    marks.append(Mark(kind, *at, entry.look.slot, entry.place))
        panels.append(Panel(title, ELEMENT_LOSS, lines, marks=marks))
    return [Chart(label, panels)] if any(panel.lines for panel in panels) else []


def metrics(entries: Sequence[Entry]) -> list[Chart]:
    """Every metric that evaluators logged on the way, three to a row."""
    runs = [run for entry in entries for run in entry.runs]
    unit, label = curves.image_unit(runs)
    logged = (name for run in runs for name in run.logs["evaluation"].values)
    names = dict.fromkeys(str(name[0]) for name in logged if len(name) == 1)
    shown = [name for name in names if name not in UNDRAWN][:METRICS]
    points = curves.share(LOSS_VALUES, max(1, len(shown)) * len(entries))
    alone = len(runs) <= curves.ALONE
    panels = []
    for name in shown:
        lines = []
        for entry in entries:
            asides = [aside.run for aside in entry.aside]
            found = []
            for run in entry.measured or asides:
                x, y = run.logs["evaluation"].curve(name)
                found.append((run, (x / unit, y)))
            lines += curves.seed_lines(found, points, alone, **_look(entry))
        panels.append(Panel(heading(name), "", lines, "linear"))
    rows = (panels[i : i + 3] for i in range(0, len(panels), 3))
    return [Chart(label, list(row)) for row in rows]


def heading(name: str) -> str:
    """What a metric is called in tables."""
    return COLUMNS[name].heading if name in COLUMNS else name.replace("_", " ")


def ema(entries: Sequence[Entry]) -> list[Chart]:
    """Held-out loss by EMA length, its excess over the best, and both optima."""
    panels = [
        Panel("Held-out loss", ELEMENT_LOSS, []),
        Panel("Excess over each config’s own best", "percent", [], "zero"),
    ]
    alone = sum(len(entry.measured) for entry in entries) <= curves.ALONE
    for entry in entries:
        look = _look(entry)
        found = [(run, curves.sweep(run)) for run in entry.measured]
        for line in curves.seed_lines(found, curves.MAX_POINTS, alone, **look):
            # The mean's own minimum, so that the ring is at zero; seeds' minima differ.
            above = 100 * (line.y / line.y.min() - 1)
            excess = dataclasses.replace(line, y=above, low=None, high=None)
            for panel, each in zip(panels, (line, excess), strict=True):
                panel.lines.append(each)
                if not line.seed:
                    panel.marks.append(ring(each, "optimum"))
        for run in entry.measured:
            for at in curves.traditional(run):
                mark = Mark("diamond", *at, 0, entry.place, "traditional EMA")
                panels[0].marks.append(mark)
    return [Chart("EMA length σ_rel", panels)] if panels[0].lines else []


def ring(line: Line, label: str) -> Mark:
    """Marks the lowest point of a line."""
    best = int(line.y.argmin())
    return Mark("ring", line.x[best], line.y[best], line.colour, line.config, label)


def _look(entry: Entry) -> dict:
    return {"colour": entry.look.slot, "dash": entry.look.dash, "config": entry.place}


def shown_run(entry: Entry) -> Run:
    """The run that represents a config: a finished one if possible, else the longest."""
    measured = {id(run) for run in entry.measured}
    return max(entry.runs, key=lambda r: (id(r) in measured, len(r.logs["dynamics"])))


def magnitudes(entries: Sequence[Entry]) -> list[Chart]:
    """Magnitudes of activations and weights against images (Fig. 3 and 15)."""
    unit, label = curves.image_unit(run for entry in entries for run in entry.runs)
    points = curves.share(VALUES, CURVES * len(entries))
    logs = [(e.place, shown_run(e).logs["dynamics"]) for e in entries]
    shown = [(place, log, sides) for place, log in logs if (sides := group_sides(log))]
    sizes = sorted({r for *_, each in shown for _, r in each.values()}, reverse=True)
    slots = dict(zip(sizes, RESOLUTION_SLOTS * len(sizes), strict=False))

    def panel(log: Log, sides: dict[str, tuple[str, int]], *name: str) -> Panel:
        log = log[curves.places(len(log), points)]
        x, (kind, statistic) = log.nimg / unit, name
        lines = [
            Line(x, y, colour=slots[r], dash=int(side == "dec"), label=group)
            for group, (side, r) in sides.items()
            for y in [log.column(kind, group, statistic)]
        ]
        return Panel(", ".join(name), "", lines, "zero")

    columns = [[panel(log, each, *name) for _, log, each in shown] for name in PANELS]
    key = [(f"{r}×{r}", slots[r], 0) for r in sizes]
    key += [("encoder", "ink", 0), ("decoder", "ink", 1)]
    rows = zip(*map(_shared_top, columns), strict=True)
    return [
        Chart(label, list(panels), place, key=key)
        for (place, *_), panels in zip(shown, rows, strict=True)
    ]


def _shared_top(column: Sequence[Panel]) -> list[Panel]:
    """Gives panels one axis from zero, or separate ones if their values differ a lot."""
    finite = [[v[np.isfinite(v)] for v in (n.y for n in p.lines)] for p in column]
    tops = [max((float(v.max()) for v in each if len(v)), default=0) for each in finite]
    positive = [top for top in tops if top > 0] or [1.0]
    most = max(positive)
    shared = most <= SHARED_RANGE * min(positive)
    return [
        dataclasses.replace(panel, top=1.08 * (most if shared else top or 1.0))
        for panel, top in zip(column, tops, strict=True)
    ]


def group_sides(log: Log) -> dict[str, tuple[str, int]]:
    """Side and resolution of every group such as enc_8x8 that has magnitudes."""
    kinds = {kind for kind, _ in PANELS}
    names = {str(name[1]) for name in log.values if name[0] in kinds and len(name) == 3}
    found = {name: re.fullmatch(r"(enc|dec)_(\d{1,6})x\d{1,6}", name) for name in names}
    return {name: (m[1], int(m[2])) for name, m in sorted(found.items()) if m}


def ranges(entries: Sequence[Entry]) -> list[Chart]:
    """Loss and u by range of σ, and effective learning rates, |dw| / |w| of a step."""
    unit, label = curves.image_unit(run for entry in entries for run in entry.runs)
    points = curves.share(VALUES, CURVES * len(entries))
    charts = []
    for entry in entries:
        log = shown_run(entry).logs["train"]
        panels = _sigma(log, unit, points) + _rates(log, unit, points)
        if any(panel.lines for panel in panels):
            charts.append(Chart(label, panels, entry.place))
    return charts


def _sigma(log: Log, unit: float, points: int) -> list[Panel]:
    edges = [v for name, v in log.values.items() if name[:2] == ("sigma", "below")]
    log = log[np.isfinite(edges[0])] if edges else log[:0]
    kept = curves.places(len(log), points)
    ends = ["", *(f"{edge[-1]:g}" for edge in edges[:-1]), ""]
    labels = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    labels[0], labels[-1] = f"σ < {ends[1]}", f"σ > {ends[-2]}"
    panels = []
    for title, name, scale in (
        ("Training loss by σ", "loss_per_element", "log"),
        ("u(σ)", "logvar", "linear"),
    ):
        columns = [log.column("sigma", name, i) for i in range(len(edges))]
        found = curves.averaged(np.array(columns).T, kept).T if len(log) else []
        lines = [
            Line(log.nimg[kept] / unit, y, colour=RAMP[i % len(RAMP)], label=labels[i])
            for i, y in enumerate(found)
        ]
        panels.append(Panel(title, "", lines, scale, legend=True))
    return panels


def _rates(log: Log, unit: float, points: int) -> list[Panel]:
    names = sorted(name for name in log.values if name[0] == "effective_lr")
    finite = [np.isfinite(log.column(*name)) for name in names]
    log = log[np.flatnonzero(np.any(finite, axis=0))] if names else log
    log = log[curves.places(len(log), points)]
    blocks = [re.fullmatch(r"(enc|dec)_(\d{1,6})x.*", str(n[-1])) for n in names]
    sizes = sorted({int(block[2]) for block in blocks if block}, reverse=True)
    lines = []
    for name, block in zip(names, blocks, strict=True):
        look: dict = {"colour": "ink" if name[-1] == "all" else "soft", "dash": 2}
        if block:
            slot = RESOLUTION_SLOTS[sizes.index(int(block[2])) % 7]
            look = {"colour": slot, "dash": int(block[1] == "dec")}
        label = str(name[-1]).replace("_", " ")
        lines.append(Line(log.nimg / unit, log.column(*name), label=label, **look))
    return [Panel("Effective learning rates", "", lines, legend=True)]


FIGURES = (
    Figure(
        "loss",
        "Loss against images trained",
        "Loss per element, weighted by λ(σ), against images trained, on a logarithmic "
        "axis. A line is the mean over a config’s finished seeds, and the band spans its "
        "lowest to its highest seed. A dashed line is a run that is not in any mean: a "
        "cross marks one that failed or stopped, a triangle one that is still running. "
        "The held-out loss uses fixed noise, so configs can be compared. The training "
        "loss, a trailing mean over a thirtieth of the run, can be compared only between "
        "configs with equal P_mean and P_std; those of A differ from the others.",
        losses,
        "loss",
    ),
    Figure(
        "metrics",
        "Metrics of samples during training",
        "What evaluation.evaluators found of samples of the longest average, every "
        "training.evaluate_mimg, from the same seeds each time: the mean over a config’s "
        "finished seeds, and the band from its lowest to its highest seed.",
        metrics,
        "metrics",
    ),
    Figure(
        "quality",
        "Quality against diversity",
        "Precision against recall and density against coverage of samples, where they "
        "were evaluated (evaluate.py --metric=pr_effnetlite0,dc_effnetlite0). A dot is a "
        "run, a ring the mean over a config’s finished seeds; dots on a line are samples "
        "during training, from the same seeds each time. Up is better quality, right "
        "more diversity.",
        quality,
        "quality",
    ),
    Figure(
        "ema",
        "Quality against EMA length",
        "Held-out loss of averages rebuilt after training against the EMA length σ_rel, "
        "the standard deviation of the averaging profile over the training length: the "
        "mean over seeds and the band from the lowest to the highest seed. Rings mark "
        "the optimum of the mean, diamonds the traditional EMA of config A at its "
        "half-life’s σ_rel. In the paper’s Fig. 5a the optimum differs between configs "
        "and narrows from B to G.",
        ema,
        "ema",
    ),
    Figure(
        "magnitudes",
        "Magnitudes during training",
        "Maximum and mean over layers of the magnitude of activations and of weights "
        "against images trained, for one run of each config, from zero. Configs share "
        "the axis of a column unless their largest values differ more than eightfold. In "
        "the paper (Fig. 3 and 15), both grow without bound in C; in D activations stop "
        "growing while weights still grow; in E both stay constant, and weights do in F "
        "and G, too.",
        magnitudes,
        "dynamics",
    ),
    Figure(
        "sigma",
        "Ranges of σ and learning rates",
        "Left and middle: training loss per element, λ-weighted, and the learned u(σ) "
        "by range of σ; the optimal u is the logarithm of the loss. Right: effective "
        "learning rates, the norm of a step’s change of the weights over the weights’ "
        "norm, by part of the network. In the first two, a point is the mean over the "
        "records since the previous point. All show one run of the config.",
        ranges,
        one_config=True,
    ),
)
