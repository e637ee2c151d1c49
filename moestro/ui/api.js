// Requests to the server that sent this page, and their failures in words. Next: wire.js.
import { read, write } from "./store.js";

let key = read("key", "");

// `what` happened, and what to do `next`; `retryAfter` in seconds where waiting helps.
export class Trouble extends Error {
  constructor(what, next = "", { status = 0, retryAfter = null } = {}) {
    super(what);
    Object.assign(this, { what, next, status, retryAfter });
  }
}

export const hasKey = () => key !== "";

export function setKey(value) {
  key = value;
  write("key", value || null);
  document.dispatchEvent(new Event("keychange"));
}

export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body), credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached.", "Check that it is running, then try again.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

// Server-sent events as objects; the end without [DONE] is a failure, since the answer may be cut.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Trouble(sentence(event.error.message), "What came before it is kept. Try again.");
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof Trouble || error.name === "AbortError") throw error;
    throw new Trouble("The connection to the server broke off.", "What came before it is kept. Try again.");
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Trouble("The answer broke off before its end.", "What came before it is kept. Try again.");
}

async function refusal(response) {
  const { status } = response;
  let message = "";
  try {
    const body = await response.json();
    message = body.error?.message ?? "";
  } catch {
    // A proxy in between may answer with anything; the status says enough.
  }
  const wait = Number.parseFloat(response.headers.get("retry-after"));
  const retryAfter = Number.isFinite(wait) ? Math.max(1, Math.ceil(wait)) : null;
  const more = { status, retryAfter };
  const said = sentence(message);
  if (status === 403) return new Trouble(said || "This key may not do that.", "Use a key that may.", more);
  if (status === 401) {
    document.dispatchEvent(new CustomEvent("keyneeded", { detail: said }));
    return new Trouble("The server asks for an API key.", "Enter one, then try again.", more);
  }
  if (status === 429) {
    return new Trouble(said || "The server has as much to do as it can take.", "Nothing is lost: the same request works later.", more);
  }
  if (status === 502 || status === 503 || status === 504) return new Trouble(said || "The model is not there at the moment.", "It is started again by itself. Try again in a moment.", more);
  if (status >= 500) return new Trouble(said || `The server failed (status ${status}).`, "Try again; its log says more.", more);
  return new Trouble(said || `The server refused the request (status ${status}).`, "Change what it names, then try again.", more);
}

function sentence(text) {
  if (!text) return "";
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}
