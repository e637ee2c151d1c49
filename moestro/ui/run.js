// One request and its stream: pieces as they come, and how fast. Next: wire.js.
import { ask, events, Trouble } from "./api.js";
import { el, number, seconds } from "./dom.js";
import { feed, isGateway } from "./feed.js";
import { asTokens, chatPath, completionPath, readEvent, withDetails } from "./wire.js";

export class Run {
  // `onChange()` is called when something has come or ended.
  constructor(onChange) {
    this.onChange = onChange;
    this.controller = null;
    this.reset();
  }

  get isRunning() { return this.controller !== null; }

  reset() {
    Object.assign(this, { finish: null, usage: null, trouble: null, isStopped: false, answeredBy: null, reason: null, numTokens: 0, sumExperts: 0, sentAt: 0, firstAt: 0, lastAt: 0 });
  }

  // Send `body`; `onPiece` gets text, reasoning and tokens. Failures end in `trouble`.
  async start(isChat, body, onPiece) {
    this.stop();
    this.reset();
    const controller = new AbortController();
    this.controller = controller;
    this.sentAt = performance.now();
    this.onChange();
    try {
      const plain = { model: feed.model?.card.id, ...body, stream: true, stream_options: { include_usage: true } };
      // Not every server of a fleet knows what ours tells of a token.
      const full = isGateway ? plain : withDetails(plain, isChat);
      const response = await ask(isChat ? chatPath : completionPath, { body: full, signal: controller.signal });
      this.answeredBy = isGateway ? response.headers.get("x-moestro-model") : null;
      this.reason = isGateway ? response.headers.get("x-moestro-reason") : null;
      for await (const event of events(response)) this.#take(isGateway ? asTokens(readEvent(event)) : readEvent(event), onPiece);
    } catch (error) {
      if (error.name === "AbortError") this.isStopped = true;
      else if (error instanceof Trouble) this.trouble = error;
      else this.trouble = new Trouble(`The page could not read the answer: ${error.message}.`, "Reload it, then try again.");
    }
    if (this.controller === controller) this.controller = null;
    this.onChange();
  }

  stop() { this.controller?.abort(); }

  #take(piece, onPiece) {
    if (piece.tokens.length || piece.text || piece.reasoning) {
      this.lastAt = performance.now();
      this.firstAt ||= this.lastAt;
    }
    this.numTokens += piece.tokens.length;
    for (const token of piece.tokens) this.sumExperts += token.experts ?? 0;
    this.finish = piece.finish ?? this.finish;
    this.usage = piece.usage ?? this.usage;
    onPiece(piece);
    this.onChange();
  }

  speed() {
    const parts = this.answeredBy ? [`answered by ${this.answeredBy}${this.reason ? ` (${this.reason})` : ""}`] : [];
    const count = this.usage?.completion_tokens ?? this.numTokens;
    if (!this.firstAt) return this.isRunning ? [...parts, "waiting for the first token"] : parts;
    parts.push(`${number(count)} token${count === 1 ? "" : "s"}`);
    const span = (this.lastAt - this.firstAt) / 1000;
    if (this.numTokens > 1 && span > 0) parts.push(`${number((this.numTokens - 1) / span, 1)} tokens/s`);
    parts.push(`${seconds((this.firstAt - this.sentAt) / 1000)} to the first`);
    const mean = this.usage?.mean_experts ?? (this.sumExperts ? this.sumExperts / this.numTokens : null);
    if (mean) parts.push(`${number(mean, 2)} experts`);
    if (this.isStopped) parts.push("stopped");
    else if (this.finish === "length") parts.push("reached its length");
    return parts;
  }
}

// The line of numbers under an answer, and its failure.
export class RunLine {
  constructor(onRetry) {
    this.numbers = el("p", { className: "soft number speed" });
    this.what = el("strong");
    this.next = el("span");
    this.again = el("button", { type: "button", on: { click: onRetry } }, "Try again");
    this.fault = el("div", { className: "problem", role: "alert", hidden: true }, el("p", {}, this.what, " ", this.next), this.again);
    this.element = el("div", { className: "stack tight" }, this.numbers, this.fault);
  }

  draw(run) {
    this.numbers.textContent = run.speed().join(" \u00b7 ");
    this.fault.hidden = run.trouble === null;
    if (run.trouble === null || this.drawn === run.trouble) return;
    this.drawn = run.trouble;
    this.what.textContent = run.trouble.what;
    this.next.textContent = run.trouble.next;
    this.#wait(run.trouble.retryAfter ?? 0);
    this.fault.scrollIntoView({ block: "nearest" });
  }

  // Count down to when the server wants to be asked again.
  #wait(seconds) {
    clearTimeout(this.timer);
    this.again.disabled = seconds > 0;
    this.again.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    if (seconds > 0) this.timer = setTimeout(() => this.#wait(seconds - 1), 1000);
  }

  clear() {
    this.numbers.textContent = "";
    this.fault.hidden = true;
    this.drawn = null;
  }
}
