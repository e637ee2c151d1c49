// The floor: what another one would cost, what this one promises, and whether it still holds.
// Next: tradeoff.js.
import { ago, el, money, moment, number, percent } from "./dom.js";
import { bar, facts, pill } from "./table.js";
import { reach, saved } from "./tradeoff.js";

const WATCHES = {
  floor: ["Quality on audited requests", "audits"],
  shift: ["Requests like the calibration rows", "requests"],
};

// The slider moves on its own: everything it says comes from the curve in the page.
export class FloorSlider {
  constructor(onChange) {
    this.isTouched = false;
    this.value = el("output", { className: "number", htmlFor: "floor" });
    this.slider = el("input", { type: "range", id: "floor", min: 50, max: 100, step: 0.5, value: 95, "aria-describedby": "floor-note",
      on: { input: () => { this.isTouched = true; onChange(); } } });
    this.figures = el("div", { "aria-live": "polite" });
    this.note = el("p", { className: "soft", id: "floor-note" });
    this.command = el("code", { className: "command" });
    this.element = el("section", { className: "card stack" }, el("h2", {}, "Another floor"),
      el("div", {}, el("div", { className: "row apart" }, el("label", { htmlFor: "floor" }, "Share of the strongest model's quality"), this.value), this.slider),
      this.figures, this.note, this.command);
  }

  get floor() { return Number(this.slider.value) / 100; }

  // The point of the curve that reaches the floor looked at.
  wanted(curve) { return reach(curve, this.floor * curve.at(-1).quality); }

  draw(policy, curve) {
    if (!this.isTouched && policy.floor) this.slider.value = 100 * policy.floor.floor;
    const point = this.wanted(curve);
    const saving = saved(curve, point);
    const percentage = number(100 * this.floor, this.floor * 100 % 1 ? 1 : 0);
    this.value.textContent = `${percentage} %`;
    this.slider.setAttribute("aria-valuetext", `${percentage} percent`);
    const shown = facts([
      ["Strong calls", percent(point.strong_share), "of requests"],
      ["Cost", point.cost_usd === null ? "unknown" : money(point.cost_usd), point.cost_usd === null ? "the policy knows no prices" : "per 1,000 requests"],
      ["Saved", saving === null ? "unknown" : percent(saving), "against always-strong"],
      ["Quality", number(point.quality, 3), `mean score; strongest ${number(curve.at(-1).quality, 3)}`],
    ]);
    // Only a change is read aloud, not each second.
    if (shown.textContent !== this.figures.textContent) this.figures.replaceChildren(shown);
    const rows = policy.curve_rows ? `${number(policy.curve_rows)} recorded rows` : "recorded rows";
    this.note.textContent = `Expected on the policy's ${rows}, without a margin. To have it promised, calibrate:`;
    this.command.hidden = !policy.recalibrate;
    this.command.textContent = (policy.recalibrate ?? "").replace(/--floor[ =]\S+/, `--floor ${number(this.floor, 3).replace(/0+$/, "").replace(/\.$/, ".0")}`);
    if (!policy.recalibrate) this.note.textContent = this.note.textContent.replace("To have it promised, calibrate:", "It is not a promise: that needs moestro policy calibrate.");
  }
}

export function evidence(policy, now) {
  const { floor } = policy;
  if (!floor) {
    return [el("p", {}, el("strong", {}, "No floor is set."), " Nothing is promised of the quality of what auto chooses."), policy.recalibrate ? el("code", { className: "command" }, policy.recalibrate) : null].filter(Boolean);
  }
  const parts = [el("p", {}, floor.promise), facts([
    ["Floor", percent(floor.floor), "of the strongest model's quality"],
    ["Confidence", percent(floor.confidence), floor.level === null ? "" : `tested at level ${number(floor.level, 4)}`],
    ["Calibration", `${number(floor.num_rows)} rows`, floor.calibrated_at === null ? "" : moment(floor.calibrated_at)],
    ["Kept on them", percent(floor.quality_kept), floor.bound === null ? "mean" : `shown to be at least ${percent(floor.bound)}`],
    ["Strong calls on them", percent(floor.strong_share), "of requests"],
    ["Threshold", floor.is_always_strongest ? "always strongest" : number(floor.threshold, 3), floor.p_value === null ? "" : `p = ${floor.p_value < 0.0001 ? "< 0.0001" : number(floor.p_value, 4)}`],
  ]), el("p", { className: "soft" }, `Method: ${floor.method}.`)];
  if (floor.num_rows_needed !== null) parts.push(el("p", { className: "soft" }, `About ${number(floor.num_rows_needed)} rows like these would likely be needed for a cheaper threshold.`));
  return [...parts, ...watches(policy, now)];
}

function watches(policy, now) {
  const audits = policy.audit_share > 0 ? `All of the first answers by other models, and later ${percent(policy.audit_share)} of them, are compared with the strongest model's; scores come from ${policy.judge ?? "an unnamed judge"}.` : "No request is audited: a loss of quality would not be noticed.";
  return [el("h3", {}, "Live, since the calibration"), el("p", { className: "soft" }, audits),
    ...(policy.watches.length ? policy.watches.map(each => watch(each, now)) : [el("p", { className: "soft" }, "Nothing was watched yet.")])];
}

function watch(each, now) {
  const [title, unit] = WATCHES[each.name] ?? [each.name, "observations"];
  // Evidence multiplies, so its way to the alarm is drawn by its logarithm.
  const way = each.is_held ? Math.max(0, Math.log(Math.max(each.evidence, 1)) / Math.log(each.alarm_at)) : 1;
  const odds = value => value >= 1000 ? "> 1,000" : value < 0.01 ? "< 0.01" : number(value, value < 10 ? 2 : 0);
  const state = each.is_held ? pill("ready", "holds") : pill("stopped", each.lost_at === null ? "lost" : `lost ${ago(now - each.lost_at)}`);
  const kept = each.quality_kept === null ? "" : ` \u00b7 kept ${percent(each.quality_kept)} of the strongest model's score`;
  return el("div", { className: "watch" }, el("div", { className: "row apart" }, el("strong", {}, title), state),
    bar(each.is_held ? Math.min(way, 0.999) : 1, `Evidence ${odds(each.evidence)}, alarm at ${odds(each.alarm_at)}`),
    el("p", { className: "soft number" }, each.num_observed ? `Evidence against it ${odds(each.evidence)} : 1, alarm at ${odds(each.alarm_at)} : 1 \u00b7 ${number(each.num_observed)} ${unit}${kept}` : `No ${unit} yet; alarm at odds of ${odds(each.alarm_at)} : 1.`));
}
