"use strict";
// The page's data, and how numbers, methods and densities are written.
const reports = JSON.parse(document.getElementById("data").textContent);

// Digits behind the point; negative: significant ones.
const fixed = (x, digits) => (digits < 0 ? `${+x.toPrecision(-digits)}` : x.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1"));
const percent = (x) => `${+(100 * x).toFixed(2)}%`;
const signed = (x, digits) => (x > 0 ? "+" : "") + fixed(x, digits);
const short = (x) =>
  x === 0 ? "0" : Math.abs(x) >= 1e4 || Math.abs(x) < 1e-3 ? x.toExponential(1) : `${+x.toPrecision(3)}`;
const ticksOfTime = (x) => (x === 0 ? "0" : x >= 1 ? `${+x.toPrecision(3)} ms` : `${+(1000 * x).toPrecision(3)} µs`);
const milliseconds = (x) => (x >= 100 ? `${fixed(x, 0)} ms` : x >= 1 ? `${fixed(x, 2)} ms` : `${fixed(1000 * x, 1)} µs`);

// A value is a number, or [mean, low, high].
const meanOf = (value) => (Array.isArray(value) ? value[0] : value);
const intervalOf = (value) => (Array.isArray(value) ? [value[1], value[2]] : null);
const hasNumber = (cell, key) => cell.values && Number.isFinite(meanOf(cell.values[key]));

const nameOf = (method) => method.split(":")[0];
const armOf = (cell) => cell.method + (cell.density === null ? "" : ` at ${percent(cell.density)}`);
const distinct = (list) => [...new Set(list)];
const densitiesOf = (cells) =>
  distinct(cells.map((c) => c.density).filter((d) => d !== null)).sort((a, b) => a - b);
const nearestTo = (values, wanted) =>
  values.reduce((best, x) => (Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best), values[0]);

// Looks of the methods: what is tested gets colours, what it is compared with stays quiet. Shapes
// and dashes say the same without colour.
const fixedLooks = {
  dense: { colour: "var(--faint)", dash: "2 4", shape: 5 },
  sink_window: { colour: "var(--plain)", dash: "7 3", shape: 4 },
  oracle: { colour: "var(--best)", dash: "1 3", shape: 2 },
  random: { colour: "var(--chance)", dash: "3 3", shape: 1 },
};
function looksOf(methods) {
  const looks = new Map();
  let next = 0;
  for (const method of distinct(methods)) {
    const known = fixedLooks[method];
    looks.set(method, known || { colour: `var(--s${(next % 6) + 1})`, dash: next < 6 ? "" : "6 2 2 2", shape: [0, 3, 5, 2, 4, 1][next % 6] });
    if (!known) next += 1;
  }
  return looks;
}

const digits64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const level64 = new Map([...digits64].map((c, i) => [c, i]));
// Shares of [0, 1] in two digits each; NaN where there is none.
function unpackShares(text) {
  const values = [];
  for (let i = 0; i + 1 < text.length; i += 2) {
    const high = level64.get(text[i]), low = level64.get(text[i + 1]);
    values.push(high === undefined || low === undefined ? NaN : (64 * high + low) / 4095);
  }
  return values;
}

// Makes an element; children are elements or texts, never markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// A method that may break after the marks between its options, and not within a word.
function breakable(method) {
  return String(method).split(/(?<=[:,])/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

// A labelled choice; options are values or [value, label] pairs. Calls changed(value).
function choice(label, options, chosen, changed) {
  const pairs = options.map((o) => (Array.isArray(o) ? o : [o, String(o)]));
  const select = make("select", { onchange: () => changed(pairs[select.selectedIndex][0]) });
  for (const [value, text] of pairs) select.append(make("option", { selected: value === chosen }, text));
  return make("label", {}, label, select);
}
