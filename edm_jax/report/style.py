"""The style sheet of the page."""

STYLE_SHEET = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #24262b; --soft: #62666f;
  --rule: #e0e2e6; --tint: #f1f2f4; --bad: #b3261e;
  --s0: #6f7680; --s1: #0a6cb3; --s2: #27a3d9; --s3: #0b8f68;
  --s4: #c28e06; --s5: #cb4f0f; --s6: #8c45a8;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans",
    sans-serif;
  --serif: Charter, "Iowan Old Style", "Source Serif 4", "Noto Serif", Georgia, serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1c1f23; --ink: #dfe1e5; --soft: #9a9fa9;
    --rule: #34383f; --tint: #25292e; --bad: #ff8a80;
    --s0: #9aa1ac; --s1: #5aa7ea; --s2: #7fd0f5; --s3: #3fc396;
    --s4: #e2b23c; --s5: #f4814a; --s6: #c58be0;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 17px/1.55 var(--serif); }
main { max-width: 1160px; margin: 0 auto; padding: 3rem 2rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; font-weight: 600; }
h2 { font-size: 1.3rem; margin: 3rem 0 .8rem; font-weight: 600; }
p { max-width: 44rem; margin: 0 0 1rem; }
.meta, figcaption, .note { color: var(--soft); }
figcaption, .note { font-size: .92rem; max-width: 48rem; margin: .9rem 0 0; }
table { border-collapse: collapse; width: 100%; font: 13.5px/1.4 var(--sans);
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: right; vertical-align: baseline; }
th { font-weight: 600; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom;
  line-height: 1.25; }
thead tr:last-child th { border-bottom: 1px solid var(--ink); }
sub { line-height: 0; }
thead .group { text-align: center; white-space: nowrap; border-bottom: 1px solid var(--rule); }
tbody { border-bottom: 1px solid var(--rule); }
tbody th { text-align: left; min-width: 10rem; }
td.left, th.left { text-align: left; }
td.best { font-weight: 700; }
.letter { color: var(--c); font-weight: 700; margin-right: .45rem; }
.state { color: var(--soft); }
.state.bad { color: var(--bad); }
td.message { text-align: left; color: var(--soft); }
tr.changes td { text-align: left; padding: 0 .55rem .6rem; line-height: 1.8; }
code { font: 12px var(--mono); background: var(--tint); border-radius: 4px;
  padding: .12rem .38rem; overflow-wrap: anywhere;
  display: inline-block; max-width: 100%; line-height: 1.5; }
.changes code { margin-right: .25rem; }
.changes span { color: var(--soft); margin-right: .35rem; }
figure { margin: 0; }
.plot { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 1rem; overflow-x: auto; }
.plot svg { display: block; width: 100%; height: auto; min-width: 700px;
  color: var(--ink); }
.plot svg text { font-family: var(--sans) !important; }
.grids { display: grid; gap: 1rem .9rem; align-items: end;
  grid-template-columns: repeat(auto-fill, minmax(min(var(--w), 44vw), 1fr)); }
.grids div { font: 12.5px/1.35 var(--sans); }
.grids img { display: block; width: 100%; margin-top: .35rem; border-radius: 4px;
  image-rendering: pixelated; border: 1px solid var(--rule); }
.growth { max-width: 50rem; }
details { border-top: 1px solid var(--rule); padding: .55rem 0; }
summary { cursor: pointer; font: 14px var(--sans); }
pre { font: 12px/1.5 var(--mono); background: var(--tint); border-radius: 6px;
  padding: .8rem 1rem; overflow-x: auto; margin: .6rem 0; }
@media (max-width: 760px) {
  body { font-size: 16px; }
  main { padding: 1.6rem 1rem 3rem; }
  h1 { font-size: 1.55rem; }
  table, tbody, tr, td, tbody th { display: block; width: 100%; }
  thead { display: none; }
  tbody { padding: .7rem 0; }
  tbody th { padding: 0 0 .25rem; font-size: 15px; }
  td, td.message, tr.changes td { padding: .1rem 0; }
  td[data-label] { display: flex; justify-content: space-between; gap: 1rem; }
  td[data-label]::before { content: attr(data-label); color: var(--soft);
    font-weight: 400; }
  .plot { padding: .6rem; }
  .plot svg { min-width: 800px; }
}
@media print { details { display: none; } .plot { break-inside: avoid; } }
"""
