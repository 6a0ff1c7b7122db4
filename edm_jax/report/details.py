"""What the page draws of one config at a time: magnitudes, sigma ranges, rates."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from edm_jax.report.plots import Json, Places, rounded
from edm_jax.report.records import Record, number
from edm_jax.report.runs import Entry, Run
from edm_jax.report.series import places as kept_places
from edm_jax.report.series import share

# All the magnitudes, losses and rates of all configs together: 7 bytes each.
VALUES = 400_000
CURVES = 58  # of one config at most resolutions
PANELS = (
    ("activations", "max"),
    ("activations", "mean"),
    ("weights", "max"),
    ("weights", "mean"),
)


def shown_run(entry: Entry) -> Run:
    """The run that stands for a config: finished if one is, else the longest."""
    measured = {id(run) for run in entry.measured}
    return max(entry.runs, key=lambda r: (id(r) in measured, len(r.dynamics)))


def details(entries: Sequence[Entry], unit: float, places: Places) -> list[Json]:
    """For each config the curves of its one shown run; absent ones are left out."""
    points = share(VALUES, CURVES * len(entries))
    return [_details(shown_run(entry), unit, places, points) for entry in entries]


def _details(run: Run, unit: float, places: Places, points: int) -> Json:
    found = {
        "magnitudes": _magnitudes(run, unit, places, points),
        "sigma": _sigma(run, unit, places, points),
        "rates": _rates(run, unit, places, points),
    }
    return {"run": run.name} | {name: part for name, part in found.items() if part}


def _magnitudes(run: Run, unit: float, places: Places, points: int) -> Json:
    records = run.dynamics[kept_places(len(run.dynamics), points)]
    groups = group_sides(records)
    if not groups:
        return {}
    panels = [
        {g: _values(records, kind, g, statistic) for g in groups}
        for kind, statistic in PANELS
    ]
    return {"x": _x(records, unit, places), "panels": panels}


def group_sides(records: Iterable[Record]) -> dict[str, tuple[str, int]]:
    """Side and resolution of every group such as enc_8x8 in the records."""
    names = {
        name
        for record in records
        for kind in ("activations", "weights")
        for name in record.get(kind) or {}
    }
    found = {name: re.fullmatch(r"(enc|dec)_(\d+)x\d+", name) for name in sorted(names)}
    return {name: (m[1], int(m[2])) for name, m in found.items() if m}


def _sigma(run: Run, unit: float, places: Places, points: int) -> Json:
    """Loss and u by range of sigma, averaged between the points that are kept."""
    records = [r for r in run.train if isinstance(r.get("sigma"), dict)]
    edges = records[-1]["sigma"].get("below") if records else None
    if not isinstance(edges, list):
        return {}
    loss, logvar = (
        np.array([_row(r["sigma"].get(name), len(edges)) for r in records])
        for name in ("loss_per_element", "logvar")
    )
    kept = kept_places(len(records), points)
    return {
        "x": _x(records[kept], unit, places),
        "below": [number({"edge": edge}, "edge") for edge in edges],
        "loss": [rounded(column) for column in _averaged(loss, kept).T],
        "logvar": [rounded(column) for column in _averaged(logvar, kept).T],
    }


def _row(values: object, count: int) -> list[float]:
    """So many numbers; NaN for what is none."""
    if not isinstance(values, list) or len(values) != count:
        return [np.nan] * count
    return [v if isinstance(v, int | float) else np.nan for v in values]


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
    records = [r for r in run.train if isinstance(r.get("effective_lr"), dict)]
    records = records[kept_places(len(records), points)]
    groups = sorted({name for r in records for name in r["effective_lr"]})
    if not groups:
        return {}
    curves = {group: _values(records, "effective_lr", group) for group in groups}
    return {"x": _x(records, unit, places), "curves": curves}


def _x(records: Sequence[Record], unit: float, places: Places) -> int:
    return places.add(np.array([r["nimg"] for r in records], np.float64) / unit)


def _values(records: Sequence[Record], *keys: str) -> list[float | None]:
    values = [number(record, *keys) for record in records]
    return rounded([np.nan if value is None else value for value in values])
