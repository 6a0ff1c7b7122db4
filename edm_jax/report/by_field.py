"""A result against a field of the config: curves, their best points, and sensitivity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edm_jax import menu, tree
from edm_jax.report.columns import COLUMNS, Column, format_number
from edm_jax.report.curves import Chart, Line, Mark, Panel
from edm_jax.report.figures import Figure, ring
from edm_jax.report.grouping import (
    COLOURS,
    DASHES,
    compact,
    field_of,
    short_names,
    varying_fields,
)
from edm_jax.report.runs import Entry
from edm_jax.report.statistics import estimate


@dataclass(frozen=True)
class Point:
    """One config on a line: the field's value, and the result of each seed."""

    x: float
    values: list[float]
    source: str  # evaluated, logged or failed
    initial: list[float]  # the loss before training, as evaluated
    logged: list[float]  # the loss before training, as logged

    @property
    def y(self) -> float:
        """The mean over seeds; NaN if there are no values."""
        return sum(self.values) / len(self.values) if self.values else math.nan


@dataclass(frozen=True)
class ByField:
    """Curves of `y` against the field `x`, one for each value of the fields `by`."""

    x: str
    y: Column
    by: Sequence[str]
    lines: dict[str, list[Point]]

    @classmethod
    def of(
        cls, entries: Sequence[Entry], x: str, y: Column, by: Sequence[str]
    ) -> "ByField":
        """Makes the curves of a comparison.

        Args:
            entries: its configs.
            x: the dotted name of a numeric field.
            y: a column.
            by: dotted names of fields; each combination of their values is a line.

        Raises:
            ValueError: there is no such field, it is not a number, or a line has two
                configs with the same value.
        """
        _check(entries, [x, *by])
        lines: dict[str, dict[float, tuple[Entry, Point]]] = {}
        for entry in entries:
            value = field_of(entry, x)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(  # noqa: TRY004  of what a user typed
                    f"--x={x} is {compact(value)} in {entry.label}: choose a field that "
                    "holds numbers."
                )
            line = lines.setdefault(_label(entry, by), {})
            if value in line:
                others = [f for f in varying_fields(entries) if f not in (x, *by)]
                raise ValueError(
                    f"{line[value][0].label} and {entry.label} both have {x} = "
                    f"{compact(value)}: add to --by={','.join(by)} a field in which they "
                    f"differ ({', '.join(others) or 'the letter'})."
                )
            line[value] = entry, _point(entry, float(value), y)
        found = {
            name: [point for _, (_, point) in sorted(line.items())]
            for name, line in lines.items()
        }
        return cls(x, y, by, found)

    def best(self, name: str) -> Point | None:
        """The point of a line with the lowest result."""
        finite = [p for p in self.lines[name] if math.isfinite(p.y)]
        return min(finite, key=lambda point: point.y, default=None)

    def sensitivity(self, name: str) -> float | None:
        """The mean over a line of min(loss, initial loss), minus the best loss.

        A failed run counts with its initial loss (Wortsman et al., arXiv 2309.14322,
        Sec. 2). None if `y` is not a loss, or the initial loss is not known.
        """
        best, points = self.best(name), self.lines[name]
        known = [loss for point in points for loss in point.initial]
        known = known or [loss for point in points for loss in point.logged]
        if not self.y.loss or best is None or not known or len(points) < 2:
            return None
        initial = sum(known) / len(known)
        losses = [min(initial, p.y) for p in points]  # NaN: initial
        return sum(losses) / len(losses) - best.y

    def chart(self) -> Chart:
        """The curves, with bands from the lowest to the highest seed."""
        drawn, marks, key = [], [], []
        for place, (name, points) in enumerate(self.lines.items()):
            shown = [point for point in points if math.isfinite(point.y)]
            slot = (place + 1) % COLOURS
            if list(self.by) == ["letter"] and "A" <= name <= "G":
                slot = ord(name) - ord("A")
            dash = place // COLOURS % DASHES
            key.append((name, slot, dash))
            if not shown:
                continue
            ends = [(min(p.values), max(p.values)) for p in shown]
            low, high = np.array(ends).T
            several = any(len(point.values) > 1 for point in shown)
            line = Line(
                np.array([point.x for point in shown]),
                np.array([point.y for point in shown]),
                *((low, high) if several else ()),
                colour=slot,
                dash=dash,
                label=name,
                dots=True,
            )
            drawn.append(line)
            marks += [
                Mark("hollow", p.x, p.y, slot, label=f"{name}: logged, not evaluated")
                for p in shown
                if p.source == "logged"
            ]
            marks.append(ring(line, f"{name}: best"))
        xs = sorted({point.x for points in self.lines.values() for point in points})
        scale = "log" if all((line.y > 0).all() for line in drawn) else "linear"
        title = f"{self.y.heading} by {self.x}"
        panel = Panel(title, self.y.heading, drawn, scale, marks)
        return Chart(self.x, [panel], log=is_log(xs), key=key)

    def figure(self) -> Figure:
        """The figure for the page and for papers."""

        return Figure(
            "by_field",
            f"{self.y.heading[0].upper()}{self.y.heading[1:]} against {self.x}",
            "A point is the mean of a config’s seeds, and the band spans the lowest to "
            "the highest. Rings mark the best value of each line. A small open circle is "
            "a run that was not evaluated, at the held-out loss that it logged. "
            "Sensitivity is the mean over the values of min(loss, initial loss), minus "
            "the best loss (Wortsman et al., arXiv 2309.14322); a run that failed counts "
            "with the initial loss.",
            lambda entries: [self.chart()],
            "by_field",
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and cells: each line's best value, its result and its sensitivity."""
        (short,) = short_names([self.x])
        heads = ["line", "values", f"best {short}", self.y.heading, "sensitivity"]
        rows = []
        for name, points in self.lines.items():
            best = self.best(name)
            cells = ["—", "—"]
            if best:
                edge = best in (points[0], points[-1]) and len(points) > 1
                at = compact(best.x) + (" (at the edge)" if edge else "")
                mark = " (logged)" if best.source == "logged" else ""
                cells = [at, format_number(best.y, self.y.form) + mark]
            cells.append(format_number(self.sensitivity(name), 3))
            rows.append([name, str(len(points)), *cells])
        return heads, rows

    def records(self) -> list[dict[str, Any]]:
        """Records for the CSV, one per point, with the line's values from `table`."""
        records = []
        for name, points in self.lines.items():
            best = self.best(name)
            of_line = {"best_x": best and best.x, "best_y": best and best.y}
            of_line["sensitivity"] = self.sensitivity(name)
            for point in points:
                found = estimate(point.values)
                record = {
                    "line": name,
                    "x": point.x,
                    "y": point.y if point.values else None,
                    "y_ci95": found and found.half_width,
                    "n": found.n if found else 0,
                    "source": point.source,
                }
                records.append(record | of_line)
        return records


def _check(entries: Sequence[Entry], names: Sequence[str]) -> None:
    known: dict[str, None] = {}
    for entry in entries:
        known |= dict.fromkeys(tree.flatten(entry.runs[0].config, "."))
    for name in names:
        if name not in known:
            near = menu.suggest(name, known)
            raise ValueError(f"No run's config has a field {name!r}.{near}")


def _label(entry: Entry, by: Sequence[str]) -> str:
    """'G', or 'G, model_channels = 16'."""
    words = []
    for name, short in zip(by, short_names(by), strict=True):
        value = field_of(entry, name)
        text = compact(value)
        words.append(text.upper() if name == "letter" else f"{short} = {text}")
    return ", ".join(words)


def _point(entry: Entry, x: float, y: Column) -> Point:
    values = [v for run in entry.measured if (v := y.of(run)) is not None]
    source = "evaluated"
    if not values:
        logged = [a.logged for a in entry.aside if a.logged is not None]
        if y.key == "heldout_loss" and logged:
            values, source = logged, "logged"
        else:
            source = entry.aside[0].state if entry.aside else "absent"
    start = [COLUMNS["untrained_loss"].of(run) for run in entry.measured]
    logs = [run.logs["heldout"].curve("loss_per_element") for run in entry.runs]
    at_start = [float(losses[0]) for nimg, losses in logs if len(nimg) and not nimg[0]]
    return Point(x, values, source, [v for v in start if v is not None], at_start)


def is_log(values: Sequence[float]) -> bool:
    """Whether ascending numbers suit a logarithmic axis.

    They do if they are positive and their ratios vary less than their differences.
    """
    x = np.array(values, np.float64)
    if len(x) < 2 or not np.isfinite(x).all() or x[0] <= 0:
        return False
    if len(x) == 2:
        return bool(x[1] >= 4 * x[0])
    steps, ratios = np.diff(x), np.diff(np.log(x))
    return bool(np.std(ratios) / ratios.mean() < np.std(steps) / steps.mean())
