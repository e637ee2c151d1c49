// A small chart of levels over the last minutes: up to two lines, told apart by dashes too.
// Next: server.js.
import { el, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 90;

export class Chart {
  // `lines` are [name, dash or not]; `format` writes a value.
  constructor(title, lines, format) {
    this.format = format;
    this.lines = lines;
    this.legend = el("div", { className: "row soft number" });
    this.top = el("span", { className: "soft number" });
    this.since = el("span");
    this.paths = lines.map((_, place) => svg("path", { class: `line line-${place}`, "vector-effect": "non-scaling-stroke" }));
    this.area = svg("path", { class: "area" });
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title} over the last minutes` }, this.area, ...this.paths);
    this.element = el("section", { className: "card chart stack tight" }, el("h3", {}, title), this.legend,
      el("div", { className: "plot" }, this.top, picture), el("div", { className: "row apart soft" }, this.since, el("span", {}, "now")));
  }

  // One list of values per line; null where nothing is known. `span` is all of the chart, in seconds.
  draw(series, span, capacity, ceiling = 0) {
    const most = Math.max(ceiling, ...series.flat().filter(value => value !== null));
    const top = roof(most);
    this.top.textContent = most > 0 ? this.format(top) : "";
    this.since.textContent = `${Math.round(span / 60)} min ago`;
    const place = (value, index, count) => `${(WIDTH * (1 - (count - 1 - index) / (capacity - 1))).toFixed(1)} ${(HEIGHT - 2 - (HEIGHT - 8) * (top ? value / top : 0)).toFixed(1)}`;
    this.paths.forEach((path, number) => path.setAttribute("d", trace(series[number], place)));
    this.area.setAttribute("d", area(series[0], place));
    this.legend.replaceChildren(...this.lines.map((name, number) => {
      const last = series[number].at(-1);
      return el("span", { className: `entry entry-${number}` }, `${name} ${last === null || last === undefined ? "\u2013" : this.format(last)}`);
    }));
  }
}

function trace(values, place) {
  let isDown = false;
  return values.map((value, index) => {
    if (value === null) { isDown = false; return ""; }
    const step = `${isDown ? "L" : "M"}${place(value, index, values.length)}`;
    isDown = true;
    return step;
  }).join("");
}

function area(values, place) {
  const first = values.findIndex(value => value !== null);
  if (first < 0 || values.length - first < 2) return "";
  const known = values.map(value => value ?? 0);
  const start = place(0, first, values.length).split(" ")[0];
  return `M${start} ${HEIGHT}${known.slice(first).map((value, index) => `L${place(value, first + index, values.length)}`).join("")}L${WIDTH} ${HEIGHT}Z`;
}

// The next round number at or above the highest value.
function roof(value) {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map(step => step * power).find(step => step >= value * 0.9999);
}
