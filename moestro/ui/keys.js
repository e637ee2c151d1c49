// Keys: what each may spend and has spent, what it may ask for; made and revoked by admins.
// Next: new_key.js, spending.js.
import { ask, Trouble } from "./api.js";
import { button, el, moment, money, number, percent, short } from "./dom.js";
import { newKey } from "./new_key.js";
import { Frame, isMarked, Poll } from "./poll.js";
import { Spending } from "./spending.js";
import { bar, lines, pill, table } from "./table.js";

const COLUMNS = [["Key", "text"], ["Money", "text"], ["Tokens", "text"], ["Limits", "text"], ["Models", "text"], ["Last used", "text"], ["", "text"]];
const PERIODS = { day: "today", month: "this month", total: "in all" };

export function keysView() {
  const create = button("New key", () => newKey(poll.data?.models ?? [], () => poll.again()), { className: "primary", hidden: true });
  const frame = new Frame("Keys", create);
  const list = el("div", {});
  const spending = new Spending();
  frame.content.append(el("section", { className: "card stack" }, list), spending.element);
  const poll = new Poll(() => "ui/keys", draw, 3000);
  let drawn = "";

  function draw() {
    create.hidden = !poll.data || poll.trouble !== null;
    if (poll.trouble?.status === 404) return frame.say("No records are kept", "Keys with budgets live in the records: add a table [records] to fleet.toml, then start the gateway again.");
    if (!frame.follow(poll)) return;
    const { keys, usage, days } = poll.data;
    const key = JSON.stringify([keys, usage]);
    // A button that somebody is about to press must not be replaced by its like.
    if (key === drawn || isMarked(list)) return;
    drawn = key;
    const focused = document.activeElement?.dataset?.revoke;
    list.replaceChildren(keys.length ? table("Keys", COLUMNS, keys.map(each => row(each, usage, () => poll.again()))) : el("p", { className: "empty" }, el("strong", {}, "No keys yet"), "Make one: it is shown once, and its holder may ask within its budget."));
    if (focused !== undefined) [...list.querySelectorAll("button")].find(each => each.dataset.revoke === focused)?.focus();
    spending.draw(usage, days);
  }
  return { root: frame.root, enter: () => poll.start(), leave: () => poll.stop() };
}

function row(key, usage, onDone) {
  const { terms } = key;
  const state = key.revoked_at !== null ? pill("stopped", "revoked") : key.is_usable ? null : pill("loading", "expired");
  const models = terms.allowed_models === null ? "all" : terms.allowed_models.join(", ") || "none";
  const revoke = button("Revoke", () => confirmRevoke(terms.name, onDone), { className: "quiet danger", data: { revoke: terms.name }, "aria-label": `Revoke the key ${terms.name}` });
  return [
    [el("span", { className: "main name", title: terms.name }, terms.name), el("span", { className: "row" }, terms.is_admin ? el("span", { className: "badge" }, "admin") : null, state), el("span", { className: "soft" }, `since ${day(key.created_at)}`)],
    budget(key.spent_usd, terms.budget_usd, terms.budget_period, money, key.resets_at),
    budget(key.spent_tokens, terms.budget_tokens, terms.budget_period, short, key.resets_at),
    limits(terms),
    el("span", { className: "name", title: models }, models),
    lastUsed(terms.name, usage),
    key.revoked_at === null ? revoke : el("span", { className: "soft" }, moment(key.revoked_at)),
  ];
}

const day = at => new Date(at * 1000).toLocaleDateString("en-GB", { dateStyle: "medium" });

function budget(spent, limit, period, format, resets) {
  if (limit === null) return lines(format(spent), `${PERIODS[period]}, no limit`);
  const share = limit > 0 ? spent / limit : 1;
  return [el("span", { className: "main number" }, `${format(spent)} of ${format(limit)}`), bar(share, `${percent(Math.min(share, 9.99))} used`), el("span", { className: "soft" }, `${PERIODS[period]}${resets === null ? "" : `, anew on ${day(resets)}`}`)];
}

function limits(terms) {
  const parts = [[terms.requests_per_minute, "requests/min"], [terms.tokens_per_minute, "tokens/min"], [terms.concurrent_requests, "at once"]].filter(([value]) => value !== null);
  return parts.length ? parts.map(([value, unit]) => el("span", { className: "limit number" }, `${short(value)} ${unit}`)) : el("span", { className: "soft" }, "none");
}

function lastUsed(name, usage) {
  const rows = usage.filter(each => each.caller === name);
  const last = rows.map(each => each.day).sort().at(-1);
  if (!last) return el("span", { className: "soft" }, "not in 30 days");
  return lines(last === new Date().toISOString().slice(0, 10) ? "today" : last, `${number(rows.reduce((sum, each) => sum + each.num_requests, 0))} requests in 30 days`);
}

function confirmRevoke(name, onDone) {
  const fault = el("p", { className: "fault", role: "alert", hidden: true });
  const dialog = el("dialog", { "aria-labelledby": "revoke-title" });
  const keep = button("Keep it", () => dialog.close());
  const go = button("Revoke", async () => {
    go.disabled = true;
    try {
      await ask("ui/keys/revoke", { body: { name } });
      dialog.close();
      onDone();
    } catch (error) {
      fault.textContent = error instanceof Trouble ? `${error.what} ${error.next}` : "The key cannot be revoked.";
      fault.hidden = false;
      go.disabled = false;
    }
  }, { className: "primary danger" });
  dialog.append(el("form", { on: { submit: event => event.preventDefault() } }, el("h2", { id: "revoke-title" }, "Revoke this key?"), el("p", {}, el("b", { className: "name" }, name), " is refused from now on, and cannot be had back. Requests under way go on."), fault, el("div", { className: "row end" }, keep, go)));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  keep.focus();
}
