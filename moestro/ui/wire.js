// The server's two dialects, for completions and for chats, as pieces of one kind. Next: run.js.

export const completionPath = "v1/completions";
export const chatPath = "v1/chat/completions";

const NUM_ALTERNATIVES = 8;

// Ask for all that the page shows of a token.
export function withDetails(body, isChat) {
  const details = isChat ? { logprobs: true, top_logprobs: NUM_ALTERNATIVES } : { logprobs: NUM_ALTERNATIVES };
  return { ...body, ...details, xray: true };
}

// A token is { text, logprob, alternatives, experts, layers }; a layer lists [expert, weight].
export function readEvent(event) {
  const choice = event.choices?.[0];
  const piece = { text: "", reasoning: "", tokens: [], finish: null, usage: event.usage ?? null };
  if (!choice) return piece;
  const said = choice.delta ?? { content: choice.text };
  const spoken = choice.delta ? chatTokens(choice.logprobs) : completionTokens(choice.logprobs);
  const seen = choice.xray ?? [];
  piece.text = said.content ?? "";
  piece.reasoning = said.reasoning_content ?? "";
  piece.finish = choice.finish_reason ?? null;
  for (let place = 0; place < Math.max(spoken.length, seen.length); place++) {
    const visits = seen[place];
    piece.tokens.push({
      ...(spoken[place] ?? { text: visits.text, logprob: null, alternatives: [] }),
      experts: visits?.num_experts ?? null,
      layers: (visits?.experts ?? []).map(layer => layer.map(({ expert, weight }) => [expert, weight])),
    });
  }
  return piece;
}

// A piece of which no tokens are told counts as one.
export function asTokens(piece) {
  const text = piece.text || piece.reasoning;
  if (text && !piece.tokens.length) piece.tokens.push({ text, logprob: null, alternatives: [], experts: null, layers: [] });
  return piece;
}

function completionTokens(logprobs) {
  return (logprobs?.tokens ?? []).map((text, place) => ({
    text,
    logprob: logprobs.token_logprobs?.[place] ?? null,
    alternatives: Object.entries(logprobs.top_logprobs?.[place] ?? {}).map(alternative),
  }));
}

function chatTokens(logprobs) {
  return (logprobs?.content ?? []).map(({ token, logprob, top_logprobs: top }) => ({
    text: token, logprob, alternatives: (top ?? []).map(each => alternative([each.token, each.logprob])),
  }));
}

// Half a character is written as its bytes: nothing can go on from that as text.
function alternative([text, logprob]) {
  return { text, logprob, isText: text !== "" && !/\\x[0-9a-f]{2}|\ufffd/.test(text) };
}
