// The cost-quality curve: quality over strong calls or cost, its ends, chance, and where we are.
// Next: tradeoff.js.
import { el, money, number, percent, segments, svg } from "./dom.js";
import { read, write } from "./store.js";
import { hasCosts } from "./tradeoff.js";

const SIZE = 1000;

export class Curve {
  constructor() {
    this.axis = read("curve", "share");
    this.choice = segments("Across", [["share", "Strong calls"], ["cost", "Cost"]], this.axis, key => { this.axis = key; write("curve", key); this.draw(...this.drawn); });
    this.grid = svg("path", { class: "grid", "vector-effect": "non-scaling-stroke" });
    this.band = svg("path", { class: "area" });
    this.chance = svg("path", { class: "chance", "vector-effect": "non-scaling-stroke" });
    this.floor = svg("path", { class: "floor", "vector-effect": "non-scaling-stroke" });
    this.live = svg("path", { class: "live", "vector-effect": "non-scaling-stroke" });
    this.path = svg("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    this.picture = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, preserveAspectRatio: "none", role: "img" }, this.grid, this.band, this.chance, this.floor, this.live, this.path);
    this.marks = el("div", { className: "marks", "aria-hidden": "true" });
    this.ups = el("div", { className: "ups soft number", "aria-hidden": "true" });
    this.alongs = el("div", { className: "alongs soft number", "aria-hidden": "true" });
    this.caption = el("p", { className: "soft along" });
    this.legend = el("div", { className: "row soft legend" });
    this.element = el("div", { className: "stack" }, this.legend,
      el("div", { className: "curve" }, this.ups, el("div", { className: "field-of" }, this.picture, this.marks), this.alongs), this.caption);
  }

  // `points` are { now, live, wanted } on the curve, or null; `floor` is a quality.
  draw(curve, points, floor) {
    this.drawn = [curve, points, floor];
    const isCost = this.axis === "cost" && hasCosts(curve);
    this.choice.choose(isCost ? "cost" : "share");
    this.choice.buttons[1].disabled = !hasCosts(curve);
    this.choice.buttons[1].title = hasCosts(curve) ? "" : "The policy knows no prices";
    const [weak, strong] = [curve[0], curve.at(-1)];
    const along = point => isCost ? (point.cost_usd - weak.cost_usd) / (strong.cost_usd - weak.cost_usd) : point.strong_share;
    const scale = span([...curve.flatMap(point => [point.quality, point.quality_low, point.quality_high]), floor].filter(value => value !== null));
    const up = quality => 1 - (quality - scale.low) / (scale.high - scale.low);
    const place = (point, quality = point.quality) => `${(SIZE * along(point)).toFixed(1)} ${(SIZE * up(quality)).toFixed(1)}`;
    this.grid.setAttribute("d", scale.steps.map(step => `M0 ${(SIZE * up(step)).toFixed(1)}H${SIZE}`).join(""));
    this.path.setAttribute("d", `M${curve.map(point => place(point)).join("L")}`);
    const hasBand = curve.every(point => point.quality_low !== null && point.quality_high !== null);
    this.band.setAttribute("d", hasBand ? `M${curve.map(point => place(point, point.quality_low)).join("L")}L${[...curve].reverse().map(point => place(point, point.quality_high)).join("L")}Z` : "");
    this.chance.setAttribute("d", `M${place(weak)}L${place(strong)}`);
    this.floor.setAttribute("d", floor === null ? "" : `M0 ${SIZE * up(floor)}H${SIZE}`);
    this.live.setAttribute("d", points.live ? `M${SIZE * along(points.live)} 0V${SIZE}` : "");
    this.#mark(points, weak, strong, along, up);
    this.#label(scale, up, isCost ? part => money(weak.cost_usd + part * (strong.cost_usd - weak.cost_usd)) : part => `${number(100 * part)} %`);
    this.caption.textContent = isCost ? "Cost of 1,000 requests" : "Requests to the strongest model";
    this.picture.setAttribute("aria-label", `Quality from ${number(weak.quality, 3)} with no strong calls to ${number(strong.quality, 3)} with strong calls only${points.now ? `; now ${number(points.now.quality, 3)} at ${percent(points.now.strong_share)} strong calls` : ""}`);
    this.#explain(points, hasBand, floor);
  }

  #mark(points, weak, strong, along, up) {
    const dot = (kind, point) => el("i", { className: `dot ${kind}`, vars: { "--x": `${100 * along(point)}%`, "--y": `${100 * up(point.quality)}%` } });
    const marks = [dot("end", weak), dot("end", strong)];
    if (points.now) marks.push(dot("now", points.now));
    if (points.wanted) marks.push(dot("wanted", points.wanted));
    this.marks.replaceChildren(...marks);
  }

  #label(scale, up, along) {
    this.ups.replaceChildren(...scale.steps.map(value => el("span", { vars: { "--y": `${100 * up(value)}%` } }, number(value, scale.digits))));
    this.alongs.replaceChildren(...[0, 0.25, 0.5, 0.75, 1].map(part => el("span", { vars: { "--x": `${100 * part}%` } }, along(part))));
  }

  #explain(points, hasBand, floor) {
    const entries = [["line", `policy${hasBand ? ", with its interval" : ""}`], ["chance", "by chance"], ["end", "weak and strong only"]];
    if (points.now) entries.push(["now", "calibrated"]);
    if (points.live) entries.push(["live", "share of strong calls so far"]);
    if (floor !== null) entries.push(["floor", "floor looked at"], ["wanted", "what it takes"]);
    this.legend.replaceChildren(...entries.map(([kind, text]) => el("span", { className: "key-entry" }, el("i", { className: `sample ${kind}`, "aria-hidden": "true" }), text)));
  }
}

// Round steps from below the lowest value to above the highest.
function span(values) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const rough = Math.max((most - least) / 4, 1e-6);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(each => each * power).find(each => each >= rough * 0.999);
  const low = Math.floor(least / step + 1e-9) * step;
  const high = Math.max(Math.ceil(most / step - 1e-9) * step, low + step);
  const steps = Array.from({ length: Math.round((high - low) / step) + 1 }, (_, place) => low + place * step);
  return { low, high, steps, digits: Math.max(0, Math.ceil(-Math.log10(step) + (step / power === 2.5 ? 1 : 0) - 1e-9)) };
}
