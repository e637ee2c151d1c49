// What was spent, by day: a column each, cut by key or by model. Next: keys.js.
import { DASH, el, money, number, segments, short } from "./dom.js";
import { read, write } from "./store.js";
import { table } from "./table.js";

// The rest is one band: more colors than these nobody can tell apart.
const MOST_BANDS = 5;
const MEASURES = { cost: ["Cost", row => row.cost_usd, money], tokens: ["Tokens", row => row.prompt_tokens + row.completion_tokens, short], requests: ["Requests", row => row.num_requests, number] };

export class Spending {
  constructor() {
    this.by = read("spending-by", "caller");
    this.measure = read("spending-of", "cost");
    const set = (name, key) => value => { this[name] = value; write(key, value); this.draw(...this.drawn); };
    const by = segments("By", [["caller", "Key"], ["model", "Model"]], this.by, set("by", "spending-by"));
    const of = segments("Of", Object.entries(MEASURES).map(([key, [title]]) => [key, title]), this.measure, set("measure", "spending-of"));
    this.legend = el("div", { className: "row soft number legend" });
    this.columns = el("div", { className: "days", role: "img" });
    this.ends = el("div", { className: "row apart soft number" });
    this.top = el("span", { className: "soft number roof" });
    this.numbers = el("details", {}, el("summary", { className: "soft" }, "As numbers"), el("div", {}));
    this.none = el("p", { className: "soft", hidden: true }, "Nothing was used in these days.");
    this.chart = el("div", { className: "stack" }, this.legend, el("div", { className: "plot" }, this.top, this.columns), this.ends, this.numbers);
    this.element = el("section", { className: "card stack" }, el("div", { className: "row apart" }, el("h2", {}, "Usage by day"), el("div", { className: "row" }, by.group, of.group)), this.none, this.chart);
  }

  draw(usage, days) {
    this.drawn = [usage, days];
    const [title, value, format] = MEASURES[this.measure];
    const sums = new Map();
    for (const row of usage) sums.set(this.#name(row), (sums.get(this.#name(row)) ?? 0) + value(row));
    const names = [...sums].sort((a, b) => b[1] - a[1]).map(([name]) => name);
    this.none.hidden = names.length > 0;
    this.chart.hidden = names.length === 0;
    const bands = names.slice(0, MOST_BANDS);
    const hasRest = names.length > MOST_BANDS;
    const band = row => { const place = bands.indexOf(this.#name(row)); return place < 0 ? MOST_BANDS : place; };
    const byDay = new Map(days.map(day => [day, Array(MOST_BANDS + 1).fill(0)]));
    for (const row of usage) if (byDay.has(row.day)) byDay.get(row.day)[band(row)] += value(row);
    const total = parts => parts.reduce((sum, part) => sum + part, 0);
    const most = Math.max(...[...byDay.values()].map(total), 1e-12);
    this.top.textContent = `${format(most)} a day at most`;
    this.columns.setAttribute("aria-label", `${title} by day over ${days.length} days, at most ${format(most)}`);
    this.columns.replaceChildren(...[...byDay].map(([day, parts]) => el("span", { className: "day", title: `${day}: ${format(total(parts))}` },
      ...parts.map((part, place) => part ? el("i", { className: `band-${place}`, vars: { "--h": `${100 * part / most}%` } }) : null))));
    this.ends.replaceChildren(el("span", {}, days[0]), el("span", {}, `today, ${days.at(-1)} (UTC)`));
    const rest = total(names.slice(MOST_BANDS).map(name => sums.get(name)));
    this.legend.replaceChildren(...[...bands.map(name => [name, sums.get(name)]), ...(hasRest ? [[`${names.length - MOST_BANDS} others`, rest]] : [])].map(([name, sum], place) =>
      el("span", { className: "key-entry", title: name }, el("i", { className: `sample band-${place}`, "aria-hidden": "true" }), el("span", { className: "name" }, name), el("b", {}, format(sum)))));
    this.#tell(usage);
  }

  #name(row) { return row[this.by] || (this.by === "caller" ? "without a key" : "nobody answered"); }

  #tell(usage) {
    const rows = new Map();
    for (const row of usage) {
      const sum = rows.get(this.#name(row)) ?? [0, 0, 0, 0, 0];
      [row.num_requests, row.num_failed, row.prompt_tokens, row.completion_tokens, row.cost_usd].forEach((value, place) => { sum[place] += value; });
      rows.set(this.#name(row), sum);
    }
    const columns = [[this.by === "caller" ? "Key" : "Model", "text"], ["Requests", "number"], ["Failed", "number"], ["Tokens in", "number"], ["Tokens out", "number"], ["Cost", "number"]];
    const cells = [...rows].map(([name, [num, failed, input, output, cost]]) => [el("span", { className: "name", title: name }, name), number(num), failed ? number(failed) : DASH, short(input), short(output), money(cost)]);
    this.numbers.lastChild.replaceChildren(table("Usage", columns, cells));
  }
}
