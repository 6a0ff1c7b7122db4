"""What the page holds for its script: charts, and the records of each run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax import files
from edm_jax.report.curves import Chart, Line, Panel
from edm_jax.report.runs import Entry, Json, Run

LOG_CHARS = 400_000  # of all logs together
ALERTS = 50  # of one run: the last ones
LONG = 200  # a text longer than this is sent once, however many runs have it


class Shared:
    """Values that recur, each kept once and known by its index."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._index: dict[Any, int] = {}

    def add(self, value: Any) -> int:
        """The index of a text or a list."""
        key = tuple(value) if isinstance(value, list) else value
        if key not in self._index:
            self._index[key] = len(self.values)
            self.values.append(value)
        return self._index[key]

    def shorten(self, value: Any) -> Any:
        """A JSON value whose long texts are {'text': index}; 'inf' and 'nan' are texts."""
        if isinstance(value, dict):
            return {key: self.shorten(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.shorten(inner) for inner in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if not isinstance(value, str) or len(value) <= LONG:
            return value
        return {"text": self.add(value)}


def charts_data(
    charts: Mapping[str, Sequence[Chart]], entries: Sequence[Entry]
) -> Json:
    """The configs and the charts by figure; a list of x is named by its index."""
    x = Shared()
    configs = [
        {"label": e.label, "title": e.title, "n": len(e.measured)} for e in entries
    ]
    found = {
        name: [_chart(chart, x) for chart in each] for name, each in charts.items()
    }
    return {"configs": configs, "charts": found, "x": x.values}


def rounded(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Five significant digits; None for what is not finite."""
    numbers = np.asarray(values, np.float64).tolist()
    return [float(f"{v:.5g}") if abs(v) < np.inf else None for v in numbers]


def _chart(chart: Chart, x: Shared) -> Json:
    panels = [_panel(panel, x) for panel in chart.panels]
    made = {"c": chart.config, "x": chart.x, "log": chart.log, "panels": panels}
    return _without_defaults(made)


def _panel(panel: Panel, x: Shared) -> Json:
    lines = [_line(line, x) for line in panel.lines]
    marks = []
    for mark in panel.marks:
        place, height = rounded([mark.x, mark.y])
        found = dataclasses.asdict(mark) | {"x": place, "y": height}
        found["c"] = found.pop("config")
        marks.append(_without_defaults(found))
    made = {"y": panel.y, "scale": panel.scale, "top": panel.top}
    made |= {"legend": panel.legend, "marks": marks}
    return _without_defaults(made) | {"lines": lines}


def _line(line: Line, x: Shared) -> Json:
    made: Json = {"c": line.config, "colour": line.colour, "dash": line.dash}
    made |= {"label": line.label, "seed": line.seed, "dots": line.dots}
    if line.low is not None and line.high is not None:
        made |= {"low": rounded(line.low), "high": rounded(line.high)}
    if line.aside:
        made |= {"run": line.aside.run.name, "state": line.aside.state}
    return _without_defaults(made) | {"x": x.add(rounded(line.x)), "y": rounded(line.y)}


def _without_defaults(made: Json) -> Json:
    """The fields but those that the script takes to be null, false or empty."""
    return {k: v for k, v in made.items() if v or (v == 0 and v is not False)}


def records(entries: Sequence[Entry]) -> Json:
    """The records of every run by config, with a config's once for all of its runs."""
    texts = Shared()
    chars = LOG_CHARS // max(1, sum(len(entry.runs) for entry in entries))

    def record(entry: Entry, run: Run) -> Json:
        said = next((aside for aside in entry.aside if aside.run is run), run)
        return {
            "path": files.printable(str(run.path)),
            "state": said.state,
            "message": said.message,
            "status": texts.shorten(run.files["status"]),
            "provenance": texts.shorten(run.files["provenance"]),
            "config": texts.shorten(_differing(run, entry.runs[0])),
            "alerts": run.alerts[-ALERTS:],
            "more_alerts": max(0, len(run.alerts) - ALERTS),
            "log": run.log_tail[-chars:],
        }

    runs = [[record(entry, run) for run in entry.runs] for entry in entries]
    configs = [texts.shorten(entry.runs[0].config) for entry in entries]
    return {"runs": runs, "configs": configs, "texts": texts.values}


def _differing(run: Run, first: Run) -> Json:
    """The top-level fields of a run's config that are not its config's first run's."""
    return {
        name: run.config.get(name)
        for name in sorted(run.config.keys() | first.config.keys())
        if run.config.get(name) != first.config.get(name)
    }
