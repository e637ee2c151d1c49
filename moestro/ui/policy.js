// The policy: what quality costs, where we stand on that curve, the floor and its evidence.
// Next: curve.js, floor.js.
import { Curve } from "./curve.js";
import { el, money, moment, number, percent } from "./dom.js";
import { evidence, FloorSlider } from "./floor.js";
import { Frame, isMarked, Poll } from "./poll.js";
import { Tile } from "./tiles.js";
import { at, saved, sorted } from "./tradeoff.js";

export function policyView() {
  const tiles = {
    share: new Tile("Strong calls so far", "of requests for auto"),
    quality: new Tile("Expected quality", "mean score at that share"),
    cost: new Tile("Expected cost", "per 1,000 requests"),
    saved: new Tile("Saved", "against always-strong"),
  };
  const about = el("p", { className: "soft number about" });
  const banner = el("div", { className: "callout", role: "alert", hidden: true, data: { tone: "bad" } });
  const frame = new Frame("Policy", about);
  const curve = new Curve();
  const nothing = el("p", { className: "soft", hidden: true }, "The policy has no curve: fit it again with moestro policy fit.");
  const slider = new FloorSlider(draw);
  const proof = el("section", { className: "card stack" }, el("h2", {}, "The floor and its evidence"));
  const said = el("div", { className: "stack proof" });
  proof.append(said);
  const picture = el("section", { className: "card stack" }, el("div", { className: "row apart" }, el("h2", {}, "Quality and what it costs"), curve.choice.group), nothing, curve.element);
  frame.content.append(banner, el("div", { className: "tiles four" }, ...Object.values(tiles).map(tile => tile.element)),
    el("div", { className: "two" }, picture, slider.element), proof);
  const poll = new Poll(() => "ui/policy", draw);

  function draw() {
    about.hidden = !poll.data?.policy;
    if (!frame.follow(poll)) return;
    const { policy, live, since, now } = poll.data;
    if (!policy) return frame.say("No policy yet", "Without one, clients name their model themselves. Fit one with moestro policy fit, and name its folder in fleet.toml under [policy].");
    const points = sorted(policy.curve);
    const hasCurve = points.length > 1;
    about.textContent = `${policy.name} \u00b7 ${policy.models.length} models${policy.has_cascade ? " \u00b7 cascade" : ""}`;
    about.title = `${policy.models.join(", ")}; digest ${policy.digest}`;
    drawBanner(banner, policy);
    const total = Object.values(live).reduce((sum, count) => sum + count, 0);
    const share = total ? (live[policy.strongest] ?? 0) / total : null;
    drawTiles(tiles, points, share, total, since);
    nothing.hidden = hasCurve;
    curve.element.hidden = curve.choice.group.hidden = slider.element.hidden = !hasCurve;
    if (hasCurve) {
      slider.draw(policy, points);
      const marks = { now: policy.floor ? at(points, policy.floor.strong_share) : null, live: share === null ? null : at(points, share), wanted: slider.wanted(points) };
      curve.draw(points, marks, slider.floor * points.at(-1).quality);
    }
    if (!isMarked(said)) said.replaceChildren(...evidence(policy, now));
  }
  return { root: frame.root, enter: () => poll.start(), leave: () => poll.stop() };
}

function drawBanner(banner, policy) {
  const lost = policy.watches.filter(each => !each.is_held);
  banner.hidden = lost.length === 0;
  // An alert is read aloud when it is written, so it is written once.
  const key = lost.map(each => `${each.name} ${each.lost_at}`).join();
  if (banner.hidden || banner.dataset.key === key) return;
  banner.dataset.key = key;
  const [first] = lost;
  const what = lost.some(each => each.name === "floor") ? "The floor was lost" : "Requests stopped looking like the calibration rows";
  const when = first.lost_at === null ? "" : ` on ${moment(first.lost_at)}`;
  banner.replaceChildren(el("strong", {}, `${what}${when}.`), el("p", {}, "Every request for auto now goes to ", el("b", {}, policy.strongest), ". Record new outcomes, then calibrate again:"),
    el("code", { className: "command" }, policy.recalibrate ?? "moestro policy calibrate"));
}

function drawTiles(tiles, curve, share, total, since) {
  const point = share === null || curve.length < 2 ? null : at(curve, share);
  const saving = point && saved(curve, point);
  tiles.share.set(share === null ? "\u2013" : percent(share), share === null ? "no request for auto yet" : `of ${number(total)} for auto since ${moment(since)}`);
  tiles.quality.set(point ? number(point.quality, 3) : "\u2013", point ? `mean score by the curve; strongest ${number(curve.at(-1).quality, 3)}` : "unknown");
  tiles.cost.set(point && point.cost_usd !== null ? money(point.cost_usd) : "\u2013", point && point.cost_usd !== null ? `per 1,000 requests; always-strong ${money(curve.at(-1).cost_usd)}` : "unknown");
  tiles.saved.set(saving === null ? "\u2013" : percent(saving), saving === null ? "unknown" : "against always-strong");
}
