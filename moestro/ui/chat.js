// Chat: messages to and fro. A message can be edited and sent again; the last answer can be had anew.
// Next: run.js, tokens.js.
import { button, el } from "./dom.js";
import { feed, isReady } from "./feed.js";
import { Run, RunLine } from "./run.js";
import { TokenText } from "./tokens.js";

export class Chat {
  constructor(settings, panel) {
    this.settings = settings;
    this.panel = panel;
    this.turns = [];
    this.run = new Run(() => this.draw());
    this.#build();
    this.draw();
  }

  draw() {
    const { isRunning } = this.run;
    const last = this.turns.at(-1);
    if (last) {
      if (!isRunning && last.isLive) { last.isLive = false; last.answer.end(); last.thought.end(); }
      last.line.draw(this.run);
      last.element.setAttribute("aria-busy", String(isRunning));
    }
    for (const turn of this.turns) {
      turn.edit.disabled = isRunning;
      turn.retry.hidden = isRunning || turn !== last || this.run.trouble !== null;
    }
    this.empty.hidden = this.turns.length > 0;
    this.clear.hidden = this.turns.length === 0;
    this.clear.disabled = isRunning;
    this.send.hidden = isRunning;
    this.send.disabled = !isReady() || this.field.value.trim() === "";
    this.stop.hidden = !isRunning;
  }

  #build() {
    this.list = el("div", { className: "turns", role: "log", "aria-label": "Conversation" });
    this.empty = el("p", { className: "empty" }, el("strong", {}, "Ask something"), "Each token of the answer can be clicked: it shows which experts wrote it.");
    this.field = el("textarea", { "aria-label": "Message", rows: 2, placeholder: "Write a message", on: { input: () => this.draw(), keydown: event => this.#onKey(event) } });
    this.send = button("Send", () => this.#send(), { className: "primary" });
    this.stop = button("Stop", () => this.run.stop(), { className: "primary" });
    this.clear = button("New conversation", () => this.#cut(0), { className: "quiet" });
    this.element = el("div", { className: "fill" }, this.empty, this.list,
      el("div", { className: "composer" }, this.field, el("div", { className: "row apart" }, this.clear, el("span", { className: "row" }, this.send, this.stop))));
    this.element.addEventListener("keydown", event => { if (event.key === "Escape" && this.run.isRunning) this.run.stop(); });
  }

  #onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.send.disabled && !this.run.isRunning) this.#send();
  }

  #send() {
    const turn = this.#turn(this.field.value.trim());
    this.turns.push(turn);
    this.list.append(turn.element);
    this.field.value = "";
    this.#answer(turn);
  }

  #turn(question) {
    const turn = { question };
    turn.line = new RunLine(() => this.#answer(turn));
    turn.edit = button("Edit", () => this.#edit(turn), { className: "quiet small" });
    turn.retry = button("Retry", () => this.#answer(turn), { className: "quiet small" });
    turn.thinking = el("details", { className: "thinking", hidden: true }, el("summary", { className: "soft" }, "Reasoning"));
    turn.reply = el("div", { className: "reply" });
    turn.element = el("section", { className: "turn" },
      el("div", { className: "asked" }, el("p", {}, question), turn.edit),
      el("div", { className: "answered" }, turn.thinking, turn.reply, el("div", { className: "row apart" }, turn.line.element, turn.retry)));
    return turn;
  }

  #answer(turn) {
    const { card } = feed.model;
    const limits = [card.fewest_experts, card.most_experts];
    const open = (text, index) => this.panel.show(text, index, { numExperts: card.num_experts, goOn: null });
    this.panel.clear();
    turn.answer = new TokenText(limits, open);
    turn.thought = new TokenText(limits, open);
    turn.isLive = true;
    turn.thinking.hidden = true;
    turn.thinking.replaceChildren(turn.thinking.firstChild, turn.thought.element);
    turn.reply.replaceChildren(turn.answer.element, el("span", { className: "caret", "aria-hidden": "true" }));
    turn.line.clear();
    this.run.start(true, { messages: this.#messages(turn), ...this.settings.body() }, piece => this.#take(turn, piece));
  }

  #take(turn, piece) {
    const follows = innerHeight + scrollY >= document.documentElement.scrollHeight - 40;
    if (piece.reasoning) {
      turn.thinking.hidden = false;
      turn.thought.push(piece.reasoning, piece.tokens);
    } else {
      turn.answer.push(piece.text, piece.tokens);
    }
    if (follows) scrollTo({ top: document.documentElement.scrollHeight });
  }

  #messages(turn) {
    const system = this.settings.values.system.trim();
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const each of this.turns) {
      messages.push({ role: "user", content: each.question });
      if (each === turn) return messages;
      messages.push({ role: "assistant", content: each.answer.text });
    }
    return messages;
  }

  #edit(turn) {
    this.field.value = turn.question;
    this.#cut(this.turns.indexOf(turn));
    this.field.focus();
  }

  #cut(index) {
    for (const turn of this.turns.splice(index)) turn.element.remove();
    this.panel.clear();
    this.draw();
  }
}
