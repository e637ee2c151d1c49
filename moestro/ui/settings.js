// How to answer: temperature, length, budget. Kept by the browser from visit to visit. Next: run.js.
import { button, el, number } from "./dom.js";
import { feed } from "./feed.js";
import { read, write } from "./store.js";

const DEFAULTS = { temperature: 0.7, maxTokens: 256, isAuto: true, experts: null, system: "" };

export class Settings {
  constructor() {
    this.values = { ...DEFAULTS, ...read("settings", {}) };
    this.budget = this.#budget();
    this.system = this.#system();
    this.note = el("p", { className: "soft" });
    this.element = el("details", { className: "card controls" }, el("summary", {}, el("h2", {}, "Settings"), this.#brief()),
      el("div", { className: "stack" }, this.budget, this.#temperature(), this.#length(), this.system, this.note,
        button("Reset", () => this.#reset(), { className: "quiet small" })));
    const wide = matchMedia("(min-width: 1000px)");
    const open = () => { this.element.open = wide.matches; };
    wide.addEventListener("change", open);
    open();
    this.draw();
  }

  // The part of a request's body that says how to answer.
  body() {
    const { temperature, maxTokens, isAuto } = this.values;
    const body = { temperature, max_tokens: maxTokens };
    if (this.#hasBudget()) body.experts = isAuto ? "auto" : this.#experts();
    return body;
  }

  draw(mode) {
    const card = feed.model?.card;
    if (mode) this.system.hidden = mode !== "chat";
    this.budget.hidden = !this.#hasBudget();
    this.note.textContent = !card || this.#hasBudget() ? "" : this.#why(card);
    this.note.hidden = !this.note.textContent;
    if (this.#hasBudget()) {
      this.slider.min = card.fewest_experts;
      this.slider.max = card.most_experts;
      this.slider.value = this.values.isAuto ? feed.model.stats?.experts_level ?? card.most_experts : this.#experts();
    }
    this.auto.checked = this.values.isAuto;
    this.level.textContent = this.values.isAuto ? this.#autoWords() : `${number(this.#experts(), 1)} experts per token`;
    this.degree.textContent = number(this.values.temperature, 2);
    this.brief.textContent = this.#briefWords();
  }

  #hasBudget() {
    const card = feed.model?.card;
    return Boolean(card && card.has_budget && card.most_experts > card.fewest_experts);
  }

  #experts() {
    const { fewest_experts: fewest, most_experts: most } = feed.model.card;
    return Math.max(fewest, Math.min(most, this.values.experts ?? (fewest + most) / 2));
  }

  #autoWords() {
    const level = feed.model?.stats?.experts_level;
    return level ? `auto, now ${number(level, 1)}` : "auto";
  }

  #briefWords() {
    const parts = [`temperature ${number(this.values.temperature, 2)}`, `${this.values.maxTokens} tokens`];
    if (this.#hasBudget()) parts.unshift(this.values.isAuto ? "budget auto" : `budget ${number(this.#experts(), 1)}`);
    return parts.join(" \u00b7 ");
  }

  #why(card) {
    if (!card.most_experts) return "This model says nothing of its experts, so there is no budget to set.";
    return `This model takes ${card.most_experts} experts for each token: it has no table of budgets.`;
  }

  #set(changes) {
    Object.assign(this.values, changes);
    write("settings", this.values);
    this.draw();
  }

  #reset() {
    this.#set(DEFAULTS);
    this.heat.value = DEFAULTS.temperature;
    this.length.value = DEFAULTS.maxTokens;
    this.prompt.value = "";
  }

  #brief() {
    this.brief = el("span", { className: "soft brief" });
    return this.brief;
  }

  #budget() {
    this.level = el("output", { className: "number", htmlFor: "budget" });
    this.slider = el("input", { type: "range", id: "budget", step: 0.1, on: { input: () => this.#set({ isAuto: false, experts: Number(this.slider.value) }) } });
    this.auto = el("input", { type: "checkbox", on: { change: () => this.#set({ isAuto: this.auto.checked }) } });
    return el("div", { className: "field" },
      el("div", { className: "row apart" }, el("label", { htmlFor: "budget" }, "Budget"), this.level), this.slider,
      el("div", { className: "row apart soft" }, el("span", {}, "fewer experts, faster"), el("label", { className: "row" }, this.auto, "Auto")));
  }

  #temperature() {
    this.degree = el("output", { className: "number", htmlFor: "temperature" });
    this.heat = el("input", { type: "range", id: "temperature", min: 0, max: 2, step: 0.05, value: this.values.temperature,
      on: { input: event => this.#set({ temperature: Number(event.target.value) }) } });
    return el("div", { className: "field" }, el("div", { className: "row apart" }, el("label", { htmlFor: "temperature" }, "Temperature"), this.degree),
      this.heat, el("div", { className: "row apart soft" }, el("span", {}, "0: always the likeliest"), el("span", {}, "2")));
  }

  #length() {
    const change = event => { if (event.target.checkValidity() && event.target.value) this.#set({ maxTokens: Number(event.target.value) }); };
    this.length = el("input", { type: "number", id: "max-tokens", min: 1, max: 1_000_000, step: 1, value: this.values.maxTokens, on: { change } });
    return el("div", { className: "field row apart" }, el("label", { htmlFor: "max-tokens" }, "Most tokens"), this.length);
  }

  #system() {
    this.prompt = el("textarea", { id: "system", rows: 2, value: this.values.system, on: { change: event => this.#set({ system: event.target.value }) } });
    return el("div", { className: "field" }, el("label", { htmlFor: "system" }, "System message"), this.prompt);
  }
}
