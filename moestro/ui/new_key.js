// A new key: its terms in a dialog, then the key itself, shown this once. Next: keys.js.
import { ask, Trouble } from "./api.js";
import { button, el } from "./dom.js";

const FIELDS = [
  ["budget_usd", "Budget, dollars", { type: "number", min: 0, step: "any" }],
  ["budget_tokens", "Budget, tokens", { type: "number", min: 0, step: 1 }],
  ["requests_per_minute", "Requests per minute", { type: "number", min: 1, step: 1 }],
  ["tokens_per_minute", "Tokens per minute", { type: "number", min: 1, step: 1 }],
  ["concurrent_requests", "Requests at once", { type: "number", min: 1, step: 1 }],
];

export function newKey(models, onDone) {
  const name = el("input", { id: "key-name", required: true, maxLength: 64, autocomplete: "off", spellcheck: false });
  const inputs = FIELDS.map(([field, label, rules]) => [field, label, el("input", { id: `terms-${field}`, placeholder: "no limit", inputMode: "decimal", ...rules })]);
  const period = el("select", { id: "terms-period" }, ...[["month", "each month"], ["day", "each day"], ["total", "in all"]].map(([value, text]) => el("option", { value }, text)));
  const chosen = ["auto", ...models].map(model => el("input", { type: "checkbox", value: model }));
  const isAdmin = el("input", { type: "checkbox" });
  const fault = el("p", { className: "fault", role: "alert", hidden: true });
  const create = el("button", { type: "submit", className: "primary" }, "Create key");
  const dialog = el("dialog", { className: "wide", "aria-labelledby": "new-key-title" });
  const close = () => { dialog.close(); dialog.remove(); };
  const form = el("form", { on: { submit } }, el("h2", { id: "new-key-title" }, "New key"), field("Name", name),
    el("div", { className: "pairs" }, ...inputs.slice(0, 2).map(([, label, input]) => field(label, input)), field("Budgets are for", period), ...inputs.slice(2).map(([, label, input]) => field(label, input))),
    el("fieldset", {}, el("legend", {}, "Allowed models"), el("p", { className: "soft" }, "None chosen: all of them."), el("div", { className: "row" }, ...chosen.map(box => el("label", { className: "row choice" }, box, el("span", { className: "name" }, box.value))))),
    el("label", { className: "row" }, isAdmin, "Admin: sees all pages, makes and revokes keys"), fault,
    el("div", { className: "row end" }, button("Cancel", close), create));
  dialog.append(form);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();

  async function submit(event) {
    event.preventDefault();
    const allowed = chosen.filter(box => box.checked).map(box => box.value);
    const terms = { name: name.value.trim(), budget_period: period.value, is_admin: isAdmin.checked };
    for (const [field_, , input] of inputs) if (input.value !== "") terms[field_] = Number(input.value);
    if (allowed.length) terms.allowed_models = allowed;
    create.disabled = true;
    fault.hidden = true;
    try {
      const made = await (await ask("ui/keys", { body: terms })).json();
      onDone();
      show(made);
    } catch (error) {
      fault.textContent = error instanceof Trouble ? `${error.what} ${error.next}` : "The key cannot be made.";
      fault.hidden = false;
      create.disabled = false;
    }
  }

  function show({ name: made, key }) {
    const shown = el("code", { className: "command secret", tabIndex: 0 }, key);
    const copy = button("Copy", async () => {
      try {
        await navigator.clipboard.writeText(key);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(shown);
        copy.textContent = "Marked: copy it now";
      }
    });
    const done = button("I have kept it", close, { className: "primary" });
    dialog.replaceChildren(el("form", {}, el("h2", { id: "new-key-title" }, "Key for ", el("span", { className: "name" }, made)), el("p", {}, "It is shown this once and kept nowhere. Give it to its holder now."), shown, el("div", { className: "row end" }, copy, done)));
    done.focus();
  }
}

const field = (label, input) => el("div", { className: "field" }, el("label", { htmlFor: input.id }, label), input);
