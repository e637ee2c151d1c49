// How the server does, now and over the last minutes: requests, speed, waits, cache, errors.
// Next: chart.js, feed.js.
import { Chart } from "./chart.js";
import { ago, el, number, percent, seconds } from "./dom.js";
import { feed } from "./feed.js";
import { Tile } from "./tiles.js";

const CAPACITY = 150;

// What a kind of error means to whoever runs the server.
const KINDS = {
  CapacityError: ["Refused: too much at once", "Allow a longer queue, or fewer experts while it is long."],
  BackendError: ["Engine gone or out of reach", "It starts again by itself; see the server's log."],
  UnknownModelError: ["Unknown model asked for", "Clients must name one that /v1/models lists."],
  ConfigError: ["Impossible setting in a request", "Clients are told which one."],
  DataError: ["Text that cannot be used", "Clients are told why: often too long for the context."],
};

export function serverView() {
  const tiles = {
    running: new Tile("Running", "requests under way"),
    waiting: new Tile("Waiting", "requests in the queue"),
    first: new Tile("First token", "median of the last minutes"),
    generation: new Tile("Generation", "tokens/s"),
    prompt: new Tile("Prompts", "tokens/s"),
    cache: new Tile("Cache in use", "of the paged latent cache", true),
    prefix: new Tile("Prefix hits", "of prompt tokens"),
    preemptions: new Tile("Preemptions", "since the start"),
    restarts: new Tile("Engine restarts", "since the start"),
    experts: new Tile("Mean experts", "per token and layer, lately"),
  };
  const charts = [
    [new Chart("Requests", ["running", "waiting"], value => number(value, value % 1 ? 1 : 0)), ["num_running", "num_waiting"], 1],
    [new Chart("Tokens/s", ["answers", "prompts"], value => number(value, value < 10 ? 1 : 0)), ["generation_tokens_per_s", "prompt_tokens_per_s"], 0],
    [new Chart("First token, median", ["wait"], seconds), ["first_token_s"], 0],
    [new Chart("Cache", ["in use"], percent), ["cache_usage"], 0.1],
  ];
  const state = el("span", { className: "state" });
  const shape = el("p", { className: "soft number" });
  const errors = el("div", {});
  const empty = el("p", { className: "empty" }, el("strong", {}, "One moment"), "Waiting for the server.");
  const content = el("div", { className: "stack page" },
    el("div", { className: "tiles" }, ...Object.values(tiles).map(tile => tile.element)),
    el("div", { className: "charts" }, ...charts.map(([chart]) => chart.element)),
    el("section", { className: "card stack" }, el("h2", {}, "Recent errors"), errors));
  const root = el("div", { className: "stack page" }, el("div", { className: "row apart" }, el("div", { className: "row" }, el("h1", {}, "Server"), state), shape), empty, content);

  function update() {
    const model = feed.model;
    empty.hidden = Boolean(model?.stats);
    content.hidden = !empty.hidden;
    state.hidden = content.hidden;
    if (content.hidden) return;
    state.textContent = feed.trouble ? "out of reach" : model.stats.state;
    state.dataset.state = feed.trouble ? "stopped" : model.stats.state;
    shape.textContent = shapeWords(model.card);
    drawTiles(tiles, model);
    for (const [chart, names, ceiling] of charts) {
      const series = names.map(name => feed.samples.map(sample => sample.levels[model.card.id]?.[name] ?? null));
      chart.draw(series, CAPACITY * feed.sampleSeconds, CAPACITY, ceiling);
    }
    errors.replaceChildren(feed.errors.length ? errorTable(feed.errors) : el("p", { className: "soft" }, "None since the server started."));
  }
  update();
  return { root, update };
}

function drawTiles(tiles, { stats, first_token: first }) {
  tiles.running.set(number(stats.num_running));
  tiles.waiting.set(number(stats.num_waiting), stats.num_waiting_tokens ? `requests, ${number(stats.num_waiting_tokens)} tokens` : null);
  tiles.first.set(first.count ? seconds(first.median_s) : "\u2013", first.count ? `median of ${number(first.count)}; 95 % within ${seconds(first.p95_s)}` : "no request in the last minutes");
  tiles.generation.set(number(stats.generation_tokens_per_s, stats.generation_tokens_per_s < 100 ? 1 : 0), `tokens/s; ${number(stats.generation_tokens)} in all`);
  tiles.prompt.set(number(stats.prompt_tokens_per_s, stats.prompt_tokens_per_s < 100 ? 1 : 0), `tokens/s; ${number(stats.prompt_tokens)} in all`);
  tiles.cache.set(percent(stats.cache_usage), null, stats.cache_usage);
  tiles.prefix.set(stats.prefix_queries ? percent(stats.prefix_hits / stats.prefix_queries) : "\u2013", stats.prefix_queries ? `of ${number(stats.prefix_queries)} prompt tokens` : "no prompt yet");
  tiles.preemptions.set(number(stats.preemptions));
  tiles.restarts.set(number(stats.engine_restarts));
  tiles.experts.set(stats.mean_experts === null ? "\u2013" : number(stats.mean_experts, 2));
}

function shapeWords(card) {
  const parts = [];
  if (card.num_parameters) parts.push(`${size(card.num_parameters)} parameters`);
  if (card.num_active_parameters) parts.push(`${size(card.num_active_parameters)} active`);
  parts.push(`context of ${number(card.context_length)} tokens`);
  return parts.join(" \u00b7 ");
}

function errorTable(errors) {
  const head = el("tr", {}, ...["What", "Model", "How many", "Last"].map(text => el("th", { scope: "col" }, text)));
  const rows = errors.map(({ kind, model, count, age_s: age }) => {
    const [what, next] = KINDS[kind] ?? [kind, "See the server's log."];
    return el("tr", {}, el("td", {}, what, el("div", { className: "soft" }, next)), el("td", {}, model || "\u2013"), el("td", {}, number(count)), el("td", {}, ago(age)));
  });
  return el("div", { className: "scroll" }, el("table", { className: "number errors" }, head, ...rows));
}

function size(count) {
  const [unit, word] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([unit]) => count >= unit) ?? [1, ""];
  return `${number(count / unit, count / unit < 10 && unit > 1 ? 1 : 0)} ${word}`.trim();
}
