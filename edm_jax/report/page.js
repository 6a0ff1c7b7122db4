"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const DASHES = ["solid", "9px,4px", "2px,3px", "9px,3px,2px,3px"];
  const SYMBOLS = {
    ring: "circle", hollow: "circle", diamond: "diamond", cross: "x-thin", triangle: "triangle-right",
  };
  const MOST_END_LABELS = 12;
  const LINE = 13; // pixels from one end label to the next

  // What a reader chose; kept over the reloads of a page that follows its runs.
  const KEY = "edm-comparison:" + location.pathname;
  const state = { off: [], theme: null, seeds: false, against: "parent", sort: null };
  try {
    Object.assign(state, JSON.parse(sessionStorage.getItem(KEY) || "{}"));
  } catch { /* no storage for files on disk here */ }
  const off = new Set(state.off.filter((i) => i < data.configs.length));
  const keep = () => {
    state.off = [...off];
    try {
      sessionStorage.setItem(KEY, JSON.stringify(state));
    } catch { /* as above */ }
  };

  // Plotly reads a few tags and %{...} in texts: those of runs are shown as they are.
  const plain = (text) =>
    String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");
  const prose = (text) => plain(text).replaceAll("σ_rel", "σ<sub>rel</sub>");
  const element = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));

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
    const [name, chart, panel] = target.dataset.plot.split("/");
    const made = figure(data.charts[name][chart], panel);
    drawn.add(target);
    Plotly.react(target, made.traces, made.layout, CONFIG).then(() => label(target, made.ends));
  }
  const redraw = () => drawn.forEach((target) => { if (target.offsetParent) draw(target); });

  function palette() {
    const style = getComputedStyle(root);
    const named = (name) => style.getPropertyValue("--" + name).trim();
    const colour = (c) => c === undefined || c === "ink" || c === "soft" ? named(c ?? "ink")
      : typeof c === "number" ? named("s" + c) : c;
    return { named, colour };
  }
  function axis(named, title, more) {
    const font = { size: 12, color: named("soft") };
    return {
      gridcolor: named("rule"), linecolor: named("soft"), linewidth: 1, showline: true,
      zeroline: false, ticks: "outside", ticklen: 4, tickcolor: named("soft"),
      tickfont: { size: 11.5 }, automargin: true, exponentformat: "none", nticks: 6,
      title: { text: prose(title ?? ""), font, standoff: 8 }, ...more,
    };
  }
  // Plain numbers, also over less than a decade.
  const LOG = { type: "log", tickformat: "~g", nticks: 3 };
  const faded = (hex) =>
    `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},0.18)`;
  function configName(i) {
    const config = data.configs[i];
    return `<b>${plain(config.label)}</b> ${plain(config.title)}`;
  }
  const hover = (...words) =>
    `${words.filter(Boolean).join("<br>")}<br>%{y:.4g} at %{x}<extra></extra>`;

  function lineTraces(line, named, colour) {
    const x = data.x[line.x];
    const config = data.configs[line.c];
    const note = line.seed ?? (line.run ? `${line.run}: ${line.state}`
      : line.low && config ? `mean of ${config.n} seeds` : "");
    const drawnLine = {
      x, y: line.y, mode: line.dots ? "lines+markers" : "lines", type: "scatter",
      name: plain(line.label ?? ""), opacity: line.seed ? 0.55 : line.run ? 0.75 : 1,
      line: {
        color: colour(line.colour), width: line.seed ? 0.8 : 1.7,
        dash: line.run ? "4px,3px" : DASHES[line.dash ?? 0],
      },
      hovertemplate: hover(config && configName(line.c), plain(line.label ?? ""), plain(note)),
    };
    if (!line.low) return [drawnLine];
    const side = { x, mode: "lines", type: "scatter", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    const fill = { fill: "tonexty", fillcolor: faded(colour(line.colour)) };
    return [{ ...side, y: line.low }, { ...side, ...fill, y: line.high }, drawnLine];
  }
  function markTrace(mark, named, colour) {
    const open = mark.kind === "ring" || mark.kind === "hollow";
    const edge = mark.kind === "diamond" ? named("ink") : colour(mark.colour);
    return {
      x: [mark.x], y: [mark.y], mode: "markers", type: "scatter", cliponaxis: false, showlegend: false,
      marker: {
        symbol: SYMBOLS[mark.kind], size: mark.kind === "hollow" ? 7 : 9,
        color: open ? named("card") : colour(mark.colour), line: { width: 2, color: edge },
      },
      hovertemplate: hover(mark.c !== undefined && configName(mark.c), plain(mark.label ?? "")),
    };
  }
  function figure(chart, place) {
    const { named, colour } = palette();
    const panel = chart.panels[place];
    const lines = panel.lines.filter((k) => !off.has(k.c) && (state.seeds || !k.seed));
    const marks = (panel.marks ?? []).filter((m) => !off.has(m.c));
    const traces = [
      ...lines.flatMap((line) => lineTraces(line, named, colour)),
      ...marks.map((mark) => markTrace(mark, named, colour)),
    ];
    const ends = new Map();
    for (const line of lines.filter((k) => k.c !== undefined && !k.seed)) {
      const { label: text } = data.configs[line.c];
      const end = { x: data.x[line.x].at(-1), y: line.y.at(-1), text, colour: colour(line.colour) };
      const wanted = !line.run || !ends.has(line.c); // the mean's, where there is one
      if (end.y !== null && text.length < 12 && wanted) ends.set(line.c, end);
    }
    const widest = Math.max(0, ...[...ends.values()].map((end) => end.text.length));
    const scale = panel.top ? { range: [0, panel.top], nticks: 4 }
      : panel.scale === "zero" ? { rangemode: "tozero" } : panel.scale === "log" ? LOG : {};
    const small = !panel.y && !panel.legend;
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: !!panel.legend,
      font: { family: named("sans"), size: 12, color: named("ink") }, hovermode: "closest",
      hoverlabel: { bgcolor: named("card"), bordercolor: named("soft"), font: { color: named("ink"), size: 12.5 } },
      margin: { l: small ? 36 : 56, r: ends.size > MOST_END_LABELS ? 14 : 14 + 8 * widest, t: 8, b: small ? 24 : 46 },
      dragmode: matchMedia("(hover: none)").matches ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: named("soft"), activecolor: named("ink") },
      legend: { orientation: "h", x: 0, y: -0.26, yanchor: "top", font: { size: 11 }, itemwidth: 30 },
      xaxis: axis(named, small ? "" : chart.x, { ...(small ? { nticks: 4 } : {}), ...(chart.log ? LOG : { rangemode: "tozero" }) }),
      yaxis: axis(named, panel.y, scale),
    };
    return { traces, layout, ends: [...ends.values()] };
  }
  // Each config's label at the end of its curve, pushed apart.
  function label(target, ends) {
    if (!ends.length || ends.length > MOST_END_LABELS) return;
    const { yaxis } = target._fullLayout;
    for (const end of ends) end.height = yaxis._length - yaxis.d2p(end.y);
    ends.sort((a, b) => a.height - b.height);
    // Labels that would overlap stand in a group around the mean of their places.
    const groups = [];
    ends.forEach((end, i) => {
      let group = { count: 1, sum: end.height - i * LINE };
      const mean = (g) => g.sum / g.count;
      while (groups.length && mean(groups.at(-1)) > mean(group)) {
        const below = groups.pop();
        group = { count: below.count + group.count, sum: below.sum + group.sum };
      }
      groups.push(group);
    });
    groups.flatMap((g) => Array(g.count).fill(g.sum / g.count)).forEach((at, i) => {
      ends[i].at = at + i * LINE;
    });
    const annotations = ends.map((end) => ({
      x: end.x, y: yaxis.type === "log" ? Math.log10(end.y) : end.y, xanchor: "left", yanchor: "middle",
      xshift: 3, yshift: end.at - end.height, showarrow: false, text: `<b>${plain(end.text)}</b>`,
      font: { size: 12, color: end.colour },
    }));
    Plotly.relayout(target, { annotations });
  }

  // ---- Figures that show one config at a time ----
  for (const select of all("[data-rows]")) {
    const rows = all(`#${select.dataset.rows} .row`);
    for (const row of rows) {
      const option = element("option", row.dataset.name);
      option.value = row.dataset.config;
      select.append(option);
    }
    const finished = rows.filter((row) => data.configs[row.dataset.config].n);
    select.value = (finished.at(-1) ?? rows[0]).dataset.config;
    const choose = () => rows.forEach((row) => { row.hidden = row.dataset.config !== select.value; });
    select.addEventListener("change", choose);
    choose();
  }

  // ---- Chips: one legend for every figure and table ----
  const chips = all(".chip");
  function showConfigs() {
    for (const chip of chips) press(chip, !off.has(+chip.dataset.config));
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
  const seeds = byId("seeds");
  if (seeds) seeds.checked = state.seeds;
  seeds?.addEventListener("change", () => {
    state.seeds = seeds.checked;
    redraw();
    keep();
  });

  // ---- Tables: sorted by a click on a heading ----
  const headings = (table) => all("thead tr:last-child th", table);
  const order = (body, column) => {
    let at = 0;
    for (const cell of body.rows[0].cells) {
      if (at === column) return cell.dataset.v === undefined ? cell.textContent : +cell.dataset.v;
      at += cell.colSpan;
      if (at > column) return null; // within a message
    }
    return null;
  };
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
  const sort = byId("sort");
  for (const table of all("table.sortable")) {
    headings(table).forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        sortBy(table, column, direction);
        if (table === results) state.sort = [column, direction];
        keep();
      });
      if (!sort || table !== results) return;
      const option = element("option", head.textContent);
      option.value = column;
      sort.append(option);
    });
  }
  sort?.addEventListener("change", () => sortBy(results, +sort.value, "ascending"));
  if (state.sort) sortBy(results, ...state.sort);
  const against = all("[data-against]");
  function showAgainst() {
    for (const button of against) press(button, button.dataset.against === state.against);
    for (const which of against.length ? ["parent", "baseline"] : []) {
      for (const part of all(".vs-" + which)) part.hidden = which !== state.against;
    }
  }
  for (const button of against) {
    button.addEventListener("click", () => {
      state.against = button.dataset.against;
      showAgainst();
      keep();
    });
  }
  showAgainst();

  // ---- Runs: filled in when opened ----
  let records = null;
  function fill(target) {
    if (target.filled) return;
    target.filled = true;
    records ??= read("records");
    const [c, place] = target.id.split("-").slice(1);
    const run = records.runs[c][place];
    const whole = (value) => {
      if (Array.isArray(value)) return value.map(whole);
      if (value === null || typeof value !== "object") return value;
      if (Object.keys(value).length === 1 && typeof value.text === "number") return records.texts[value.text];
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, whole(v)]));
    };
    const block = (heading, text) => {
      if (text) target.append(element("h4", heading), element("pre", text));
    };
    // Texts of several lines, such as a diff, are readable only by themselves.
    const record = (heading, value) => {
      const fields = Object.entries(whole(value));
      const isLong = ([, v]) => typeof v === "string" && v.includes("\n");
      const rest = Object.fromEntries(fields.filter((field) => !isLong(field)));
      block(heading, fields.length ? JSON.stringify(rest, null, 2) : "absent");
      for (const [key, text] of fields.filter(isLong)) block(`${heading}: ${key}`, text);
    };
    target.append(element("p", run.path, "note"));
    if (run.message) target.append(element("p", run.message, run.state === "failed" ? "bad" : ""));
    if (run.alerts.length) {
      const list = element("ul");
      for (const alert of run.alerts) {
        const at = alert.nimg === undefined ? "" : `${(+alert.nimg).toLocaleString("en")} images: `;
        list.append(element("li", at + (alert.message || alert.about || "")));
      }
      const more = run.more_alerts ? ` (the last ${run.alerts.length} of ${run.alerts.length + run.more_alerts})` : "";
      target.append(element("h4", "alerts" + more), list);
    }
    record("status.json", run.status);
    record("config.json", { ...records.configs[c], ...run.config });
    record("provenance.json", run.provenance);
    block("log.txt, its end", run.log);
  }
  for (const target of all("details.run")) {
    target.addEventListener("toggle", () => { if (target.open) fill(target); });
  }
  function openAnchor() {
    const target = /^#run-\d+-\d+$/.test(location.hash) && byId(location.hash.slice(1));
    if (!target) return;
    target.hidden = false;
    target.open = true;
    fill(target);
    target.scrollIntoView();
  }
  addEventListener("hashchange", openAnchor);
  for (const link of all('a[href^="#run-"]')) {
    link.addEventListener("click", () => { if (link.hash === location.hash) openAnchor(); });
  }

  // ---- Light and dark ----
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = byId("theme");
  function showTheme() {
    if (state.theme) root.dataset.theme = state.theme;
    else delete root.dataset.theme;
    theme.textContent = (state.theme ? state.theme === "dark" : dark.matches) ? "light" : "dark";
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
    root.dataset.theme = "light";
    all("[data-plot]").filter((target) => target.offsetParent).forEach(draw);
  });
  addEventListener("afterprint", showTheme);

  showTheme();
  showConfigs();
  for (const target of all("[data-plot]")) near.observe(target);
  openAnchor();
})();
