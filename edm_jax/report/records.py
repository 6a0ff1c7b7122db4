"""Each run's records on the page: its files, its alerts and the end of its log."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from edm_jax import files
from edm_jax.report.runs import Entry, Run

LOG_CHARS = 400_000  # of all logs together
ALERTS = 50  # per run, the last ones
LONG = 200  # longer texts are on the page only once, however many runs share them


def records(entries: Sequence[Entry]) -> str:
    """One line per run, which expands to its records."""
    shown: dict[str, tuple[str, str]] = {}
    chars = LOG_CHARS // max(1, sum(len(entry.runs) for entry in entries))
    lines = [
        _record(entry, place, run, chars, shown)
        for entry in entries
        for place, run in enumerate(entry.runs)
    ]
    return f"<section><h2>Runs</h2>{''.join(lines)}</section>"


def _record(
    entry: Entry,
    place: int,
    run: Run,
    chars: int,
    shown: dict[str, tuple[str, str]],
) -> str:
    """The records of one run.

    Args:
        entry: its config.
        place: its place among the config's runs.
        run: the run.
        chars: the number of characters of its log to show.
        shown: long texts so far, with the address and name of the run that has them.
    """
    said = next((aside for aside in entry.aside if aside.run is run), run)
    bad = "bad" if said.state == "failed" else ""
    here = f"run-{entry.place}-{place}"

    def block(heading: str, text: str) -> str:
        first, name = (
            shown.setdefault(text, (here, run.name)) if text[LONG:] else ("", "")
        )
        inside = f"<pre>{escape(text)}</pre>"
        if first not in ("", here):
            inside = f'<p>same as <a href="#{first}">{escape(name)}</a></p>'
        return f"<h4>{escape(heading)}</h4>{inside}"

    def file(name: str, value: Any) -> str:
        # Long texts of several lines, such as a diff, get a block of their own.
        texts = {k: v for k, v in value.items() if isinstance(v, str) and "\n" in v}
        long = {k: v for k, v in texts.items() if v[LONG:]}
        rest = {k: v for k, v in value.items() if k not in long}
        text = json.dumps(rest, indent=2, ensure_ascii=False) if value else "absent"
        blocks = [block(f"{name}: {key}", each) for key, each in long.items()]
        return block(name, text) + "".join(blocks)

    parts = [
        f'<p class="note" id="{here}">{escape(files.printable(str(run.path)))}</p>'
    ]
    if said.message:
        parts.append(f'<p class="{bad}">{escape(said.message)}</p>')
    parts.append(_alerts(run))
    parts += [
        file(f"{n}.json", run.files[n]) for n in ("status", "config", "provenance")
    ]
    if run.log_tail:
        parts.append(block("end of log.txt", run.log_tail[-chars:]))
    count = len(run.alerts)
    alerts = f" · {count} alert{'s' * (count > 1)}" if count else ""
    return (
        f'<details class="run" data-config="{entry.place}"><summary>'
        f"<b>{escape(run.name)}</b> {escape(said.state)}{alerts}</summary>"
        f"{''.join(parts)}</details>"
    )


def _alerts(run: Run) -> str:
    """The last alerts during training."""
    if not run.alerts:
        return ""
    last = run.alerts[-ALERTS:]
    of = f" (the last {ALERTS} of {len(run.alerts)})" if run.alerts[ALERTS:] else ""
    texts = [alert.get("message") or alert.get("about", "") for alert in last]
    items = [
        f"<li>{int(alert['nimg']):,} images: {escape(text)}</li>"
        for alert, text in zip(last, texts, strict=True)
    ]
    return f"<h4>alerts{of}</h4><ul>{''.join(items)}</ul>"
