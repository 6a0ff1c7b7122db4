"""The numbers that the page's script draws, short and each list of x once."""

import re
from collections.abc import Sequence

import numpy as np

from edm_jax.report import curves
from edm_jax.report.curves import Chart, Line, image_unit, share
from edm_jax.report.curves import places as kept_places
from edm_jax.report.looks import Look
from edm_jax.report.runs import Entry, Json, Log, Run

# All the magnitudes, losses and rates of all configs together: 7 bytes each.
VALUES = 400_000
CURVES = 58  # of one config at most resolutions
PANELS = (
    ("activations", "max"),
    ("activations", "mean"),
    ("weights", "max"),
    ("weights", "mean"),
)


def page_data(entries: Sequence[Entry], looks: Sequence[Look]) -> Json:
    """All that the script needs of the configs."""
    places = Places()
    unit, label = image_unit(run for entry in entries for run in entry.runs)
    points = share(VALUES, CURVES * len(entries))
    return {
        "configs": [
            {"label": e.label, "title": e.title, "slot": look.slot, "dash": look.dash}
            | {"n": len(e.measured)}
            for e, look in zip(entries, looks, strict=True)
        ],
        "images": label,
        "loss": _chart(curves.losses(entries), places),
        "ema": _chart(curves.ema(entries), places),
        "details": [_details(shown_run(e), unit, places, points) for e in entries],
        "x": places.lists,
    }


def rounded(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Five significant digits; None for what is not finite."""
    numbers = np.asarray(values, np.float64).tolist()
    return [float(f"{v:.5g}") if abs(v) < np.inf else None for v in numbers]


class Places:
    """Lists of x that many curves share, each kept once and named by its index."""

    def __init__(self) -> None:
        self.lists: list[list[float | None]] = []
        self._index: dict[tuple[float | None, ...], int] = {}

    def add(self, x: np.ndarray) -> int:
        """The index of a list of x."""
        found = rounded(x)
        key = tuple(found)
        if key not in self._index:
            self._index[key] = len(self.lists)
            self.lists.append(found)
        return self._index[key]


def _chart(chart: Chart | None, places: Places) -> Json | None:
    if chart is None:
        return None
    panels = [
        {"title": p.title, "y": p.y, "linear": p.linear}
        | {"curves": [_line(line, places) for line in p.lines]}
        | {"traditional": [{"c": c, "at": rounded(at)} for c, *at in p.marks]}
        for p in chart.panels
    ]
    x = chart.x.replace("σ_rel", "σ<sub>rel</sub>")
    return {"x": x, "panels": panels}


def _line(line: Line, places: Places) -> Json:
    made: Json = {"c": line.config, "x": places.add(line.x), "y": rounded(line.y)}
    if line.low is not None and line.high is not None:
        made |= {"low": rounded(line.low), "high": rounded(line.high)}
    if line.best is not None:
        made["best"] = line.best
    if line.seed:
        made["seed"] = line.seed
    if line.aside:
        made |= {"run": line.aside.run.name, "state": line.aside.state}
    return made


def shown_run(entry: Entry) -> Run:
    """The run that stands for a config: finished if one is, else the longest."""
    measured = {id(run) for run in entry.measured}
    return max(entry.runs, key=lambda r: (id(r) in measured, len(r.logs["dynamics"])))


def _details(run: Run, unit: float, places: Places, points: int) -> Json:
    found = {
        "magnitudes": _magnitudes(run, unit, places, points),
        "sigma": _sigma(run, unit, places, points),
        "rates": _rates(run, unit, places, points),
    }
    return {"run": run.name} | {name: part for name, part in found.items() if part}


def _magnitudes(run: Run, unit: float, places: Places, points: int) -> Json:
    log = run.logs["dynamics"]
    log = log[kept_places(len(log), points)]
    groups = group_sides(log)
    if not groups:
        return {}
    panels = [
        {g: rounded(log.column(kind, g, statistic)) for g in groups}
        for kind, statistic in PANELS
    ]
    return {"x": places.add(log.nimg / unit), "panels": panels}


def group_sides(log: Log) -> dict[str, tuple[str, int]]:
    """Side and resolution of every group such as enc_8x8 that has magnitudes."""
    kinds = {kind for kind, _ in PANELS}
    names = {str(name[1]) for name in log.values if name[0] in kinds and len(name) == 3}
    found = {name: re.fullmatch(r"(enc|dec)_(\d{1,6})x\d{1,6}", name) for name in names}
    return {name: (m[1], int(m[2])) for name, m in sorted(found.items()) if m}


def _sigma(run: Run, unit: float, places: Places, points: int) -> Json:
    """Loss and u by range of sigma, averaged between the points that are kept."""
    log = run.logs["train"]
    edges = [v for name, v in log.values.items() if name[:2] == ("sigma", "below")]
    log = log[np.isfinite(edges[0])] if edges else log[:0]
    if not len(log):
        return {}
    kept = kept_places(len(log), points)
    found: Json = {
        "x": places.add(log.nimg[kept] / unit),
        "below": [rounded(edge[-1:])[0] for edge in edges],
    }
    for key, name in ("loss", "loss_per_element"), ("logvar", "logvar"):
        columns = [log.column("sigma", name, i) for i in range(len(edges))]
        averages = _averaged(np.array(columns).T, kept)
        found[key] = [rounded(column) for column in averages.T]
    return found


def _averaged(values: np.ndarray, kept: slice) -> np.ndarray:
    """Means over the stretch of records that ends at each kept one; NaNs left out."""
    ends = range(len(values))[kept]
    stretches = np.split(values, [end + 1 for end in ends[:-1]])
    present = np.array([np.isfinite(part).sum(0) for part in stretches])
    sums = np.array(
        [np.nan_to_num(part, posinf=0, neginf=0).sum(0) for part in stretches]
    )
    return np.where(present, sums / np.maximum(present, 1), np.nan)


def _rates(run: Run, unit: float, places: Places, points: int) -> Json:
    """Effective learning rates by group, |dw| / |w| of one step."""
    log = run.logs["train"]
    names = sorted(name for name in log.values if name[0] == "effective_lr")
    if not names:
        return {}
    columns = np.array([log.column(*name) for name in names])
    log = log[np.flatnonzero(np.isfinite(columns).any(axis=0))]
    log = log[kept_places(len(log), points)]
    curves = {str(name[-1]): rounded(log.column(*name)) for name in names}
    return {"x": places.add(log.nimg / unit), "curves": curves}
