"""The page's tables: results by config, and the growth of magnitudes."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from edm_jax.report.columns import COLUMNS, GROWTH
from edm_jax.report.runs import Entry
from edm_jax.report.tables import Cell, Comparison, Row, reference_text

BAD = ("failed", "preempted", "unknown", "other data", "same seed", "not evaluated")
LEFT = ("config", "line", "state", "paper says they")  # columns of words
# What Fig. 3 and 15 show (Sec. 2.2 and 2.3): weights, activations.
PAPER_SAYS = {
    "c": ("grow", "grow"),
    "d": ("grow, faster than in C", "stay constant"),
    "e": ("stay constant", "stay constant"),
    "f": ("stay constant", "—"),
    "g": ("stay constant", "—"),
}


def letter(entry: Entry) -> str:
    """A config's label in its colour."""
    colour = f"--c:var(--s{entry.look.slot})"
    return f'<span class="letter" style="{colour}">{escape(entry.label)}</span>'


def prose(text: str) -> str:
    """Escapes one of our own texts, with σ_rel as a subscript."""
    return escape(text).replace("σ_rel", "σ<sub>rel</sub>")


def has_paper(rows: Sequence[Row]) -> bool:
    """Whether the paper has numbers for any of the configs."""
    return any(row.paper != (None, None) for row in rows)


def results_table(comparison: Comparison) -> str:
    """The main table, with two lines per config: its numbers and its changes."""
    rows, baseline = comparison.rows, comparison.baseline
    asked = [column for column in comparison.columns if column.shown]
    columns = dict.fromkeys([*asked, *comparison.shown])
    shown = [column for column in columns if column.key not in GROWTH]
    lines = [comparison.cells(row, shown) for row in rows]
    if not has_paper(rows):
        lines = [[cell for cell in line if cell.group != "paper"] for line in lines]
    names = {"paper": "paper,<br>ImageNet-512", "config": "config"}
    names["measured"] = "measured here"
    names["difference"] = f"difference<br>to {escape(baseline)}"
    groups = Counter(cell.group for cell in lines[0])
    over = "".join(
        f'<th class="group" colspan="{count}">{names[group]}</th>'
        for group, count in groups.items()
    )
    # The heading of the group above says the rest.
    heads = [
        cell.heading.removesuffix(", paper").removesuffix(f", against {baseline}")
        for cell in lines[0]
    ]
    heads = ["config", *heads, "state"]
    bodies = []
    for row, cells in zip(rows, lines, strict=True):
        first = groups["paper"] + groups["config"]
        numbers = "".join(map(_cell, cells if row.has_numbers else cells[:first]))
        if not row.has_numbers:
            message = escape(row.message or "no numbers yet")
            span = f'colspan="{len(cells) - first}"'
            numbers += f'<td class="message" {span}>{message}</td>'
        bad = " bad" if row.state in BAD else ""
        state = _cell(Cell("", "state", row.state, mark=f"left state{bad}"))
        changes = f'<td colspan="{len(heads)}">{_changes(row)}</td>'
        body = f"{_name(row)}{numbers}{state}</tr><tr class='changes'>{changes}"
        bodies.append(_body(body, row.entry))
    options = "".join(
        f'<option value="{place}">{escape(head)}</option>'
        for place, head in enumerate(heads)
    )
    # Wide: many metrics do not fit the page's width.
    return f"""<div class="tools js"><span>Changes against</span>
<label><input type="radio" name="against" value="parent" checked> the parent</label>
<label><input type="radio" name="against" value="baseline"> the baseline,
{escape(baseline)}</label>
<label class="narrow">Sort by <select id="sort">{options}</select></label></div>
<div class="wide">{table("results", heads, bodies, f"<th></th>{over}<th></th>")}</div>"""


def table(
    kind: str, heads: Sequence[str], bodies: Iterable[str], over: str = ""
) -> str:
    """A table that is sorted by clicking on a heading.

    Args:
        kind: its CSS class.
        heads: the headings of its columns.
        bodies: rows, made by `_body`.
        over: a line above the headings.
    """
    line = "".join(
        f'<th scope="col" class="{"left" if head in LEFT else ""}" aria-sort="none">'
        f'<button type="button">{prose(head)}</button></th>'
        for head in heads
    )
    over = f"<tr>{over}</tr>" if over else ""
    return (
        f'<table class="{kind} sortable"><thead>{over}<tr>{line}</tr></thead>'
        f"{''.join(bodies)}</table>"
    )


def _body(cells: str, entry: Entry | None = None) -> str:
    config = f' data-config="{entry.place}"' if entry else ""
    return f"<tbody{config}><tr>{cells}</tr></tbody>"


def _name(row: Row) -> str:
    """The row's heading: its label in the config's colour, and its title."""
    name = letter(row.entry) + escape(row.entry.title)
    return f'<th scope="row" data-v="{row.entry.place}">{name}</th>'


def _cell(cell: Cell) -> str:
    """A cell; an interval after the number is set apart, and its value sorts it."""
    number, plus_minus, interval = escape(cell.text).partition(" ± ")
    if plus_minus:
        width, of, p = interval.partition(" (")
        number += f' <span class="pm">± {width}</span>'
        number += f' <span class="pm">({p}</span>' if of else ""
    kind = f' class="{cell.mark}"' if cell.mark else ""
    finite = cell.value is not None and math.isfinite(cell.value)
    sort = f' data-v="{cell.value:.9g}"' if finite else ""
    return f'<td{kind}{sort} data-label="{escape(cell.heading)}">{number}</td>'


def _changes(row: Row) -> str:
    """Changes against the parent and the baseline, and links to the runs."""
    entry = row.entry
    parent = _chips(row.changed, reference_text(row).strip(), entry.reference)
    base = _chips(row.changed_from_baseline, "", not entry.is_baseline)
    inside = (
        f'<div class="vs-parent">{parent}</div><div class="vs-baseline">{base}</div>'
    )
    if row.has_numbers and row.message:
        inside += f'<div class="bad">{escape(row.message)}</div>'
    links = " ".join(
        f'<a href="#run-{entry.place}-{place}">{escape(run.name)}</a>'
        for place, run in enumerate(entry.runs)
        if any(run is each for each in row.about)
    )
    return f'{inside}<div class="runs">{links}</div>'


def _chips(changed: Sequence[str], against: str, has: object) -> str:
    if not has:
        return "<span>—</span>"
    lead = f"<span>{escape(against)}</span>" if against else ""
    chips = "".join(
        f"<code>{escape(text).replace('-&gt;', '→', 1)}</code> " for text in changed
    )
    return lead + (chips or "<span>nothing changed</span>")


def plain_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of texts; the first column holds row headings."""
    bodies = []
    for name, *texts in lines:
        cells = [Cell("", *each) for each in zip(heads[1:], texts, strict=True)]
        head = f'<th scope="row">{escape(name)}</th>'
        bodies.append(_body(head + "".join(map(_cell, cells))))
    return table("growth", heads, bodies)


def growth_table(rows: Sequence[Row]) -> str:
    """The paper's claims about magnitudes beside the runs' results."""
    bodies = []
    for row in rows:
        if row.mean("weight_growth") is None:
            continue
        known = "" if row.entry.variant else row.entry.letter
        cells = []
        for key, claim in zip(GROWTH, PAPER_SAYS.get(known, "——"), strict=True):
            column, text = COLUMNS[key], row.text(COLUMNS[key])
            factor = text if text == "—" else f"× {text}"
            says = f"paper says {column.heading.split()[0]}"
            cells.append(Cell("", column.heading, factor, row.mean(key)))
            cells.append(Cell("", says, claim, mark="left"))
        bodies.append(_body(_name(row) + "".join(map(_cell, cells)), row.entry))
    if not bodies:
        return ""
    heads = ["config"]
    for key in GROWTH:
        heads += [COLUMNS[key].heading, "paper says they"]
    return (
        f"<section><h2>Do magnitudes grow?</h2>{table('growth', heads, bodies)}"
        '<p class="note">Mean magnitude at the end over that at the start (for '
        "activations, at a quarter of the training), in the encoder or decoder group and "
        "resolution with the largest factor; 1 means no growth. The paper’s claims are "
        "from its Fig. 3 and 15.</p></section>"
    )
