"""The tables of the page: results by config, and how magnitudes grew."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from edm_jax.report.columns import COLUMNS, GROWTH_COLUMNS, Column
from edm_jax.report.looks import Look
from edm_jax.report.runs import Entry, Run
from edm_jax.report.tables import (
    Row,
    baseline_label,
    compared_columns,
    paper_text,
    reference_text,
)

BAD = ("failed", "preempted", "unknown", "other data", "same seed")
# What Fig. 3 and 15 say of magnitudes (Sec. 2.2 and 2.3): weights, activations.
PAPER_SAYS = {
    "c": ("grow", "grow"),
    "d": ("grow, faster than in C", "stand still"),
    "e": ("stand still", "stand still"),
    "f": ("stand still", "—"),
    "g": ("stand still", "—"),
}


@dataclass(frozen=True)
class Index:
    """The places of configs and runs in the page's data, and how configs look."""

    looks: Sequence[Look]
    configs: Mapping[int, int]  # by id of the entry
    runs: Mapping[int, int]  # by id of the run

    @classmethod
    def of(cls, entries: Sequence[Entry], looks: Sequence[Look]) -> "Index":
        runs = [run for entry in entries for run in entry.runs]
        return cls(
            looks,
            {id(entry): place for place, entry in enumerate(entries)},
            {id(run): place for place, run in enumerate(runs)},
        )

    def letter(self, entry: Entry) -> str:
        """A config's label in its colour."""
        slot = self.looks[self.configs[id(entry)]].slot
        label = escape(entry.label)
        return f'<span class="letter" style="--c:var(--s{slot})">{label}</span>'


def prose(text: str) -> str:
    """Escape a text of ours and set σ_rel with its index below."""
    return escape(text).replace("σ_rel", "σ<sub>rel</sub>")


def results_table(rows: Sequence[Row], index: Index) -> str:
    """The main table: a body of two lines per config, its numbers and its changes."""
    losses = [row.mean("heldout_loss") for row in rows]
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    lowest = min(finite, default=None)
    compared = compared_columns(rows)
    papers = has_paper(rows)
    columns = len(COLUMNS) + len(compared) + 2 * papers + 3
    bodies = []
    left_out = {id(row.entry): iter(row.entry.aside) for row in rows}
    for row in rows:
        # Rows without numbers are those of the runs left out, in their order.
        runs = row.runs or [next(left_out[id(row.entry)]).run]
        best = lowest is not None and row.mean("heldout_loss") == lowest
        place = index.configs[id(row.entry)]
        bodies.append(
            f'<tbody data-config="{place}">{_numbers(row, index, compared, papers, best)}'
            f"{_changes(row, runs, index, columns)}</tbody>"
        )
    head = _head(compared, papers, baseline_label(rows))
    table = f'<table class="results sortable">{head}{"".join(bodies)}</table>'
    # Many metrics are wider than a page.
    return f'<div class="wide">{table}</div>'


def has_paper(rows: Sequence[Row]) -> bool:
    """Whether the paper has numbers of any of the configs."""
    return any(row.paper != (None, None) for row in rows)


def _head(compared: Sequence[Column], papers: bool, baseline: str) -> str:
    """Two lines of headings: whose numbers, and which, to sort by."""
    numbers = "".join(_sorter(prose(column.heading)) for column in COLUMNS)
    against = f"difference<br>to {escape(baseline)}"
    group = numbers_of = ""
    if compared:
        group = f'<th class="group" colspan="{len(compared)}">{against}</th>'
        numbers_of = "".join(_sorter(prose(column.heading)) for column in compared)
    paper = paper_of = ""
    if papers:
        paper = '<th class="group" colspan="2">paper,<br>ImageNet-512</th>'
        paper_of = _sorter("FID") + _sorter("best σ<sub>rel</sub>")
    return (
        f"<thead><tr><th></th>{paper}"
        f'<th class="group" colspan="{len(COLUMNS) + 1}">measured here</th>{group}'
        f"<th></th></tr><tr>{_sorter('config', 'left')}{paper_of}{_sorter('n')}"
        f"{numbers}{numbers_of}{_sorter('state', 'left')}</tr></thead>"
    )


def _sorter(heading: str, kind: str = "") -> str:
    button = f'<button type="button">{heading}</button>'
    return f'<th scope="col" class="{kind}" aria-sort="none">{button}</th>'


def _name(row: Row, index: Index) -> str:
    """The row's heading: its label in the config's colour, and its title."""
    letter, title = index.letter(row.entry), escape(row.entry.title)
    place = index.configs[id(row.entry)]
    return f'<th scope="row" data-v="{place}">{letter}{title}</th>'


def _cell(label: str, text: str, kind: str = "", value: float | None = None) -> str:
    """A cell; an interval after the number stands apart, and `value` sorts it."""
    number, plus_minus, interval = escape(text).partition(" ± ")
    if plus_minus:
        width, of, p = interval.partition(" (")
        number += f' <span class="pm">± {width}</span>'
        number += f' <span class="pm">({p}</span>' if of else ""
    kind = f' class="{kind}"' if kind else ""
    finite = value is not None and math.isfinite(value)
    sort = f' data-v="{value:.9g}"' if finite else ""
    return f'<td{kind}{sort} data-label="{escape(label)}">{number}</td>'


def _numbers(
    row: Row, index: Index, compared: Sequence[Column], papers: bool, best: bool
) -> str:
    cells = []
    if papers:
        labels = "FID, paper", "best σ_rel, paper"
        each = zip(labels, paper_text(row), row.paper, strict=True)
        cells = [_cell(label, text, value=value) for label, text, value in each]
    if row.runs:
        cells.append(_cell("n", str(len(row.runs)), value=len(row.runs)))
        for column in COLUMNS:
            mark = "best" if best and column.key == "heldout_loss" else ""
            value = row.mean(column.key)
            cells.append(_cell(column.heading, row.text(column), mark, value))
        for column in compared:
            found = row.differences[column.key]
            mark = "significant" if found and found.significant else ""
            text = row.difference_text(column)
            label = f"{column.heading}: difference"
            cells.append(_cell(label, text, mark, found.mean if found else None))
    else:
        message = escape(row.message or "no numbers yet")
        span = len(COLUMNS) + 1 + len(compared)
        cells.append(f'<td class="message" colspan="{span}">{message}</td>')
    bad = " bad" if row.state in BAD else ""
    cells.append(_cell("state", row.state, f"left state{bad}"))
    return f"<tr>{_name(row, index)}{''.join(cells)}</tr>"


def _changes(row: Row, runs: Sequence[Run], index: Index, columns: int) -> str:
    """What changed against the parent and the baseline, and the runs to look into."""
    parent = _chips(row.changed, reference_text(row).strip(), row.entry.reference)
    inside = f'<div class="vs-parent">{parent}</div>'
    base = _chips(row.changed_from_baseline, "", not row.entry.is_baseline)
    inside += f'<div class="vs-baseline" hidden>{base}</div>'
    message = escape(row.message) if row.runs and row.message else ""
    if message:
        inside += f'<div class="bad">{message}</div>'
    inside += f'<div class="runs js">{_links(runs, index)}</div>'
    return f'<tr class="changes"><td colspan="{columns}">{inside}</td></tr>'


def _chips(changed: Sequence[str], against: str, has: object) -> str:
    if not has:
        return "<span>—</span>"
    lead = f"<span>{escape(against)}</span>" if against else ""
    chips = "".join(
        f"<code>{escape(text).replace('-&gt;', '→', 1)}</code> " for text in changed
    )
    return lead + (chips or "<span>nothing changed</span>")


def _links(runs: Sequence[Run], index: Index) -> str:
    return " ".join(
        f'<a href="#run-{index.runs[id(run)]}">{escape(run.name)}</a>' for run in runs
    )


def growth_table(rows: Sequence[Row], index: Index) -> str:
    """The paper's claim about magnitudes beside what the runs did."""
    measured = [row for row in rows if row.mean("weight_growth") is not None]
    if not measured:
        return ""
    bodies = []
    for row in measured:
        letter = "" if row.entry.variant else row.entry.letter
        says = PAPER_SAYS.get(letter, ("—", "—"))
        pairs = zip(GROWTH_COLUMNS, says, strict=True)
        cells = "".join(_factor(row, column, claim) for column, claim in pairs)
        place = index.configs[id(row.entry)]
        line = f"<tr>{_name(row, index)}{cells}</tr>"
        bodies.append(f'<tbody data-config="{place}">{line}</tbody>')
    claim = _sorter("paper says they", "left")
    heads = "".join(f"{_sorter(escape(c.heading))}{claim}" for c in GROWTH_COLUMNS)
    return (
        '<section><h2>Do magnitudes grow?</h2><table class="growth sortable"><thead><tr>'
        f"{_sorter('config', 'left')}{heads}</tr></thead>{''.join(bodies)}</table>"
        '<p class="note">Mean magnitude at the end over that at the start, or for '
        "activations at a quarter of the training, in the encoder or decoder group and "
        "resolution where the factor is largest: 1 is standing still. What the paper "
        "says is of its Fig. 3 and 15.</p></section>"
    )


def _factor(row: Row, column: Column, claim: str) -> str:
    text, value = row.text(column), row.mean(column.key)
    factor = text if text == "—" else f"× {text}"
    said = _cell(f"paper says {column.heading.split()[0]}", claim, "left")
    return _cell(column.heading, factor, value=value) + said
