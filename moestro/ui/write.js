// The page for writing with the model: chat or complete, settings beside it, one token looked into.
// Next: complete.js, chat.js, settings.js, panel.js.
import { Chat } from "./chat.js";
import { Complete } from "./complete.js";
import { el, number, segments } from "./dom.js";
import { feed } from "./feed.js";
import { Panel } from "./panel.js";
import { Settings } from "./settings.js";
import { read, write } from "./store.js";

export function writeView() {
  const settings = new Settings();
  const panel = new Panel();
  const modes = { chat: new Chat(settings, panel), complete: new Complete(settings, panel) };
  let mode = null;
  // Until the person has chosen, a model that cannot chat gets the page that it can use.
  let wanted = read("mode", null);

  const note = el("p", { className: "soft", hidden: true });
  const stage = el("div", { className: "stage" }, el("p", { className: "empty" }, el("strong", {}, "One moment"), "Waiting for the server."));
  const scale = el("div", { className: "scale", "aria-hidden": "true" }, el("span"), el("i"), el("span"));
  const modeChoice = segments("Mode", [["chat", "Chat"], ["complete", "Complete"]], null, key => { wanted = key; write("mode", key); draw(); });
  const colorChoice = segments("Color tokens by", [["experts", "Experts"], ["surprise", "Surprise"]], read("color", "experts"), key => { write("color", key); draw(); });
  const card = el("section", { className: "card writing" },
    el("div", { className: "row apart top" }, modeChoice.group, el("div", { className: "row colors" }, scale, colorChoice.group)), note, stage);
  const root = el("div", { className: "write" }, card, el("div", { className: "side" }, settings.element, panel.element));

  function draw() {
    const card_ = feed.model?.card;
    const canChat = card_?.has_chat_template ?? true;
    const now = canChat ? wanted ?? "chat" : "complete";
    modeChoice.choose(now);
    modeChoice.buttons[0].disabled = !canChat;
    modeChoice.buttons[0].title = canChat ? "" : "This model has no chat template";
    note.hidden = canChat || wanted !== "chat";
    note.textContent = "This model has no chat template: it goes on from a text, and knows no messages.";
    if (now !== mode && (card_ || wanted)) {
      mode = now;
      panel.clear();
      stage.replaceChildren(modes[mode].element);
    }
    drawScale(card_);
    settings.draw(now);
    modes[now].draw();
  }

  function drawScale(model) {
    const color = read("color", "experts");
    root.dataset.color = color;
    const [low, , high] = scale.children;
    low.textContent = color === "experts" ? number(model?.fewest_experts ?? 0) : "likely";
    high.textContent = color === "experts" ? `${number(model?.most_experts ?? 0)} experts` : "unlikely";
    scale.hidden = color === "experts" && !model?.most_experts;
  }

  draw();
  return { root, update: draw };
}
