// The ledger: recent decisions with their reasons, what they cost, what always-strong would have.
// Next: decision.js.
import { ask, Trouble } from "./api.js";
import { COLUMNS, decisionCells } from "./decision.js";
import { button, DASH, el, money, number, percent, segments } from "./dom.js";
import { Frame, isMarked, Poll } from "./poll.js";
import { read, write } from "./store.js";
import { table, tableRow } from "./table.js";
import { Tile } from "./tiles.js";

const DAYS = [["1", "Today"], ["7", "7 days"], ["30", "30 days"]];
const OUTCOMES = [["", "any"], ["answered", "answered"], ["refused", "refused"], ["failed", "failed"], ["left", "client left"]];

export function ledgerView() {
  const tiles = {
    requests: new Tile("Requests", ""),
    cost: new Tile("Cost", ""),
    strong: new Tile("Always-strong", "for the same requests"),
    saved: new Tile("Saved", "against always-strong"),
  };
  let days = read("days", "1");
  // Where each page shown began, the first one last; empty at the newest.
  let places = [];
  const filters = filterFields(() => { places = []; poll.again(); usage.again(); });
  const isLive = el("input", { type: "checkbox", checked: true, on: { change: () => { if (isLive.checked) { places = []; poll.again(); } } } });
  const download = button("Download CSV", save);
  const newer = button("Newer", () => { places.pop(); poll.again(); });
  const older = button("Older", () => { isLive.checked = false; places.push(poll.data.before); poll.again(); });
  const fault = el("p", { className: "fault", role: "alert", hidden: true });
  const only = el("p", { className: "soft", hidden: true });
  const none = el("p", { className: "empty", hidden: true });
  const grid = table("Decisions", COLUMNS, []);
  const body = grid.querySelector("tbody");
  const span = segments("Totals of", DAYS, days, key => { days = key; write("days", key); usage.again(); });
  const frame = new Frame("Ledger", span.group);
  frame.content.append(el("div", { className: "tiles four" }, ...Object.values(tiles).map(tile => tile.element)),
    el("section", { className: "card stack" }, el("div", { className: "filters" }, ...filters.fields),
      el("div", { className: "row apart" }, el("label", { className: "row" }, isLive, "Live"), download), fault, only, none, grid,
      el("div", { className: "row apart" }, newer, older)));
  const poll = new Poll(() => `ui/ledger?${filters.query({ before: places.at(-1), limit: 50 })}`, draw, 2000);
  const usage = new Poll(() => `ui/usage?${filters.query({ days })}`, drawTotals, 5000);

  function draw() {
    if (!frame.follow(poll)) return;
    const { decisions, before, now, is_kept: isKept, only: own } = poll.data;
    if (!isKept) return frame.say("No records are kept", "Add a table [records] to fleet.toml, then start the gateway again.");
    filters.learn(decisions);
    only.hidden = !own;
    only.textContent = own ? `These are the requests of your key, ${own}; an admin's key shows all.` : "";
    none.hidden = decisions.length > 0;
    none.textContent = filters.isSet() ? "No decision fits these filters." : "No request yet: send one to this server.";
    grid.hidden = decisions.length === 0;
    newer.disabled = places.length === 0;
    older.disabled = before === null;
    // Somebody who reads an older page, or marks a line, must not lose it. Filters may have changed
    // since these decisions were asked for.
    const about = poll.asked;
    const newest = `${decisions[0]?.id} ${decisions.length}`;
    if (body.dataset.about === about && (body.dataset.newest === newest || !isLive.checked || isMarked(body))) return;
    Object.assign(body.dataset, { about, newest });
    body.replaceChildren(...decisions.map(each => tableRow(COLUMNS, decisionCells(each, now))));
  }

  function drawTotals() {
    if (!usage.data || usage.trouble) return;
    const { num_requests: num, num_failed: failed, cost_usd: cost, compared_cost_usd: compared, strongest_cost_usd: strong } = usage.data;
    tiles.requests.set(number(num), failed ? `${number(failed)} of them failed` : "none failed");
    tiles.cost.set(money(cost), num ? `${money(1000 * cost / num)} per 1,000 requests` : "no request yet");
    tiles.strong.set(strong > 0 ? money(strong) : DASH, strong > 0 ? `for requests that did cost ${money(compared)}` : "unknown without a policy and prices");
    tiles.saved.set(strong > 0 ? percentOf(1 - compared / strong) : DASH, strong > 0 ? `${money(strong - compared)} against always-strong` : "unknown");
  }

  async function save() {
    download.disabled = true;
    fault.hidden = true;
    try {
      const blob = await (await ask(`ui/ledger.csv?${filters.query({})}`)).blob();
      const url = URL.createObjectURL(blob);
      el("a", { href: url, download: "ledger.csv" }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } catch (error) {
      fault.textContent = error instanceof Trouble ? `${error.what} ${error.next}` : "The table cannot be saved.";
      fault.hidden = false;
    } finally {
      download.disabled = false;
    }
  }
  const polls = [poll, usage];
  return { root: frame.root, enter: () => polls.forEach(each => each.start()), leave: () => polls.forEach(each => each.stop()) };
}

const percentOf = share => share < 0 ? `\u2212${percent(-share)}` : percent(share);

// Fields whose names are those of the feed; known names are offered, others can be written.
function filterFields(onChange) {
  const seen = { model: new Set(), key: new Set() };
  const lists = { model: el("datalist", { id: "seen-models" }), key: el("datalist", { id: "seen-keys" }) };
  let timer = 0;
  const soon = () => { clearTimeout(timer); timer = setTimeout(onChange, 250); };
  const input = (name, list) => {
    const made = el("input", { id: `filter-${name}`, type: "search", placeholder: "any", autocomplete: "off", spellcheck: false, maxLength: 200, on: { input: soon } });
    if (list) made.setAttribute("list", list.id);
    return made;
  };
  const controls = {
    model: input("model", lists.model),
    key: input("key", lists.key),
    outcome: el("select", { id: "filter-outcome", on: { change: onChange } }, ...OUTCOMES.map(([value, text]) => el("option", { value }, text))),
    reason: input("reason", null),
  };
  const titles = { model: "Model", key: "Key", outcome: "Status", reason: "Reason contains" };
  const fields = Object.entries(controls).map(([name, control]) => el("div", { className: "field" }, el("label", { htmlFor: control.id }, titles[name]), control));
  const values = () => Object.entries(controls).map(([name, control]) => [name, control.value.trim()]).filter(([, value]) => value);
  const learn = decisions => {
    for (const { model, caller } of decisions) for (const [name, value] of [["model", model], ["key", caller]]) {
      if (!value || seen[name].has(value) || seen[name].size >= 200) continue;
      seen[name].add(value);
      lists[name].append(el("option", { value }));
    }
  };
  const query = more => new URLSearchParams([...values(), ...Object.entries(more).filter(([, value]) => value !== undefined)]).toString();
  return { fields: [...fields, lists.model, lists.key], query, learn, isSet: () => values().length > 0 };
}
