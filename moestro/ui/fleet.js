// The fleet, second by second: each model with its servers, load, price, speed, faults.
// Next: table.js, rates.js.
import { ago, DASH, el, money, number, orDash, percent, seconds, short } from "./dom.js";
import { Frame, isMarked, Poll } from "./poll.js";
import { perSecond, Rates, sparkline } from "./rates.js";
import { bar, facts, lines, pill, table } from "./table.js";
import { Tile } from "./tiles.js";

const COLUMNS = [["Server", "text"], ["State", "text"], ["Load", "text"], ["First token", "number"], ["Whole", "number"], ["Weight", "number"], ["Requests", "number"], ["Errors", "number"], ["Failovers", "number"]];

export function fleetView() {
  const rates = new Rates();
  const tiles = {
    rate: new Tile("Requests", "per second"),
    flight: new Tile("In flight", "at all servers"),
    waiting: new Tile("Waiting", "in the queues"),
    errors: new Tile("Errors", "of requests sent to servers"),
    failovers: new Tile("Failovers", "answers another server went on with"),
    refused: new Tile("Refused", "before any server was asked"),
  };
  const state = pill("stopped", "");
  const frame = new Frame("Fleet", state);
  const records = el("p", { className: "callout", role: "status", hidden: true });
  const models = el("div", { className: "stack page" });
  frame.content.append(records, el("div", { className: "tiles six" }, ...Object.values(tiles).map(tile => tile.element)), models);
  const poll = new Poll(() => "ui/fleet", draw);

  function draw() {
    state.hidden = !poll.data || poll.trouble !== null;
    if (!frame.follow(poll)) return;
    const { fleet, now } = poll.data;
    if (!poll.trouble) count(rates, fleet, now);
    if (!fleet.models.length) return frame.say("No models yet", "Add one to fleet.toml.");
    drawState(state, fleet);
    drawTiles(tiles, fleet, rates, now);
    drawRecords(records, poll.data.records);
    if (!isMarked(models)) models.replaceChildren(...fleet.models.map(model => modelCard(model, fleet, rates)));
  }
  return { root: frame.root, enter: () => poll.start(), leave: () => poll.stop() };
}

const told = (value, format) => value === null ? "" : format(value);

function count(rates, fleet, now) {
  rates.add("", fleet.num_requests, now);
  for (const model of fleet.models) rates.add(`model ${model.name}`, model.num_requests, now);
}

function drawState(state, { models }) {
  const backends = models.flatMap(model => model.backends);
  const num = backends.filter(each => each.is_up).length;
  const isLost = models.some(model => !model.is_up);
  state.textContent = `${num} of ${backends.length} servers up`;
  state.dataset.state = isLost ? "stopped" : num < backends.length ? "loading" : "ready";
}

function drawTiles(tiles, fleet, rates, now) {
  const sum = name => fleet.models.reduce((total, model) => total + model[name], 0);
  const backends = fleet.models.flatMap(model => model.backends);
  const sent = backends.reduce((total, each) => total + each.num_requests, 0);
  const failed = backends.reduce((total, each) => total + each.num_errors, 0);
  tiles.rate.set(`${perSecond(rates.now(""))} /s`, `${short(fleet.num_requests)} in all; counted from ${ago(now - fleet.since)}`);
  tiles.flight.set(number(sum("num_in_flight")));
  tiles.waiting.set(number(sum("num_waiting")));
  tiles.errors.set(sent ? percent(failed / sent) : DASH, `${number(failed)} of ${number(sent)} sent to servers`);
  tiles.failovers.set(number(fleet.num_failovers));
  tiles.refused.set(number(fleet.num_refused));
}

function drawRecords(callout, health) {
  const lost = health?.lost_records ?? 0;
  const restarts = health?.writer_restarts ?? 0;
  callout.hidden = !health || (health.is_reachable && !lost && !restarts);
  if (callout.hidden) return;
  callout.dataset.tone = health.is_reachable && !lost ? "" : "bad";
  const words = [
    health.trouble ? `Records cannot be written: ${health.trouble}.` : "Records are written.",
    restarts ? `The process that writes them has ended ${times(restarts)} since the start and was started again; see its log.` : "",
    lost ? `${number(lost)} were lost since the start; requests still flow.` : "None was lost; requests still flow.",
  ].filter(Boolean).join(" ");
  if (callout.textContent !== words) callout.textContent = words;
}

const times = count => count === 1 ? "once" : `${number(count)} times`;

function modelCard(model, fleet, rates) {
  const key = `model ${model.name}`;
  const rate = rates.now(key);
  const badges = [model.is_local ? "local" : "remote", model.is_auto ? "auto" : null, model.name === fleet.strongest ? "strongest" : null, model.context_length ? `${number(model.context_length)} tokens of context` : null].filter(Boolean);
  const up = model.backends.filter(each => each.is_up).length;
  const state = model.state === "loading" ? pill("loading", "loading") : !model.is_up ? pill("stopped", "down") : up < model.backends.length ? pill("loading", `${up} of ${model.backends.length} up`) : pill("ready", "up");
  return el("section", { className: "card stack model", "aria-label": `Model ${model.name}` },
    el("div", { className: "row apart top" },
      el("div", { className: "row title" }, el("h2", { title: model.name }, model.name), state, ...badges.map(text => el("span", { className: "badge" }, text))),
      el("div", { className: "row rate number" }, sparkline(rates.of(key), `Requests per second to ${model.name} over the last 90 seconds, now ${perSecond(rate)}`), el("span", {}, `${perSecond(rate)} /s`))),
    facts(modelFacts(model)),
    model.backends.length ? table(`Servers of ${model.name}`, COLUMNS, model.backends.map(backendRow)) : el("p", { className: "soft" }, "No server yet."));
}

function modelFacts(model) {
  const { latency } = model;
  const free = model.input_usd_per_mtok === 0 && model.output_usd_per_mtok === 0;
  return [
    ["Share of traffic", percent(model.share), bar(model.share, `${percent(model.share)} of requests`)],
    ["Requests", short(model.num_requests), model.is_auto ? `${short(model.num_auto)} by auto` : "all asked for by name"],
    ["Load", `${number(model.num_in_flight)} in flight`, `${number(model.num_waiting)} waiting`],
    ["First token", orDash(latency.first_p50_s, seconds), told(latency.first_p95_s, value => `95 % within ${seconds(value)}`)],
    ["Whole answer", orDash(latency.whole_p50_s, seconds), told(latency.whole_p95_s, value => `95 % within ${seconds(value)}`)],
    ["Price per 1 M tokens", free ? "none given" : `${money(model.input_usd_per_mtok)} in`, free ? "" : `${money(model.output_usd_per_mtok)} out`],
    ["Tokens", `${short(model.prompt_tokens)} in`, `${short(model.completion_tokens)} out`],
    ["Cost", money(model.cost_usd), model.num_requests ? `${money(1000 * model.cost_usd / model.num_requests)} per 1,000` : ""],
  ];
}

function backendRow(backend) {
  const { latency } = backend;
  const share = backend.max_concurrent ? backend.num_in_flight / backend.max_concurrent : 0;
  const load = `${number(backend.num_in_flight)} of ${number(backend.max_concurrent)}`;
  const kind = backend.dialect === "openai" ? "" : ` \u00b7 ${backend.dialect}`;
  return [
    lines(backend.name, backend.address + kind),
    [backendState(backend), backend.trouble ? el("span", { className: "soft trouble", title: backend.trouble }, backend.trouble) : null],
    [el("span", { className: "row load" }, bar(share, `${load} at once`), el("span", { className: "number" }, load)), el("span", { className: "soft" }, backend.num_waiting ? `${number(backend.num_waiting)} waiting` : "none waiting")],
    lines(orDash(latency.first_p50_s, seconds), told(latency.first_p95_s, value => `p95 ${seconds(value)}`)),
    lines(orDash(latency.whole_p50_s, seconds), told(latency.whole_p95_s, value => `p95 ${seconds(value)}`)),
    number(backend.weight, backend.weight % 1 ? 2 : 0),
    number(backend.num_requests),
    lines(number(backend.num_errors), backend.num_requests ? percent(backend.num_errors / backend.num_requests) : ""),
    number(backend.num_failovers),
  ];
}

function backendState({ breaker, is_up: isUp, retry_in_s: retry }) {
  if (breaker === "open") return pill("stopped", retry === null ? "left alone" : `left alone for ${seconds(Math.max(0, retry))}`);
  if (breaker === "half_open") return pill("loading", "being tried");
  return isUp ? pill("ready", "up") : pill("stopped", "down");
}
