// How the experts share the work, live: load by layer and expert, balance, budgets, drafts.
// Next: heatmap.js.
import { ask, Trouble } from "./api.js";
import { el, number, percent, segments } from "./dom.js";
import { feed } from "./feed.js";
import { Heatmap } from "./heatmap.js";
import { read, write } from "./store.js";
import { Tile } from "./tiles.js";

const SPANS = [["window", "Lately"], ["total", "Since the start"]];

export function expertsView() {
  const tiles = {
    mean: new Tile("Mean experts", "per token and layer"),
    violation: new Tile("Worst violation", "busiest expert over the mean, minus 1"),
    starved: new Tile("Starved experts", "under a tenth of their share"),
    level: new Tile("Budget of auto", "what the load allows now"),
    drafts: new Tile("Drafts accepted", "by speculative decoding"),
  };
  const over = el("p", { className: "soft number" });
  const map = new Heatmap();
  const bars = el("div", { className: "histogram" });
  const numbers = el("details", {}, el("summary", { className: "soft" }, "As numbers"), el("div", { className: "scroll" }));
  const fault = el("p", { className: "fault", role: "alert", hidden: true });
  const choice = segments("Over which tokens", SPANS, read("span", "window"), key => { write("span", key); draw(); });
  const content = el("div", { className: "stack page" },
    el("div", { className: "tiles" }, ...Object.values(tiles).map(tile => tile.element)),
    el("section", { className: "card stack" },
      el("div", { className: "row apart" }, el("h2", {}, "Load by MoE layer and expert"), el("div", { className: "row" }, legend(), choice.group)), map.element, numbers),
    el("section", { className: "card stack" }, el("h2", {}, "Experts taken per token"), el("p", { className: "soft" }, "How often a token took so many routed experts in a layer, lately."), bars));
  const empty = el("p", { className: "empty" });
  const root = el("div", { className: "stack page" }, el("div", { className: "row apart" }, el("h1", {}, "Experts"), over), fault, empty, content);

  let experts = null;
  let isAsking = false;
  let shownModel = null;

  async function refresh() {
    const id = feed.model?.card.id;
    if (!id || isAsking) return;
    if (!feed.model.card.num_experts) {
      fault.hidden = true;
      return draw();
    }
    isAsking = true;
    try {
      const answer = await (await ask(`ui/experts?model=${encodeURIComponent(id)}`)).json();
      experts = answer;
      shownModel = id;
      fault.hidden = true;
    } catch (error) {
      // The notice above the page tells the same once the feed has failed as well.
      fault.textContent = error instanceof Trouble ? `${error.what} ${error.next}` : "The experts' load cannot be read.";
      fault.hidden = feed.trouble !== null;
    } finally {
      isAsking = false;
    }
    draw();
  }

  function draw() {
    const model = feed.model;
    const isCurrent = experts !== null && model?.card.id === shownModel;
    const words = emptyWords(model, isCurrent ? experts : null);
    empty.hidden = words === null;
    content.hidden = words !== null;
    over.hidden = words !== null;
    if (words !== null) {
      empty.replaceChildren(el("strong", {}, words[0]), words[1]);
      return;
    }
    const span = read("span", "window");
    const rows = span === "window" ? experts.window_LE : experts.tokens_LE;
    const violations = span === "window" ? experts.violation_L : rows.map(violationOf);
    const count = Math.max(0, ...experts.histogram.map(total));
    over.textContent = `lately: the last ${number(count)} tokens \u00b7 ${experts.window_LE.length} MoE layers of ${experts.window_LE[0].length} experts`;
    map.show(rows, violations);
    drawTiles(tiles, model, experts);
    drawHistogram(bars, experts.histogram);
    if (numbers.open) drawNumbers(numbers.lastChild, experts, violations, rows);
  }
  numbers.addEventListener("toggle", draw);
  draw();
  return { root, enter: refresh, update: refresh };
}

function emptyWords(model, experts) {
  if (!model) return ["One moment", "Waiting for the server."];
  if (!model.card.num_experts) return ["No experts to show", "This model does not tell what its gates do: another one, chosen at the top, may."];
  if (!experts) return ["One moment", "Reading the experts' load."];
  const seen = experts.tokens_LE.some(row => total(row) > 0) || experts.window_LE.some(row => total(row) > 0);
  return seen ? null : ["No tokens yet", "Send a request, on the chat page or through the API, and its experts show up here."];
}

function drawTiles(tiles, model, experts) {
  const { stats } = model;
  const worst = Math.max(...experts.violation_L);
  const numStarved = total(experts.starved_L);
  const all = experts.window_LE.length * experts.window_LE[0].length;
  const { fewest_experts: fewest, most_experts: most } = model.card;
  tiles.mean.set(experts.mean_experts === null ? "\u2013" : number(experts.mean_experts, 2), most ? `per token and layer, of ${fewest} to ${most}` : null);
  tiles.violation.set(Number.isFinite(worst) ? number(worst, 2) : "\u2013", Number.isFinite(worst) ? `in MoE layer ${experts.violation_L.indexOf(worst)}; 0 is perfect balance` : null);
  tiles.starved.set(number(numStarved), `of ${number(all)}; under a tenth of their share`);
  tiles.level.set(stats?.experts_level ? number(stats.experts_level, 2) : "\u2013", stats?.experts_level ? null : "no load-adaptive budget here");
  const drafted = stats?.draft_tokens ?? 0;
  tiles.drafts.set(drafted ? percent(stats.accepted_draft_tokens / drafted) : "\u2013", drafted ? `of ${number(drafted)} drafted${stats.is_drafting ? "" : "; off now: it does not pay"}` : "nothing was drafted");
}

// The first column, no expert at all, is shown only if there is anything in it.
function drawHistogram(box, histogram) {
  const sums = (histogram[0] ?? []).map((_, count) => histogram.reduce((sum, row) => sum + row[count], 0));
  const all = Math.max(1, total(sums));
  const top = Math.max(1, ...sums);
  const columns = sums.map((sum, count) => ({ sum, count })).filter(({ sum, count }) => sum || count);
  box.replaceChildren(...columns.map(({ sum, count }) => el("div", { className: "column", title: `${number(sum)} times` },
    el("span", { className: "soft number" }, percent(sum / all)), el("i", { vars: { "--h": `${Math.max(sum ? 1.5 : 0, 100 * sum / top)}%` } }), el("span", { className: "number" }, String(count)))));
}

function drawNumbers(box, experts, violations, rows) {
  const head = el("tr", {}, ...["Layer", "Violation", "Starved", "Busiest expert", "Mean experts"].map(text => el("th", { scope: "col" }, text)));
  const lines = rows.map((row, layer) => {
    const taken = experts.histogram[layer] ?? [];
    const mean = taken.reduce((sum, count, size) => sum + size * count, 0) / Math.max(1, total(taken));
    const busiest = row.indexOf(Math.max(...row));
    const cells = [violations[layer] === undefined ? "\u2013" : number(violations[layer], 2), experts.starved_L[layer] ?? "\u2013", `${busiest} (${number(row[busiest])} tokens)`, number(mean, 2)];
    return el("tr", {}, el("th", { scope: "row" }, String(layer)), ...cells.map(cell => el("td", {}, String(cell))));
  });
  box.replaceChildren(el("table", { className: "number" }, head, ...lines));
}

function legend() {
  return el("span", { className: "scale", "aria-label": "Blue: idle; neutral: a fair share; orange: twice it or more" },
    el("span", {}, "idle"), el("i", { className: "diverging" }), el("span", {}, "2\u00d7 its share"));
}

const total = values => values.reduce((sum, value) => sum + value, 0);

const violationOf = row => { const mean = total(row) / row.length; return mean ? Math.max(...row) / mean - 1 : 0; };
