// What a share of strong calls buys, read off a policy's curve: pure numbers. Next: curve.js.

// The curve from never to always the strongest model.
export const sorted = curve => [...curve].sort((a, b) => a.strong_share - b.strong_share);

// The fewest strong calls at which the curve reaches a quality; null where it never does.
export function reach(curve, quality) {
  const place = curve.findIndex(point => point.quality >= quality - 1e-12);
  if (place < 0) return null;
  if (place === 0) return curve[0];
  const [before, after] = [curve[place - 1], curve[place]];
  return between(before, after, (quality - before.quality) / (after.quality - before.quality));
}

// The curve at a share of strong calls.
export function at(curve, share) {
  const place = curve.findIndex(point => point.strong_share >= share);
  if (place === 0) return curve[0];
  if (place < 0) return curve.at(-1) ?? null;
  const [before, after] = [curve[place - 1], curve[place]];
  return between(before, after, (share - before.strong_share) / (after.strong_share - before.strong_share));
}

function between(before, after, part) {
  const mix = name => before[name] === null || after[name] === null ? null : before[name] + part * (after[name] - before[name]);
  return { strong_share: mix("strong_share"), quality: mix("quality"), cost_usd: mix("cost_usd"), quality_low: mix("quality_low"), quality_high: mix("quality_high") };
}

// The part of always-strong's cost that a point saves; null where costs are unknown.
export function saved(curve, point) {
  const most = curve.at(-1)?.cost_usd ?? null;
  return most === null || point.cost_usd === null || most <= 0 ? null : 1 - point.cost_usd / most;
}

export const hasCosts = curve => curve.length > 1 && curve.every(point => point.cost_usd !== null) && curve.at(-1).cost_usd > curve[0].cost_usd;
