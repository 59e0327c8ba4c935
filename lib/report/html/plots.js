// Figures. Each draws itself for the width it has; marks carry their text in data-tip, for the
// pointer and for the arrow keys.
const tip = document.getElementById("tip");

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > window.innerWidth ? x - 14 - box.width : x + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, window.innerHeight - box.height - 4))}px`;
}
const hideTip = () => { tip.hidden = true; };
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
window.addEventListener("scroll", hideTip, { passive: true });

const figureOfHost = new WeakMap();
const onResize = new ResizeObserver((entries) => {
  for (const entry of entries) {
    const figure = figureOfHost.get(entry.target);
    const width = Math.round(entry.contentRect.width);
    if (width > 0 && figure && width !== figure.width) figure.redraw();
  }
});

// A figure with title, controls, plot and caption. draw(host, width) fills the plot.
function makeFigure(parent, { title, caption, controls = [], wide = false, draw }) {
  const host = make("div", { class: "plot" });
  const element = make("figure", { class: wide ? "wide" : false }, make("h4", {}, title));
  if (controls.length) element.append(make("div", { class: "controls" }, ...controls));
  element.append(host);
  if (caption) element.append(make("figcaption", {}, caption));
  parent.append(element);
  const figure = {
    width: 0,
    redraw() {
      figure.width = Math.round(host.getBoundingClientRect().width) || 600;
      host.replaceChildren();
      draw(host, figure.width);
      for (const svg of host.querySelectorAll("svg.chart")) addKeys(svg);
    },
  };
  host.addEventListener("pointermove", (event) => {
    const mark = event.target.closest("[data-tip]");
    if (mark) showTip(mark.getAttribute("data-tip"), event.clientX, event.clientY);
    else if (!event.target.closest("canvas")) hideTip();
  });
  host.addEventListener("pointerleave", hideTip);
  figure.redraw();
  figureOfHost.set(host, figure);
  onResize.observe(host);
  return figure;
}

// The arrow keys step through the marks of a chart that has the focus.
function addKeys(svg) {
  const marks = [...svg.querySelectorAll("[data-tip]")];
  let at = -1;
  svg.setAttribute("tabindex", "0");
  const leave = () => { if (at >= 0) marks[at].classList.remove("current"); };
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !marks.length) return;
    event.preventDefault();
    leave();
    at = (at + step + marks.length) % marks.length;
    marks[at].classList.add("current");
    const box = marks[at].getBoundingClientRect();
    showTip(marks[at].getAttribute("data-tip"), box.right, box.top);
  });
  svg.addEventListener("blur", () => { leave(); at = -1; hideTip(); });
}

function makeChart(host, width, height, label) {
  return d3.select(host).append("svg").attr("class", "chart").attr("viewBox", `0 0 ${width} ${height}`)
    .attr("role", "img").attr("aria-label", `${label}. Arrow keys step through the values.`);
}

function drawKey(look, kind) {
  const svg = d3.create("svg").attr("width", 22).attr("height", 12).attr("aria-hidden", "true");
  if (kind === "bar") svg.append("rect").attr("width", 12).attr("x", 5).attr("height", 12).attr("rx", 2).style("fill", look.colour);
  else {
    svg.append("line").attr("x2", 22).attr("y1", 6).attr("y2", 6).style("stroke", look.colour).style("stroke-width", 2).style("stroke-dasharray", look.dash);
    svg.append("path").attr("transform", "translate(11,6)").attr("d", symbolPath(look.shape, 45)).style("fill", look.colour);
  }
  return svg.node();
}
const symbolPath = (shape, size) =>
  d3.symbol().type([d3.symbolCircle, d3.symbolCross, d3.symbolTriangle, d3.symbolSquare, d3.symbolDiamond, d3.symbolStar][shape]).size(size)();

// Lines with intervals. series: [{name, look, points: [{x, y, low, high, tip}]}].
// x, y: {label, note (y only: where there is room), log, format, ticks (x only: values), zero and bounds (y only)}; lines: [{y, label}].
// `hidden`: names that the legend has switched off, kept by the caller.
function drawLines(host, width, { label, series, x, y, lines = [], diagonal = false, dodge = true, hidden, redraw }) {
  const legend = make("div", { class: "legend" });
  for (const s of series) {
    legend.append(make("button", { type: "button", "aria-pressed": String(!hidden.has(s.name)),
      onclick: () => { hidden.has(s.name) ? hidden.delete(s.name) : hidden.add(s.name); redraw(); } },
      drawKey(s.look), s.name));
  }
  host.append(legend);
  const shown = series.filter((s) => !hidden.has(s.name));
  const points = shown.flatMap((s) => s.points);
  const height = Math.max(240, Math.min(380, 0.6 * width));
  const margin = { left: 56, right: 14, top: 10, bottom: 42 };
  const svg = makeChart(host, width, height, label);
  if (!points.length) {
    svg.append("text").attr("x", width / 2).attr("y", height / 2).attr("text-anchor", "middle").text("nothing is shown");
    return;
  }
  const xs = points.map((p) => p.x);
  const ys = points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]).concat(lines.map((l) => l.y)).concat(diagonal ? xs : []).filter(Number.isFinite);
  const scale = (axis, values, range) => {
    let low = Math.min(...values), high = Math.max(...values);
    if (axis.log) return d3.scaleLog().domain(low < high ? [low, high] : [low / 2, high * 2]).range(range);
    if (axis.zero) { low = Math.min(0, low); high = Math.max(0, high); }
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    const domain = [axis.zero && low === 0 ? 0 : low - pad, axis.zero && high === 0 ? 0 : high + pad];
    return d3.scaleLinear().domain(domain).range(range);
  };
  const sx = scale(x, xs, [margin.left + 8, width - margin.right - 8]);
  const sy = scale(y, ys, [height - margin.bottom, margin.top]);
  if (!y.log) sy.nice(5);
  if (y.bounds) sy.domain([Math.max(y.bounds[0], sy.domain()[0]), Math.min(y.bounds[1], sy.domain()[1])]);
  const below = d3.axisBottom(sx).tickFormat(x.format).tickSizeOuter(0);
  if (x.ticks) below.tickValues(width < 420 && x.ticks.length > 6 ? x.ticks.filter((_, i) => i % Math.ceil(x.ticks.length / 6) === 0) : x.ticks);
  else below.ticks(width < 420 ? 5 : 8);
  const left = d3.axisLeft(sy).ticks(5, y.log ? "~g" : undefined).tickSizeOuter(0);
  if (y.format) left.tickFormat(y.log ? (v) => (Math.log10(v) % 1 === 0 || sy.ticks().length < 8 ? y.format(v) : "") : y.format);
  svg.append("g").attr("class", "grid").attr("transform", `translate(${margin.left},0)`).call(d3.axisLeft(sy).ticks(5).tickSize(-(width - margin.left - margin.right)).tickFormat(""));
  svg.append("g").attr("transform", `translate(0,${height - margin.bottom})`).call(below);
  svg.append("g").attr("transform", `translate(${margin.left},0)`).call(left).select(".domain").remove();
  svg.append("text").attr("class", "title").attr("x", (margin.left + width) / 2).attr("y", height - 6).attr("text-anchor", "middle").text(x.label);
  svg.append("text").attr("class", "title").attr("transform", `translate(13,${(height - margin.bottom) / 2}) rotate(-90)`).attr("text-anchor", "middle")
    .text(y.note && 6.4 * (y.label.length + y.note.length) < height - margin.bottom ? `${y.label} (${y.note})` : y.label);
  for (const line of lines) {
    svg.append("line").attr("class", "reference").attr("x1", margin.left).attr("x2", width - margin.right).attr("y1", sy(line.y)).attr("y2", sy(line.y));
    svg.append("text").attr("x", width - margin.right).attr("y", sy(line.y) - 4).attr("text-anchor", "end").text(line.label);
  }
  if (diagonal) {
    const [a, b] = [Math.min(...xs), Math.max(...xs)];
    svg.append("line").attr("class", "reference").attr("x1", sx(a)).attr("y1", sy(a)).attr("x2", sx(b)).attr("y2", sy(b));
  }
  // The first series lie on top.
  [...shown].reverse().forEach((s, i) => {
    const shift = dodge && shown.length > 1 ? (i - (shown.length - 1) / 2) * 4 : 0;
    const path = d3.line().defined((p) => Number.isFinite(p.y)).x((p) => sx(p.x) + shift).y((p) => sy(p.y));
    const group = svg.append("g");
    group.append("path").datum(s.points).attr("d", path).style("fill", "none").style("stroke", s.look.colour).style("stroke-width", 2).style("stroke-dasharray", s.look.dash);
    const dense = s.points.length > 24;
    for (const p of s.points.filter((q) => Number.isFinite(q.y))) {
      const cx = sx(p.x) + shift;
      if (Number.isFinite(p.low)) group.append("line").attr("x1", cx).attr("x2", cx).attr("y1", sy(p.low)).attr("y2", sy(p.high)).style("stroke", s.look.colour).style("stroke-width", 1.5);
      group.append("path").attr("transform", `translate(${cx},${sy(p.y)})`).attr("d", symbolPath(s.look.shape, dense ? 20 : 55)).style("fill", s.look.colour);
      group.append("circle").attr("class", "mark").attr("cx", cx).attr("cy", sy(p.y)).attr("r", dense ? 5 : 9).style("fill", "transparent").attr("data-tip", p.tip);
    }
  });
}

const mixed = (share) => `color-mix(in oklab, var(--high) ${(100 * share).toFixed(1)}%, var(--low))`;

// rows, columns: labels; values[row][column]; tipOf(row, column); domain: [low, high] of the
// colours, else that of the values.
function drawHeatMap(host, width, { label, rows, columns, rowTitle, columnTitle, values, format, tipOf, domain }) {
  const finite = values.flat().filter(Number.isFinite);
  if (!finite.length) { host.append(make("p", { class: "note" }, "No values.")); return; }
  const [low, high] = domain || [Math.min(...finite), Math.max(...finite)];
  const share = (v) => (high > low ? (v - low) / (high - low) : 0.5);
  const margin = { left: 20 + 7 * Math.max(2, ...rows.map((r) => String(r).length)), right: 4, top: 4, bottom: 38 };
  const across = (width - margin.left - margin.right) / columns.length;
  const down = Math.max(10, Math.min(34, Math.min(across, 420 / rows.length)));
  const height = margin.top + margin.bottom + down * rows.length;
  const svg = makeChart(host, width, height, label);
  const every = (count, room, size) => Math.max(1, Math.ceil((count * size) / room));
  const stepX = every(columns.length, width - margin.left, 8 + 7 * Math.max(...columns.map((c) => String(c).length)));
  const stepY = every(rows.length, down * rows.length, 13);
  const gap = across > 8 ? 1 : 0;
  rows.forEach((row, r) => {
    if (r % stepY === 0) svg.append("text").attr("x", margin.left - 5).attr("y", margin.top + down * (r + 0.5)).attr("dy", "0.35em").attr("text-anchor", "end").text(row);
    columns.forEach((_, c) => {
      const v = values[r][c];
      svg.append("rect").attr("class", "mark").attr("x", margin.left + across * c).attr("y", margin.top + down * r)
        .attr("width", across - gap).attr("height", down - gap).style("fill", Number.isFinite(v) ? mixed(share(v)) : "transparent").attr("data-tip", tipOf(r, c));
    });
  });
  columns.forEach((column, c) => {
    if (c % stepX === 0) svg.append("text").attr("x", margin.left + across * (c + 0.5)).attr("y", height - margin.bottom + 15).attr("text-anchor", "middle").text(column);
  });
  svg.append("text").attr("class", "title").attr("x", margin.left + (width - margin.left) / 2).attr("y", height - 5).attr("text-anchor", "middle").text(columnTitle);
  svg.append("text").attr("class", "title").attr("transform", `translate(11,${margin.top + (down * rows.length) / 2}) rotate(-90)`).attr("text-anchor", "middle").text(rowTitle);
  host.append(make("div", { class: "ramp" }, format(low), make("i"), format(high)));
}

// Stacked bars, their labels above them. rows: [{label, parts: [value, ...], note}]; parts:
// [{name, look}]; negative values extend to the left of 0.
function drawBars(host, width, { label, rows, parts, format, ticks = format, axisLabel }) {
  if (parts.length > 1) {
    host.append(make("div", { class: "legend" }, ...parts.map((p) => make("span", { class: "key" }, drawKey(p.look, "bar"), p.name))));
  }
  const sum = (row, sign) => row.parts.reduce((total, v) => total + (sign * v > 0 ? v : 0), 0);
  const low = Math.min(0, ...rows.map((r) => sum(r, -1))), high = Math.max(0, ...rows.map((r) => sum(r, 1)));
  const margin = { left: 4, right: 10, bottom: 40 };
  const step = 40;
  const height = rows.length * step + margin.bottom;
  const svg = makeChart(host, width, height, label);
  const sx = d3.scaleLinear().domain(low < high ? [low, high] : [0, 1]).range([margin.left, width - margin.right]);
  svg.append("g").attr("class", "grid").attr("transform", `translate(0,${height - margin.bottom})`).call(d3.axisBottom(sx).ticks(width < 420 ? 4 : 7).tickSize(-(rows.length * step)).tickFormat(""));
  svg.append("g").attr("transform", `translate(0,${height - margin.bottom})`).call(d3.axisBottom(sx).ticks(width < 420 ? 4 : 7).tickFormat(ticks).tickSizeOuter(0));
  svg.append("text").attr("class", "title").attr("x", width / 2).attr("y", height - 6).attr("text-anchor", "middle").text(axisLabel);
  rows.forEach((row, r) => {
    const top = r * step;
    // Beside the bars only, and not through their names.
    if (low < 0) svg.append("line").attr("x1", sx(0)).attr("x2", sx(0)).attr("y1", top + 17).attr("y2", top + 36).style("stroke", "var(--soft)");
    const room = Math.floor((width - 12 - 7 * (row.note || "").length) / 6.3);
    const name = svg.append("text").attr("class", "halo").attr("x", sx(0) + 2 > width / 2 ? margin.left : Math.max(margin.left, sx(low))).attr("y", top + 14).text(row.label.length > room ? `${row.label.slice(0, Math.max(4, room - 1))}…` : row.label);
    if (row.note) name.append("tspan").attr("dx", 8).style("font-weight", 600).text(row.note);
    let right = 0, left = 0;
    row.parts.forEach((value, i) => {
      if (!Number.isFinite(value) || value === 0) return;
      const from = value > 0 ? right : left + value;
      if (value > 0) right += value; else left += value;
      svg.append("rect").attr("class", "mark").attr("x", sx(from)).attr("y", top + 19).attr("height", 15)
        .attr("width", Math.max(0.5, sx(from + Math.abs(value)) - sx(from) - 0.5)).style("fill", parts[i].look.colour)
        .attr("data-tip", `${row.label}\n${parts[i].name}: ${format(value)}`);
    });
  });
}

// A selection: query blocks down, key blocks across; one hue on any background.
function drawSelection(host, { layer, blocks, bins, kept }) {
  const canvas = make("canvas", { width: bins, height: bins, tabindex: "0", role: "img",
    "aria-label": `Selection of layer ${layer}. Arrow keys move through the blocks.` });
  host.append(make("div", {}, make("p", {}, `Layer ${layer}`), canvas));
  const context = canvas.getContext("2d");
  const image = context.createImageData(bins, bins);
  const share = (q, k) => level64.get(kept[(q * (q + 1)) / 2 + k]) / 63;
  for (let q = 0; q < bins; q += 1) {
    for (let k = 0; k <= q; k += 1) {
      image.data.set([42, 120, 214, Math.round(18 + 237 * share(q, k))], 4 * (q * bins + k));
    }
  }
  context.putImageData(image, 0, 0);
  const span = (i) => {
    const first = Math.ceil((i * blocks) / bins), last = Math.ceil(((i + 1) * blocks) / bins) - 1;
    return last > first ? `${first} to ${last}` : `${first}`;
  };
  const describe = (q, k) => `layer ${layer}\nquery block ${span(q)}, key block ${span(k)}\nkept: ${percent(share(q, k))}`;
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const k = Math.floor(((event.clientX - box.left) / box.width) * bins), q = Math.floor(((event.clientY - box.top) / box.height) * bins);
    if (k >= 0 && q < bins && k <= q) showTip(describe(q, k), event.clientX, event.clientY);
    else hideTip();
  });
  let q = bins - 1, k = 0;
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    q = Math.max(0, Math.min(bins - 1, q + move[0]));
    k = Math.max(0, Math.min(q, k + move[1]));
    const box = canvas.getBoundingClientRect();
    showTip(describe(q, k), box.left + ((k + 0.5) * box.width) / bins, box.top + ((q + 0.5) * box.height) / bins);
  });
  canvas.addEventListener("blur", hideTip);
}
