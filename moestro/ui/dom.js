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
