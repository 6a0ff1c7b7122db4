"""The page's charts as JSON for its script."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.report.curves import Chart, Line
from edm_jax.report.runs import Aside, Entry


def charts_json(charts: Mapping[str, Sequence[Chart]], entries: Sequence[Entry]) -> str:
    """Configs and charts by figure, as JSON in a script element.

    Many lines share the same x, so a line refers to its x by an index into a list.
    """
    x: dict[tuple, int] = {}
    configs = [
        {"label": e.label, "title": e.title, "n": len(e.measured)} for e in entries
    ]
    found = {name: _encoded(each, x) for name, each in charts.items()}
    data = {"configs": configs, "charts": found, "x": list(x)}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")  # so that no text can end the element
    return f'<script type="application/json" id="data">{text}</script>'


def _encoded(value: Any, x: dict[tuple, int]) -> Any:
    """Encodes a chart or a part of it as its fields, without null or empty ones."""
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
    """Rounds to five significant digits; None for values that are not finite."""
    numbers = np.asarray(values, np.float64).tolist()
    return [float(f"{v:.5g}") if abs(v) < np.inf else None for v in numbers]
