"""The page: one self-contained HTML file, light and dark."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from edm_jax.report.columns import GROWTH
from edm_jax.report.curves import Chart
from edm_jax.report.embedded import charts_json
from edm_jax.report.figures import Figure
from edm_jax.report.following import Following
from edm_jax.report.grids import grids
from edm_jax.report.introduction import introduction
from edm_jax.report.notes import table_notes
from edm_jax.report.records import records
from edm_jax.report.results import (
    growth_table,
    has_paper,
    letter,
    plain_table,
    prose,
    results_table,
)
from edm_jax.report.runs import Entry
from edm_jax.report.tables import Comparison

BYTES = 14_000_000  # of the page; samples get the bytes that the rest leaves
ENDED = ("done", "failed", "damaged")
MANY = 12  # with more configs than this, the page has a search field
HERE = Path(__file__).parent


def render(comparison: Comparison, following: Following | None = None) -> str:
    """Renders the page as HTML that needs no other file and no network.

    Args:
        comparison: what it shows.
        following: set while the page is being rewritten, so that it reloads itself.
    """
    study, entries, rows = comparison.study, comparison.entries, comparison.rows
    figures = comparison.figures
    charts = {figure.name: figure.charts(entries) for figure in figures}
    sections = [_section(f, charts[f.name], entries) for f in figures]
    if comparison.by_field:
        sections.insert(1, plain_table(*comparison.by_field.table()))
    scripts = [get_plotlyjs(), (HERE / "page.js").read_text(encoding="utf-8")]
    before = f"""<main>
<header><h1>{escape(study)}</h1>
<button type="button" id="theme" class="js quiet">dark or light</button></header>
{introduction(entries)}
{_as_of(entries, following)}
{_chip_bar(entries)}
<section><h2>Results</h2>
{results_table(comparison)}
{_notes(comparison)}</section>
{"".join(sections)}
{growth_table(rows)}
"""
    after = f"{records(entries)}</main>{charts_json(charts, entries)}"
    rest = (before, after, *scripts)
    left = BYTES - sum(len(part.encode(errors="replace")) for part in rest)
    body = before + grids(entries, left) + after
    head = "<noscript><style>.js { display: none !important; }</style></noscript>\n"
    if following:
        seconds = max(2, following.seconds)
        head += f'<meta http-equiv="refresh" content="{seconds:.0f}">\n'
    return document(study, body, scripts, head=head)


def _section(figure: Figure, charts: Sequence[Chart], entries: Sequence[Entry]) -> str:
    """A figure's heading, the elements that the script draws in, and its caption."""
    if not charts:
        return ""
    rows = []
    for place, chart in enumerate(charts):
        head, attributes = "", 'class="panels"'
        if chart.config is not None:
            entry = entries[chart.config]
            head = f"<h3>{letter(entry)}{escape(entry.heading)}</h3>"
            attributes = f'class="panels row" data-config="{chart.config}"'
        panels = "".join(
            f'<div class="panel"><h4>{prose(panel.title)}</h4><div class="plot" role="img" '
            f'aria-label="{escape(panel.title)}" '
            f'data-plot="{figure.name}/{place}/{number}"></div></div>'
            for number, panel in enumerate(chart.panels)
        )
        rows.append(
            f'<div {attributes} style="--n:{len(chart.panels)}">{head}{panels}</div>'
        )
    key = "".join(
        f'<span style="--c:var(--{f"s{colour}" if isinstance(colour, int) else colour})">'
        f'<i class="line dash{dash}"></i>{escape(text)}</span>'
        for text, colour, dash in charts[0].key
    )
    key = f'<div class="key js">{key}</div>' if key else ""
    select = _select(figure, charts, entries) if figure.one_config else ""
    return f"""<section id="{figure.name}"><h2>{figure.title}</h2><figure>{select}{key}
<div class="rows {"one " if figure.one_config else ""}js">{"".join(rows)}</div>
<noscript><p class="note">A script draws the figures, but scripts are turned off. The
figures are also beside this page, in figures/.</p></noscript>
<figcaption>{prose(figure.caption)}</figcaption></figure></section>
"""


def _select(figure: Figure, charts: Sequence[Chart], entries: Sequence[Entry]) -> str:
    """Selects the config that a figure shows, at first the last finished one."""
    shown = [entries[chart.config or 0] for chart in charts]
    first = [entry for entry in shown if entry.measured][-1:] or shown
    options = "".join(
        f'<option value="{entry.place}"{" selected" if entry is first[0] else ""}>'
        f"{escape(f'{entry.label}  {entry.heading}')}</option>"
        for entry in shown
    )
    return (
        '<div class="tools js"><label>Config '
        f'<select data-rows="{figure.name}">{options}</select></label></div>'
    )


def document(
    title: str, body: str, scripts: Sequence[str] = (), style: str = "", head: str = ""
) -> str:
    """An HTML page that needs no other file.

    Args:
        title: escaped here.
        body: inside <body>, before the scripts.
        scripts: run in this order.
        style: added to page.css.
        head: added to <head>.
    """
    css = (HERE / "page.css").read_text(encoding="utf-8")
    # Whatever a run's texts contain, nothing is fetched and no other script runs.
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{css}{style}</style>
{head}</head>
<body>
{body}{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _as_of(entries: Sequence[Entry], following: Following | None) -> str:
    """When it was written and what is still running, while that may change."""
    if following is None:
        return ""
    states = Counter(run.state for entry in entries for run in entry.runs)
    said = "; ".join(
        f"{n} {state}" for state, n in states.items() if state not in ENDED
    )
    said = (
        f"As of {following.time.isoformat(' ', 'seconds')}; {said or 'none running'}."
    )
    return f'<p class="live">{escape(said)}</p>'


def _chip_bar(entries: Sequence[Entry]) -> str:
    """One legend for all figures and tables, with a button for each config."""
    chips = []
    many = len(entries) > MANY
    for entry in entries:
        name = escape(entry.heading)
        # With many configs there is room for labels only.
        title = f' title="{name}"' if many else ""
        chips.append(
            f'<button type="button" class="chip" aria-pressed="true"{title} '
            f'data-config="{entry.place}" style="--c:var(--s{entry.look.slot})">'
            f'<i class="line dash{entry.look.dash}"></i><b>{escape(entry.label)}</b>'
            f"{'' if many else f'<span>{name}</span>'}</button>"
        )
    said = "show configs that contain"
    search = (
        f'<input type="search" id="filter" placeholder="{said} …" aria-label="{said}">'
    )
    several = any(len(entry.measured) > 1 for entry in entries)
    seeds = '<label><input type="checkbox" id="seeds"> single seeds</label>'
    return (
        '<nav class="bar" aria-label="Configs shown"><div class="tools js">'
        f'{search if many else ""}<button type="button" id="all">all</button>'
        '<button type="button" id="none">none</button>'
        f'{seeds if several else ""}</div><div class="chips">{"".join(chips)}</div></nav>'
    )


def _notes(comparison: Comparison) -> str:
    """Says how the results were tested, what is doubtful, and what the columns are."""
    own = "; ".join(
        f"{c.heading}: {c.about}"
        for c in comparison.columns
        if c.shown and c.key not in GROWTH
    )
    own = f"{own[0].upper()}{own[1:]}. The lowest held-out loss is in bold."
    if has_paper(comparison.rows):
        own = (
            "The paper’s columns are from its Table 1 (FID on ImageNet-512, size S) and "
            f"cannot be compared with the values measured here. {own}"
        )
    notes = [*table_notes(comparison), own]
    return "".join(f'<p class="note">{prose(note)}</p>' for note in notes)
