// What is known of one token: its experts by layer, and what else the model might have said.
// Next: tokens.js.
import { button, el, number, percent, visible } from "./dom.js";

export class Panel {
  constructor() {
    this.body = el("div", { className: "stack" });
    this.close = button("Close", () => this.hide(), { className: "quiet" });
    this.element = el("aside", { className: "card panel", "aria-label": "Token", data: { open: "false" } },
      el("div", { className: "row apart" }, el("h2", {}, "Token"), this.close), this.body);
    this.chosen = null;
    this.element.addEventListener("keydown", event => { if (event.key === "Escape") this.hide(); });
    this.#invite();
  }

  // `goOn(alternative)` continues from another token; without it alternatives are only shown.
  show(text, index, { numExperts, goOn }) {
    if (this.chosen) this.chosen.text.mark(null);
    this.chosen = { text, index };
    text.mark(index);
    const token = text.tokens[index];
    this.element.dataset.open = "true";
    this.body.replaceChildren(
      el("div", {}, el("p", { className: "token-name" }, visible(token.label || token.text) || "(nothing)"), facts(token, index)),
      visits(token, numExperts), alternatives(token, goOn));
    this.body.scrollTop = 0;
    // On a phone the panel lies over the lower part of the page.
    if (getComputedStyle(this.element).position === "fixed") text.reveal(index, this.element.getBoundingClientRect().top);
  }

  hide() {
    if (!this.chosen) return;
    const { text, index } = this.chosen;
    text.mark(null);
    this.chosen = null;
    this.element.dataset.open = "false";
    this.#invite();
    text.focus(index);
  }

  // The text whose token is shown is gone.
  clear() {
    this.chosen = null;
    this.element.dataset.open = "false";
    this.#invite();
  }

  #invite() {
    this.body.replaceChildren(el("p", { className: "soft" },
      "Click a token of the answer, or press Enter on it, to see which experts wrote it and what else it might have been."));
  }
}

function facts(token, index) {
  const words = [`Token ${index + 1}`];
  if (token.logprob !== null) words.push(`chance ${percent(Math.exp(token.logprob))}`);
  if (token.experts !== null) words.push(`${number(token.experts, 2)} experts, mean over ${token.layers.length || "all"} layers`);
  return el("p", { className: "soft number" }, words.join(" \u00b7 "));
}

function visits(token, numExperts) {
  if (!token.layers.length) return el("p", { className: "soft" }, "Its experts are not known: the server did not send them.");
  const width = Math.max(numExperts, ...token.layers.flat().map(([expert]) => expert + 1));
  const top = Math.max(...token.layers.flat().map(([, weight]) => weight), 1e-9);
  const rows = token.layers.map((layer, number) => el("div", { className: "lane" },
    el("span", { className: "soft number" }, String(number)),
    el("div", { className: "strip", vars: { "--n": width, "--lines": width > 64 ? 16 : width } }, ...layer.map(([expert, weight]) => bar(expert, weight, top)))));
  return el("section", { className: "stack tight" },
    el("div", { className: "row apart" }, el("h3", {}, "Experts by MoE layer"), el("span", { className: "soft number" }, `0 \u2026 ${width - 1}`)),
    el("div", { className: "lanes", role: "img", "aria-label": "Experts and their weights by layer; the table below has them as numbers" }, ...rows),
    table(token.layers));
}

function bar(expert, weight, top) {
  const height = `${Math.max(10, 100 * weight / top)}%`;
  return el("i", { title: `expert ${expert}, weight ${weight.toFixed(3)}`, vars: { "--at": expert, "--h": height } });
}

function table(layers) {
  const rows = layers.map((layer, place) => el("tr", {}, el("th", { scope: "row" }, String(place)),
    el("td", {}, layer.map(([expert, weight]) => `${expert} (${weight.toFixed(2)})`).join(", "))));
  const head = el("tr", {}, el("th", { scope: "col" }, "Layer"), el("th", { scope: "col" }, "Expert (weight)"));
  return el("details", {}, el("summary", { className: "soft" }, "As numbers"), el("table", { className: "number" }, head, ...rows));
}

function alternatives(token, goOn) {
  const heading = el("h3", {}, goOn ? "Alternatives: choose one to go on from it" : "Alternatives");
  if (!token.alternatives.length) return el("section", {}, heading, el("p", { className: "soft" }, "None were sent."));
  const listed = [...token.alternatives].sort((a, b) => b.logprob - a.logprob);
  const rest = 1 - listed.reduce((sum, each) => sum + Math.exp(each.logprob), 0);
  const rows = listed.map(each => alternative(each, each.text === token.text, goOn));
  if (rest > 0.0005) rows.push(el("li", { className: "soft" }, el("span", {}, "all others"), el("span", { className: "number" }, percent(rest))));
  return el("section", { className: "stack tight" }, heading, el("ul", { className: "alternatives" }, ...rows));
}

function alternative(each, isTaken, goOn) {
  const chance = Math.exp(each.logprob);
  const parts = [el("code", {}, visible(each.text) || "(nothing)"), el("span", { className: "number" }, percent(chance))];
  const vars = { "--p": chance.toFixed(4) };
  if (isTaken) return el("li", { className: "taken", vars, title: "this one was taken" }, ...parts);
  if (!goOn || !each.isText) return el("li", { vars }, ...parts);
  const choice = button("", () => goOn(each), { className: "quiet", title: "Go on from this one" });
  choice.append(...parts);
  return el("li", { vars }, choice);
}
