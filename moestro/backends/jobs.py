"""A request with its prompt, made ready for the engine: limits, budget, grammar, and how to read.

Everything here is decided before any work is done. Knows no processes. Next: local.py.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from moestro.api.chat import ChatRequest, CompletionRequest, Experts, Request, overlong
from moestro.api.chunks import Token
from moestro.api.openai_messages import write_tool
from moestro.backends.answers import Echo, Reply
from moestro.backends.checkpoint import Checkpoint
from moestro.backends.choice import Choice
from moestro.backends.prompts import Prompt
from moestro.backends.reading import Reading
from moestro.backends.speech import Speech
from moestro.backends.token_names import Names, Wish
from moestro.engine.request import EngineRequest, TokenScore
from moestro.errors import ConfigError
from moestro.model.config import ModelConfig
from moestro.text.forced import ForcedStream, forced_schema
from moestro.text.grammar import GrammarSpec
from moestro.text.reasoning import ReasoningStream, detect_tags, is_open
from moestro.text.tools import ToolStream, detect

Granted = float | Literal["auto"] | None


@dataclass(frozen=True)
class Job:
    """What goes to the engine, and who makes an answer of what comes back."""

    request: EngineRequest
    answer: Reply


class Jobs:
    """Makes jobs for one model."""

    def __init__(self, model: str, checkpoint: Checkpoint, context_length: int) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._context_length = context_length
        self._names = Names(checkpoint.tokenizer)
        self._tool_format = detect(checkpoint.template.tool_source)
        self._tags = detect_tags(checkpoint.template.source)

    @property
    def reads_tools(self) -> bool:
        """Whether the calls of all tools that the template tells of are read."""
        is_told = self._checkpoint.has_own_template and self._checkpoint.template.takes_tools
        return self._tool_format is not None or not is_told

    def check(self, request: Request) -> None:
        """Raise ConfigError or DataError for what is wrong whatever the prompt may be."""
        options = request.options
        grant(options.experts, self._checkpoint.shape)
        find_grammar(request)
        shortest = options.sampling.min_tokens or 0
        if options.max_tokens is not None and shortest > options.max_tokens:
            raise ConfigError(
                f"min_tokens is {shortest}, but max_tokens is {options.max_tokens}: lower it",
                param="min_tokens",
            )
        if not isinstance(request, CompletionRequest) or request.suffix is None:
            return
        is_cut = options.truncate_prompt_tokens is not None
        if request.echo or is_cut:
            other = "truncate_prompt_tokens" if is_cut else "echo"
            raise ConfigError(
                f"{other} and suffix do not go together: leave out one of them", param="suffix"
            )

    def build(self, request: Request, prompt: Prompt) -> Job:
        """Make a request that has passed `check` ready for the engine."""
        options = request.options
        sampling = options.sampling.fill(self._checkpoint.sampling)
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(62))
        has_echo = isinstance(request, CompletionRequest) and request.echo
        own_stops = frozenset() if sampling.ignore_eos else self._checkpoint.stop_ids
        grammar = find_grammar(request)
        made = EngineRequest(
            id=secrets.token_hex(16),
            prompt=prompt.ids,
            max_tokens=self._room(request, len(prompt.ids), sampling.min_tokens),
            sampling=sampling,
            num_choices=options.num_choices,
            stop_token_ids=own_stops | frozenset(options.stop_token_ids),
            grammar=grammar,
            grammar_after=None if grammar is None else self._find_thoughts_end(request, prompt),
            top_logprobs=options.top_logprobs,
            scores_prompt=has_echo and options.top_logprobs is not None,
            experts=grant(options.experts, self._checkpoint.shape),
            bad_words=self._spell(options.bad_words),
            priority=options.priority,
            turn=options.turn,
            wants_xray=options.wants_xray,
        )
        wish = Wish(
            top_logprobs=options.top_logprobs,
            wants_xray=options.wants_xray,
            shows_special=options.shows_special,
        )
        choices = [
            self._choice(index, request, prompt, made) for index in range(options.num_choices)
        ]
        echo = self._echo(prompt, made, wish) if has_echo else None
        return Job(made, Reply(self._model, made, choices, self._names, wish, echo))

    def _room(self, request: Request, num_prompt: int, shortest: int) -> int:
        limit, wanted = self._context_length, request.options.max_tokens
        fewest = 0 if wanted == 0 else max(1, shortest)
        if num_prompt + fewest > limit:
            size = f"{num_prompt} tokens" + (
                f" and an answer of {fewest} or more" if fewest else ""
            )
            raise overlong(request, size, limit)
        room = limit - num_prompt
        return room if wanted is None else min(wanted, room)

    def _choice(self, index: int, request: Request, prompt: Prompt, made: EngineRequest) -> Choice:
        tokenizer, stops = self._checkpoint.tokenizer, request.options.stops
        keeps_stop = request.options.keeps_stop
        kept = stops if keeps_stop else ()
        make = partial(
            Choice,
            index,
            stop_token_ids=request.options.stop_token_ids,
            keeps_stop_token=keeps_stop,
        )
        if not isinstance(request, ChatRequest):
            return make(Speech(tokenizer, stops, kept=kept), Reading(None, None))
        marks: list[str] = []
        tools: ToolStream | ForcedStream | None = None
        reasoning = None
        if _is_forced(request):
            tools = ForcedStream()
        elif request.tools and request.tool_choice.mode == "auto" and self._tool_format is not None:
            tools = ToolStream(self._tool_format)
            marks += self._tool_format.markers
        # An answer that follows a grammar from its first token on has no room for thoughts.
        has_room = made.grammar is None or made.grammar_after is not None
        if self._tags is not None and has_room:
            reasoning = ReasoningStream(is_open(prompt.text, self._tags), self._tags)
            marks += [self._tags.begin, self._tags.end]
        stops = (*stops, *self._checkpoint.template.stops)
        speech = Speech(tokenizer, stops, marks, kept)
        reading = Reading(reasoning, tools, is_one_all=not request.has_parallel_tool_calls)
        return make(speech, reading)

    def _spell(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the ways to write words in tokens, each at the beginning and behind a space."""
        bare = [word.lstrip() or word for word in words]
        texts = [*bare, *(f" {word}" for word in bare)]
        spelled = map(tuple, self._checkpoint.tokenizer.encode_batch(texts))
        return tuple(dict.fromkeys(ids for ids in spelled if ids))

    def _find_thoughts_end(self, request: Request, prompt: Prompt) -> int | None:
        """Return the token that ends the thoughts which the prompt begins, if there are any."""
        is_chat = isinstance(request, ChatRequest)
        if not is_chat or self._tags is None or not is_open(prompt.text, self._tags):
            return None
        ids = self._checkpoint.tokenizer.encode_trusted(self._tags.end)
        # Where it is no token of its own, a model may write it in many ways.
        return ids[0] if len(ids) == 1 else None

    def _echo(self, prompt: Prompt, made: EngineRequest, wish: Wish) -> Echo:
        own = prompt.ids[prompt.num_lead :]
        scores = (TokenScore(token_id=token_id, logprob=None) for token_id in own)
        tokens: tuple[Token, ...] = ()
        if not made.scores_prompt:
            tokens = tuple(self._names.describe_prompt(score, wish) for score in scores)
        tokenizer = self._checkpoint.tokenizer
        read = tokenizer.decode_named if wish.shows_special else tokenizer.decode
        return Echo(
            text=read(own),
            tokens=tokens,
            num_lead=prompt.num_lead,
            has_scores=made.scores_prompt,
        )


def grant(experts: Experts, shape: ModelConfig) -> Granted:
    """Return the budget that a request asks for; ConfigError if this model cannot keep it."""
    fewest, most = shape.fewest_experts, shape.num_experts_per_tok
    wanted = fewest if experts == "min" else experts
    # Without a table all that the load could allow is everything.
    if wanted is None or wanted == most or (wanted == "auto" and not shape.has_budget):
        return None
    if wanted == "auto":
        return "auto"
    if not fewest <= wanted <= most:
        raise ConfigError(
            f"experts is {experts}: this model takes {fewest} to {most} per token", param="experts"
        )
    if not shape.has_budget:
        raise ConfigError(
            f"experts is {experts}, but this checkpoint has no budget table: leave it out, or"
            " calibrate the model first (moestro convert --calibrate)",
            param="experts",
        )
    return float(wanted)


def find_grammar(request: Request) -> GrammarSpec | None:
    """Return what the answer must follow: the request's constraint, or a call that it forces."""
    constraint = request.options.constraint
    if not isinstance(request, ChatRequest) or not _is_forced(request):
        if constraint is None:
            return None
        return GrammarSpec(kind=constraint.kind, source=constraint.source, param=constraint.param)
    if constraint is not None:
        raise ConfigError(
            "response_format and a tool_choice that forces a call do not go together:"
            " leave out one",
            param="tool_choice",
        )
    choice: str | Mapping[str, Any] = "required"
    if request.tool_choice.mode == "named":
        choice = {"type": "function", "function": {"name": request.tool_choice.name}}
    tools = [write_tool(tool) for tool in request.tools]
    is_parallel = request.has_parallel_tool_calls and request.tool_choice.mode == "required"
    schema = forced_schema(tools, choice, parallel=is_parallel)
    return GrammarSpec(kind="json_schema", source=json.dumps(schema), param="tools")


def _is_forced(request: ChatRequest) -> bool:
    return request.tool_choice.mode in ("required", "named")
