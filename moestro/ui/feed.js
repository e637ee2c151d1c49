// The server's state, about each second, while anybody looks: models, levels over time, errors.
// Next: main.js.
import { ask, Trouble } from "./api.js";
import { read, write } from "./store.js";

const PERIOD_MS = 1000;

// Whether this server passes requests on to a fleet, and so has the pages of one.
export const isGateway = document.documentElement.dataset.server === "gateway";
const MOST_SAMPLES = 150;

export const feed = new EventTarget();
Object.assign(feed, { models: null, model: null, trouble: null, samples: [], errors: [], sampleSeconds: 2 });

let next = 0;
let timer = 0;
let isAsking = false;

export function startFeed() {
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  document.addEventListener("keychange", refresh);
  refresh();
}

export function chooseModel(id) {
  write("model", id);
  pick();
  feed.dispatchEvent(new Event("update"));
}

// The name `auto` is no model of its own: it is there when the gateway is.
export const isReady = () => feed.trouble === null && (isGateway && feed.model && !feed.model.stats || feed.model?.stats?.state === "ready");

async function refresh() {
  clearTimeout(timer);
  if (isAsking || document.hidden) return;
  isAsking = true;
  try {
    const response = await ask(`ui/state?since=${next}`);
    take(await response.json());
    feed.trouble = null;
  } catch (error) {
    feed.trouble = error instanceof Trouble ? error : new Trouble("The server's state cannot be read.", "This page keeps trying.");
  } finally {
    isAsking = false;
  }
  feed.dispatchEvent(new Event("update"));
  timer = setTimeout(refresh, feed.trouble ? 2 * PERIOD_MS : PERIOD_MS);
}

function take({ models, recent }) {
  feed.models = models;
  feed.errors = recent.errors;
  feed.sampleSeconds = recent.sample_s;
  // Fewer samples than we have seen: the server has started anew.
  if (recent.next < next) feed.samples = [];
  const known = feed.samples.at(-1)?.number ?? -1;
  feed.samples.push(...recent.samples.filter(sample => sample.number > known));
  feed.samples.splice(0, feed.samples.length - MOST_SAMPLES);
  next = recent.next;
  pick();
}

function pick() {
  const wanted = read("model", null);
  feed.model = feed.models?.find(each => each.card.id === wanted) ?? feed.models?.[0] ?? null;
}
