// Complete: the model goes on from a text, or fills the gap before a second one. What it wrote
// stands in its place in the text until the text is edited. Next: run.js, tokens.js.
import { button, el } from "./dom.js";
import { feed, isReady } from "./feed.js";
import { Run, RunLine } from "./run.js";
import { TokenText } from "./tokens.js";

const STARTERS = [
  ["A function", "def read_lines(path):\n    \"\"\"Return the lines of a text file without their ends.\"\"\"\n"],
  ["A class", "class Stack:\n    \"\"\"Last in, first out.\"\"\"\n\n    def __init__(self):\n"],
  ["A gap", "def mean(values):\n", "    return total / len(values)\n"],
];

export class Complete {
  constructor(settings, panel) {
    this.settings = settings;
    this.panel = panel;
    // What stands before the answer under way: plain strings, and answers that were gone on from.
    this.parts = [];
    this.answer = null;
    this.run = new Run(() => this.draw());
    this.line = new RunLine(() => this.#again());
    this.#build();
    this.draw();
  }

  draw() {
    const isEditing = this.parts.length === 0;
    const { isRunning } = this.run;
    if (!isRunning && this.answer?.isLive) { this.answer.isLive = false; this.answer.end(); }
    this.editor.hidden = !isEditing;
    this.sheet.hidden = isEditing;
    this.sheet.setAttribute("aria-busy", String(isRunning));
    this.gap.hidden = !isEditing || !feed.model?.card.has_fim;
    this.suffix.hidden = !isEditing || !this.#hasGap();
    this.starters.hidden = !isEditing || this.prompt.value !== "";
    this.#swap(isRunning);
    this.go.disabled = !isReady() || (isEditing && this.prompt.value === "" && !this.#hasGap());
    this.go.firstChild.textContent = isEditing ? "Complete" : "Go on";
    for (const each of [this.retry, this.edit, this.discard]) each.hidden = isEditing || isRunning;
    this.line.element.hidden = isEditing;
    this.line.draw(this.run);
  }

  // Whoever pressed one of the two buttons by keyboard stands on the other one then.
  #swap(isRunning) {
    const [from, to] = isRunning ? [this.go, this.stop] : [this.stop, this.go];
    const hadFocus = document.activeElement === from;
    from.hidden = true;
    to.hidden = false;
    if (hadFocus) { to.disabled = false; to.focus(); }
  }

  #build() {
    const onKey = event => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      if (!this.go.disabled && !this.run.isRunning) this.#go();
    };
    const field = (label, rows) => el("textarea", { "aria-label": label, rows, spellcheck: false, autocapitalize: "off", className: "code", on: { input: () => this.draw(), keydown: onKey } });
    this.prompt = field("Text to go on from", 12);
    this.prompt.placeholder = "Write the beginning of something; the model goes on from there.";
    this.suffix = field("Text after the gap", 4);
    this.suffix.placeholder = "The text after the gap.";
    this.fills = el("input", { type: "checkbox", on: { change: () => this.draw() } });
    this.gap = el("label", { className: "row soft" }, this.fills, "Fill a gap");
    this.starters = el("div", { className: "row starters" }, el("span", { className: "soft" }, "Begin with"), ...STARTERS.map(each => this.#starter(each)));
    this.editor = el("div", { className: "editor" }, this.prompt, this.suffix);
    this.sheet = el("div", { className: "sheet code" });
    this.go = button("Complete", () => this.#go(), { className: "primary" });
    this.go.append(el("kbd", {}, "Ctrl \u21b5"));
    this.stop = button("Stop", () => this.run.stop(), { className: "primary" });
    this.retry = button("Retry", () => this.#again());
    this.edit = button("Edit", () => this.#edit(this.#text()));
    this.discard = button("Discard", () => this.#edit(this.beginning), { className: "quiet" });
    this.element = el("div", { className: "fill" }, this.editor, this.sheet, this.starters, this.line.element,
      el("div", { className: "row actions" }, this.go, this.stop, this.retry, this.edit, this.discard, this.gap));
    this.element.addEventListener("keydown", event => { if (event.key === "Escape" && this.run.isRunning) this.run.stop(); });
  }

  #starter([label, before, after = ""]) {
    const fill = () => {
      this.prompt.value = before;
      this.suffix.value = after;
      this.fills.checked = after !== "";
      this.draw();
      this.prompt.focus();
    };
    return button(label, fill, { className: "small" });
  }

  #hasGap() { return Boolean(feed.model?.card.has_fim && this.fills.checked); }

  #text() { return this.parts.map(part => part.text ?? part).join("") + (this.answer?.text ?? ""); }

  #go() {
    if (this.parts.length === 0) {
      this.beginning = this.prompt.value;
      this.parts = [this.prompt.value];
    } else if (this.answer) {
      this.parts.push(this.answer);
    }
    this.#answer();
  }

  #again() {
    this.panel.clear();
    this.answer?.element.remove();
    this.#answer();
  }

  // Ask for what comes after the parts; `kept` is an answer whose beginning is one of them already.
  #answer(kept = null) {
    const { card } = feed.model;
    this.answer = kept ?? new TokenText([card.fewest_experts, card.most_experts], (text, index) => this.#open(text, index));
    const { answer } = this;
    answer.isLive = true;
    this.#lay();
    this.line.clear();
    const body = { prompt: this.#text(), ...this.settings.body() };
    if (this.#hasGap()) body.suffix = this.suffix.value;
    this.run.start(false, body, piece => {
      const follows = innerHeight + scrollY >= document.documentElement.scrollHeight - 40;
      answer.push(piece.text, piece.tokens);
      if (follows) scrollTo({ top: document.documentElement.scrollHeight });
    });
  }

  #lay() {
    const before = this.parts.map(part => part.element ?? el("span", { className: "given" }, part));
    const after = this.#hasGap() ? [el("span", { className: "given" }, this.suffix.value)] : [];
    this.sheet.replaceChildren(...before, this.answer.element, el("span", { className: "caret", "aria-hidden": "true" }), ...after);
  }

  #open(text, index) {
    const { card } = feed.model;
    const goOn = this.run.isRunning ? null : alternative => this.#goOnFrom(text, index, alternative);
    this.panel.show(text, index, { numExperts: card.num_experts, goOn });
  }

  // The experts that made the choice are the same, whatever came of it.
  #goOnFrom(text, index, alternative) {
    const { layers, experts, alternatives } = text.tokens[index];
    const place = this.parts.indexOf(text);
    if (place >= 0) this.parts.length = place;
    text.replaceFrom(index, { ...alternative, layers, experts, alternatives });
    this.panel.clear();
    this.#answer(text);
  }

  #edit(text) {
    this.run.stop();
    this.panel.clear();
    this.parts = [];
    this.answer = null;
    this.prompt.value = text;
    this.draw();
    this.prompt.focus();
    this.prompt.setSelectionRange(text.length, text.length);
  }
}
