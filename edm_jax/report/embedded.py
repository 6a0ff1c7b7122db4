"""The charts of the page as JSON for its script."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.report.curves import Chart, Line
from edm_jax.report.runs import Aside, Entry


def charts_json(charts: Mapping[str, Sequence[Chart]], entries: Sequence[Entry]) -> str:
    """The configs, and the charts by figure as a script that is no program.

    A line names its x by its index among the lists of x, as many lines share one.
    """
    x: dict[tuple, int] = {}
    configs = [
        {"label": e.label, "title": e.title, "n": len(e.measured)} for e in entries
    ]
    found = {name: _encoded(each, x) for name, each in charts.items()}
    data = {"configs": configs, "charts": found, "x": list(x)}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")  # so that a text in it cannot end it
    return f'<script type="application/json" id="data">{text}</script>'


def _encoded(value: Any, x: dict[tuple, int]) -> Any:
    """A chart or a part of it by its fields, but for those that are null or empty."""
    if isinstance(value, Aside):
        return {"run": value.run.name, "state": value.state}
    if isinstance(value, np.ndarray):
        return rounded(value)
    if isinstance(value, float):
        return rounded([value])[0]
    if isinstance(value, list | tuple):
        return [_encoded(each, x) for each in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    made = {name: _encoded(each, x) for name, each in fields.items()}
    if isinstance(value, Line):
        made["x"] = x.setdefault(tuple(made["x"]), len(x))
    return {k: v for k, v in made.items() if v or v == 0 and v is not False}


def rounded(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Five significant digits; None for what is not finite."""
    numbers = np.asarray(values, np.float64).tolist()
    return [float(f"{v:.5g}") if abs(v) < np.inf else None for v in numbers]
