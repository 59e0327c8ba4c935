// The table of all cells: sorts by any column, filters by words and choices.
function makeTable(parent, report) {
  const cells = report.cells;
  const any = (test) => cells.some(test);
  const columns = [];
  if (any((c) => c.method)) columns.push({ label: "Method", kind: "method", of: (c) => c.method });
  if (any((c) => c.density !== null)) columns.push({ label: "Density", of: (c) => c.density, show: (c) => (c.density === null ? "–" : percent(c.density)), help: "requested share of the causal pairs" });
  if (distinct(cells.map((c) => c.phase)).length > 1) columns.push({ label: "Phase", kind: "text", of: (c) => c.phase });
  if (any((c) => c.variant)) columns.push({ label: "Part", kind: "text", of: (c) => c.variant });
  if (distinct(cells.map((c) => c.input)).length > 1) columns.push({ label: report.kind === "trace" ? "Trace" : report.kind === "profile" ? "Shape" : "Task", kind: "long text", of: (c) => c.input });
  for (const column of report.columns) {
    if (!any((c) => c.values && c.values[column.key] !== undefined)) continue;
    columns.push({ ...column, kind: column.text ? "text" : "", of: (c) => (c.values ? meanOf(c.values[column.key]) ?? null : null), value: column });
  }
  if (any((c) => c.status !== "ok")) columns.push({ label: "Status", kind: "long text", of: (c) => (c.reason ? `${c.status}: ${c.reason}` : c.status) });

  const body = make("tbody");
  const textOf = (column, cell) => (column.show ? column.show(cell) : column.of(cell) ?? "–");
  const makeRow = (cell) => make("tr", { class: cell.status === "ok" ? false : cell.status }, ...columns.map((column) => {
    const td = make("td", { class: column.kind ? (column.kind === "method" ? "method text" : column.kind) : false });
    if (column.value) fillValue(td, column.value, cell);
    else if (column.kind === "method") td.append(...breakable(textOf(column, cell)));
    else td.textContent = textOf(column, cell);
    return td;
  }));
  const rows = cells.map((cell, index) => ({ cell, index, row: null, words: columns.map((c) => textOf(c, cell)).join(" ").toLowerCase() }));
  let order = rows;

  const state = { words: [], method: "", phase: "", density: "", input: "" };
  const count = make("output", { class: "note" });
  // Long tables begin with some rows, so that the page opens at once.
  const firstRows = 100;
  let everything = false;
  const more = make("button", { type: "button", class: "filters", onclick: () => { everything = true; filter(); } });
  const filter = () => {
    const matching = order.filter(({ cell, words }) => state.words.every((w) => words.includes(w)) &&
      (!state.method || cell.method === state.method) && (!state.phase || cell.phase === state.phase) &&
      (!state.input || cell.input === state.input) && (state.density === "" || cell.density === state.density));
    const shown = everything ? matching : matching.slice(0, firstRows);
    body.replaceChildren(...shown.map((r) => (r.row ??= makeRow(r.cell))));
    count.textContent = `${matching.length} of ${rows.length} rows`;
    more.textContent = `Show all ${matching.length} rows`;
    more.hidden = shown.length === matching.length;
  };
  window.addEventListener("beforeprint", () => { everything = true; filter(); });
  const bar = make("div", { class: "controls filters" });
  bar.append(make("label", {}, "Filter", make("input", { type: "search", placeholder: "words", "aria-label": "Filter rows by words",
    oninput: (event) => { state.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean); filter(); } })));
  const offer = (label, key, values, text = (v) => v) => {
    if (values.length > 1) bar.append(choice(label, [["", "all"], ...values.map((v) => [v, text(v)])], "", (v) => { state[key] = v; filter(); }));
  };
  offer("Method", "method", distinct(cells.map((c) => c.method)));
  offer("Density", "density", densitiesOf(cells), percent);
  offer("Phase", "phase", distinct(cells.map((c) => c.phase)));
  offer(report.kind === "trace" ? "Trace" : "Input", "input", distinct(cells.map((c) => c.input)));
  bar.append(count);

  const heads = columns.map((column) => {
    const th = make("th", { scope: "col", "aria-sort": "none", class: column.kind ? (column.kind === "method" ? "method text" : column.kind) : false });
    th.append(make("button", { type: "button", title: column.help || false, onclick: () => sortBy(column, th) }, column.label));
    return th;
  });
  function sortBy(column, th) {
    const ascending = th.getAttribute("aria-sort") === "descending" || (th.getAttribute("aria-sort") === "none" && Boolean(column.kind));
    for (const other of heads) other.setAttribute("aria-sort", "none");
    th.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const direction = ascending ? 1 : -1;
    // Cells without a value stay at the end either way.
    order = [...rows].sort((a, b) => {
      const x = column.of(a.cell), y = column.of(b.cell);
      const gone = (x === null || x === undefined) - (y === null || y === undefined);
      if (gone || x === null || x === undefined) return gone || a.index - b.index;
      return direction * (typeof x === "string" ? x.localeCompare(y) : x - y) || a.index - b.index;
    });
    filter();
  }
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
  parent.append(make("h3", {}, "All cells"), bar,
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of all cells" }, table), more);
  filter();
}

function fillValue(td, column, cell) {
  const value = cell.values ? cell.values[column.key] : undefined;
  if (value === undefined || value === null) { td.textContent = "–"; return; }
  if (column.key === "verdict") {
    td.append(make("span", { class: ["better", "worse", "tied", "underpowered"].includes(value) ? `verdict ${value}` : false }, value));
    return;
  }
  if (column.text) { td.textContent = value; return; }
  const isDifference = column.key === "plain" || column.key === "versus" || column.key === "ln_ratio";
  const show = (x) => (isDifference ? signed(x, column.digits) : fixed(x, column.digits));
  td.append(show(meanOf(value)));
  const interval = intervalOf(value);
  if (interval) td.append(make("span", { class: "interval" }, `${show(interval[0])} … ${show(interval[1])}`));
}
