// Elements from values. Text is always text: nothing here, or anywhere, parses HTML. Next: main.js.

export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key === "vars") for (const [variable, share] of Object.entries(value)) element.style.setProperty(variable, share);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function button(label, onClick, properties = {}) {
  return el("button", { type: "button", on: { click: onClick }, ...properties }, label);
}

// A row of buttons of which one is pressed.
export function segments(label, choices, value, onChoose) {
  const buttons = choices.map(([key, text]) => button(text, () => { choose(key); onChoose(key); }, { data: { key } }));
  const choose = key => buttons.forEach(each => each.setAttribute("aria-pressed", String(each.dataset.key === key)));
  choose(value);
  const group = el("div", { className: "segments", role: "group", "aria-label": label }, ...buttons);
  return { group, buttons, choose };
}

// What the eye cannot see in a token: spaces, line ends, tabs.
export const visible = text => text.replaceAll(" ", "\u2423").replaceAll("\n", "\u21b5").replaceAll("\r", "\u240d").replaceAll("\t", "\u21e5");

export const number = (value, digits = 0) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const percent = share => {
  const value = 100 * share;
  if (value === 0) return "0 %";
  if (value < 0.01) return "< 0.01 %";
  return `${value >= 99.95 ? "100" : value.toFixed(value < 0.1 ? 2 : 1)} %`;
};

export const seconds = value => value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;

export function ago(age) {
  if (age < 2) return "just now";
  if (age < 120) return `${Math.round(age)} s ago`;
  return age < 7200 ? `${Math.round(age / 60)} min ago` : `${Math.round(age / 3600)} h ago`;
}

// Dollars, with as many digits as tell something.
export function money(value) {
  if (value === 0) return "$0";
  const size = Math.abs(value);
  if (size < 0.000001) return "< $0.000001";
  const digits = size >= 1 ? 2 : Math.min(6, 2 - Math.floor(Math.log10(size)));
  return `${value < 0 ? "\u2212" : ""}$${number(size, Math.max(2, digits)).replace(/(\.\d\d\d*?)0+$/, "$1")}`;
}

// A count with few digits: 12,345 is 12.3 k.
export function short(count) {
  const [unit, word] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]].find(([least]) => count >= least) ?? [1, ""];
  const scale = word === "k" ? 1e3 : unit;
  return word ? `${number(count / scale, count / scale < 100 ? 1 : 0)} ${word}` : number(count);
}

export const moment = at => new Date(at * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const DASH = "\u2013";

export const orDash = (value, format) => value === null || value === undefined ? DASH : format(value);
