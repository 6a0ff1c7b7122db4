"""The tables of the page: results by config, and how magnitudes grew."""

import math
from collections.abc import Sequence
from html import escape

from edm_jax.report.columns import COLUMNS, GROWTH
from edm_jax.report.export import short_names
from edm_jax.report.grouping import compact
from edm_jax.report.runs import Entry, Run
from edm_jax.report.tables import Comparison, Row, paper_text, reference_text

BAD = ("failed", "preempted", "unknown", "other data", "same seed", "not evaluated")
# What Fig. 3 and 15 say of magnitudes (Sec. 2.2 and 2.3): weights, activations.
PAPER_SAYS = {
    "c": ("grow", "grow"),
    "d": ("grow, faster than in C", "stand still"),
    "e": ("stand still", "stand still"),
    "f": ("stand still", "—"),
    "g": ("stand still", "—"),
}
# (heading, text, what sorts it, class) of a table's cell.
Cell = tuple[str, str, float | None, str]


def letter(entry: Entry) -> str:
    """A config's label in its colour."""
    colour = f"--c:var(--s{entry.look.slot})"
    return f'<span class="letter" style="{colour}">{escape(entry.label)}</span>'


def prose(text: str) -> str:
    """Escape a text of ours and set σ_rel with its index below."""
    return escape(text).replace("σ_rel", "σ<sub>rel</sub>")


def has_paper(rows: Sequence[Row]) -> bool:
    """Whether the paper has numbers of any of the configs."""
    return any(row.paper != (None, None) for row in rows)


def results_table(comparison: Comparison) -> str:
    """The main table: a body of two lines per config, its numbers and its changes."""
    rows = comparison.rows
    losses = [row.mean("heldout_loss") for row in rows]
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    lowest = min(finite, default=None)
    groups = _groups(comparison, rows[0], None)
    over = "".join(
        f'<th class="group" colspan="{len(cells)}">{name}</th>' if name else "<th></th>"
        for name, cells in groups
    )
    heads = "".join(
        _sorter(head, kind) for _, cells in groups for head, *_, kind in cells
    )
    columns = 2 + sum(len(cells) for _, cells in groups)
    bodies = []
    left_out = {id(row.entry): iter(row.entry.aside) for row in rows}
    for row in rows:
        # Rows of runs that are left out come in their order.
        runs = row.runs or [next(left_out[id(row.entry)]).run]
        cells = [cell for _, each in _groups(comparison, row, lowest) for cell in each]
        if not row.has_numbers:
            before = len(groups[0][1]) if groups[0][0] else 0
            before += len(comparison.fields)
            message = escape(row.message or "no numbers yet")
            span = (
                f'<td class="message" colspan="{columns - 2 - before}">{message}</td>'
            )
            numbers = "".join(map(_cell, cells[:before])) + span
        else:
            numbers = "".join(map(_cell, cells))
        bad = " bad" if row.state in BAD else ""
        state = _cell(("state", row.state, None, f"left state{bad}"))
        bodies.append(
            f'<tbody data-config="{row.entry.place}"><tr>{_name(row)}'
            f"{numbers}{state}</tr>{_changes(row, runs, columns)}</tbody>"
        )
    # Many metrics are wider than a page.
    return (
        '<div class="wide"><table class="results sortable"><thead><tr><th></th>'
        f"{over}<th></th></tr><tr>{_sorter('config', 'left')}{heads}"
        f"{_sorter('state', 'left')}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _groups(
    comparison: Comparison, row: Row, lowest: float | None
) -> list[tuple[str, list[Cell]]]:
    """The cells of a row between its name and its state, by group of columns."""
    groups: list[tuple[str, list[Cell]]] = []
    if has_paper(comparison.rows):
        labels = "FID, paper", "best σ_rel, paper"
        texts = zip(labels, paper_text(row), row.paper, strict=True)
        groups.append(("paper,<br>ImageNet-512", [(*each, "") for each in texts]))
    if fields := comparison.fields:
        cells = []
        for name, heading in zip(fields, short_names(fields), strict=True):
            value = row.field(name)
            number = value if isinstance(value, int | float) else None
            text = "—" if value is None else compact(value)
            cells.append((heading, text, number, ""))
        groups.append(("config", cells))
    shown = list(dict.fromkeys([*comparison.default, *comparison.shown]))
    measured: list[Cell] = [("n", str(len(row.runs)), len(row.runs), "")]
    for column in [column for column in shown if column.key not in GROWTH]:
        value = row.mean(column.key)
        best = column.key == "heldout_loss" and value is not None and value == lowest
        mark = "best" if best else ""
        measured.append((column.heading, row.text(column), value, mark))
    groups.append(("measured here", measured))
    cells = []
    for column in comparison.compared:
        found = row.differences[column.key]
        mark = "significant" if found and found.significant else ""
        label = f"{column.heading}: difference"
        text = row.difference_text(column)
        cells.append((label, text, found.mean if found else None, mark))
    if cells:
        groups.append((f"difference<br>to {escape(comparison.baseline)}", cells))
    return groups


def _sorter(heading: str, kind: str = "") -> str:
    # The group above says the rest.
    text = prose(heading.removesuffix(", paper").removesuffix(": difference"))
    button = f'<button type="button">{text}</button>'
    kind = kind if kind == "left" else ""
    return f'<th scope="col" class="{kind}" aria-sort="none">{button}</th>'


def _name(row: Row) -> str:
    """The row's heading: its label in the config's colour, and its title."""
    name = letter(row.entry) + escape(row.entry.title)
    return f'<th scope="row" data-v="{row.entry.place}">{name}</th>'


def _cell(cell: Cell) -> str:
    """A cell; an interval after the number stands apart, and a value sorts it."""
    label, text, value, kind = cell
    number, plus_minus, interval = escape(text).partition(" ± ")
    if plus_minus:
        width, of, p = interval.partition(" (")
        number += f' <span class="pm">± {width}</span>'
        number += f' <span class="pm">({p}</span>' if of else ""
    kind = f' class="{kind}"' if kind else ""
    finite = value is not None and math.isfinite(value)
    sort = f' data-v="{value:.9g}"' if finite else ""
    return f'<td{kind}{sort} data-label="{escape(label)}">{number}</td>'


def _changes(row: Row, runs: Sequence[Run], columns: int) -> str:
    """What changed against the parent and the baseline, and the runs to look into."""
    parent = _chips(row.changed, reference_text(row).strip(), row.entry.reference)
    base = _chips(row.changed_from_baseline, "", not row.entry.is_baseline)
    inside = f'<div class="vs-parent">{parent}</div>'
    inside += f'<div class="vs-baseline" hidden>{base}</div>'
    if row.has_numbers and row.message:
        inside += f'<div class="bad">{escape(row.message)}</div>'
    links = " ".join(
        f'<a href="#run-{row.entry.place}-{place}">{escape(run.name)}</a>'
        for place, run in enumerate(row.entry.runs)
        if any(run is each for each in runs)
    )
    inside += f'<div class="runs js">{links}</div>'
    return f'<tr class="changes"><td colspan="{columns}">{inside}</td></tr>'


def _chips(changed: Sequence[str], against: str, has: object) -> str:
    if not has:
        return "<span>—</span>"
    lead = f"<span>{escape(against)}</span>" if against else ""
    chips = "".join(
        f"<code>{escape(text).replace('-&gt;', '→', 1)}</code> " for text in changed
    )
    return lead + (chips or "<span>nothing changed</span>")


def plain_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of texts, the first column on the left."""
    over = "".join(_sorter(head, "" if i else "left") for i, head in enumerate(heads))
    bodies = [
        "<tbody><tr>"
        + f'<th scope="row">{escape(name)}</th>'
        + "".join(_cell((head, text, None, "")) for head, text in zip(heads[1:], texts))
        + "</tr></tbody>"
        for name, *texts in lines
    ]
    return (
        f'<table class="growth sortable"><thead><tr>{over}</tr></thead>'
        f"{''.join(bodies)}</table>"
    )


def growth_table(rows: Sequence[Row]) -> str:
    """The paper's claim about magnitudes beside what the runs did."""
    measured = [row for row in rows if row.mean("weight_growth") is not None]
    if not measured:
        return ""
    bodies = []
    for row in measured:
        known = "" if row.entry.variant else row.entry.letter
        cells = ""
        for key, claim in zip(GROWTH, PAPER_SAYS.get(known, "——"), strict=True):
            column, text = COLUMNS[key], row.text(COLUMNS[key])
            factor = text if text == "—" else f"× {text}"
            cells += _cell((column.heading, factor, row.mean(key), ""))
            says = f"paper says {column.heading.split()[0]}"
            cells += _cell((says, claim, None, "left"))
        place = row.entry.place
        line = f"<tr>{_name(row)}{cells}</tr>"
        bodies.append(f'<tbody data-config="{place}">{line}</tbody>')
    claim = _sorter("paper says they", "left")
    heads = "".join(f"{_sorter(COLUMNS[key].heading)}{claim}" for key in GROWTH)
    return (
        '<section><h2>Do magnitudes grow?</h2><table class="growth sortable"><thead><tr>'
        f"{_sorter('config', 'left')}{heads}</tr></thead>{''.join(bodies)}</table>"
        '<p class="note">Mean magnitude at the end over that at the start, or for '
        "activations at a quarter of the training, in the encoder or decoder group and "
        "resolution where the factor is largest: 1 is standing still. What the paper "
        "says is of its Fig. 3 and 15.</p></section>"
    )
