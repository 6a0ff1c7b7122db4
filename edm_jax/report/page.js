"use strict";
(() => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const root = document.documentElement;
  const DASHES = ["solid", "9px,4px", "2px,3px", "9px,3px,2px,3px"];
  const SYMBOLS = {
    ring: "circle", hollow: "circle", diamond: "diamond", cross: "x-thin", triangle: "triangle-right",
  };
  const MOST_END_LABELS = 12;
  const LINE = 13; // pixels from one end label to the next

  // What a reader chose; kept over the reloads of a page that follows its runs.
  const KEY = "edm-comparison:" + location.pathname;
  const state = { off: [], theme: "", seeds: false, against: "parent", sort: null };
  try {
    Object.assign(state, JSON.parse(sessionStorage.getItem(KEY) || "{}"));
  } catch { /* no storage for files on disk here */ }
  const off = new Set(state.off.filter((i) => i < data.configs.length));
  function keep() {
    state.off = [...off];
    try {
      sessionStorage.setItem(KEY, JSON.stringify(state));
    } catch { /* as above */ }
  }

  // Plotly reads a few tags and %{...} in texts: those of runs are shown as they are.
  const plain = (text) =>
    String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");
  const prose = (text) => plain(text).replaceAll("σ_rel", "σ<sub>rel</sub>");

  // The colour of a variable of the style sheet (a number is a config's), as it is now.
  const probe = document.body.appendChild(document.createElement("i"));
  const colours = new Map();
  function colour(name = "ink") {
    if (!colours.has(name)) {
      probe.style.color = /^#/.test(name) ? name : `var(--${name >= 0 ? "s" : ""}${name})`;
      colours.set(name, getComputedStyle(probe).color);
    }
    return colours.get(name);
  }
  const faded = (name) => colour(name).replace("rgb(", "rgba(").replace(")", ", 0.18)");

  // ---- Plots: each drawn when it comes near the window, and again on every change ----
  const drawn = new Set();
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "500px" });
  const CONFIG = {
    displaylogo: false, responsive: true, plotlyServerURL: "", doubleClick: "reset",
    // These and no others: one of Plotly's own sends the figure to its makers.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], showTips: false,
    toImageButtonOptions: { format: "svg" },
  };
  function draw(target) {
    const [name, place, panel] = target.dataset.plot.split("/");
    const chart = data.charts[name][place];
    const { lines = [], marks = [], ...axes } = chart.panels[panel];
    const shown = lines.filter((k) => !off.has(k.config) && (state.seeds || !k.seed));
    const traces = [
      ...shown.flatMap(lineTraces),
      ...marks.filter((mark) => !off.has(mark.config)).map(markTrace),
    ];
    const ends = endsOf(shown);
    drawn.add(target);
    Plotly.react(target, traces, layout(chart, axes, ends), CONFIG).then(() => label(target, ends));
  }
  const redraw = () => drawn.forEach((target) => { if (target.offsetParent) draw(target); });

  function hover(place, ...notes) {
    const { label: name, title } = data.configs[place] ?? {};
    const words = [name && `<b>${plain(name)}</b> ${plain(title)}`, ...notes.map((n) => plain(n ?? ""))];
    return `${words.filter(Boolean).join("<br>")}<br>%{y:.4g} at %{x}<extra></extra>`;
  }
  function lineTraces(line) {
    const x = data.x[line.x];
    const { n } = data.configs[line.config] ?? {};
    const note = line.seed ?? (line.aside ? `${line.aside.run}: ${line.aside.state}`
      : line.low && n && `mean of ${n} seeds`);
    const middle = {
      x, y: line.y, mode: line.dots ? "lines+markers" : "lines", type: "scatter",
      name: plain(line.label ?? ""), opacity: line.seed ? 0.55 : line.aside ? 0.75 : 1,
      line: {
        color: colour(line.colour), width: line.seed ? 0.8 : 1.7,
        dash: line.aside ? "4px,3px" : DASHES[line.dash],
      },
      hovertemplate: hover(line.config, line.label, note),
    };
    if (!line.low) return [middle];
    const side = { x, mode: "lines", type: "scatter", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    const fill = { fill: "tonexty", fillcolor: faded(line.colour) };
    return [{ ...side, y: line.low }, { ...side, ...fill, y: line.high }, middle];
  }
  function markTrace(mark) {
    const open = mark.kind === "ring" || mark.kind === "hollow";
    return {
      x: [mark.x], y: [mark.y], mode: "markers", type: "scatter", cliponaxis: false, showlegend: false,
      marker: {
        symbol: SYMBOLS[mark.kind], size: mark.kind === "hollow" ? 7 : 9,
        color: colour(open ? "card" : mark.colour),
        line: { width: 2, color: colour(mark.kind === "diamond" ? "ink" : mark.colour) },
      },
      hovertemplate: hover(mark.config, mark.label),
    };
  }
  // Plain numbers, also over less than a decade.
  const LOG = { type: "log", tickformat: "~g", nticks: 3 };
  function axis(title, more) {
    return {
      gridcolor: colour("rule"), linecolor: colour("soft"), linewidth: 1, showline: true,
      zeroline: false, ticks: "outside", ticklen: 4, tickcolor: colour("soft"),
      tickfont: { size: 11.5 }, automargin: true, exponentformat: "none", nticks: 6,
      ...(title ? { title: { text: prose(title), font: { size: 12, color: colour("soft") }, standoff: 8 } } : {}), ...more,
    };
  }
  function layout(chart, panel, ends) {
    const scale = panel.top ? { range: [0, panel.top], nticks: 4 }
      : panel.scale === "zero" ? { rangemode: "tozero" } : panel.scale === "log" ? LOG : {};
    const small = !panel.y && !panel.legend;
    const widest = ends.length > MOST_END_LABELS ? 0 : Math.max(0, ...ends.map((end) => end.text.length));
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: !!panel.legend,
      font: { family: getComputedStyle(byId("theme")).fontFamily, size: 12, color: colour() }, hovermode: "closest",
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("soft"), font: { color: colour(), size: 12.5 } },
      margin: { l: small ? 36 : 56, r: 14 + 8 * widest, t: 8, b: small ? 24 : 46 },
      dragmode: matchMedia("(hover: none)").matches ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour() },
      legend: { orientation: "h", x: 0, y: -0.26, yanchor: "top", font: { size: 11 }, itemwidth: 30 },
      xaxis: axis(small ? "" : chart.x, { ...(small ? { nticks: 4 } : {}), ...(chart.log ? LOG : { rangemode: "tozero" }) }),
      yaxis: axis(panel.y, scale),
    };
  }
  // Where each config's curve ends: the mean's, where there is one.
  function endsOf(lines) {
    const ends = new Map();
    for (const line of lines.filter((k) => data.configs[k.config] && !k.seed)) {
      const text = data.configs[line.config].label;
      const end = { x: data.x[line.x].at(-1), y: line.y.at(-1), text, colour: colour(line.colour) };
      const wanted = !line.aside || !ends.has(line.config);
      if (end.y !== null && text.length < 12 && wanted) ends.set(line.config, end);
    }
    return [...ends.values()];
  }
  // Each config's label at the end of its curve, pushed apart.
  function label(target, ends) {
    if (!ends.length || ends.length > MOST_END_LABELS) return;
    const { yaxis } = target._fullLayout;
    for (const end of ends) end.height = yaxis._length - yaxis.d2p(end.y);
    ends.sort((a, b) => a.height - b.height);
    // Labels that would overlap stand in a group around the mean of their places.
    const groups = [];
    const mean = (group) => group.sum / group.count;
    ends.forEach((end, i) => {
      let group = { count: 1, sum: end.height - i * LINE };
      while (groups.length && mean(groups.at(-1)) > mean(group)) {
        const below = groups.pop();
        group = { count: below.count + group.count, sum: below.sum + group.sum };
      }
      groups.push(group);
    });
    // None below the axis, where the numbers stand.
    const places = groups.flatMap((g) => Array(g.count).fill(Math.max(LINE / 2, mean(g))));
    const annotations = ends.map((end, i) => ({
      x: end.x, y: yaxis.type === "log" ? Math.log10(end.y) : end.y, xanchor: "left", yanchor: "middle",
      xshift: 3, yshift: places[i] + i * LINE - end.height, showarrow: false, text: `<b>${plain(end.text)}</b>`,
      font: { size: 12, color: end.colour },
    }));
    Plotly.relayout(target, { annotations });
  }

  // ---- Figures that show one config at a time ----
  for (const select of all("[data-rows]")) {
    const choose = () => {
      for (const row of all(`#${select.dataset.rows} .row`)) row.hidden = row.dataset.config !== select.value;
    };
    select.addEventListener("change", choose);
    choose();
  }

  // ---- Chips: one legend for every figure and table ----
  const chips = all(".chip");
  function showConfigs() {
    for (const chip of chips) chip.setAttribute("aria-pressed", String(!off.has(+chip.dataset.config)));
    for (const part of all("tbody[data-config], .grids [data-config], .run[data-config], .rows:not(.one) > .row")) {
      part.hidden = off.has(+part.dataset.config);
    }
    redraw();
    keep();
  }
  const showOnly = (kept) => {
    off.clear();
    data.configs.forEach((_, i) => { if (!kept(i)) off.add(i); });
    showConfigs();
  };
  for (const chip of chips) {
    const i = +chip.dataset.config;
    chip.addEventListener("click", () => {
      if (!off.delete(i)) off.add(i);
      showConfigs();
    });
    chip.addEventListener("dblclick", () => showOnly((j) => i === j));
  }
  byId("all").addEventListener("click", () => showOnly(() => true));
  byId("none").addEventListener("click", () => showOnly(() => false));
  const filter = byId("filter");
  let waiting = 0;
  filter?.addEventListener("input", () => {
    clearTimeout(waiting);
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    waiting = setTimeout(() => {
      const texts = data.configs.map((c) => `${c.label} ${c.title}`);
      for (const row of all(".results tbody")) {
        texts[+row.dataset.config] += " " + all(".changes", row).map((e) => e.textContent).join(" ");
      }
      const found = (i) => words.every((word) => texts[i].toLowerCase().includes(word));
      for (const chip of chips) chip.hidden = !found(+chip.dataset.config);
      showOnly(found);
    }, 200);
  });
  // A box is ticked or not; of the buttons of one name one is, and its value counts.
  for (const input of all("#seeds, [name=against]")) {
    const isBox = input.type === "checkbox";
    input.checked = isBox ? state.seeds : input.value === state.against;
    input.addEventListener("change", () => {
      if (isBox) state.seeds = input.checked;
      else state.against = input.value;
      if (isBox) redraw();
      keep();
    });
  }

  // ---- Tables: sorted by a click on a heading ----
  const headings = (table) => all("thead tr:last-child th", table);
  function order(body, column) {
    let at = 0;
    for (const cell of body.rows[0].cells) {
      if (at === column) return cell.dataset.v === undefined ? cell.textContent : +cell.dataset.v;
      at += cell.colSpan;
      if (at > column) return null; // within a message
    }
    return null;
  }
  function sortBy(table, column, direction) {
    const bodies = [...table.tBodies].map((body) => [order(body, column), body]);
    const numbers = bodies.some(([v]) => typeof v === "number");
    const worth = ([v]) => (numbers ? typeof v === "number" : v !== null);
    const compare = (a, b) => numbers ? a[0] - b[0] : String(a[0]).localeCompare(String(b[0]));
    const sign = direction === "descending" ? -1 : 1;
    const sorted = bodies.filter(worth).sort((a, b) => sign * compare(a, b));
    for (const [, body] of [...sorted, ...bodies.filter((b) => !worth(b))]) table.append(body);
    headings(table).forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
  }
  const results = document.querySelector("table.results");
  for (const table of all("table.sortable")) {
    headings(table).forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        sortBy(table, column, direction);
        if (table === results) state.sort = [column, direction];
        keep();
      });
    });
  }
  byId("sort").addEventListener("change", (event) => sortBy(results, +event.target.value, "ascending"));
  if (state.sort) sortBy(results, ...state.sort);

  // ---- Light and dark ----
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = byId("theme");
  function showTheme() {
    root.style.colorScheme = state.theme;
    theme.textContent = (state.theme ? state.theme === "dark" : dark.matches) ? "light" : "dark";
    colours.clear();
    redraw();
  }
  theme.addEventListener("click", () => {
    state.theme = theme.textContent;
    showTheme();
    keep();
  });
  dark.addEventListener("change", showTheme);
  // On paper it is light, and every figure is drawn.
  addEventListener("beforeprint", () => {
    root.style.colorScheme = "light";
    colours.clear();
    all("[data-plot]").filter((target) => target.offsetParent).forEach(draw);
  });
  addEventListener("afterprint", showTheme);

  showTheme();
  showConfigs();
  for (const target of all("[data-plot]")) near.observe(target);
})();
