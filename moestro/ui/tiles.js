// One number with its name and what it means. Next: chart.js.
import { el } from "./dom.js";

export class Tile {
  constructor(label, hint, isShare = false) {
    this.hint = hint;
    this.value = el("span", { className: "value number" }, "\u2013");
    this.note = el("span", { className: "soft number" }, hint);
    this.meter = isShare ? el("meter", { min: 0, max: 1, high: 0.9, low: 0, optimum: 0, "aria-label": label }) : null;
    this.element = el("div", { className: "card tile" }, el("h3", {}, label), this.value, this.meter, this.note);
  }

  set(value, note = null, share = null) {
    this.value.textContent = value;
    this.note.textContent = note ?? this.hint;
    if (this.meter) this.meter.value = share ?? 0;
  }
}
