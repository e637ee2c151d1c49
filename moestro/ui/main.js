// The frame around the pages: which one is shown, the notice, the model, the key, light and dark.
// Next: write.js, experts.js, server.js, fleet.js, policy.js, ledger.js, keys.js; feed.js and api.js
// for where everything comes from.
import { hasKey, setKey } from "./api.js";
import { el, percent } from "./dom.js";
import { expertsView } from "./experts.js";
import { chooseModel, feed, isGateway, startFeed } from "./feed.js";
import { fleetView } from "./fleet.js";
import { keysView } from "./keys.js";
import { ledgerView } from "./ledger.js";
import { policyView } from "./policy.js";
import { serverView } from "./server.js";
import { writeView } from "./write.js";

const TITLES = { write: "Chat", experts: "Experts", server: "Server", fleet: "Fleet", policy: "Policy", ledger: "Ledger", keys: "Keys" };
const FLEET = { fleet: fleetView, policy: policyView, ledger: ledgerView, keys: keysView };
const $ = id => document.getElementById(id);
// Each is built once and kept, so that an answer goes on while another page is looked at.
const builders = { write: writeView, experts: expertsView, server: serverView, ...(isGateway ? FLEET : {}) };
const built = {};
let shown = null;

function show(name) {
  built[name] ??= builders[name]();
  if (shown !== built[name]) {
    shown?.leave?.();
    shown = built[name];
    $("view").replaceChildren(shown.root);
    shown.enter?.();
  }
  document.title = `${TITLES[name]} - Moestro`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function viewOf(address) {
  const last = new URL(address).pathname.split("/").at(-1);
  return last in builders && last !== "write" ? last : "write";
}

function followLinks() {
  document.addEventListener("click", event => {
    const link = event.target.closest("a[data-view]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    if (link.href !== location.href) history.pushState(null, "", link.href);
    show(link.dataset.view);
    $("view").focus({ preventScroll: true });
    scrollTo(0, 0);
  });
  addEventListener("popstate", () => show(viewOf(location.href)));
}

const NOTICES = {
  loading: ["", "The model is being loaded.", share => `${percent(share)} done; you can write meanwhile.`],
  restarting: ["warn", "The engine is starting again.", () => "Answers under way were lost; new ones work in a moment."],
  draining: ["warn", "The server is shutting down.", () => "It finishes what is under way and takes nothing new."],
  stopped: ["bad", "The model has stopped.", () => "Start the server again; its log says why."],
  unreachable: ["bad", "No server of this model can be reached.", () => "The page Fleet says why. It is asked again every few seconds."],
};

function noticeNow() {
  if (feed.trouble) return ["bad", feed.trouble.what, feed.trouble.next, null];
  if (feed.models && !feed.model) return ["warn", "No model is served here.", "Start the server with one: moestro serve MODEL.", null];
  const stats = feed.model?.stats;
  if (feed.model && !stats && !isGateway) return ["warn", "Nothing is known of this model's state.", "", null];
  if (!stats || !(stats.state in NOTICES)) return null;
  const [tone, what, words] = NOTICES[stats.state];
  return [tone, what, words(stats.progress), stats.state === "loading" ? stats.progress : null];
}

function drawNotice() {
  const notice = $("notice");
  const now = noticeNow();
  notice.hidden = now === null;
  if (now === null) return;
  const [tone, what, next, progress] = now;
  notice.dataset.tone = tone;
  const bar = notice.querySelector("progress");
  // A status region is read aloud when it changes, so it must not be rewritten each second.
  setText(notice.querySelector("strong"), what);
  setText(notice.querySelector("span"), next);
  bar.hidden = progress === null;
  if (progress !== null) bar.value = progress;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function drawModels() {
  const ids = (feed.models ?? []).map(each => each.card.id);
  const select = $("model");
  select.hidden = ids.length < 2;
  $("model-name").hidden = !select.hidden;
  setText($("model-name"), ids[0] ?? "");
  $("model-name").title = ids[0] ?? "";
  if ([...select.options].map(each => each.value).join("\n") !== ids.join("\n")) {
    select.replaceChildren(...ids.map(id => el("option", { value: id }, id)));
  }
  if (feed.model) select.value = feed.model.card.id;
}

// No link leads to a page that means nothing here: a fleet's models may have no experts to show.
function drawLinks() {
  const hasExperts = !isGateway || (feed.models ?? []).some(each => each.card.num_experts > 0);
  for (const link of document.querySelectorAll("nav a")) {
    const { view } = link.dataset;
    if (view in FLEET) link.hidden = !isGateway;
    else if (view === "experts") link.hidden = !hasExperts;
    else if (view === "server") link.hidden = isGateway;
  }
}

function setUpTheme() {
  const order = ["system", "light", "dark"];
  const label = () => {
    const choice = document.documentElement.dataset.choice;
    $("theme").querySelector(".label").textContent = { system: "System", light: "Light", dark: "Dark" }[choice];
    $("theme").setAttribute("aria-label", `Colors: ${choice}; press to change`);
    $("theme").title = `Colors: ${choice}`;
  };
  $("theme").addEventListener("click", () => {
    const at = order.indexOf(document.documentElement.dataset.choice);
    document.dispatchEvent(new CustomEvent("themechoice", { detail: order[(at + 1) % order.length] }));
    label();
  });
  label();
}

function setUpKey() {
  const dialog = $("key-dialog");
  const open = fault => {
    if (dialog.open) return;
    $("key-fault").hidden = !fault;
    $("key-fault").textContent = fault;
    $("key-forget").hidden = !hasKey();
    $("key-value").value = "";
    dialog.showModal();
  };
  let isDeclined = false;
  // A server that asks for no key is not bothered with one.
  $("key").hidden = !hasKey();
  document.addEventListener("keyneeded", () => { $("key").hidden = false; if (!isDeclined) open(hasKey() ? "The server does not know the key that it was sent." : ""); });
  dialog.addEventListener("cancel", () => { isDeclined = true; });
  $("key-cancel").addEventListener("click", () => { isDeclined = true; dialog.close(); });
  $("key-forget").addEventListener("click", () => { isDeclined = false; setKey(""); dialog.close(); });
  $("key").addEventListener("click", () => { isDeclined = false; open(""); });
  document.addEventListener("keywanted", () => { $("key").hidden = false; isDeclined = false; open(""); });
  dialog.querySelector("form").addEventListener("submit", () => {
    isDeclined = false;
    setKey($("key-value").value.trim());
  });
}

setUpTheme();
setUpKey();
followLinks();
drawLinks();
$("model").addEventListener("change", event => chooseModel(event.target.value));
feed.addEventListener("update", () => { drawNotice(); drawModels(); drawLinks(); shown?.update?.(); });
show(viewOf(location.href));
startFeed();
