// Which figures each kind of report has.
const traceMetrics = [
  { key: "recall", bounds: [0, 1], label: "Mass recall", better: "higher is better" },
  { key: "error", label: "Output error", better: "lower is better" },
  { key: "gap", label: "Oracle gap", better: "lower is better" },
  { key: "topk", bounds: [0, 1], label: "Top-k recall", better: "higher is better" },
  { key: "cosine", bounds: [0, 1], label: "Cosine of the output", better: "higher is better" },
  { key: "answer", bounds: [0, 1], label: "Answer recall", better: "higher is better" },
  { key: "plain", label: "Mass recall minus sink_window's", better: "above 0: better than sink_window" },
];
const stageNames = ["pool", "sketch", "walk", "select", "attention"];
const stageParts = stageNames.map((name, i) => ({ name, look: { colour: `var(--stage${i + 1})` } }));

function tipOf(cell, label, key, digits) {
  const value = cell.values[key], interval = intervalOf(value);
  return `${armOf(cell)}\n${label}: ${fixed(meanOf(value), digits)}` +
    (interval ? `\n95% interval ${fixed(interval[0], digits)} to ${fixed(interval[1], digits)}` : "");
}

// One line a method over the requested densities.
function overDensity(cells, looks, key, label, digits = 4) {
  const series = [];
  for (const [method, look] of looks) {
    const points = cells.filter((c) => c.method === method && c.density !== null && hasNumber(c, key)).sort((a, b) => a.density - b.density)
      .map((c) => {
        const interval = intervalOf(c.values[key]) || [];
        return { x: c.density, y: meanOf(c.values[key]), low: interval[0], high: interval[1], tip: tipOf(c, label, key, digits) };
      });
    if (points.length) series.push({ name: method, look, points });
  }
  return series;
}
const densityAxis = (cells) => ({ label: "requested density", ticks: densitiesOf(cells), format: percent });

// Metrics over density, one of which is chosen.
function densityFigure(parent, title, caption, metrics, cellsOf, looks, linesOf = () => []) {
  const known = metrics.filter((m) => cellsOf().some((c) => c.density !== null && hasNumber(c, m.key)));
  if (!known.length) return null;
  let metric = known[0];
  const hidden = new Set();
  const figure = makeFigure(parent, {
    title, caption,
    controls: known.length > 1 ? [choice("Metric", known.map((m) => [m, m.label]), metric, (m) => { metric = m; figure.redraw(); })] : [],
    draw: (host, width) => drawLines(host, width, {
      label: `${title}: ${metric.label}`, hidden, redraw: () => figure.redraw(),
      series: overDensity(cellsOf(), looks, metric.key, metric.label),
      x: densityAxis(cellsOf()), y: { label: metric.label, note: metric.better, zero: metric.zero, bounds: metric.bounds },
      lines: metric.key === "plain" ? [{ y: 0, label: "sink_window" }] : linesOf(metric, cellsOf()),
    }),
  });
  return figure;
}

// Better, tied or worse at each density, in a small table.
function verdictMatrix(parent, title, caption, cellsOf, key, baseline, digits) {
  const host = make("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": title });
  const figure = { redraw() {
    const cells = cellsOf().filter((c) => c.density !== null && c.values && c.values.verdict);
    const densities = densitiesOf(cells);
    const table = make("table", { class: "matrix" }, make("thead", {}, make("tr", {}, make("th", { class: "method text" }, "Method"),
      ...densities.map((d) => make("th", { scope: "col" }, percent(d))))), make("tbody"));
    for (const method of distinct(cells.map((c) => c.method))) {
      const row = make("tr", {}, make("td", { class: "method text" }, ...breakable(method)));
      for (const density of densities) {
        const cell = cells.find((c) => c.method === method && c.density === density);
        const td = make("td");
        if (cell) {
          td.append(make("span", { class: `verdict ${["better", "worse", "tied", "underpowered"].includes(cell.values.verdict) ? cell.values.verdict : ""}` }, cell.values.verdict));
          if (hasNumber(cell, key)) td.append(make("small", {}, signed(meanOf(cell.values[key]), digits)));
        }
        row.append(td);
      }
      table.tBodies[0].append(row);
    }
    host.replaceChildren(cells.length ? table : make("p", { class: "note" }, `Nothing was compared with ${baseline}.`));
  } };
  parent.append(make("figure", { class: "wide" }, make("h4", {}, title), host, make("figcaption", {}, caption)));
  figure.redraw();
  return figure;
}

function stageFigure(parent, title, caption, rowsOf, controls = []) {
  if (!rowsOf().length) return null;
  return makeFigure(parent, { title, caption, controls,
    draw: (host, width) => drawBars(host, width, { label: title, rows: rowsOf(), parts: [...stageParts], format: milliseconds, ticks: ticksOfTime, axisLabel: "median time" }) });
}

function traceFigures(parent, report) {
  const ok = report.cells.filter((c) => c.status === "ok");
  if (!ok.length) return;
  const looks = looksOf(ok.map((c) => c.method));
  const inputs = distinct(ok.map((c) => c.input)), phases = distinct(ok.map((c) => c.phase));
  const scope = { input: inputs[0], phase: phases[0] };
  const cells = () => ok.filter((c) => c.input === scope.input && c.phase === scope.phase);
  const figures = [];
  const redraw = () => figures.forEach((f) => f && f.redraw());
  if (inputs.length > 1 || phases.length > 1) {
    const bar = make("div", { class: "controls scope filters" });
    if (inputs.length > 1) bar.append(choice("Trace", inputs, scope.input, (v) => { scope.input = v; redraw(); }));
    if (phases.length > 1) bar.append(choice("Phase of all figures", phases, scope.phase, (v) => { scope.phase = v; redraw(); }));
    parent.append(bar);
  }
  const grid = make("div", { class: "figures" });
  parent.append(grid);
  const densities = densitiesOf(ok);
  const arms = () => cells().filter((c) => c.method !== "dense");

  function stagesOfLayers() {
    if (!ok.some((c) => c.stages)) return;
    let density = nearestTo(densities, 0.2);
    const plot = makeFigure(grid, { title: "Time of one layer by stage",
      caption: "Medians of single passes inside the evaluation: not a benchmark. Methods that rank by the dense masses have no selection time of their own, so only their attention is shown.",
      controls: densities.length ? [choice("Density", densities.map((d) => [d, percent(d)]), density, (d) => { density = d; plot.redraw(); })] : [],
      draw: (host, width) => {
        const rows = cells().filter((c) => c.stages && (c.density === null || c.density === density))
          .map((c) => ({ label: c.method, parts: c.stages.map((v, i) => (!hasNumber(c, "select_ms") && i < 4 ? NaN : v ?? NaN)), note: hasNumber(c, "speed") && c.method !== "dense" ? `${fixed(meanOf(c.values.speed), 2)}× as quick as dense` : "" }));
        drawBars(host, width, { label: "Time of one layer by stage", rows, parts: stageParts, format: milliseconds, ticks: ticksOfTime, axisLabel: "median time of one layer" });
      } });
    figures.push(plot);
  }

  if (ok.some((c) => c.values.verdict)) figures.push(verdictMatrix(grid, "Is it better than keeping the first and the latest blocks?",
    "Mass recall minus that of sink_window at the same density, paired by query block or step. Tied: the 95% interval contains 0.", cells, "plain", "sink_window", 4));
  figures.push(densityFigure(grid, "Quality against density",
    "Means over sparse layers, heads and query blocks with 95% bootstrap intervals; points are set apart a little so that intervals can be told apart.", traceMetrics, cells, looks));

  if (!densities.length) { stagesOfLayers(); return; }
  const hiddenDensity = new Set();
  const realised = () => (cells().some((c) => c.density !== null && hasNumber(c, "read")) ? "read" : "kept");
  const densityPlot = makeFigure(grid, { title: "Realised against requested density",
    caption: "On the dotted line a method keeps what was asked for. In decode: share of the KV cache that is read.",
    draw: (host, width) => drawLines(host, width, { label: "Realised against requested density", hidden: hiddenDensity, redraw: () => densityPlot.redraw(), dodge: false,
      series: overDensity(cells(), looks, realised(), "realised", 4), x: densityAxis(cells()), y: { label: "realised density", format: percent, zero: true }, diagonal: true }) });
  figures.push(densityPlot);

  if (ok.some((c) => c.gap && c.gap.length > 1)) {
    const layered = [{ key: "gap", label: "Oracle gap" }, { key: "recall", bounds: [0, 1], label: "Mass recall" }, { key: "error", label: "Output error" }];
    let metric = layered[0], density = nearestTo(densities, 0.2);
    const hidden = new Set();
    const plot = makeFigure(grid, { title: "By layer",
      caption: "Oracle gap: mass of the best selection with as many blocks, minus the method's own. Layers that attend densely are left out.",
      controls: [choice("Metric", layered.map((m) => [m, m.label]), metric, (m) => { metric = m; plot.redraw(); }),
        choice("Density", densities.map((d) => [d, percent(d)]), density, (d) => { density = d; plot.redraw(); })],
      draw: (host, width) => {
        const series = arms().filter((c) => c.density === density && (c[metric.key] || []).length).map((c) => ({ name: c.method, look: looks.get(c.method),
          points: c.layers.map((layer, i) => ({ x: layer, y: c[metric.key][i] ?? NaN, tip: `${armOf(c)}\nlayer ${layer}\n${metric.label}: ${short(c[metric.key][i] ?? NaN)}`, dense: c.recall[i] === 1 && c.gap[i] === 0 && c.error[i] === 0 })).filter((p) => !p.dense) }));
        drawLines(host, width, { label: `${metric.label} by layer`, series, hidden, redraw: () => plot.redraw(), dodge: false,
          x: { label: "layer", format: (v) => (Number.isInteger(v) ? v : "") }, y: { label: metric.label, zero: metric.key !== "recall", bounds: metric.bounds } });
      } });
    figures.push(plot);
  }

  const mapped = () => cells().filter((c) => c.heat);
  if (ok.some((c) => c.heat)) {
    let arm = null;
    const preferred = () => mapped().find((c) => !fixedLooks[nameOf(c.method)] && c.density === nearestTo(densities, 0.2)) || mapped()[0];
    const slot = make("span");
    const current = () => mapped().find((c) => armOf(c) === arm) || preferred();
    const plot = makeFigure(grid, { title: "Mass recall by layer and head", controls: [slot],
      caption: "Share of the dense attention mass on kept keys, mean over query blocks or steps. Darker (in the dark theme: lighter) is more.",
      draw: (host, width) => {
        slot.replaceChildren(choice("Method", mapped().map((c) => armOf(c)), current() && armOf(current()), (v) => { arm = v; plot.redraw(); }));
        const cell = current();
        if (!cell) { host.append(make("p", { class: "note" }, "No values by head in this scope.")); return; }
        const shares = unpackShares(cell.heat);
        const keep = cell.layers.map((_, i) => i).filter((i) => !(cell.recall[i] === 1 && cell.gap[i] === 0));
        drawHeatMap(host, width, { label: "Mass recall by layer and head", rows: Array.from({ length: cell.heads }, (_, h) => h), columns: keep.map((i) => cell.layers[i]),
          rowTitle: "head", columnTitle: "layer", format: (v) => fixed(v, 3), values: Array.from({ length: cell.heads }, (_, h) => keep.map((i) => shares[i * cell.heads + h])),
          tipOf: (h, l) => `layer ${cell.layers[keep[l]]}, head ${h}\nmass recall ${fixed(shares[keep[l] * cell.heads + h], 3)}` });
      } });
    figures.push(plot);
  }

  if (ok.some((c) => c.loss)) {
    const steps = ["forced sink and window", "mean queries", "mean keys", "mask", "temperature", "aggregation", "interaction of the three", "sketch", "walk"];
    const colours = ["var(--soft)", "var(--s4)", "var(--s1)", "var(--s5)", "var(--s6)", "color-mix(in srgb, var(--s5), var(--s1))", "color-mix(in srgb, var(--s6), var(--soft))", "var(--s2)", "var(--s3)"];
    const fine = ok.some((c) => c.loss && c.loss.parts.length === steps.length);
    const parts = fine ? steps.map((name, i) => ({ name, look: { colour: colours[i] } }))
      : ["averaging over blocks", "sketch", "walk"].map((name, i) => ({ name, look: { colour: `var(--s${i + 1})` } }));
    const known = () => cells().filter((c) => c.loss && c.loss.parts.length === parts.length);
    const format = (v) => `${+v.toPrecision(3)}`;
    let density = ok.filter((c) => c.loss && c.phase === scope.phase && c.input === scope.input).length > 12 ? nearestTo(densities, 0.2) : "";
    const plot = makeFigure(grid, { title: "Where the mass is lost",
      caption: fine ? "Loss of attention mass to the best selection of the same size, step by step from that selection to the method; the parts depend on this order. Mask, temperature and aggregation are taken alone, and the interaction is what they do beyond their sum. Left of 0: the step wins mass back. In brackets: what the best shared selection loses to the best ones of each head."
        : "Loss of attention mass to the best selection of the same size, split by ranking with exact block means, then the sketch, then the walk. Left of 0: the step wins mass back.",
      controls: [choice("Density", [["", "all"], ...densities.map((d) => [d, percent(d)])], density, (d) => { density = d; plot.redraw(); })],
      draw: (host, width) => {
        const rows = known().filter((c) => density === "" || c.density === density).map((c) => ({ label: armOf(c), parts: c.loss.parts,
          note: fixed(c.loss.total, 4) + (Number.isFinite(c.loss.sharing) ? ` (${fixed(c.loss.sharing, 4)})` : "") }));
        if (!rows.length) host.append(make("p", { class: "note" }, "Not measured in this scope."));
        else drawBars(host, width, { label: "Where the mass is lost", rows, parts, format, axisLabel: "attention mass" });
      } });
    figures.push(plot);
    if (ok.some((c) => c.loss && c.loss.layers.length > 1)) {
      let arm = null;
      const slot = make("span");
      const byLayer = makeFigure(grid, { title: "Where each layer loses mass", controls: [slot], caption: "The same parts, layer by layer; the number is their sum. Layers that attend densely are left out.",
        draw: (host, width) => {
          const list = known().filter((c) => c.loss.layers.length === c.layers.length);
          const cell = list.find((c) => armOf(c) === arm) || list.find((c) => c.density === nearestTo(densities, 0.2)) || list[0];
          slot.replaceChildren();
          if (!cell) { host.append(make("p", { class: "note" }, "Not measured in this scope.")); return; }
          slot.append(choice("Method", list.map((c) => armOf(c)), armOf(cell), (v) => { arm = v; byLayer.redraw(); }));
          const rows = cell.layers.map((layer, i) => ({ label: `layer ${layer}`, parts: cell.loss.layers[i], note: fixed(cell.loss.layers[i].reduce((sum, v) => sum + v, 0), 4), dense: cell.recall[i] === 1 && cell.gap[i] === 0 })).filter((row) => !row.dense);
          drawBars(host, width, { label: "Where each layer loses mass", rows, parts, format, axisLabel: "attention mass" });
        } });
      figures.push(byLayer);
    }
  }

  stagesOfLayers();

  if (ok.some((c) => c.selections && c.selections.length)) {
    let arm = null;
    const slot = make("span");
    const withMaps = () => cells().filter((c) => c.selections && c.selections.length && c.method !== "dense");
    const plot = makeFigure(grid, { title: "Which blocks are kept", wide: true, controls: [slot],
      caption: "Query blocks run down, key blocks across; the stronger the colour, the more of the selections (heads or groups, and blocks in a bin) keep the block.",
      draw: (host) => {
        const cell = withMaps().find((c) => armOf(c) === arm) || withMaps().find((c) => !fixedLooks[nameOf(c.method)] && c.density === nearestTo(densities, 0.2)) || withMaps()[0];
        slot.replaceChildren();
        if (!cell) { host.append(make("p", { class: "note" }, "No selections in this scope.")); return; }
        slot.append(choice("Method", withMaps().map((c) => armOf(c)), armOf(cell), (v) => { arm = v; plot.redraw(); }));
        const maps = make("div", { class: "maps" });
        host.append(maps);
        for (const map of cell.selections) drawSelection(maps, map);
      } });
    figures.push(plot);
  }
}

// "length=2048,depth=0.5" as numbers, or null.
function needlePlace(group) {
  const match = /^length=(\d+),depth=([\d.]+)$/.exec(group);
  return match ? { length: Number(match[1]), depth: Number(match[2]) } : null;
}

function modelFigures(parent, report) {
  const ok = report.cells.filter((c) => c.status === "ok");
  if (!ok.length) return;
  const looks = looksOf(ok.map((c) => c.method));
  const grid = make("div", { class: "figures" });
  parent.append(grid);
  const texts = distinct(ok.filter((c) => hasNumber(c, "perplexity")).map((c) => c.input));
  const tasks = distinct(ok.filter((c) => hasNumber(c, "score")).map((c) => c.input));
  const textMetrics = [
    { key: "ln_ratio", label: "ln of perplexity ratio", better: "0: as dense", zero: true },
    { key: "perplexity", label: "Perplexity", better: "lower is better" },
    { key: "kl", label: "Mean KL from dense, nats", better: "lower is better", zero: true },
    { key: "top", bounds: [0, 1], label: "Same first choice as dense", better: "higher is better" },
  ];
  for (const task of texts) {
    const cells = ok.filter((c) => c.input === task);
    const dense = cells.find((c) => c.method === "dense");
    densityFigure(grid, `Next tokens: ${task}`, "95% intervals resample blocks of 64 tokens.", textMetrics, () => cells, looks,
      (metric) => (metric.key === "ln_ratio" ? [{ y: 0, label: "dense" }] : metric.key === "perplexity" && dense ? [{ y: meanOf(dense.values.perplexity), label: "dense" }] : []));
  }
  if (tasks.length) {
    for (const task of tasks) {
      verdictMatrix(grid, `Against dense attention: ${task}`, "Paired by sample, corrected over the tasks; points of 100. Underpowered: too few samples to tell.",
        () => ok.filter((c) => c.input === task), "versus", "dense", 1);
    }
    let task = tasks[0];
    const scoreMetrics = [{ key: "score", bounds: [0, 100], label: "Score", better: "higher is better" }, { key: "versus", label: "Score minus dense", better: "0: as dense" }];
    const cells = () => ok.filter((c) => c.input === task);
    const figure = densityFigure(grid, "Score against density", "Means over samples with 95% bootstrap intervals.", scoreMetrics, cells, looks,
      (metric, list) => { const dense = list.find((c) => c.method === "dense"); return metric.key === "score" && dense ? [{ y: meanOf(dense.values.score), label: "dense" }] : [{ y: 0, label: "dense" }]; });
    if (figure && tasks.length > 1) {
      const bar = make("div", { class: "controls scope filters" }, choice("Task of “Score against density”", tasks, task, (v) => { task = v; figure.redraw(); }));
      grid.before(bar);
    }
  }
  const needles = ok.filter((c) => (c.groups || []).some((g) => needlePlace(g[0])));
  if (needles.length) {
    let chosen = needles[0];
    const label = (c) => `${armOf(c)}${distinct(needles.map((n) => n.input)).length > 1 ? `, ${c.input}` : ""}`;
    const preferred = needles.find((c) => !fixedLooks[nameOf(c.method)]);
    if (preferred) chosen = preferred;
    const plot = makeFigure(grid, { title: "Needles found, by length and depth", caption: "Mean score of 100 at each length of the text and depth of the needle.",
      controls: [choice("Method", needles.map((c) => [c, label(c)]), chosen, (c) => { chosen = c; plot.redraw(); })],
      draw: (host, width) => {
        const places = chosen.groups.map((g) => ({ ...needlePlace(g[0]), score: g[1], samples: g[2] })).filter((p) => p.length);
        const lengths = distinct(places.map((p) => p.length)).sort((a, b) => a - b), depths = distinct(places.map((p) => p.depth)).sort((a, b) => a - b);
        const at = (d, l) => places.find((p) => p.depth === depths[d] && p.length === lengths[l]);
        drawHeatMap(host, width, { label: "Needles found", rows: depths.map(percent), columns: lengths, rowTitle: "depth", columnTitle: "length in tokens", format: (v) => fixed(100 * v, 0), domain: [0, 1],
          values: depths.map((_, d) => lengths.map((_, l) => at(d, l)?.score ?? NaN)),
          tipOf: (d, l) => { const p = at(d, l); return `${label(chosen)}\n${lengths[l]} tokens, depth ${percent(depths[d])}\n` + (p ? `score ${fixed(100 * p.score, 1)} of ${p.samples} samples` : "not run"); } });
      } });
  }
  const hidden = ok.filter((c) => (c.hidden || []).length > 1 && c.density !== null);
  if (hidden.length) {
    const densities = densitiesOf(hidden);
    let density = nearestTo(densities, 0.2);
    const off = new Set();
    const plot = makeFigure(grid, { title: "Error of the hidden state by layer", caption: "Relative Frobenius error of the residual stream against the dense run, all layers running sparse.",
      controls: [choice("Density", densities.map((d) => [d, percent(d)]), density, (d) => { density = d; plot.redraw(); })],
      draw: (host, width) => drawLines(host, width, { label: "Error of the hidden state by layer", hidden: off, redraw: () => plot.redraw(), dodge: false,
        series: hidden.filter((c) => c.density === density).map((c) => ({ name: texts.length > 1 ? `${c.method}, ${c.input}` : c.method, look: looks.get(c.method), points: c.hidden.map((y, x) => ({ x, y: y ?? NaN, tip: `${armOf(c)}\nlayer ${x}: ${short(y ?? NaN)}` })) })),
        x: { label: "layer", format: (v) => (Number.isInteger(v) ? v : "") }, y: { label: "relative error", zero: true } }) });
  }
  for (const [key, title] of [["prefill_stages", "Time of the prefill by stage"], ["decode_stages", "Time of a decode step by stage"]]) {
    const timed = ok.filter((c) => c[key] && c[key].some((v) => v > 0));
    if (!timed.length) continue;
    const inputs = distinct(timed.map((c) => c.input));
    let input = inputs[0];
    const plot = stageFigure(grid, title, "Selection and attention of all layers together, medians over samples; the rest of the model is not in it.",
      () => timed.filter((c) => c.input === input).map((c) => ({ label: armOf(c), parts: c[key].map((v) => v ?? NaN) })),
      inputs.length > 1 ? [choice("Task", inputs, input, (v) => { input = v; plot.redraw(); })] : []);
  }
}

function profileFigures(parent, report) {
  const ok = report.cells.filter((c) => c.status === "ok" && hasNumber(c, "time_ms") && hasNumber(c, "tokens"));
  if (!ok.length) return;
  const partOf = (c) => c.variant.split(", ")[0], codeOf = (c) => c.variant.split(", ").slice(1).join(", ");
  const grid = make("div", { class: "figures" });
  parent.append(grid);
  for (const phase of distinct(ok.map((c) => c.phase))) {
    const cells = ok.filter((c) => c.phase === phase);
    const lengths = distinct(cells.map((c) => meanOf(c.values.tokens))).sort((a, b) => a - b);
    let length = lengths[lengths.length - 1];
    const arms = (list) => distinct(list.map((c) => `${armOf(c)}, ${codeOf(c)}`));
    const plot = makeFigure(grid, { title: `Time of ${phase} by stage`,
      caption: "Medians of the timed runs; selection (pool, sketch, walk, select) and attention. Code of others is shown for comparison.",
      controls: lengths.length > 1 ? [choice("Tokens", lengths, length, (v) => { length = v; plot.redraw(); })] : [],
      draw: (host, width) => {
        const here = cells.filter((c) => meanOf(c.values.tokens) === length);
        const rows = arms(here).map((arm) => {
          const own = here.filter((c) => `${armOf(c)}, ${codeOf(c)}` === arm);
          const time = (part) => { const c = own.find((o) => partOf(o) === part); return c ? meanOf(c.values.time_ms) : NaN; };
          const split = Number.isFinite(time("attention"));
          const total = time("total");
          return { label: arm, parts: split ? stageNames.map(time) : [NaN, NaN, NaN, NaN, total], note: Number.isFinite(total) ? milliseconds(total) : "" };
        });
        drawBars(host, width, { label: `Time of ${phase} by stage`, rows, parts: stageParts, format: milliseconds, ticks: ticksOfTime, axisLabel: "median time" });
      } });
    if (lengths.length > 1) {
      const totals = cells.filter((c) => partOf(c) === "total" && meanOf(c.values.time_ms) > 0 && meanOf(c.values.tokens) > 0);
      const names = arms(totals), looks = looksOf(names), hidden = new Set();
      const lines = makeFigure(grid, { title: `Time of ${phase} against length`, caption: "Both axes are logarithmic.",
        draw: (host, width) => drawLines(host, width, { label: `Time of ${phase} against length`, hidden, redraw: () => lines.redraw(), dodge: false,
          series: names.map((name) => ({ name, look: looks.get(name), points: totals.filter((c) => `${armOf(c)}, ${codeOf(c)}` === name).map((c) => ({ x: meanOf(c.values.tokens), y: meanOf(c.values.time_ms), tip: `${name}\n${meanOf(c.values.tokens)} tokens: ${milliseconds(meanOf(c.values.time_ms))}` })).sort((a, b) => a.x - b.x) })),
          x: { label: "tokens", log: true, ticks: lengths.filter((v) => v > 0), format: (v) => (v % 1024 === 0 ? `${v / 1024}K` : v) }, y: { label: "median time", log: true, format: ticksOfTime } }) });
    }
    const shares = cells.filter((c) => ["total", "attention"].includes(partOf(c)) && (hasNumber(c, "product") || hasNumber(c, "copy")));
    if (shares.length) {
      makeFigure(grid, { title: `Share of the machine in ${phase}`,
        caption: "FLOP/s of the selected blocks over the matrix product, and bytes a second over the copy, both measured in the same run; the larger of the two.",
        draw: (host, width) => {
          const value = (c, key) => (hasNumber(c, key) ? meanOf(c.values[key]) : 0);
          drawBars(host, width, { label: `Share of the machine in ${phase}`, axisLabel: "% of the roofline", format: (v) => `${fixed(v, 1)}%`,
            parts: [{ name: "of the matrix product", look: { colour: "var(--s1)" } }, { name: "of the copy", look: { colour: "var(--s3)" } }],
            rows: shares.map((c) => { const p = value(c, "product"), b = value(c, "copy");
              return { label: `${armOf(c)}, ${c.variant}${lengths.length > 1 ? `, ${meanOf(c.values.tokens)} tokens` : ""}`, parts: p >= b ? [p, NaN] : [NaN, b], note: `${fixed(Math.max(p, b), 1)}%` }; }) });
        } });
    }
  }
  if (report.crossovers.length) {
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...["Phase", "Method", "Density", "Code", "Quicker than dense from"].map((t, i) => make("th", { class: i === 1 ? "method text" : "text" }, t)))), make("tbody"));
    for (const c of report.crossovers) {
      table.tBodies[0].append(make("tr", {}, make("td", { class: "text" }, c.phase), make("td", { class: "method text" }, ...breakable(c.method)), make("td", { class: "text" }, c.density === null ? "–" : percent(c.density)),
        make("td", { class: "long text" }, c.implementation), make("td", { class: "text" }, c.tokens === null ? "not within the lengths measured" : `${c.tokens} tokens`)));
    }
    grid.append(make("figure", { class: "wide" }, make("h4", {}, "Where sparse begins to win"), make("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Crossover lengths" }, table),
      make("figcaption", {}, "Shortest measured length from which on sparse attention, selection included, is quicker at every longer one.")));
  }
}

function scoreFigures(parent, report) {
  const ok = report.cells.filter((c) => hasNumber(c, "score"));
  if (!ok.length) return;
  const grid = make("div", { class: "figures" });
  parent.append(grid);
  makeFigure(grid, { title: "Scores by task", caption: "Of 100, as the benchmark computes them.", wide: true,
    draw: (host, width) => drawBars(host, width, { label: "Scores by task", parts: [{ name: "score", look: { colour: "var(--s1)" } }], format: (v) => fixed(v, 1), axisLabel: "score",
      rows: ok.map((c) => { const interval = intervalOf(c.values.score); return { label: c.input, parts: [meanOf(c.values.score)], note: fixed(meanOf(c.values.score), 2) + (interval ? ` (${fixed(interval[0], 1)} to ${fixed(interval[1], 1)})` : "") }; }) }) });
}
