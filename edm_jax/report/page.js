"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const DASHES = ["solid", "9px,4px", "2px,3px", "9px,3px,2px,3px"];
  const RESOLUTION_SLOTS = [1, 3, 4, 5, 6, 2, 0];
  const MOST_MAGNITUDES = 12; // configs drawn at once
  const MOST_END_LABELS = 12;
  const LINE = 13; // pixels from one end label to the next
  const APART = 8; // columns whose largest values differ more have an axis for each row

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

  const shown = () => data.configs.map((_, i) => i).filter((i) => !off.has(i));
  // Plotly reads a few tags and %{...} in texts: those of runs are shown as they are.
  const plain = (text) =>
    String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");
  const element = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  // ---- Colours ----
  const colours = () => {
    const style = getComputedStyle(root);
    const of = (name) => style.getPropertyValue("--" + name).trim();
    return {
      ink: of("ink"), soft: of("soft"), rule: of("rule"), card: of("card"), sans: of("sans"),
      slots: [0, 1, 2, 3, 4, 5, 6].map((i) => of("s" + i)),
    };
  };
  const faded = (hex, alpha) =>
    `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;

  // ---- Plots: each drawn when it comes near the window, and again on every change ----
  const plots = new Map(); // element -> function that returns {traces, layout, ends}
  const drawn = new Set();
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "500px" });
  const plot = (target, make) => {
    plots.set(target, make);
    near.observe(target);
  };
  const forget = (target) => {
    near.unobserve(target);
    plots.delete(target);
    if (drawn.delete(target)) Plotly.purge(target);
  };
  const CONFIG = {
    displaylogo: false, responsive: true, plotlyServerURL: "", doubleClick: "reset",
    // These and no others: one of Plotly's own sends the figure to its makers.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], showTips: false,
    toImageButtonOptions: { format: "svg" },
  };
  function draw(target) {
    const made = plots.get(target)();
    drawn.add(target);
    Plotly.react(target, made.traces, made.layout, CONFIG).then(() => {
      label(target, made);
      if (target.watched) return;
      target.watched = true;
      target.on("plotly_relayout", (change) => retick(target, change));
    });
  }
  const redraw = () => drawn.forEach(draw);

  const axis = (c, more) => ({
    gridcolor: c.rule, gridwidth: 1, linecolor: c.soft, linewidth: 1, showline: true,
    zeroline: false, ticks: "outside", ticklen: 4, tickcolor: c.soft,
    tickfont: { size: 11.5 }, automargin: true, exponentformat: "none", ...more,
  });
  const layout = (c, more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: c.sans, size: 12, color: c.ink }, hovermode: "closest",
    hoverlabel: { bgcolor: c.card, bordercolor: c.soft, font: { color: c.ink, size: 12.5 } },
    margin: { l: 52, r: 14, t: 8, b: 44 }, dragmode: matchMedia("(hover: none)").matches ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: c.soft, activecolor: c.ink },
    ...more,
  });
  // A logarithmic axis with plain numbers, also over less than a decade.
  function logTicks(low, high) {
    let ticks = [];
    if (high / low > 6) {
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
        for (const m of high / low > 2e3 ? [1] : [1, 2, 5]) ticks.push(m * 10 ** e);
      }
    } else {
      const rough = (high - low) / 5;
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
      for (let v = Math.ceil(low / step) * step; v <= high * 1.0001; v += step) ticks.push(v);
    }
    ticks = ticks.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    return { tickmode: "array", tickvals: ticks, ticktext: ticks.map((v) => String(+v.toPrecision(4))) };
  }
  function logAxis(c, traces, more) {
    let low = Infinity, high = 0;
    for (const t of traces) for (const v of t.y) if (v > 0) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
    if (!high) [low, high] = [0.1, 1];
    const gap = (high / low) ** 0.04 * 1.004;
    const ends = [low / gap, high * gap];
    return axis(c, { type: "log", range: ends.map(Math.log10), ...logTicks(...ends), ...more });
  }
  function retick(target, change) {
    const y = target._fullLayout.yaxis;
    if (y.type !== "log" || change.annotations || "yaxis.tickvals" in change) return;
    const { tickvals, ticktext } = logTicks(...y.range.map((v) => 10 ** v));
    Plotly.relayout(target, { "yaxis.tickvals": tickvals, "yaxis.ticktext": ticktext });
  }
  // Each config's label at the end of its curve, pushed apart.
  function label(target, made) {
    if (!made.ends || !made.ends.length || made.ends.length > MOST_END_LABELS) return;
    const { yaxis } = target._fullLayout;
    const height = (end) => yaxis._length - yaxis.d2p(end.y);
    const ends = [...made.ends].sort((a, b) => height(a) - height(b));
    // Labels that would overlap stand in a group around their middle.
    const groups = [];
    for (const end of ends) {
      let group = { ends: [end], middle: height(end) };
      while (groups.length) {
        const before = groups.at(-1);
        const room = (before.ends.length + group.ends.length) * LINE / 2;
        if (group.middle - before.middle >= room) break;
        groups.pop();
        const together = [...before.ends, ...group.ends];
        const middle = together.reduce((sum, e) => sum + height(e), 0) / together.length;
        group = { ends: together, middle };
      }
      groups.push(group);
    }
    for (const group of groups) {
      const half = (group.ends.length * LINE) / 2;
      group.middle = Math.max(half, Math.min(group.middle, yaxis._length - half));
    }
    const annotations = groups.flatMap((group) => group.ends.map((end, i) => ({
      x: end.x, y: yaxis.type === "log" ? Math.log10(end.y) : end.y, xanchor: "left", yanchor: "middle",
      xshift: 3, yshift: group.middle + (i - (group.ends.length - 1) / 2) * LINE - height(end),
      showarrow: false, text: `<b>${plain(end.text)}</b>`, font: { size: 12, color: end.colour },
    })));
    Plotly.relayout(target, { annotations });
  }

  // ---- Loss and EMA length ----
  const name = (i) => {
    const config = data.configs[i];
    return `<b>${plain(config.label)}</b> ${plain(config.title)}`;
  };
  function curveTraces(curve, c) {
    const config = data.configs[curve.c];
    const colour = c.slots[config.slot];
    const x = data.x[curve.x];
    const note = curve.seed ? `<br>${plain(curve.seed)}`
      : curve.run ? `<br>${plain(curve.run)}: ${plain(curve.state)}`
        : curve.low ? `<br>mean of ${config.n} seeds` : "";
    const line = {
      x, y: curve.y, mode: "lines", type: "scatter",
      line: { color: colour, width: curve.seed ? 0.8 : 1.8, dash: curve.run ? "4px,3px" : DASHES[config.dash] },
      opacity: curve.seed ? 0.55 : curve.run ? 0.75 : 1,
      hovertemplate: `${name(curve.c)}${note}<br>%{y:.4g} at %{x}<extra></extra>`,
    };
    if (curve.run) {
      const last = x.length - 1;
      const cross = {
        x: [x[last]], y: [curve.y[last]], mode: "markers", type: "scatter",
        marker: { symbol: curve.state === "running" ? "triangle-right" : "x-thin", size: 8, color: colour, line: { width: 2, color: colour } },
        hovertemplate: line.hovertemplate,
      };
      return [line, cross];
    }
    if (!curve.low) return [line];
    const side = { x, mode: "lines", type: "scatter", line: { width: 0 }, hoverinfo: "skip" };
    const fill = { fill: "tonexty", fillcolor: faded(colour, 0.18) };
    return [{ ...side, y: curve.low }, { ...side, ...fill, y: curve.high }, line];
  }
  function curveFigure(figure, panel) {
    const c = colours();
    const visible = panel.curves.filter((k) => !off.has(k.c) && (state.seeds || !k.seed));
    const traces = visible.flatMap((curve) => curveTraces(curve, c));
    for (const curve of visible.filter((k) => k.best !== undefined)) {
      const colour = c.slots[data.configs[curve.c].slot];
      traces.push({
        x: [data.x[curve.x][curve.best]], y: [curve.y[curve.best]], mode: "markers", type: "scatter", cliponaxis: false,
        marker: { symbol: "circle", size: 9, color: c.card, line: { color: colour, width: 2 } },
        hovertemplate: `${name(curve.c)}: optimum<br>%{y:.4g} at %{x}<extra></extra>`,
      });
    }
    for (const point of (panel.traditional || []).filter((p) => !off.has(p.c))) {
      traces.push({
        x: [point.at[0]], y: [point.at[1]], mode: "markers", type: "scatter",
        marker: { symbol: "diamond", size: 8, color: c.slots[0], line: { color: c.ink, width: 1 } },
        hovertemplate: `${name(point.c)}: traditional EMA<br>%{y:.4g} at %{x:.3f}<extra></extra>`,
      });
    }
    const ends = new Map();
    const whole = visible.filter((k) => !k.seed && k.y.length);
    for (const curve of whole) {
      const config = data.configs[curve.c];
      const end = { x: data.x[curve.x].at(-1), y: curve.y.at(-1), text: config.label, colour: c.slots[config.slot] };
      const wanted = !curve.run || !ends.has(curve.c); // the mean's, where there is one
      if (end.y !== null && config.label.length < 12 && wanted) ends.set(curve.c, end);
    }
    const text = (words) => ({ text: words, font: { size: 12, color: c.soft }, standoff: 8 });
    const x = axis(c, { title: text(figure.x), rangemode: "tozero", nticks: 6 });
    const yTitle = { title: text(panel.y) };
    const y = panel.linear ? axis(c, { rangemode: "tozero", nticks: 6, ...yTitle }) : logAxis(c, traces, yTitle);
    const widest = Math.max(0, ...[...ends.values()].map((end) => end.text.length));
    const right = ends.size > MOST_END_LABELS ? 14 : 14 + 8 * widest;
    return { traces, ends: [...ends.values()], layout: layout(c, { xaxis: x, yaxis: y, margin: { l: 56, r: right, t: 8, b: 46 } }) };
  }
  for (const target of all("[data-figure]")) {
    const figure = data[target.dataset.figure];
    const panel = figure.panels[+target.dataset.panel];
    plot(target, () => curveFigure(figure, panel));
  }

  // ---- Magnitudes: a row of four panels for each config ----
  const PANELS = ["activations, max", "activations, mean", "weights, max", "weights, mean"];
  const resolution = (group) => +group.match(/\d+/)[0];
  const side = (group) => group.slice(0, 3);
  const details = data.details;
  const resolutions = [...new Set(details.flatMap((d) =>
    d.magnitudes ? Object.keys(d.magnitudes.panels[0]).map(resolution) : []))].sort((a, b) => b - a);
  const slotOf = (group) => RESOLUTION_SLOTS[Math.max(0, resolutions.indexOf(resolution(group))) % 7];
  const top = (i, p) => Math.max(0, ...Object.values(details[i].magnitudes.panels[p]).flat());
  const narrow = matchMedia("(max-width: 760px)");
  function magnitudeFigure(i, tops) {
    const c = colours();
    const { x, panels } = details[i].magnitudes;
    const traces = [];
    const annotations = [];
    const made = {};
    panels.forEach((groups, p) => {
      const k = p ? p + 1 : "";
      const [column, line] = narrow.matches ? [p % 2, p >> 1] : [p, 0];
      const [columns, lines] = narrow.matches ? [2, 2] : [4, 1];
      const gap = narrow.matches ? 0.13 : 0.055;
      const width = (1 - gap * (columns - 1)) / columns;
      const left = column * (width + gap);
      const yTop = lines === 1 ? 1 : line ? 0.4 : 1;
      const yLow = lines === 1 ? 0 : line ? 0 : 0.6;
      made["xaxis" + k] = axis(c, { domain: [left, left + width], anchor: "y" + k, rangemode: "tozero", nticks: 4, automargin: false });
      made["yaxis" + k] = axis(c, { domain: [yLow, yTop], anchor: "x" + k, range: [0, 1.08 * (tops[p] || 1)], nticks: 4, automargin: false });
      annotations.push({
        text: PANELS[p], x: left, y: yTop, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom",
        yshift: 4, showarrow: false, font: { size: 11.5, color: c.soft },
      });
      for (const [group, y] of Object.entries(groups)) {
        traces.push({
          x: data.x[x], y, xaxis: "x" + k, yaxis: "y" + k, mode: "lines", type: "scatter",
          line: { color: c.slots[slotOf(group)], width: 1.5, dash: side(group) === "enc" ? "solid" : "5px,3px" },
          hovertemplate: `${group}: ${PANELS[p]}<br>%{y:.4g} at %{x}<extra></extra>`,
        });
      }
    });
    return { traces, layout: layout(c, { ...made, annotations, margin: { l: 36, r: 20, t: 24, b: 24 } }) };
  }
  const magnitudes = byId("magnitudes");
  const magnitudesOf = byId("magnitudes-of");
  function magnitudeRows() {
    if (!magnitudes) return;
    const wanted = magnitudesOf && magnitudesOf.value !== "first" ? [+magnitudesOf.value] : shown();
    const configs = wanted.filter((i) => details[i].magnitudes).slice(0, MOST_MAGNITUDES);
    const rows = new Map(all("[data-row]", magnitudes).map((row) => [+row.dataset.row, row]));
    for (const [i, row] of rows) {
      if (configs.includes(i)) continue;
      forget(row.lastChild);
      row.remove();
    }
    for (const i of configs) {
      let row = rows.get(i);
      if (!row) {
        row = element("div", undefined, "panel");
        row.dataset.row = i;
        const place = element("div", undefined, "plot row");
        place.setAttribute("role", "img");
        place.setAttribute("aria-label", `Magnitudes of ${data.configs[i].label}`);
        row.append(heading(i), place);
      }
      magnitudes.append(row);
    }
    const tops = PANELS.map((_, p) => {
      const each = configs.map((i) => top(i, p)).filter((v) => v > 0);
      return Math.max(...each) > APART * Math.min(...each) ? null : Math.max(...each);
    });
    for (const row of all("[data-row]", magnitudes)) {
      const i = +row.dataset.row;
      plot(row.lastChild, () => magnitudeFigure(i, tops.map((t, p) => t ?? top(i, p))));
    }
  }
  function heading(i) {
    const config = data.configs[i];
    const made = element("h3");
    const letter = element("span", config.label, "letter");
    letter.style.setProperty("--c", `var(--s${config.slot})`);
    made.append(letter, config.title + (config.n ? "" : " (not finished)"));
    return made;
  }
  function keyOfResolutions() {
    const key = byId("magnitude-key");
    if (!key) return;
    const add = (text, slot, dash) => {
      const item = element("span", text);
      const line = element("i", undefined, "line " + dash);
      line.style.setProperty("--c", slot === null ? "var(--ink)" : `var(--s${slot})`);
      item.prepend(line);
      key.append(item);
    };
    for (const r of resolutions) add(`${r}×${r}`, slotOf("enc_" + r), "dash0");
    add("encoder", null, "dash0");
    add("decoder", null, "dash1");
  }

  // ---- Ranges of sigma and learning rates of one config ----
  const sigmaOf = byId("sigma-of");
  const RAMP = ["#5e4fa2", "#3d7fbd", "#38a09a", "#63a644", "#b59a16", "#d97a1c", "#cf4a3c", "#a6325f"];
  function rangeName(below, i) {
    if (i === 0) return `σ < ${below[0]}`;
    return below[i] === null ? `σ > ${below[i - 1]}` : `${below[i - 1]} to ${below[i]}`;
  }
  function detailFigure(kind) {
    const c = colours();
    const detail = details[+sigmaOf.value] || {};
    const from = kind === "rates" ? detail.rates : detail.sigma;
    const line = (y, text, colour, dash = "solid") => ({
      x: data.x[from.x], y, mode: "lines", type: "scatter", line: { color: colour, width: 1.5, dash },
      name: plain(text), hovertemplate: `${plain(text)}<br>%{y:.4g} at %{x}<extra></extra>`,
    });
    let traces = [];
    if (from && kind === "rates") {
      traces = Object.entries(from.curves).map(([group, y]) => /^(enc|dec)_\d/.test(group)
        ? line(y, group.replace("_", " "), c.slots[slotOf(group)], side(group) === "enc" ? "solid" : "5px,3px")
        : line(y, group, group === "all" ? c.ink : c.soft, "1px,2px"));
    } else if (from) {
      traces = from[kind].map((y, i) => line(y, rangeName(from.below, i), RAMP[i % RAMP.length]));
    }
    const title = { text: data.images, font: { size: 12, color: c.soft }, standoff: 8 };
    const x = axis(c, { title, rangemode: "tozero", nticks: 5 });
    const y = kind === "logvar" ? axis(c, { nticks: 6 }) : logAxis(c, traces);
    const legend = { orientation: "h", x: 0, y: -0.26, yanchor: "top", font: { size: 11 }, itemwidth: 30 };
    return { traces, layout: layout(c, { xaxis: x, yaxis: y, showlegend: true, legend }) };
  }
  for (const target of all("[data-detail]")) plot(target, () => detailFigure(target.dataset.detail));
  function fillChoices() {
    const options = (select, allowed) => {
      data.configs.forEach((config, i) => {
        if (!allowed(i)) return;
        const option = element("option", `${config.label}  ${config.title}`);
        option.value = i;
        select.append(option);
      });
    };
    if (magnitudesOf) {
      const first = element("option", `the first ${MOST_MAGNITUDES} shown above`);
      first.value = "first";
      magnitudesOf.append(first);
      options(magnitudesOf, (i) => details[i].magnitudes);
      magnitudesOf.addEventListener("change", () => { magnitudeRows(); redraw(); });
    }
    if (sigmaOf) {
      options(sigmaOf, (i) => details[i].sigma || details[i].rates);
      const measured = [...sigmaOf.options].filter((o) => data.configs[+o.value].n);
      sigmaOf.value = (measured.at(-1) || sigmaOf.options[0]).value;
      sigmaOf.addEventListener("change", redraw);
    }
  }

  // ---- Chips: one legend for every figure and table ----
  const chips = all(".chip");
  function showConfigs() {
    for (const chip of chips) chip.setAttribute("aria-pressed", String(!off.has(+chip.dataset.config)));
    for (const part of all("tbody[data-config], .grids [data-config], .run[data-config]")) {
      part.hidden = off.has(+part.dataset.config);
    }
    magnitudeRows();
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
  if (filter) {
    const texts = data.configs.map((c) => `${c.label} ${c.title}`.toLowerCase());
    for (const row of all(".results tbody")) {
      const chipsOfRow = all(".changes", row).map((e) => e.textContent).join(" ");
      texts[+row.dataset.config] += " " + chipsOfRow.toLowerCase();
    }
    let waiting = 0;
    filter.addEventListener("input", () => {
      clearTimeout(waiting);
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      waiting = setTimeout(() => {
        const found = (i) => words.every((word) => texts[i].includes(word));
        for (const chip of chips) chip.hidden = !found(+chip.dataset.config);
        showOnly(found);
      }, 200);
    });
  }
  const seeds = byId("seeds");
  if (seeds) {
    seeds.checked = state.seeds;
    seeds.addEventListener("change", () => {
      state.seeds = seeds.checked;
      redraw();
      keep();
    });
  }

  // ---- Tables: sorted by a click on a heading ----
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
    const heads = all("thead tr:last-child th", table);
    const number = (v) => typeof v === "number";
    const bodies = [...table.tBodies].map((body) => [order(body, column), body]);
    const numbers = bodies.some(([v]) => number(v));
    const worth = ([v]) => (numbers ? number(v) : v !== null);
    const compare = (a, b) => numbers ? a[0] - b[0] : String(a[0]).localeCompare(String(b[0]));
    const sign = direction === "descending" ? -1 : 1;
    const sorted = [...bodies.filter(worth).sort((a, b) => sign * compare(a, b)), ...bodies.filter((b) => !worth(b))];
    for (const [, body] of sorted) table.append(body);
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
  }
  for (const table of all("table.sortable")) {
    all("thead tr:last-child th", table).forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "ascending";
        const direction = up ? "descending" : "ascending";
        sortBy(table, column, direction);
        if (table.classList.contains("results")) {
          state.sort = [column, direction];
          keep();
        }
      });
    });
  }
  const results = document.querySelector("table.results");
  const sort = byId("sort");
  if (sort) {
    all("thead tr:last-child th", results).forEach((head, i) => {
      const option = element("option", head.textContent);
      option.value = i;
      sort.append(option);
    });
    sort.addEventListener("change", () => sortBy(results, +sort.value, "ascending"));
  }
  if (state.sort) sortBy(results, ...state.sort);
  function showAgainst() {
    for (const button of all("[data-against]")) {
      button.setAttribute("aria-pressed", String(button.dataset.against === state.against));
    }
    for (const which of ["parent", "baseline"]) {
      for (const part of all(".vs-" + which)) part.hidden = which !== state.against;
    }
  }
  const against = all("[data-against]");
  for (const button of against) {
    button.addEventListener("click", () => {
      state.against = button.dataset.against;
      showAgainst();
      keep();
    });
  }
  if (against.length) showAgainst();

  // ---- Runs: filled in when opened ----
  let facts = null;
  function fill(target) {
    if (target.filled) return;
    target.filled = true;
    facts ??= read("facts");
    const run = facts.runs[+target.id.slice(4)];
    const whole = (value) => {
      if (Array.isArray(value)) return value.map(whole);
      if (value === null || typeof value !== "object") return value;
      if (Object.keys(value).length === 1 && typeof value.text === "number") return facts.texts[value.text];
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, whole(v)]));
    };
    const block = (heading, text) => {
      if (text) target.append(element("h4", heading), element("pre", text));
    };
    // Texts of several lines, such as a diff, are readable only by themselves.
    const record = (heading, value) => {
      const fields = Object.entries(whole(value));
      const long = fields.filter(([, v]) => typeof v === "string" && v.includes("\n"));
      const rest = Object.fromEntries(fields.filter(([, v]) => !(typeof v === "string" && v.includes("\n"))));
      block(heading, fields.length ? JSON.stringify(rest, null, 2) : "absent");
      for (const [key, text] of long) block(`${heading}: ${key}`, text);
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
    record("config.json", { ...facts.configs[run.c], ...run.config });
    record("provenance.json", run.provenance);
    block("log.txt, its end", run.log);
  }
  for (const target of all("details.run")) {
    target.addEventListener("toggle", () => { if (target.open) fill(target); });
  }
  function openAnchor() {
    const target = /^#run-\d+$/.test(location.hash) && byId(location.hash.slice(1));
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
    theme.textContent = (state.theme ? state.theme === "dark" : dark.matches) ? "light" : "dark";
    redraw();
  }
  theme.addEventListener("click", () => {
    state.theme = theme.textContent;
    showTheme();
    keep();
  });
  dark.addEventListener("change", showTheme);
  narrow.addEventListener("change", redraw);
  // On paper it is light, and every figure is drawn.
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    plots.forEach((_, target) => draw(target));
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    showTheme();
  });

  keyOfResolutions();
  fillChoices();
  showTheme();
  showConfigs();
  openAnchor();
})();
