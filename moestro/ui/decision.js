// One decision as a row: who asked for what, who answered, why, at what cost. Next: table.js.
import { DASH, el, money, number, orDash, seconds, short } from "./dom.js";
import { lines, pill } from "./table.js";

export const COLUMNS = [["Time", "text"], ["Key", "text"], ["Model", "text"], ["Reason", "text"], ["Tokens", "number"], ["Cost", "number"], ["First token", "number"], ["Whole", "number"], ["Status", "text"]];

// The gateway's phrases in more words; others are shown as they are.
const REASONS = {
  named: "The client named the model",
  asked: "The client named the model",
  conversation: "The conversation stays with its model",
  "floor lost": "The floor was lost: always the strongest",
  "traffic shifted": "Requests no longer look like the calibration rows: always the strongest",
  cached: "Answered from the cache",
};

const STATES = { answered: "ready", refused: "loading", failed: "stopped", left: "loading" };
const OUTCOMES = { answered: "answered", refused: "refused", failed: "failed", left: "client left" };

export function decisionCells(decision, dayNow) {
  const { scores, threshold } = decision;
  return [
    el("time", { dateTime: new Date(decision.began_at * 1000).toISOString(), title: `${decision.path}, request ${decision.request_id}` }, ...when(decision.began_at, dayNow)),
    name(decision.caller ?? DASH),
    [name(decision.model || "nobody answered"), el("span", { className: "soft" }, decision.asked !== decision.model ? `asked for ${decision.asked || "nothing"}` : "", decision.backend ? ` ${decision.asked !== decision.model ? "\u00b7 " : ""}${decision.backend}` : "")],
    lines(REASONS[decision.reason] ?? (decision.reason || DASH), scoreWords(scores, threshold)),
    lines(`${decision.is_estimated ? "about " : ""}${short(decision.prompt_tokens)} \u2192 ${short(decision.completion_tokens)}`, tokenNote(decision)),
    lines(money(decision.cost_usd), decision.strongest_cost_usd === null ? "" : `strongest ${money(decision.strongest_cost_usd)}`),
    orDash(decision.first_s, seconds),
    seconds(decision.whole_s),
    [pill(STATES[decision.outcome], `${decision.status} ${OUTCOMES[decision.outcome]}`), el("span", { className: "soft" }, tries(decision)), decision.error ? el("span", { className: "fault trouble", title: decision.error }, decision.error) : null],
  ];
}

const name = text => el("span", { className: "main name", title: text }, text);

function when(at, now) {
  const date = new Date(at * 1000);
  const clock = date.toLocaleTimeString("en-GB");
  const isToday = date.toDateString() === new Date(now * 1000).toDateString();
  return isToday ? [clock] : [clock, el("span", { className: "soft" }, date.toLocaleDateString("en-GB", { day: "numeric", month: "short" }))];
}

function scoreWords(scores, threshold) {
  const parts = Object.entries(scores).map(([model, score]) => `${model} ${number(score, 2)}`);
  if (threshold !== null) parts.push(`threshold ${number(threshold, 2)}`);
  return parts.join(" \u00b7 ");
}

function tokenNote({ cached_tokens: cached, wasted_tokens: wasted }) {
  return [cached ? `${short(cached)} cached` : "", wasted ? `${short(wasted)} wasted` : ""].filter(Boolean).join(", ");
}

function tries({ num_attempts: attempts, num_failovers: failovers, is_streamed: isStreamed }) {
  const parts = [isStreamed ? "streamed" : "whole"];
  if (attempts > 1) parts.push(`${attempts} attempts`);
  if (failovers) parts.push(`${failovers} failover${failovers === 1 ? "" : "s"}`);
  return parts.join(", ");
}
