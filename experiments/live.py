"""A live table of a study's runs."""

from collections.abc import Sequence
from typing import Self

import rich.console
import rich.live
import rich.markup
import rich.table

from edm_jax.studies.task import Task

_COLOURS = {"done": "green", "failed": "red", "running": "cyan", "preempted": "yellow"}
_BAR = 20  # characters


class Table:
    """A live table of runs, or lines of text if there is no terminal."""

    def __init__(self, tasks: Sequence[Task], done: int = 0):
        self._console = rich.console.Console(stderr=True)
        self._rows = {task.name: _Row(task) for task in tasks}
        self._done_before = done
        self._live = rich.live.Live(
            console=self._console, refresh_per_second=4, get_renderable=self._render
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def stopping(self) -> None:
        """Prints that the runs were asked to save and stop."""
        self.close()
        print("Stopping: each run finishes its step and saves.", flush=True)

    def show(self, task: Task, note: str, where: str = "") -> None:
        """Shows a task's status beside `note`."""
        row = self._rows[task.name]
        row.update(note, where)
        if not self._live.is_started and (line := row.news()):
            print(line, flush=True)

    def _render(self) -> rich.table.Table:
        rows = list(self._rows.values())
        counts = {"done": self._done_before}
        for row in rows:
            counts[row.note] = counts.get(row.note, 0) + 1
        title = ", ".join(f"{n} {note}" for note, n in counts.items() if n)
        table = rich.table.Table("run", "", "images", "img/s", "left", "", title=title)
        # Active runs first; the title counts those that do not fit.
        order = ("running", "failed", "held", "preempted", "waiting", "done")
        rows.sort(key=lambda row: order.index(row.note))
        for row in rows[: max(4, self._console.height - 8)]:
            table.add_row(*row.cells())
        return table


class _Row:
    def __init__(self, task: Task):
        self._task, self.note, self._where = task, "waiting", ""
        self._status: dict = {}
        self._said = ""

    def update(self, note: str, where: str) -> None:
        self.note, self._where = note, where
        self._status = self._task.status or self._status

    @property
    def _stage(self) -> str:
        if self.note != "running":
            return self.note
        return "evaluate" if self._status.get("stage") == "evaluate" else "train"

    @property
    def _progress(self) -> tuple[float, str, str, str]:
        """The fraction done, the images, and during training the rate and time left."""
        nimg, total = (self._status.get(key) or 0 for key in ("nimg", "total_nimg"))
        rate = self._status.get("images_per_s") or 0.0
        moving = rate and self.note == "running" and self._stage == "train"
        return (
            nimg / total if total else 0.0,
            f"{nimg:,} of {total:,}" if total else "",
            f"{rate:,.0f}" if moving else "",
            duration((total - nimg) / rate) if moving else "",
        )

    def cells(self) -> list[str]:
        """Name, bar, images, rate, time left, and where it runs or why it failed."""
        done, images, rate, left = self._progress
        full = round(_BAR * done)
        colour = _COLOURS.get(self.note, "dim")
        bar = f"[{colour}]{'━' * full}[/][dim]{'─' * (_BAR - full)}[/]"
        failing = self.note == "failed" or self._stage == "evaluate"
        why = str(self._status.get("message") or "") if failing else ""
        return [
            rich.markup.escape(self._task.name),
            f"{bar} [{colour}]{self._stage}[/]",
            *(images, rate, left),
            rich.markup.escape((why or self._where)[:60]),
        ]

    def news(self) -> str:
        """A line for each new tenth of the training and each new stage, else ''."""
        done, images, rate, left = self._progress
        key = f"{self._stage} {int(10 * done) if self._stage == 'train' else ''}"
        if key == self._said:
            return ""
        self._said = key
        if self.note == "held":
            return f"{self._task.name}: held {self._where}"
        said = f"{images} images" if images else "starting"
        if rate:
            said += f", {rate} img/s, {left} left"
        return f"{self._task.name}: {self._stage}: {said}"


def duration(seconds: float) -> str:
    """Formats a time, such as 3 h 05 min, 8 min 31 s or 9 s."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
