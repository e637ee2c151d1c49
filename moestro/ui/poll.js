// One feed, asked again and again while its page is looked at. Next: fleet.js.
import { ask, Trouble } from "./api.js";
import { button, el } from "./dom.js";

export class Poll {
  // `path()` is the feed's address, `asked` the one that `data` came from, which may no longer be
  // it; `onChange()` is called when `data` or `trouble` has changed.
  constructor(path, onChange, periodMs = 1000) {
    Object.assign(this, { path, onChange, periodMs, data: null, asked: null, trouble: null, isOn: false, isAsking: false, timer: 0, turn: 0 });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
    document.addEventListener("keychange", () => this.again());
  }

  start() {
    this.isOn = true;
    this.refresh();
  }

  stop() {
    this.isOn = false;
    clearTimeout(this.timer);
  }

  // What is under way is about something else: its answer is dropped.
  again() {
    this.turn += 1;
    this.isAsking = false;
    this.refresh();
  }

  async refresh() {
    clearTimeout(this.timer);
    if (!this.isOn || this.isAsking || document.hidden) return;
    this.isAsking = true;
    const { turn } = this;
    const asked = this.path();
    let data = null;
    let trouble = null;
    try {
      data = await (await ask(asked)).json();
    } catch (error) {
      trouble = error instanceof Trouble ? error : new Trouble("This page's figures cannot be read.", "It keeps trying.");
    }
    if (turn !== this.turn) return;
    this.isAsking = false;
    if (data) Object.assign(this, { data, asked });
    this.trouble = trouble;
    if (!this.isOn) return;
    this.onChange();
    this.timer = setTimeout(() => this.refresh(), trouble ? 3 * this.periodMs : this.periodMs);
  }
}

// A page's heading, its trouble or emptiness, and its content; only one of the last three is shown.
export class Frame {
  constructor(title, ...beside) {
    this.empty = el("div", { className: "empty" }, el("strong", {}, "One moment"), "Waiting for the server.");
    this.fault = el("p", { className: "fault", role: "alert", hidden: true });
    this.content = el("div", { className: "stack page", hidden: true });
    this.root = el("div", { className: "stack page" }, el("div", { className: "row apart" }, el("h1", {}, title), ...beside), this.fault, this.empty, this.content);
  }

  say(title, ...words) {
    this.content.hidden = true;
    this.empty.hidden = false;
    const said = `${title}\n${words.map(each => each.textContent ?? each).join("\n")}`;
    if (this.said === said) return;
    this.said = said;
    this.empty.replaceChildren(el("strong", {}, title), ...words);
  }

  // Returns whether there is something to draw.
  follow({ data, trouble }) {
    if (trouble?.status === 403) {
      this.fault.hidden = true;
      this.say("For admins only", el("p", {}, trouble.what), button("Use another API key", () => document.dispatchEvent(new Event("keywanted")), { className: "primary" }));
      return false;
    }
    const words = trouble ? `${trouble.what} ${trouble.next}` : "";
    if (this.fault.textContent !== words) this.fault.textContent = words;
    this.fault.hidden = trouble === null || trouble.status === 401;
    if (!data) {
      if (trouble) this.say("Nothing to show yet", "This page keeps trying.");
      return false;
    }
    this.empty.hidden = true;
    this.content.hidden = false;
    return true;
  }
}

// Whether somebody marks text in an element, which a new drawing would take from them.
export function isMarked(element) {
  const selection = getSelection();
  return Boolean(selection && !selection.isCollapsed && element.contains(selection.anchorNode));
}
