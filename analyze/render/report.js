"use strict";
// The page of a report. Everything is drawn from the JSON in #document and from deflated blocks, which follow it in the page
// or are files beside it; text from the corpus only ever reaches the page through textContent.
(() => {
  const doc = JSON.parse(document.getElementById("document").textContent);
  const runs = doc.runs;
  const state = { tab: "overview", run: 0, latent: null, query: "" };
  const $ = (id) => document.getElementById(id);

  function el(tag, attributes, ...children) {
    const svg = ["svg", "g", "path", "line", "rect", "text", "circle"].includes(tag);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== "") node.append(child);
    return node;
  }

  // --- numbers -------------------------------------------------------------------------------------------------------

  const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0, roundingMode: "halfEven" });
  // Three significant digits as Python writes them: a tie goes to the even digit, where toPrecision goes up.
  function rounded(value) {
    const digits = value.toPrecision(60).replace(/e.*|[-.]/g, "").replace(/^0+/, "");
    const down = /^[1-9]\d[02468]50*$/.test(digits);
    return Number((down ? value * (1 - 1e-9) : value).toPrecision(3));
  }
  function significant(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (Number.isInteger(value)) return grouped.format(value);
    const size = Math.abs(value);
    if (size >= 1000) return grouped.format(value);
    if (size >= 0.001) return String(rounded(value));
    return value.toExponential(1);
  }
  function show(value, format) {
    if (value === null || value === undefined) return "–";
    if (format === "percent") return `${rounded(100 * value)}%`;
    if (format === "probability" && value < 1e-300) return "< 1e-300"; // underflow, not certainty
    if (format === "flag") return value ? "yes" : "no";
    if (format === "text") return String(value).replace(/\r\n|\r|\n/g, "↵").replace(/\t/g, "⇥");
    return significant(value);
  }

  // One format for all numbers of a column: as many decimals as give the middle one three digits.
  function alike(values, format) {
    const scale = format === "percent" ? 100 : 1;
    if (!["number", "percent"].includes(format)) return (v) => show(v, format);
    const sizes = Float64Array.from(values.filter((v) => typeof v === "number" && v !== 0), (v) => Math.abs(v * scale));
    if (sizes.every(Number.isInteger)) return (v) => show(v, format);
    const digits = Math.max(0, Math.min(4, 2 - Math.floor(Math.log10(sizes.sort()[sizes.length >> 1]))));
    const fixed = new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" });
    return (v) => {
      if (typeof v !== "number") return show(v, format);
      const text = fixed.format(v * scale);
      return v !== 0 && !/[1-9]/.test(text) ? show(v, format) : text + (format === "percent" ? "%" : "");
    };
  }

  const interval = (figure) => figure.interval.map((end) => show(end, figure.format)).join("–");

  // --- tips ----------------------------------------------------------------------------------------------------------

  const tip = $("tip");
  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 18}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  function why(text) {
    if (!text) return null;
    const open = (event) => {
      event.stopPropagation();
      const box = event.currentTarget.getBoundingClientRect();
      showTip(text, box.left, box.bottom - 10);
    };
    return el("button", { class: "why", type: "button", "aria-label": `What this means: ${text}`, onclick: open, onmouseenter: open, onmouseleave: hideTip, onblur: hideTip }, "?");
  }
  addEventListener("scroll", hideTip, true);
  addEventListener("click", hideTip);

  // --- lazily inflated blocks ----------------------------------------------------------------------------------------

  const blocks = new Map();
  const beside = $("document").dataset.beside; // the folder of the blocks, if they are files
  function block(id) {
    if (!blocks.has(id)) {
      const node = $(id);
      blocks.set(id, node ? inflate(node.textContent.trim()) : beside ? loadedText(id).then(inflate) : Promise.resolve(null));
    }
    return blocks.get(id);
  }
  // A file of a block is a script with one call, loaded("id", "text"): the one thing that a page from file:// may load.
  const waiting = new Map();
  globalThis.loaded = (id, text) => { if (waiting.has(id)) waiting.get(id)(text); waiting.delete(id); };
  function loadedText(id) {
    return new Promise((resolve) => {
      waiting.set(id, resolve);
      const script = el("script", {
        src: `${beside}/${id}.js`,
        onload: () => { script.remove(); if (waiting.has(id)) lacks(id); },
        onerror: () => { script.remove(); lacks(id); },
      });
      document.head.append(script);
    });
  }
  function lacks(id) {
    blocks.delete(id); // opened again, it is looked for again
    waiting.delete(id);
    if (!$("lacking")) document.body.insertBefore(el("p", { id: "lacking", role: "alert" }), $("main"));
    $("lacking").textContent = `${beside}/${id}.js was not found beside this page, or is damaged. The page needs the whole folder of the report: copy it again, or run pipeline analyze.`;
  }
  async function inflate(text) {
    const decoded = atob(text), bytes = new Uint8Array(decoded.length);
    for (let i = 0; i < decoded.length; i += 1) bytes[i] = decoded.charCodeAt(i); // a million latents: a call for each takes seconds
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }
  // What the columns of a run are; null for one without latents.
  const columnsOf = (r) => (runs[r].trained ? block(`columns-${r}`) : Promise.resolve(null));
  // The values of some columns, put into them.
  async function fill(r, data, wanted) {
    await Promise.all(wanted.filter((c) => !c.values).map(async (c) => {
      c.values = await block(`column-${r}-${data.columns.indexOf(c)}`);
      c.written = alike(c.values, c.format);
      c.sparse = 10 * c.values.filter((v) => v !== "" && v !== null).length < data.n;
    }));
  }
  // Of one latent: [the values of its columns, the blocks of its panel, its partners in other runs].
  async function latentOf(r, data, latent) {
    return (await block(`panels-${r}-${Math.floor(latent / data.panel_block)}`))[latent % data.panel_block];
  }

  // --- charts --------------------------------------------------------------------------------------------------------

  const RIGHT = 10, TOP = 12, PLOT = 198, SMALL = 138, SLOT = 20;
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const widthOf = (text) => pen.measureText(text).width;
  function ticks(low, high, wanted, whole) {
    if (!(high > low)) return [low];
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw - 1e-12 && (!whole || Number.isInteger(s))) || raw;
    const out = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) out.push(Math.abs(t) < step * 1e-6 ? 0 : Number(t.toPrecision(12)));
    return out;
  }
  const tickLabel = (t) => (t !== 0 && (Math.abs(t) < 0.001 || Math.abs(t) >= 1e5) ? t.toExponential(0).replace("e+", "e") : String(Number(t.toPrecision(4))));

  // How the names of bars stand below them: level where each has room, else slanted; bins in a panel are named as room allows.
  function naming(names, slot, small) {
    const widest = Math.max(...names.map(widthOf));
    if (widest + 6 <= slot) return { every: 1, depth: 0 };
    if (small) return { every: Math.ceil((widest + 6) / slot), depth: 0 };
    return { every: 1, slanted: true, depth: widest * Math.sin(SLANT), reach: (name) => widthOf(name) * Math.cos(SLANT) };
  }
  const SLANT = (40 * Math.PI) / 180;

  // Names over the plot, at their marks but inside of it, and in as many lines as keep them apart.
  function placeMarks(marks, fx, left, right) {
    const lines = [];
    return marks.map(([x, label]) => {
      const half = widthOf(label) / 2, at = Math.max(left + half, Math.min(right - half, fx(x)));
      let line = lines.findIndex((taken) => taken.every(([a, b]) => at + half + 6 < a || at - half - 6 > b));
      if (line < 0) line = lines.push([]) - 1;
      lines[line].push([at - half, at + half]);
      return { x, label, at, line };
    });
  }

  function drawChart(spec, small, width) {
    const values = spec.series.flatMap((s) => s.y).filter((v) => v !== null && Number.isFinite(v) && (!spec.log_y || v > 0));
    const kind = spec.kind || "bars";
    const svg = el("svg", { role: "img", "aria-label": spec.title + (spec.caption ? `. ${spec.caption}` : "") });
    if (!values.length) {
      svg.setAttribute("viewBox", `0 0 ${width} 60`);
      svg.append(el("text", { x: width / 2, y: 30, "text-anchor": "middle" }, "nothing to draw"));
      return svg;
    }
    const names = typeof spec.x[0] === "string";
    const n = Math.max(...spec.series.map((s) => s.y.length));
    const edges = kind === "bars" && !names && spec.x.length === n + 1;
    const counts = values.every(Number.isInteger), whole = edges && spec.x.every((x) => Math.abs(x % 1) === 0.5);
    let low = spec.log_y ? 10 ** (Math.floor(Math.log10(Math.min(...values))) - 0.35) : Math.min(0, ...values);
    let high = Math.max(...values);
    if (spec.log_y) high = 10 ** Math.ceil(Math.log10(high) + 1e-9);
    if (spec.log_y && high / low < 10) low = high / 10;
    if (low === high) high = low + 1;
    if (!spec.log_y) high += (high - low) * 0.04;
    const yTicks = [];
    if (spec.log_y) for (let p = Math.ceil(Math.log10(low)); p <= Math.round(Math.log10(high)); p += Math.max(1, Math.ceil(Math.log10(high / low) / 6))) yTicks.push(10 ** p);
    else yTicks.push(...ticks(low, high, 5, counts));
    // Left of the plot: the title of the axis, its numbers, and what a slanted name needs beyond its bar.
    let left = 30 + Math.max(...yTicks.map((t) => widthOf(tickLabel(t))));
    let named = { every: 1, depth: 0 };
    if (names) {
      const slot = () => (width - RIGHT - left) / n;
      named = naming(spec.x, slot(), small);
      if (named.slanted) {
        left = Math.max(left, ...spec.x.map((name, i) => named.reach(name) - (i + 0.5) * slot() + 4));
        width = Math.max(width, left + RIGHT + n * SLOT);
      }
    }
    const right = width - RIGHT;
    let x0 = names ? 0 : spec.x[0], x1 = names ? n : spec.x[spec.x.length - 1];
    if (kind === "scatter") { x0 = 0; x1 = x1 * 1.15 || 1; }
    if (whole && n < 5) { x0 -= 2; x1 += 2; } // one bar is a bar, not the background
    const fx = (v) => left + ((v - x0) / (x1 - x0 || 1)) * (right - left);
    const marks = placeMarks(spec.marks || [], fx, left, right);
    const top = TOP + 14 * (marks.length ? 1 + Math.max(...marks.map((m) => m.line)) : 0), bottom = top + (small ? SMALL : PLOT);
    const height = bottom + 40 + named.depth;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.minWidth = named.slanted ? `${width}px` : "";
    const fy = spec.log_y ? (v) => bottom - ((Math.log10(v) - Math.log10(low)) / (Math.log10(high) - Math.log10(low))) * (bottom - top) : (v) => bottom - ((v - low) / (high - low)) * (bottom - top);
    for (const t of yTicks) svg.append(el("line", { class: "grid", x1: left, x2: right, y1: fy(t), y2: fy(t) }), el("text", { class: "tick-y", x: left - 6, y: fy(t) + 4, "text-anchor": "end" }, tickLabel(t)));
    svg.append(el("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    if (names) {
      spec.x.forEach((name, i) => {
        if (i % named.every) return;
        const x = fx(i + 0.5), y = bottom + 14;
        svg.append(named.slanted ? el("text", { class: "name", x: x + 4, y: y - 2, "text-anchor": "end", transform: `rotate(-40 ${x + 4} ${y - 2})` }, name) : el("text", { class: "name", x, y, "text-anchor": "middle" }, name));
      });
    } else for (const t of ticks(x0, x1, Math.max(2, Math.min(8, (right - left) / 60)), whole)) svg.append(el("text", { class: "tick-x", x: fx(t), y: bottom + 14, "text-anchor": "middle" }, tickLabel(t)));
    svg.append(el("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, spec.x_label), el("text", { class: "title-y", x: 12, y: (top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(top + bottom) / 2})` }, spec.y_label));
    const ok = (v) => v !== null && v !== undefined && Number.isFinite(v) && (!spec.log_y || v > 0);
    const base = bottom;
    if (names && kind === "bars") {
      const many = spec.series.length;
      spec.series.forEach((s, k) => s.y.forEach((v, i) => {
        if (!ok(v)) return;
        const w = ((fx(1) - fx(0)) * 0.76) / many, y = fy(v);
        svg.append(el("rect", { class: `bar ${s.role}`, x: fx(i) + (fx(1) - fx(0)) * 0.12 + k * w, y: Math.min(y, base), width: Math.max(1, w - 1), height: Math.abs(base - y), rx: 1.5 }));
      }));
    } else if (edges) {
      for (const s of spec.series) {
        let area = `M ${fx(spec.x[0])} ${base}`, line = "", pen = false;
        s.y.forEach((v, i) => {
          const a = fx(spec.x[i]), b = fx(spec.x[i + 1]), y = ok(v) ? fy(v) : base;
          area += ` L ${a} ${y} L ${b} ${y}`;
          if (ok(v)) { line += `${pen ? " L" : " M"} ${a} ${pen ? y : base} L ${a} ${y} L ${b} ${y}`; pen = true; } else if (pen) { line += ` L ${a} ${base}`; pen = false; }
        });
        if (pen) line += ` L ${fx(spec.x[n])} ${base}`;
        svg.append(el("path", { class: `area ${s.role}`, d: `${area} L ${fx(spec.x[n])} ${base} Z` }), el("path", { class: `line ${s.role}`, d: line || "M 0 0" }));
      }
    } else if (kind === "scatter") {
      const points = spec.series.flatMap((s) => s.y.map((v, i) => [v, i, s.role])).filter(([v]) => ok(v)).map(([v, i, role]) => ({ x: fx(spec.x[i]), y: fy(v), role, name: (spec.labels || [])[i] }));
      // From the top down, so that a name that has to give way moves down and never past the name of a lower point; a
      // moved name is tied to its point by a line.
      points.sort((p, q) => p.y - q.y || p.x - q.x);
      const placed = [];
      for (const p of points) {
        const room = widthOf(p.name) + 12, side = p.x + room <= right || right - p.x > p.x - left ? 1 : -1;
        const from = side > 0 ? p.x : p.x - room, to = from + room;
        let line = p.y + 4;
        while (placed.some((q) => q.from < to && from < q.to && Math.abs(q.line - line) < 12)) line += 1;
        placed.push({ from, to, line });
        if (line > p.y + 5) svg.append(el("line", { class: "axis", x1: p.x, y1: p.y, x2: p.x + side * 8, y2: line - 4 }));
        svg.append(el("circle", { class: `point ${p.role}`, cx: p.x, cy: p.y, r: 4 }), el("text", { x: p.x + side * 10, y: line, "text-anchor": side > 0 ? "start" : "end" }, p.name));
      }
    } else {
      for (const s of spec.series) {
        let d = "", pen = false;
        s.y.forEach((v, i) => { if (ok(v)) { d += `${pen ? " L" : " M"} ${fx(spec.x[i])} ${fy(v)}`; pen = true; } else pen = false; });
        svg.append(el("path", { class: `line ${s.role}`, d: d || "M 0 0" }));
        if (n <= 40) s.y.forEach((v, i) => { if (ok(v)) svg.append(el("circle", { class: `point ${s.role}`, cx: fx(spec.x[i]), cy: fy(v), r: 2.4 })); });
      }
    }
    for (const m of marks) svg.append(el("line", { class: "mark", x1: fx(m.x), x2: fx(m.x), y1: TOP + 14 * m.line + 4, y2: bottom }), el("text", { class: "mark-name", x: m.at, y: TOP + 14 * m.line, "text-anchor": "middle" }, m.label));
    for (let i = 0; i < n; i++) {
      if (kind === "scatter") break;
      const a = names ? fx(i) : edges ? fx(spec.x[i]) : fx(i ? (spec.x[i] + spec.x[i - 1]) / 2 : spec.x[i]);
      const b = names ? fx(i + 1) : edges ? fx(spec.x[i + 1]) : fx(i + 1 < n ? (spec.x[i] + spec.x[i + 1]) / 2 : spec.x[i]);
      const where = names ? spec.x[i] : edges ? `${tickLabel(spec.x[i])} … ${tickLabel(spec.x[i + 1])}` : tickLabel(spec.x[i]);
      const text = `${spec.x_label}: ${where}\n${spec.series.map((s) => `${s.name}: ${significant(s.y[i])}`).join("\n")}`;
      svg.append(el("rect", { class: "hit", x: a, y: top, width: Math.max(1, b - a), height: bottom - top, onmousemove: (e) => showTip(text, e.clientX, e.clientY), onmouseleave: hideTip }));
    }
    return svg;
  }
  const legend = (spec) => el("div", { class: "legend" }, spec.series.map((s) => el("span", {}, el("span", { class: `dot ${s.role}` }), s.name)));
  // A chart is drawn for the width that it has, so that its text is as large as the page's, and again when that changes.
  const MANY = 12;
  const drawn = new WeakMap();
  const fitted = new ResizeObserver((entries) => requestAnimationFrame(() => {
    for (const { target } of entries) if (target.clientWidth && target.clientWidth !== drawn.get(target).width) draw(target, target.clientWidth);
  }));
  function draw(holder, width) {
    const { spec, small } = drawn.get(holder);
    drawn.set(holder, { spec, small, width });
    holder.replaceChildren(drawChart(spec, small, width));
  }
  function chart(spec, small) {
    const holder = el("div", { class: "chart" });
    drawn.set(holder, { spec, small });
    draw(holder, 540);
    fitted.observe(holder);
    return holder;
  }
  const chartFigure = (spec) => el("figure", { class: typeof spec.x[0] === "string" && spec.x.length > MANY ? "wide" : null }, el("h3", {}, spec.title), el("figcaption", {}, spec.caption), spec.series.length > 1 ? legend(spec) : null, chart(spec));

  // --- tables --------------------------------------------------------------------------------------------------------

  const latentLink = (id, run) => el("a", { class: "latent", href: `#latents/${run}/${id}` }, String(id));
  // Names of runs are long and hold no spaces: they may break after these marks, and nowhere else.
  const breaking = (text) => String(text).split(/(?<=[_\-/,])/).map((part, i) => [i ? el("wbr") : null, spaced(part)]);
  // The mark of a leading space is there to tell two tokens apart, and is no part of what they say.
  const spaced = (text) => text.split(/(␣+)/).map((part) => (part.startsWith("␣") ? el("span", { class: "ws" }, part) : part));
  function cell(value, format, run, shown) {
    if (format === "latent") return el("td", {}, value === null ? "–" : latentLink(value, run));
    if (format === "latents") return el("td", { class: "text" }, (value || []).map((id, i) => [i ? ", " : null, latentLink(id, run)]));
    const text = shown ? shown(value) : show(value, format);
    return el("td", { class: format === "text" ? "text" : format === "flag" ? "flag" : null }, format === "text" ? breaking(text) : text);
  }
  const headCell = (c) => el("th", { scope: "col", class: c.format === "text" || c.format === "latents" ? "text" : null }, breaking(c.label), why(c.definition));
  const PHRASE = 60;
  function tableBlock(table, run, open) {
    const SHORT = 15;
    const body = el("tbody");
    // Phrases get a wide column; a remark stands below its row.
    const columns = table.columns.map((c, k) => ({ ...c, k, shown: alike(table.rows.map((row) => row[k]), c.format), phrases: c.format === "text" && table.rows.some((row) => String(row[k] ?? "").length > PHRASE) }));
    const cells = columns.filter((c) => c.format !== "remark"), remarks = columns.filter((c) => c.format === "remark");
    const line = (row) => [
      el("tr", {}, cells.map((c) => { const td = cell(row[c.k], c.format, run, c.shown); if (c.phrases) td.classList.add("phrase"); return td; })),
      ...remarks.filter((c) => row[c.k]).map((c) => el("tr", { class: "below" }, el("td", { class: "text", colspan: cells.length }, el("div", {}, el("b", {}, c.label), ": ", show(row[c.k], "text"))))),
    ];
    const fill = (n) => body.replaceChildren(...table.rows.slice(0, n).flatMap(line));
    fill(SHORT);
    const count = table.total > table.rows.length ? `${grouped.format(table.rows.length)} of ${grouped.format(table.total)}${table.more ? `, all in ${table.more}` : ""}` : grouped.format(table.total);
    const more = table.rows.length > SHORT ? el("button", { type: "button", onclick: (e) => { fill(Infinity); e.currentTarget.remove(); } }, `Show all ${grouped.format(table.rows.length)} listed`) : null;
    return el("details", { class: "table", open: open && table.rows.length > 0 }, el("summary", {}, `${table.title} `, el("span", { class: "count" }, `(${count})`)), el("p", { class: "note" }, table.caption),
      table.rows.length ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title }, el("table", {}, el("thead", {}, el("tr", {}, cells.map(headCell))), body)) : el("p", { class: "note" }, "None."), more ? el("p", {}, more) : null);
  }

  // --- overview ------------------------------------------------------------------------------------------------------

  const badge = (run) => (run.role === "control" ? el("span", { class: "badge" }, "control") : null);
  function figureTable() {
    const rows = [];
    const first = new Map();
    for (const run of runs) for (const [name, report] of Object.entries(run.reports)) for (const [key, figure] of Object.entries(report.figures)) {
      if (!first.has(name)) first.set(name, { title: report.title, figures: new Map() });
      if (!first.get(name).figures.has(key)) first.get(name).figures.set(key, figure);
    }
    for (const [name, group] of first) {
      rows.push(el("tr", { class: "group" }, el("th", { colspan: runs.length + 1 }, group.title)));
      for (const [key, figure] of group.figures) {
        const found = runs.map((run) => run.reports[name] && run.reports[name].figures[key]);
        const shown = alike(found.filter(Boolean).flatMap((f) => [f.value, f.with_bos, f.without_massive, f.null]), figure.format);
        const twin = (dot, label, value) => (value === null ? null : el("span", { class: "twin" }, el("span", { class: `dot ${dot}` }), `${label}: ${shown(value)}`));
        rows.push(el("tr", {}, el("th", { class: "figure", scope: "row" }, figure.label, why(figure.definition)), runs.map((run, r) => {
          const f = found[r];
          if (!f) return el("td", { class: run.role }, "–");
          return el("td", { class: run.role }, el("span", { class: "big" }, shown(f.value)),
            twin("with_bos", "including position 0", f.with_bos), twin("reference", "excluding massive rows", f.without_massive), twin("null", "null", f.null),
            f.interval ? el("span", { class: "twin" }, `95 % interval: ${interval(f)}`) : null);
        })));
      }
    }
    return el("div", { class: "scroll overview", tabindex: "0", role: "region", "aria-label": "Figures of every run" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", { class: "text" }, "figure"), runs.map((run, r) => el("th", { scope: "col", class: run.role }, el("a", { href: `#${firstReport()}/${r}` }, breaking(run.name)), " ", badge(run))))), el("tbody", {}, rows)));
  }
  const firstReport = () => Object.keys(runs[0].reports)[0];
  function overview() {
    const out = [el("p", { class: "lead" }, "Large figures exclude position 0: the model's state at the first token of every sequence is one constant vector, and counting its copies makes unrelated latents look alike. Below each are the figure including position 0, the one excluding massive rows where there are any, and the null (what chance alone gives)."), figureTable()];
    for (const [r, run] of runs.entries()) {
      if (run.role === "control") continue;
      const f = run.facts, t = f.training || {};
      out.push(el("h2", {}, run.name), el("p", { class: "note" }, `${f.architecture} ${f.kind}, ${grouped.format(f.latents)} latents, ${f.source}${f.kind === "transcoder" ? ` → ${f.target}` : ""}` + (t.steps ? `; ${grouped.format(t.steps)} steps, ${grouped.format(t.tokens)} tokens` : "") + (t.evaluated_on === "heldout" && t.fvu !== undefined ? `; FVU ${significant(t.fvu)} on held-out documents at the end of training` : "")));
      out.push(el("ul", {}, Object.entries(run.reports).map(([name, report]) => el("li", {}, el("a", { href: `#${name}/${r}` }, report.title), `: ${report.lead}`))));
    }
    return out;
  }

  // --- one report ----------------------------------------------------------------------------------------------------

  function reportView(name, r) {
    const run = runs[r], report = run.reports[name];
    if (!report) return [el("p", { class: "lead" }, `${run.name} has no report of this kind.`)];
    const cards = Object.values(report.figures).map((f) => el("div", { class: "card" }, el("div", { class: "label" }, f.label, why(f.definition)), el("div", { class: "value" }, show(f.value, f.format)),
      el("div", { class: "twins" }, f.with_bos !== null ? el("span", {}, el("span", { class: "dot with_bos" }), "including position 0: ", el("b", {}, show(f.with_bos, f.format))) : null, f.without_massive !== null ? el("span", {}, el("span", { class: "dot reference" }), "excluding massive rows: ", el("b", {}, show(f.without_massive, f.format))) : null, f.null !== null ? el("span", {}, el("span", { class: "dot null" }), "null: ", el("b", {}, show(f.null, f.format))) : null,
      f.interval ? el("span", {}, "95 % interval: ", el("b", {}, interval(f))) : null)));
    return [el("h2", {}, report.title, " – ", run.name, " ", badge(run)), el("p", { class: "lead" }, report.lead), el("div", { class: "cards" }, cards), el("div", { class: "charts" }, report.charts.map(chartFigure)), report.tables.map((t, i) => tableBlock(t, r, i < 2))];
  }

  // --- latents -------------------------------------------------------------------------------------------------------

  const ROW = 34, TALLEST = 3e7, TABLE_AT_ONCE = 200_000;
  const without = (value) => value === null || value === "";
  const tables = new Map();
  async function latentsView(r) {
    const run = runs[r];
    const data = await columnsOf(r);
    if (!data) return [el("p", { class: "lead" }, `${run.name} is a control that was never trained: its latents mean nothing and are not listed.`)];
    if (!tables.has(r)) {
      const wanted = data.columns.filter((c) => c.shown || ["max_r", "fires_on"].includes(c.key));
      await fill(r, data, data.n > TABLE_AT_ONCE ? wanted.filter((c) => c.key === "max_r") : wanted);
      tables.set(r, latentTable(r, data, wanted.filter((c) => !c.values)));
    }
    return tables.get(r);
  }
  let current = null; // the table of latents in view

  // Of very many latents the table is drawn by the column that it is sorted by; `later`: the columns that follow one by one.
  function latentTable(r, data, later) {
    const byKey = new Map(data.columns.map((c) => [c.key, c]));
    const shown = new Set(data.columns.filter((c) => c.shown).map((c) => c.key));
    const firesOn = byKey.get("fires_on");
    const label = byKey.get("label");
    const texts = data.columns.filter((c) => c.format === "text");
    let index = null; // blocks of latents: where their tokens begin in flat lists
    async function loadIndex() {
      const numbers = Array.from({ length: Math.ceil(data.n / data.search_block) }, (_, b) => b);
      const [vocabulary, ...parts] = await Promise.all([block("vocabulary"), ...numbers.map((b) => block(`search-${r}-${b}`)), fill(r, data, texts)]);
      const begins = (counts) => { let n = 0; return Int32Array.from([0, ...counts], (count) => (n += count)); };
      index = parts.slice(0, -1).map((part) => ({
        peaks: Int32Array.from(part.peaks), peaksFrom: begins(part.n_peaks), promotes: Int32Array.from(part.promotes), promotesFrom: begins(part.n_promotes),
        texts: part.texts.map((one) => one.replaceAll("␣", " ")),
      }));
      numbers.forEach((b) => blocks.delete(`search-${r}-${b}`)); // what it was made of
      index.spelt = (token) => (vocabulary.pieces[token] === undefined ? `<${token}>` : vocabulary.pieces[token]);
    }
    // A word is looked for inside of tokens; in quotes it is the whole token, and a space before it counts.
    const hit = (word) => (word.exact ? (text) => text === word.text || text.trimStart() === word.text : (text) => text.toLowerCase().includes(word.text));
    // Of one word, whether each token of the index is hit: asked of a token once, not of each latent that has it.
    function asking(word) {
      const test = hit(word), tokens = new Map(), promoted = index.map((part) => part.texts.map(test));
      const peak = (token) => { if (!tokens.has(token)) tokens.set(token, test(index.spelt(token))); return tokens.get(token); };
      const some = (list, from, i, wanted) => { for (let p = from[i]; p < from[i + 1]; p += 1) if (wanted(list[p])) return true; return false; };
      const fires = (i) => {
        const all = firesOn ? firesOn.values[i] : "";
        const whole = all.replaceAll("␣", " "); // most latents are ruled out before their tokens are told apart
        return (word.exact ? whole : whole.toLowerCase()).includes(word.text) && all.split(" ").some((one) => test(one.replaceAll("␣", " ")));
      };
      return {
        word,
        places(i) {
          const b = Math.floor(i / data.search_block), part = index[b], at = i % data.search_block;
          return [
            ["fires on", () => fires(i)],
            ["top examples", () => some(part.peaks, part.peaksFrom, at, peak)],
            ["label", () => Boolean(label && label.values[i]) && test(label.values[i])],
            ["promotes", () => some(part.promotes, part.promotesFrom, at, (place) => promoted[b][place])],
          ].filter(([, found]) => found()).map(([place]) => place);
        },
        found(i) {
          const b = Math.floor(i / data.search_block), part = index[b], at = i % data.search_block;
          return fires(i) || some(part.peaks, part.peaksFrom, at, peak) || (Boolean(label && label.values[i]) && test(label.values[i])) || some(part.promotes, part.promotesFrom, at, (place) => promoted[b][place]);
        },
      };
    }
    let order = Array.from({ length: data.n }, (_, i) => i), sortKey = byKey.has("max_r") ? "max_r" : null, descending = true, cursor = 0;
    const input = el("input", { type: "search", value: state.query, placeholder: 'Token, "exact token", number, or density>0.01', title: "A word is looked for in the tokens that a latent fires on, peaks on in its top examples, and promotes, and in its label; in quotes it must be the whole token.", "aria-label": "Search latents", spellcheck: "false" });
    const facets = data.columns.filter((c) => c.menu.length).map((c) => [c, c.menu]);
    const selects = facets.map(([c, options]) => el("select", { "aria-label": c.label, title: c.definition, onchange: () => refresh() }, el("option", { value: "" }, `${c.label}: any`), options.map((o) => el("option", { value: o }, o))));
    const count = el("span", { class: "count", role: "status" });
    const head = el("thead"), body = el("tbody");
    const view = el("div", { class: "scroll virtual", tabindex: "0", role: "region", "aria-label": "Table of latents" }, el("table", {}, head, body));

    const plainTexts = texts.filter((c) => c !== firesOn && c.key !== "label");
    function matches(i, words, conditions) {
      for (let k = 0; k < facets.length; k++) if (selects[k].value && facets[k][0].values[i] !== selects[k].value) return false;
      for (const [c, test, limit] of conditions) { const v = c.values[i]; if (v === null || !test(v, limit)) return false; }
      return words.every((asked) => (!asked.word.exact && (String(i) === asked.word.text || plainTexts.some((c) => c.values[i].toLowerCase().includes(asked.word.text)))) || asked.found(i));
    }
    const tests = { ">": (a, b) => a > b, "<": (a, b) => a < b, "=": (a, b) => a === b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b };
    function refresh() {
      const words = [], conditions = [];
      for (const [part, quoted] of input.value.matchAll(/"([^"]+)"|[^\s"]+|"/g)) {
        const m = /^([a-z_]+)(>=|<=|>|<|=)(-?[\d.]+(?:e-?\d+)?)(%?)$/.exec(part.toLowerCase());
        if (quoted !== undefined) words.push({ text: quoted, exact: true });
        else if (m && byKey.has(m[1])) conditions.push([byKey.get(m[1]), tests[m[2]], Number(m[3]) / (m[4] ? 100 : 1)]);
        else words.push({ text: part.toLowerCase(), exact: false });
      }
      if (words.length && !index) { loadIndex().then(refresh); return; }
      const needed = [...conditions.map(([c]) => c), ...facets.filter((_, k) => selects[k].value).map(([c]) => c)].filter((c) => !c.values);
      if (needed.length) { fill(r, data, needed).then(refresh); return; }
      asked = words.map(asking);
      order = [];
      for (let i = 0; i < data.n; i++) if (matches(i, asked, conditions)) order.push(i);
      if (sortKey) {
        const values = byKey.get(sortKey).values, sign = descending ? -1 : 1;
        // Latents ascend in `order` and the sort is stable, so equal ones stay in that order; those without a value come last.
        if (byKey.get(sortKey).format === "text") {
          order.sort((a, b) => {
            const x = values[a], y = values[b];
            if (without(x) || without(y)) return without(x) - without(y);
            return (x < y ? -1 : x > y ? 1 : 0) * sign;
          });
        } else {
          const keys = Float64Array.from(values, (v) => (without(v) ? Infinity : sign * v));
          order.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0));
        }
      } else if (descending === false) order.reverse();
      const number = words.length === 1 ? order.indexOf(Number(words[0].text)) : -1; // a number means that latent before all others
      if (number > 0) order.unshift(...order.splice(number, 1));
      cursor = 0;
      count.textContent = `${grouped.format(order.length)} of ${grouped.format(data.n)} latents`;
      view.scrollTop = 0;
      drawn = "";
      header();
      rows();
    }
    function header() {
      const column = (key, label, definition, format) => {
        const active = sortKey === key;
        const sort = () => { if (active) descending = !descending; else { sortKey = key; descending = format !== "text"; } refresh(); };
        return el("th", { scope: "col", class: format === "text" ? "text" : null, "aria-sort": active ? (descending ? "descending" : "ascending") : null }, el("button", { type: "button", onclick: sort }, label + (active ? (descending ? " ↓" : " ↑") : "")), why(definition));
      };
      head.replaceChildren(el("tr", {}, column(null, "latent", "", "integer"), asked.length ? el("th", { scope: "col", class: "text" }, "found in") : null, visibleColumns().map((c) => column(c.key, c.label, c.definition, c.format))));
    }
    let asked = []; // the words of the search
    let drawn = "";
    // A browser draws no box of more than 33 million pixels: beyond that, a row takes less of the scroll bar than it is high.
    const rowStep = () => Math.min(ROW, TALLEST / Math.max(1, order.length));
    // Columns that most latents have no value in come last: on a narrow screen they would hide what every latent has.
    const visibleColumns = () => data.columns.filter((c) => shown.has(c.key) && c.values).sort((a, b) => a.sparse - b.sparse);
    function rows() {
      const visible = visibleColumns();
      const step = rowStep();
      const first = Math.max(0, Math.min(Math.floor(view.scrollTop / step), order.length - Math.floor((view.clientHeight || 600) / ROW)) - 10);
      const last = Math.min(order.length, first + Math.ceil((view.clientHeight || 600) / ROW) + 20);
      const signature = `${first}-${last}-${cursor}-${sortKey}-${descending}-${order.length}-${[...shown]}-${state.latent}-${input.value}`;
      if (signature === drawn && body.childElementCount) return;
      drawn = signature;
      const space = (n) => { const row = el("tr", { class: "spacer", "aria-hidden": "true" }, el("td", { colspan: visible.length + 1 + (asked.length ? 1 : 0) })); row.firstChild.style.height = `${n * step}px`; return row; };
      if (!order.length) {
        const how = asked.some((one) => one.word.exact) ? "In quotes a word must be the whole token." : asked.length ? "Words are looked for in the tokens that a latent fires on, peaks on in its top examples, and promotes." : "No latent fits these conditions.";
        body.replaceChildren(el("tr", {}, el("td", { class: "text none", colspan: visible.length + 1 + (asked.length ? 1 : 0) }, `No match. ${how}`)));
        return;
      }
      body.replaceChildren(space(first), ...order.slice(first, last).map((i, k) => {
        const where = first + k === cursor ? "row current" : "row";
        return el("tr", { class: where, onclick: () => { cursor = first + k; go("latents", r, i); } }, el("td", {}, latentLink(i, r)), asked.length ? el("td", { class: "text" }, [...new Set(asked.flatMap((one) => one.places(i)))].join(", ")) : null, visible.map((c) => {
          const v = c.values[i];
          const said = [c.format === "text" ? "text" : null, c.sparse ? "sparse" : null, v === "rare" || v === "dead" || v === "none" || without(v) ? "rare" : null].filter(Boolean);
          return el("td", { class: said.join(" ") || null, title: c.format === "text" && v.length > 12 ? v : null }, without(v) ? c.without : spaced(c.written(v)));
        }));
      }), space(order.length - last));
    }
    function move(by) {
      if (!order.length) return;
      cursor = Math.max(0, Math.min(order.length - 1, cursor + by));
      const top = cursor * rowStep();
      if (top < view.scrollTop) view.scrollTop = top;
      else if (top + 3 * ROW > view.scrollTop + view.clientHeight) view.scrollTop = top + 3 * ROW - view.clientHeight;
      rows();
    }
    view.addEventListener("scroll", () => requestAnimationFrame(rows));
    view.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity }[event.key];
      if (by !== undefined) { event.preventDefault(); move(by === Infinity ? order.length : by === -Infinity ? -order.length : by); }
      else if (event.key === "Enter" && order.length && event.target === view) go("latents", r, order[cursor]);
    });
    let timer = 0;
    input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => { state.query = input.value; history.replaceState(null, "", hashOf(state.tab, state.run, state.latent)); refresh(); }, 80); });
    input.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") { event.preventDefault(); view.focus(); }
      else if (event.key === "Enter") { clearTimeout(timer); refresh(); if (order.length) go("latents", r, order[0]); }
    });
    const chooser = el("div", { hidden: true }, data.columns.map((c) => el("label", {}, el("input", { type: "checkbox", checked: c.shown, onchange: async (e) => { if (e.target.checked) shown.add(c.key); else shown.delete(c.key); await fill(r, data, data.columns.filter((one) => shown.has(one.key))); header(); drawn = ""; rows(); } }), ` ${c.label} `, el("span", { class: "count" }, c.key))));
    const columnsButton = el("button", { type: "button", "aria-expanded": "false", onclick: (e) => { chooser.hidden = !chooser.hidden; e.currentTarget.setAttribute("aria-expanded", String(!chooser.hidden)); } }, "Columns");
    const nodes = [el("h2", {}, "Latents – ", runs[r].name, " ", badge(runs[r])), el("div", { class: "filters" }, input, selects, el("span", { class: "columns" }, columnsButton, chooser), count), view, el("p", { class: "note" }, "Figures exclude position 0 unless the column says otherwise; – means not scored: the latent fires too rarely.")];
    const search = (query) => { if (input.value !== query) { input.value = query; refresh(); } };
    nodes.control = { run: r, input, view, data, refresh, search, redraw: () => { drawn = ""; rows(); }, step: (by) => { move(by); if (order.length) go("latents", r, order[cursor]); }, point: (i) => { const at = order.indexOf(i); if (at >= 0) { cursor = at; drawn = ""; rows(); } } };
    refresh();
    for (const c of later) fill(r, data, [c]).then(() => { header(); drawn = ""; rows(); });
    return nodes;
  }

  // --- one latent ----------------------------------------------------------------------------------------------------

  function spell(piece, special) {
    if (special) return [el("span", { class: "ws" }, piece)];
    const out = [];
    for (const part of piece.split(/(\r\n|\n|\r|\t)/)) {
      if (part === "\n" || part === "\r\n" || part === "\r") out.push(el("span", { class: "ws" }, "↵"), el("wbr"));
      else if (part === "\t") out.push(el("span", { class: "ws" }, "⇥"));
      else if (part) out.push(part);
    }
    return out;
  }
  function example(item, b, vocabulary, silent, domains, cache, shown) {
    // `joined`: the texts of the tokens where characters go over several of them; they stand at the first one.
    const [value, sequence, position, documentId, peakToken, tokens, heat, joined] = item;
    let peak = peakToken;
    while (joined && peak > 0 && joined[peak] === "") peak -= 1;
    const one = (token, i) => {
      const inside = joined && joined[i] !== undefined;
      const piece = inside ? joined[i] : vocabulary.pieces[token] === undefined ? `<${token}>` : vocabulary.pieces[token];
      const special = vocabulary.special.includes(token);
      let units = heat && heat[i] ? heat[i] : 0;
      for (let j = i + 1; heat && inside && j < tokens.length && joined[j] === ""; j += 1) units = Math.max(units, heat[j]);
      if (inside && piece === "") units = 0;
      const h = units * b.unit;
      const node = el("span", { class: `t${i === peak ? (silent ? " quiet" : " peak") : ""}${special ? " special" : ""}`, title: h ? `${piece}: ${Number(h.toPrecision(4))}` : null }, spell(piece, special));
      if (h) { node.classList.add("hot"); node.style.setProperty("--h", Math.min(1, h / b.max).toFixed(3)); }
      return node;
    };
    const text = el("div", { class: "ctx" }, tokens.map(one));
    // The whole sequence, if the page has it: activations are known around the peak only.
    const wider = el("button", { type: "button", class: "wider", "aria-expanded": "false", onclick: async (event) => {
      const button = event.currentTarget, open = button.getAttribute("aria-expanded") === "true";
      const all = open ? null : await sequenceOf(cache, sequence);
      if (!open && !all) { button.replaceWith(el("span", {}, "not in this page")); return; }
      const first = position - peakToken;
      text.replaceChildren(...(open ? tokens.map(one) : all.map((token, i) => one(token, i - first))));
      button.setAttribute("aria-expanded", String(!open));
      button.textContent = open ? "wider" : "narrower";
    } }, "wider");
    return el("div", { class: "example" }, el("div", { class: "act" }, silent ? "0" : shown(value)), text, el("div", { class: "where" }, wider, ` sequence ${grouped.format(sequence)} · position ${position}${position === 0 ? " (BOS)" : ""} · document ${grouped.format(documentId)}${domains && domains[documentId] ? ` (${domains[documentId]})` : ""}`));
  }
  async function sequenceOf(cache, sequence) {
    const text = await block("text"), known = text && text[cache];
    const at = known ? known.sequences.indexOf(sequence) : -1;
    return at < 0 ? null : (await block(`text-${known.number}-${Math.floor(at / TEXT_BLOCK)}`))[at % TEXT_BLOCK];
  }
  const TEXT_BLOCK = 32, FIRST_EXAMPLES = 8;
  function exampleGroup(b, g, r, vocabulary) {
    const cache = runs[r].facts.cache;
    const shown = alike(g.items.map((item) => item[0]), "number");
    const made = (item) => example(item, b, vocabulary, item[0] === 0, vocabulary.domains[cache], cache, shown);
    const rest = g.items.slice(FIRST_EXAMPLES);
    const more = rest.length ? el("button", { type: "button", class: "more", onclick: (event) => event.currentTarget.replaceWith(...rest.map(made)) }, `Show all ${g.items.length}`) : null;
    return el("section", { class: "group" }, el("h3", { class: "group-head" }, g.title, " ", el("small", {}, g.note || "")), g.items.slice(0, FIRST_EXAMPLES).map(made), more);
  }
  const inner = (title, table) => el("figure", {}, title, el("div", { class: "inner", tabindex: "0", role: "region", "aria-label": title.textContent }, table));
  function panelBlock(b, r) {
    const title = el("h3", {}, b.title, " ", b.note ? el("small", { class: "note" }, b.note) : null);
    if (b.type === "table") {
      const shown = b.columns.map(([, format], k) => alike(b.rows.map((row) => row[k]), format));
      const near = b.columns[0][1] === "latent" ? byLatent(r) : null; // a number alone says little: its tokens beside it
      const tokens = near ? [el("th", { scope: "col", class: "text" }, "fires on")] : [];
      return inner(title, el("table", {}, el("thead", {}, el("tr", {}, b.columns.map(([label, format]) => headCell({ label, format })).toSpliced(1, 0, ...tokens))), el("tbody", {}, b.rows.map((row) => el("tr", {}, row.map((v, k) => cell(v, b.columns[k][1], r, shown[k])).toSpliced(1, 0, ...(near ? [el("td", { class: "text short" }, spaced(near(row[0])))] : [])))))));
    }
    if (b.type === "latents") return el("figure", {}, title, el("div", { class: "links" }, b.ids.map((id) => latentLink(id, r))));
    if (b.type === "tokens") return inner(title, el("table", {}, el("tbody", {}, b.rows.map((row) => el("tr", {}, row.map((v, k) => (k % 2 ? el("td", {}, significant(v)) : el("td", { class: "text" }, v))))))));
    if (b.type === "chart") {
      const spec = { ...b, caption: b.note || "", kind: "bars" };
      // Bars over a logarithmic axis: equal widths, named by their lower edge.
      if (typeof spec.x[0] === "number" && spec.x.length === spec.series[0].y.length + 1 && /log/.test(spec.x_label)) spec.x = spec.x.slice(0, -1).map((v) => tickLabel(v));
      return el("figure", {}, title, spec.series.length > 1 ? legend(spec) : null, chart(spec, true));
    }
    return null;
  }
  const firing = new Map(); // run → its column of tokens
  const byLatent = (r) => { const column = firing.get(r); return column ? (latent) => column[latent] || "" : null; };
  // The partners of a latent in the other runs, by decoder.
  function partners(found) {
    const known = found.filter(([run]) => runs[run].trained);
    if (!known.length) return null;
    return inner(el("h3", {}, "In the other runs ", el("small", { class: "note" }, "matched by decoder row")), el("table", {}, el("thead", {}, el("tr", {}, [["run", "text"], ["latent", "latent"], ["cosine", "number"]].map(([label, format]) => headCell({ label, format })))), el("tbody", {}, known.map(([run, id, cosine]) => el("tr", {}, el("td", { class: "text" }, breaking(runs[run].name)), el("td", {}, latentLink(id, run)), el("td", {}, cosine.toFixed(3)))))));
  }
  async function copyLink(button) {
    const text = location.href;
    try { await navigator.clipboard.writeText(text); } catch {
      const area = el("textarea", { class: "skip" }, text);
      document.body.append(area);
      area.select();
      document.execCommand("copy"); // where a page may not write to the clipboard by itself
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy link"; }, 1500);
  }
  async function openPanel(r, latent) {
    const panel = $("panel");
    const data = await columnsOf(r);
    if (!data || latent < 0 || latent >= data.n) return;
    const [[facts, found, matches], vocabulary] = await Promise.all([latentOf(r, data, latent), block("vocabulary")]);
    if (!firing.has(r)) firing.set(r, (data.columns.find((c) => c.key === "fires_on") || {}).values);
    if (state.latent !== latent || state.run !== r) return;
    const step = (by) => { if (current && current.run === r) current.step(by); else go("latents", r, Math.max(0, Math.min(data.n - 1, latent + by))); };
    const fact = (c) => { const v = facts[data.columns.indexOf(c)]; return el("div", {}, el("dt", {}, c.label, why(c.definition)), el("dd", {}, without(v) ? c.without : spaced(show(v, c.format)))); };
    const groups = found.filter((b) => b.type === "examples").flatMap((b) => b.groups.map((g) => exampleGroup(b, g, r, vocabulary)));
    const words = found.filter((b) => !["examples", "chart"].includes(b.type)), charts = found.filter((b) => b.type === "chart");
    // What it writes before what it fires together with: the report of its text is the last of the reports.
    words.sort((a, b) => (b.report === "top_activations") - (a.report === "top_activations"));
    panel.replaceChildren(
      el("div", { class: "panel-head" }, el("h2", {}, `Latent ${latent} `, el("small", {}, runs[r].name, " ", badge(runs[r]))), el("button", { type: "button", class: "copy", onclick: (event) => copyLink(event.currentTarget) }, "Copy link"), el("button", { type: "button", class: "optional", onclick: () => step(-1), "aria-label": "Previous latent" }, "↑"), el("button", { type: "button", class: "optional", onclick: () => step(1), "aria-label": "Next latent" }, "↓"), el("button", { type: "button", id: "panel-close", onclick: closePanel, "aria-label": "Close" }, "✕")),
      el("dl", { class: "facts" }, data.columns.filter((c) => c.shown).map(fact)),
      el("details", {}, el("summary", { class: "note" }, "more figures"), el("dl", { class: "facts" }, data.columns.filter((c) => !c.shown).map(fact))),
      ...(groups.length || !runs[r].reports.top_activations ? [] : [el("p", { class: "note" }, "This latent never fired on these rows.")]),
      ...groups.slice(0, 1),
      el("div", { class: "pair" }, words.map((b) => panelBlock(b, r)), partners(matches)),
      ...groups.slice(1),
      el("div", { class: "pair" }, charts.map((b) => panelBlock(b, r))));
    if (panel.hidden) { panel.hidden = false; panel.dataset.back = document.activeElement && document.activeElement.className; $("panel-close").focus({ preventScroll: true }); }
    panel.scrollTop = 0;
  }
  function closePanel() {
    go(state.tab, state.run, null);
    if (current) current.view.focus({ preventScroll: true });
  }

  // --- definitions ---------------------------------------------------------------------------------------------------

  const definitionsView = () => [el("h2", {}, "Definitions"), el("dl", { class: "definitions" }, doc.definitions.map(([term, text]) => el("div", {}, el("dt", {}, term), el("dd", {}, text)))),
    el("h2", {}, "Where this comes from"), el("p", { class: "note" }, doc.caches.map((c) => `Cache ${c.path}, identity ${c.identity.slice(0, 12)}…: ${grouped.format(c.rows)} rows of ${c.ctx} tokens, sites ${c.sites.join(", ")}.`).join(" ") + ` Machine-readable: report.json (schema ${doc.schema} ${doc.schema_version}); per run ${runs.filter((x) => x.trained).map((x) => `${x.folder}/latents.jsonl.gz`).join(", ")} and Parquet tables.`)];

  // --- navigation ----------------------------------------------------------------------------------------------------

  const reportNames = [...new Set(runs.flatMap((run) => Object.keys(run.reports)))];
  const reportTitle = (name) => runs.map((run) => run.reports[name]).find(Boolean).title;
  const tabs = [["overview", "Overview"], ...(doc.comparison ? [["comparison", doc.comparison.title]] : []), ...reportNames.map((name) => [name, reportTitle(name)]), ["latents", "Latents"], ["definitions", "Definitions"]];
  const hashOf = (tab, run, latent) => `#${tab}/${run}${latent === null || latent === undefined ? "" : `/${latent}`}${tab === "latents" && state.query ? `?q=${encodeURIComponent(state.query)}` : ""}`;
  function go(tab, run, latent) {
    const hash = hashOf(tab, run, latent);
    if (location.hash === hash) route();
    else location.hash = hash;
  }
  async function route() {
    const [path, query] = location.hash.slice(1).split("?");
    const [tab, run, latent] = decodeURIComponent(path).split("/");
    const before = `${state.tab}/${state.run}`;
    state.tab = tabs.some(([name]) => name === tab) ? tab : "overview";
    state.run = Math.max(0, Math.min(runs.length - 1, Number.parseInt(run, 10) || 0));
    if (query !== undefined) state.query = new URLSearchParams(query).get("q") || "";
    state.latent = latent === undefined || latent === "" ? null : Number.parseInt(latent, 10);
    hideTip();
    drawBars();
    const main = $("main");
    if (before !== `${state.tab}/${state.run}` || !main.dataset.drawn) {
      const wanted = `${state.tab}/${state.run}`;
      let nodes;
      if (state.tab === "overview") nodes = overview();
      else if (state.tab === "definitions") nodes = definitionsView();
      else if (state.tab === "comparison") nodes = comparisonView();
      else if (state.tab === "latents") nodes = await latentsView(state.run);
      else nodes = reportView(state.tab, state.run);
      if (wanted !== `${state.tab}/${state.run}`) return;
      current = nodes.control || null;
      if (current) current.search(state.query);
      main.replaceChildren(...nodes.flat(Infinity).filter(Boolean));
      main.dataset.drawn = wanted;
      if (current) current.redraw();
      scrollTo(0, 0);
    }
    if (state.latent !== null && !Number.isNaN(state.latent)) { if (current) current.point(state.latent); await openPanel(state.run, state.latent); } else $("panel").hidden = true;
    if (current) current.redraw();
  }
  function comparisonView() {
    const c = doc.comparison;
    return [el("h2", {}, c.title), el("p", { class: "lead" }, c.lead), el("div", { class: "charts" }, c.charts.map(chartFigure)), c.tables.map((t) => tableBlock(t, 0, true))];
  }
  function drawBars() {
    $("tabs").replaceChildren(...tabs.map(([name, title]) => el("button", { type: "button", role: "tab", "aria-selected": String(name === state.tab), onclick: () => go(name, state.run, null) }, title)));
    const needed = !["overview", "definitions", "comparison"].includes(state.tab) && runs.length > 1;
    $("runs").hidden = !needed;
    $("runs").replaceChildren(...(needed ? runs.map((run, r) => el("button", { type: "button", role: "radio", class: run.role, "aria-checked": String(r === state.run), title: run.role === "control" ? "control" : null, onclick: () => go(state.tab, r, null) }, run.name)) : []));
    const chosen = $("tabs").querySelector('[aria-selected="true"]');
    if (chosen && chosen.scrollIntoView) chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  // --- theme and keys ------------------------------------------------------------------------------------------------

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (name) => { document.documentElement.dataset.theme = name; };
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  const flip = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  $("theme").addEventListener("click", flip);
  $("help-open").addEventListener("click", () => $("help").showModal());
  addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && !$("help").open) {
      if (!$("panel").hidden) closePanel();
      else if (typing) event.target.blur();
      hideTip();
      return;
    }
    if (typing || $("help").open) return;
    if (event.key === "?") $("help").showModal();
    else if (event.key === "d") flip();
    else if (event.key === "r") go(state.tab, (state.run + 1) % runs.length, null);
    else if (event.key === "/") { event.preventDefault(); const focus = () => current && current.input.focus(); if (state.tab === "latents") focus(); else { go("latents", state.run, null); setTimeout(focus, 60); } }
    else if (/^[1-9]$/.test(event.key) && tabs[event.key - 1]) go(tabs[event.key - 1][0], state.run, null);
    else if ((event.key === "j" || event.key === "k") && current) current.step(event.key === "j" ? 1 : -1);
  });

  const named = runs.filter((run) => run.trained);
  $("about").textContent = [named.map((run) => run.name).join(", "), [...new Set(named.map(({ facts: f }) => (f.kind === "transcoder" ? `${f.source} → ${f.target}` : f.source)))].join(", ")].filter(Boolean).join(" · ");
  $("data").textContent = doc.caches.map((c) => `${c.model ? `${c.model} on ${c.dataset}, ` : ""}${grouped.format(c.rows_analysed)} rows of ${c.documents === "heldout" ? "held-out documents of " : ""}${c.path}`).join(" · ");
  addEventListener("hashchange", route);
  route();
})();
