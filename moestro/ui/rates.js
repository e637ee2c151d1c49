// Requests per second out of counts that only grow, and a small line of them. Next: fleet.js.
import { el, number, svg } from "./dom.js";

const MOST = 90;
const WIDTH = 160;
const HEIGHT = 32;

export class Rates {
  constructor() {
    this.byName = new Map();
  }

  // A count that fell belongs to another start, or to another worker: nothing is known of that step.
  add(name, count, at) {
    const known = this.byName.get(name) ?? { count: null, at: 0, values: [] };
    const span = at - known.at;
    if (known.count !== null && span < 0.2) return;
    if (known.count !== null) known.values.push(count < known.count || span > 10 ? null : (count - known.count) / span);
    known.values.splice(0, known.values.length - MOST);
    this.byName.set(name, { ...known, count, at });
  }

  of(name) { return this.byName.get(name)?.values ?? []; }

  // The mean of the last seconds, None before the second count.
  now(name) {
    const last = this.of(name).slice(-5).filter(value => value !== null);
    return last.length ? last.reduce((sum, value) => sum + value, 0) / last.length : null;
  }
}

export const perSecond = value => value === null ? "\u2013" : number(value, value < 10 ? 1 : 0);

export function sparkline(values, label) {
  const most = Math.max(1, ...values.filter(value => value !== null));
  let isDown = false;
  const steps = values.map((value, place) => {
    if (value === null) { isDown = false; return ""; }
    const x = WIDTH * (1 - (values.length - 1 - place) / (MOST - 1));
    const y = HEIGHT - 2 - (HEIGHT - 4) * value / most;
    const step = `${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isDown = true;
    return step;
  });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, svg("path", { class: "line", "vector-effect": "non-scaling-stroke", d: steps.join("") }));
  return el("span", { className: "spark" }, picture);
}
