"""The page: one self-contained HTML file, light and dark."""

import base64
import json
import math
from collections.abc import Sequence
from html import escape

from edm_jax.report.drawing import PALETTE, Drawing, colour_of
from edm_jax.report.runs import Entry, Run, number
from edm_jax.report.style import STYLE_SHEET
from edm_jax.report.tables import (
    COLUMNS,
    GROWTH_COLUMNS,
    Column,
    Row,
    paper_text,
    reference_text,
)

NO_BREAK_HYPHEN = "\u2011"
# What Fig. 3 and 15 say of magnitudes (Sec. 2.2 and 2.3): weights, activations.
PAPER_SAYS = {
    "c": ("grow", "grow"),
    "d": ("grow, faster than in C", "stand still"),
    "e": ("stand still", "stand still"),
    "f": ("stand still", "—"),
    "g": ("stand still", "—"),
}


def render(
    study: str,
    entries: Sequence[Entry],
    rows: Sequence[Row],
    drawings: Sequence[Drawing],
) -> str:
    """Write the page as HTML that needs no other file and no network."""
    plots = []
    for drawing in drawings:
        if drawing.name == "samples":
            plots.append(_samples(entries, drawing))
        else:
            plots.append(_plot(drawing))
        if drawing.name == "dynamics":
            plots.append(_growth(rows))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(study)}</title>
<style>{STYLE_SHEET}</style>
</head>
<body>
<main>
<h1>{escape(study)}</h1>
{_introduction(entries)}
<h2>Results</h2>
{_results(rows)}
{_notes(rows)}
{"".join(plots)}
<h2>Provenance</h2>
{"".join(_provenance(run) for entry in entries for run in entry.runs)}
</main>
</body>
</html>
"""


def _introduction(entries: Sequence[Entry]) -> str:
    """What was trained on what, for how long, when and on which machine."""
    runs = [run for entry in entries for run in entry.runs]
    done = sum(run.measured for run in runs)
    totals = (number(run.status, "total_nimg") for run in runs)
    counts = sorted({total for total in totals if total})
    images = " or ".join(f"{count:,.0f}" for count in counts)
    workloads = sorted({str(run.config.get("workload", "")) for run in runs} - {""})
    starts = sorted(str(run.provenance.get("start_time", "")) for run in runs)
    dates = sorted({start[:10] for start in starts} - {""})
    when = dates[0] if len(set(dates)) == 1 else " to ".join(dates[:: len(dates) - 1])
    paper = "“Analyzing and Improving the Training Dynamics of Diffusion Models”"
    words = [
        f"{len(entries)} configs of the ablation ladder of Karras et al., {paper} ",
        "(arXiv 2312.02696)",
    ]
    if workloads:
        words.append(f", trained on {' and '.join(workloads)}")
    if images:
        words.append(f" for {images} images each")
    if when:
        words.append(f", started {when}".replace("-", NO_BREAK_HYPHEN))
    tail = "all finished" if done == len(runs) else f"{done} finished"
    return (
        f"<p>{escape(''.join(words))}. {len(runs)} runs, {tail}. Each config is the one "
        "before it plus the changes listed under it.</p>"
    )


def _head() -> str:
    """Two lines of headings: whose numbers, and which."""
    numbers = "".join(f"<th>{_prose(column.heading)}</th>" for column in COLUMNS)
    return (
        '<thead><tr><th></th><th class="group" colspan="2">paper,<br>ImageNet-512</th>'
        f'<th class="group" colspan="{len(COLUMNS)}">measured here</th><th></th></tr>'
        '<tr><th class="left">config</th><th>FID</th><th>best σ<sub>rel</sub></th>'
        f'{numbers}<th class="left">state</th></tr></thead>'
    )


def _results(rows: Sequence[Row]) -> str:
    """The main table: a body of two lines per config, its numbers and its changes."""
    losses = [row.values["heldout_loss"] for row in rows]
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    lowest = min(finite, default=None)
    bodies = []
    for row in rows:
        best = lowest is not None and row.values["heldout_loss"] == lowest
        bodies.append(f"<tbody>{_numbers(row, best)}{_changes(row)}</tbody>")
    return f'<table class="results">{_head()}{"".join(bodies)}</table>'


def _name(row: Row) -> str:
    """The row's heading: letter in the config's colour, title, count of seeds."""
    seeds = f" ({len(row.runs)} seeds)" if len(row.runs) > 1 else ""
    slot = PALETTE.index(colour_of(row.entry))
    return (
        f'<th scope="row"><span class="letter" style="--c:var(--s{slot})">'
        f"{escape(row.entry.label)}</span>{escape(row.entry.title + seeds)}</th>"
    )


def _prose(text: str) -> str:
    """Escape a text of ours and set σ_rel with its index below."""
    return escape(text).replace("σ_rel", "σ<sub>rel</sub>")


def _cell(label: str, text: str, kind: str = "") -> str:
    return f'<td class="{kind}" data-label="{escape(label)}">{escape(text)}</td>'


def _numbers(row: Row, best: bool) -> str:
    paper = zip(("FID, paper", "best σ_rel, paper"), paper_text(row), strict=True)
    cells = [_cell(label, text) for label, text in paper]
    if row.runs:
        for column in COLUMNS:
            mark = "best" if best and column.key == "heldout_loss" else ""
            cells.append(_cell(column.heading, row.text(column), mark))
    else:
        message = escape(row.message or "no numbers yet")
        cells.append(f'<td class="message" colspan="{len(COLUMNS)}">{message}</td>')
    bad = " bad" if row.state in ("failed", "preempted", "unknown") else ""
    cells.append(_cell("state", row.state, f"left state{bad}"))
    return f"<tr>{_name(row)}{''.join(cells)}</tr>"


def _changes(row: Row) -> str:
    """What changed against the reference, one field to a chip."""
    if row.entry.reference is None:
        inside = "<span>—</span>"
    else:
        chips = "".join(
            f"<code>{escape(text).replace('-&gt;', '→', 1)}</code> "
            for text in row.changed
        )
        against = reference_text(row)
        lead = f"<span>{escape(against.strip())}</span>" if against else ""
        inside = lead + (chips or "<span>nothing changed</span>")
    return f'<tr class="changes"><td colspan="{len(COLUMNS) + 4}">{inside}</td></tr>'


def _notes(rows: Sequence[Row]) -> str:
    seeds = any(len(row.runs) > 1 for row in rows)
    deviation = " ± is the standard deviation over seeds." if seeds else ""
    return (
        '<p class="note">The paper’s columns are its Table 1 (FID of ImageNet-512, size S) and '
        "are not comparable with what is measured here. Held-out loss: λ-weighted, per "
        "element, at the best σ<sub>rel</sub> of the sweep; raw weights and untrained are the same "
        "loss of the last weights without averaging and of the weights at the start. The "
        "pixel Fréchet distance compares pixels and not features; its floor is the "
        f"distance between the training and the held-out split.{deviation} "
        "Images/s is the median while training, beside whatever else ran then. The "
        "lowest held-out loss is in bold.</p>"
    )


def _plot(drawing: Drawing) -> str:
    label = f'role="img" aria-label="{escape(drawing.title)}"'
    svg = drawing.svg().replace("<svg ", f"<svg {label} ", 1)
    return (
        f'<h2>{escape(drawing.title)}</h2><figure><div class="plot">{svg}</div>'
        f"<figcaption>{_prose(drawing.caption)}</figcaption></figure>"
    )


def _samples(entries: Sequence[Entry], drawing: Drawing) -> str:
    """The sample grids as they are on disk, pixel for pixel."""
    measured = [(entry, entry.measured[0]) for entry in entries if entry.measured]
    shown = [(entry, run.samples) for entry, run in measured if run.samples]
    width = min(260, max(130, *(_png_width(png) for _, png in shown)))
    grids = []
    for entry, png in shown:
        slot = PALETTE.index(colour_of(entry))
        data = base64.b64encode(png).decode("ascii")
        grids.append(
            f'<div><span class="letter" style="--c:var(--s{slot})">'
            f"{escape(entry.label)}</span>{escape(entry.title)}"
            f'<img alt="Samples of {escape(entry.label)} {escape(entry.title)}" '
            f'src="data:image/png;base64,{data}"></div>'
        )
    return (
        f'<h2>{escape(drawing.title)}</h2><figure><div class="grids" '
        f'style="--w:{width}px">{"".join(grids)}'
        f"</div><figcaption>{_prose(drawing.caption)}</figcaption></figure>"
    )


def _png_width(png: bytes) -> int:
    """The width in pixels, which the PNG header holds at byte 16."""
    return int.from_bytes(png[16:20], "big")


def _growth(rows: Sequence[Row]) -> str:
    """The paper's claim about magnitudes beside what the runs did."""
    measured = [row for row in rows if row.values["weight_growth"] is not None]
    if not measured:
        return ""
    bodies = []
    for row in measured:
        letter = "" if row.entry.variant else row.entry.letter
        says = PAPER_SAYS.get(letter, ("—", "—"))
        pairs = zip(GROWTH_COLUMNS, says, strict=True)
        cells = "".join(_factor(row, column, claim) for column, claim in pairs)
        bodies.append(f"<tbody><tr>{_name(row)}{cells}</tr></tbody>")
    claim = '<th class="left">paper says they</th>'
    heads = "".join(f"<th>{escape(c.heading)}</th>{claim}" for c in GROWTH_COLUMNS)
    return (
        '<h2>Do magnitudes grow?</h2><table class="growth"><thead><tr>'
        f'<th class="left">config</th>{heads}</tr></thead>{"".join(bodies)}</table>'
        '<p class="note">Mean magnitude at the end over that at the start, or for '
        "activations at a quarter of the training, in the encoder or decoder group and "
        "resolution where the factor is largest: 1 is standing still. What the paper "
        "says is of its Fig. 3 and 15.</p>"
    )


def _factor(row: Row, column: Column, claim: str) -> str:
    value = row.text(column)
    factor = value if value == "—" else f"× {value}"
    said = _cell(f"paper says {column.heading.split()[0]}", claim, "left")
    return _cell(column.heading, factor) + said


def _provenance(run: Run) -> str:
    """A run's files of record, folded away."""

    def block(name: str, record: dict) -> str:
        text = json.dumps(record, indent=2, ensure_ascii=False) if record else "absent"
        return f"<pre>{name}\n{escape(text)}</pre>"

    title = f"{run.letter.upper()} {run.name}".strip()
    return (
        f"<details><summary>{escape(title)}: {escape(run.state)}</summary>"
        + block("provenance.json", run.provenance)
        + block("config.json", run.config)
        + "</details>"
    )
