"""What the page tells of each run when it is opened: config, provenance, alerts, log."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from edm_jax import files
from edm_jax.report.runs import Entry, Json, Run

LOG_CHARS = 400_000  # of all logs together
ALERTS = 50  # of one run: the last ones
LONG = 200  # a text longer than this is sent once, however many runs have it


class Texts:
    """Long texts that runs share, each kept once: {'text': index} stands for it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._index: dict[str, int] = {}

    def shorten(self, value: Any) -> Any:
        """A JSON value with its long texts replaced; 'inf' and 'nan' are texts."""
        if isinstance(value, dict):
            return {key: self.shorten(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.shorten(inner) for inner in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if not isinstance(value, str) or len(value) <= LONG:
            return value
        if value not in self._index:
            self._index[value] = len(self.texts)
            self.texts.append(value)
        return {"text": self._index[value]}


def facts(entries: Sequence[Entry]) -> Json:
    """The records of every run, with a config's once for all of its runs."""
    texts = Texts()
    every = [run for entry in entries for run in entry.runs]
    chars = LOG_CHARS // max(1, len(every))
    runs = []
    for place, entry in enumerate(entries):
        states = {id(aside.run): aside for aside in entry.aside}
        for run in entry.runs:
            aside = states.get(id(run))
            state = aside.state if aside else run.state
            message = aside.message if aside else run.message
            runs.append(
                {
                    "c": place,
                    "name": run.name,
                    "path": files.printable(str(run.path)),
                    "state": state,
                    "message": message,
                    "status": texts.shorten(run.files["status"]),
                    "config": texts.shorten(differing(run, entry.runs[0])),
                    "provenance": texts.shorten(run.files["provenance"]),
                    "alerts": run.alerts[-ALERTS:],
                    "more_alerts": max(0, len(run.alerts) - ALERTS),
                    "log": run.log_tail[-chars:],
                }
            )
    configs = [texts.shorten(entry.runs[0].config) for entry in entries]
    return {"runs": runs, "configs": configs, "texts": texts.texts}


def differing(run: Run, first: Run) -> Json:
    """The top-level fields of a run's config that are not its config's first run's."""
    if run is first:
        return {}
    names = run.config.keys() | first.config.keys()
    return {
        name: run.config.get(name)
        for name in sorted(names)
        if run.config.get(name) != first.config.get(name)
    }


def unfinished(runs: Iterable[Run]) -> dict[str, int]:
    """How many runs are in each state that may still change."""
    found: dict[str, int] = {}
    for run in runs:
        if run.state not in ("done", "failed", "damaged"):
            found[run.state] = found.get(run.state, 0) + 1
    return found
