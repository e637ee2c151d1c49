// Load by layer and expert, against a fair share: blue is under it, orange over it, on a canvas that
// can be read by mouse and by arrow keys. Next: experts.js.
import { el, number } from "./dom.js";

const LEFT = 34;
const RIGHT = 64;
const TOP = 4;
const BOTTOM = 20;

export class Heatmap {
  constructor() {
    this.rows = [];
    this.at = null;
    this.canvas = el("canvas", { tabIndex: 0, role: "img", "aria-label": "Load by layer and expert; use the arrow keys to read cells" });
    this.words = el("p", { className: "soft number reading", "aria-live": "polite" }, "Point at a cell, or use the arrow keys.");
    this.element = el("div", { className: "stack tight" }, this.canvas, this.words);
    this.canvas.addEventListener("pointermove", event => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => { this.at = null; this.#draw(); });
    this.canvas.addEventListener("keydown", event => this.#onKey(event));
    document.addEventListener("themechange", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(this.element);
  }

  // `rows` are loads by layer and expert; `violations` stand at the right, one per layer.
  show(rows, violations) {
    this.rows = rows;
    this.shares = rows.map(row => { const mean = row.reduce((a, b) => a + b, 0) / row.length; return row.map(load => mean ? load / mean : null); });
    this.violations = violations;
    this.#draw();
  }

  #shape() {
    const width = this.element.clientWidth;
    const numExperts = this.rows[0]?.length ?? 0;
    const numLayers = this.rows.length;
    const cell = (width - LEFT - RIGHT) / Math.max(1, numExperts);
    const height = Math.max(7, Math.min(34, cell, 620 / Math.max(1, numLayers)));
    return { width, numExperts, numLayers, cell, height, total: TOP + numLayers * Math.max(height, 12) + BOTTOM, lane: Math.max(height, 12) };
  }

  #draw() {
    const shape = this.#shape();
    if (!shape.numExperts || shape.width <= 0) return;
    const scale = devicePixelRatio || 1;
    const style = getComputedStyle(document.documentElement);
    const color = name => style.getPropertyValue(name).trim();
    const [width, height] = [Math.round(shape.width * scale), Math.round(shape.total * scale)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.canvas.style.height = `${shape.total}px`;
    const pen = this.canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, shape.width, shape.total);
    pen.font = `12px ${color("--sans")}`;
    pen.textBaseline = "middle";
    const inks = { low: parse(color("--low")), even: parse(color("--even")), high: parse(color("--high")) };
    this.shares.forEach((row, layer) => this.#drawLayer(pen, shape, row, layer, inks, color));
    this.#drawAxis(pen, shape, color("--soft"));
    if (this.at) this.#drawCursor(pen, shape, color("--ink"));
  }

  #drawLayer(pen, shape, row, layer, inks, color) {
    const y = TOP + layer * shape.lane;
    const gap = shape.cell > 6 ? 1 : 0;
    row.forEach((share, expert) => {
      pen.fillStyle = share === null ? color("--sunk") : mix(inks, share);
      pen.fillRect(LEFT + expert * shape.cell, y, Math.max(shape.cell - gap, 0.5), shape.lane - 1);
    });
    pen.fillStyle = color("--soft");
    pen.textAlign = "right";
    pen.fillText(String(layer), LEFT - 8, y + shape.lane / 2);
    pen.textAlign = "left";
    const violation = this.violations[layer];
    if (violation !== undefined) pen.fillText(number(violation, 2), shape.width - RIGHT + 10, y + shape.lane / 2);
  }

  #drawAxis(pen, shape, ink) {
    pen.fillStyle = ink;
    pen.textAlign = "center";
    const step = [1, 2, 4, 8, 16, 32, 64, 128].find(size => size * shape.cell >= 26) ?? 256;
    for (let expert = 0; expert < shape.numExperts; expert += step) {
      pen.fillText(String(expert), LEFT + (expert + 0.5) * shape.cell, shape.total - BOTTOM / 2);
    }
    pen.textAlign = "left";
    pen.fillText("violation", shape.width - RIGHT + 10, shape.total - BOTTOM / 2);
  }

  #drawCursor(pen, shape, ink) {
    const [layer, expert] = this.at;
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.strokeRect(LEFT + expert * shape.cell - 1, TOP + layer * shape.lane - 1, shape.cell + 1, shape.lane + 1);
    const load = this.rows[layer][expert];
    const share = this.shares[layer][expert];
    const words = share === null ? "no tokens yet" : `${number(load)} tokens, ${number(share, 2)} times its share`;
    this.words.textContent = `MoE layer ${layer}, expert ${expert}: ${words}`;
  }

  #point(event) {
    const shape = this.#shape();
    const box = this.canvas.getBoundingClientRect();
    const layer = Math.floor((event.clientY - box.top - TOP) / shape.lane);
    const expert = Math.floor((event.clientX - box.left - LEFT) / shape.cell);
    this.at = layer >= 0 && layer < shape.numLayers && expert >= 0 && expert < shape.numExperts ? [layer, expert] : null;
    this.#draw();
  }

  #onKey(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!(event.key in moves) || !this.rows.length) return;
    event.preventDefault();
    const [layer, expert] = this.at ?? [0, 0];
    const [down, right] = this.at ? moves[event.key] : [0, 0];
    this.at = [clamp(layer + down, this.rows.length), clamp(expert + right, this.rows[0].length)];
    this.#draw();
  }
}

const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));

const parse = hex => [1, 3, 5].map(place => Number.parseInt(hex.slice(place, place + 2), 16));

// Nothing at all is the full blue, a fair share is neutral, twice it or more the full orange.
function mix({ low, even, high }, share) {
  const far = Math.min(1, Math.abs(share - 1));
  const end = share < 1 ? low : high;
  return `rgb(${even.map((from, place) => Math.round(from + far * (end[place] - from))).join(" ")})`;
}
