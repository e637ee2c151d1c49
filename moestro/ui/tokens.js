// A run of tokens as text: each is a span that is colored, can be reached by keyboard, and chosen.
// Tokens and certain text come separately; here they are matched. Next: panel.js.
import { el, visible } from "./dom.js";

// Seven nats: a chance of one in a thousand. Beyond it nothing gets more surprising to look at, and
// the root below makes differences between likely tokens visible.
const MOST_SURPRISE = 7;

export class TokenText {
  // `limits` are the fewest and most experts of the model; `onChoose(text, index)` opens the panel.
  constructor(limits, onChoose) {
    this.tokens = [];
    this.element = el("span", { className: "tokens", role: "listbox", "aria-label": "Tokens", "aria-orientation": "horizontal" });
    this.limits = limits;
    this.onChoose = onChoose;
    this.shown = "";
    this.certain = "";
    this.waiting = [];
    this.element.addEventListener("click", event => this.#choose(event.target.closest(".token")));
    this.element.addEventListener("keydown", event => this.#onKey(event));
  }

  get text() { return this.shown + this.certain; }

  push(text, tokens) {
    this.certain += text;
    this.waiting.push(...tokens);
    this.#match();
  }

  // Nothing more comes: what is left of the text belongs to the last token.
  end() {
    for (const token of this.waiting) this.#add(token, "");
    this.waiting = [];
    if (!this.certain) return;
    if (!this.tokens.length) this.element.append(el("span", { className: "plain" }, this.certain));
    else this.#extend(this.certain);
    this.shown += this.certain;
    this.certain = "";
  }

  // Keep the tokens before `index` and put `token` there.
  replaceFrom(index, token) {
    for (const span of [...this.element.children].slice(index)) span.remove();
    this.tokens.length = index;
    this.shown = this.tokens.map(each => each.label).join("");
    this.#show(token.text);
    this.#add(token, token.text);
  }

  mark(index) {
    for (const span of this.element.querySelectorAll("[aria-selected='true']")) span.setAttribute("aria-selected", "false");
    if (index !== null) this.element.children[index]?.setAttribute("aria-selected", "true");
  }

  focus(index) { this.element.children[index]?.focus(); }

  // Bring a token above a height in the window.
  reveal(index, height) {
    const hidden = this.element.children[index].getBoundingClientRect().bottom + 24 - height;
    if (hidden > 0) scrollBy({ top: hidden });
  }

  #match() {
    while (this.waiting.length) {
      const { text } = this.waiting[0];
      if (text.startsWith(this.certain) && text !== this.certain) return;
      // Characters whose bytes several tokens share come with the last of them, which was silent.
      const place = this.tokens.at(-1)?.label === "" ? this.certain.indexOf(text) : 0;
      if (place > 0) this.#extend(this.#show(this.certain.slice(0, place)));
      // Else it is a control token, or the piece of a stop string: it is there, but it is no text.
      const label = this.certain.startsWith(text) ? text : this.#trimmed(text);
      this.#add(this.waiting.shift(), this.#show(label));
    }
  }

  // Some tokenizers drop the space before the first word.
  #trimmed(text) {
    const trimmed = text.trimStart();
    return !this.shown && this.certain.startsWith(trimmed) ? trimmed : "";
  }

  #show(label) {
    this.certain = this.certain.slice(label.length);
    this.shown += label;
    return label;
  }

  #add(token, label) {
    const index = this.tokens.push({ ...token, label }) - 1;
    const span = el("span", { className: "token", role: "option", tabIndex: index ? -1 : 0, "aria-selected": "false", data: { index } });
    const [fewest, most] = this.limits;
    if (token.experts !== null && most > 0) span.style.setProperty("--e", share(token.experts, fewest, most));
    if (token.logprob !== null) span.style.setProperty("--s", Math.sqrt(share(-token.logprob, 0, MOST_SURPRISE)).toFixed(3));
    fill(span, label, token.text);
    this.element.append(span);
  }

  #extend(more) {
    const token = this.tokens.at(-1);
    token.label += more;
    fill(this.element.lastChild, token.label, token.text);
  }

  #choose(span) {
    // Whoever drags over text wants to copy it, not to open it.
    if (!span || !getSelection().isCollapsed) return;
    this.#reach(Number(span.dataset.index));
    this.onChoose(this, Number(span.dataset.index));
  }

  #reach(index) {
    for (const other of this.element.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    this.element.children[index].tabIndex = 0;
    this.element.children[index].focus();
  }

  #onKey(event) {
    const span = event.target.closest(".token");
    if (!span || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = Number(span.dataset.index);
    const last = this.tokens.length - 1;
    const goals = { ArrowRight: index + 1, ArrowLeft: index - 1, ArrowDown: index + 8, ArrowUp: index - 8, Home: 0, End: last };
    if (event.key in goals) this.#reach(Math.max(0, Math.min(last, goals[event.key])));
    else if (event.key === "Enter" || event.key === " ") this.onChoose(this, index);
    else return;
    event.preventDefault();
  }
}

function fill(span, label, text) {
  span.replaceChildren();
  label.split("\n").forEach((line, place) => {
    if (place) span.append(el("i", { className: "mark", "aria-hidden": "true" }, "\u21b5"), "\n");
    span.append(line);
  });
  span.classList.toggle("silent", label === "");
  if (label.trim()) span.removeAttribute("aria-label");
  else span.setAttribute("aria-label", visible(label || text));
}

function share(value, low, high) {
  const raw = high > low ? (value - low) / (high - low) : 0.5;
  return Math.max(0, Math.min(1, raw)).toFixed(3);
}
