// A table of records; on a phone each becomes a card, its columns' names beside the values.
// Next: fleet.js.
import { el } from "./dom.js";

// `columns` are [name, "text" or "number"]; each row is a list of cells: texts, elements or null.
export function table(label, columns, rows, properties = {}) {
  const head = el("thead", {}, el("tr", {}, ...columns.map(([name, kind]) => el("th", { scope: "col", className: kind }, name))));
  return el("div", { className: "scroll" }, el("table", { className: "records", "aria-label": label, ...properties }, head, el("tbody", {}, ...rows.map(row => tableRow(columns, row)))));
}

export function tableRow(columns, cells, properties = {}) {
  return el("tr", properties, ...cells.map((cell, place) => {
    const [name, kind] = columns[place];
    const parts = Array.isArray(cell) ? cell : [cell];
    return el("td", { className: kind, data: { label: name } }, el("div", {}, ...parts));
  }));
}

// A value with a smaller line below it.
export const lines = (value, note) => [el("span", { className: "main" }, value), note ? el("span", { className: "soft" }, note) : null];

export const pill = (state, text) => el("span", { className: "state", data: { state } }, text);

export function bar(share, label) {
  const element = el("span", { className: "bar", role: "img", "aria-label": label, vars: { "--w": `${100 * Math.max(0, Math.min(1, share))}%` } }, el("i"));
  element.dataset.tone = share >= 1 ? "bad" : share >= 0.8 ? "warn" : "";
  return element;
}

// Names and numbers in a grid, as a description list.
export const facts = entries => el("dl", { className: "facts number" }, ...entries.map(([name, value, note]) =>
  el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("span", { className: "soft" }, note) : null))));
