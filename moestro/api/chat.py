"""What is asked of a backend: a conversation or a text to go on from, and how to answer.

Plain values that cross borders between processes and machines. No torch, no I/O. Next: chunks.py
for what comes back, backend.py for who answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moestro.api.sampling import SamplingWish
from moestro.errors import ConfigError, ContextLengthError

MOST_CHOICES = 128
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 1000
MOST_TOP_LOGPROBS = 20

Experts = float | Literal["min", "auto"] | None


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A model's wish to have a function called; `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture in a turn: its address, or its bytes in base64 as a data URL.

    `detail` is how closely it is to be looked at, in OpenAI's words.
    """

    url: str
    detail: str | None = None


Content = str | tuple[str | Image, ...]


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation; `content` is None where an assistant only called tools.

    Many chat templates tell such a turn by that: DeepSeek's own leave calls out beside an empty
    text. It has several parts only where one of them is an image.
    """

    role: str
    content: Content | None = None
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that the model may ask for; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """Whether tools are used: "auto", "none", "required", or "named" for the one called `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What the answer must look like: a JSON schema, any JSON object, a regex or a Lark grammar.

    `param` is the field of the request that says so.
    """

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    source: str = ""
    param: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to answer, whatever was asked.

    `max_tokens` None goes on to the model's context. `top_logprobs` None returns no
    log-probabilities, 0 those of the tokens taken, k those of the k likeliest as well. `experts` is
    the mean number of routed experts per token: None takes all, "min" the fewest, "auto" what the
    load allows. `keeps_stop`: the stop string or token that ends an answer is its last part.
    `shows_special`: special tokens are text, by their names. `bad_words` never come whole into an
    answer. `truncate_prompt_tokens`: so many of the prompt's last tokens are read at most, -1: as
    many as leave room for the answer. A lower `priority` is served first. `turn` is how many
    answers the same client's request wants before these, which others must not wait for.
    `wants_xray` returns each token's experts.
    """

    max_tokens: int | None = None
    num_choices: int = 1
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    keeps_stop: bool = False
    shows_special: bool = False
    bad_words: tuple[str, ...] = ()
    truncate_prompt_tokens: int | None = None
    sampling: SamplingWish = field(default_factory=SamplingWish)
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    experts: Experts = None
    priority: int = 0
    turn: int = 0
    wants_xray: bool = False

    def __post_init__(self) -> None:
        _check_range("max_tokens", self.max_tokens, 0, None)
        _check_range("n", self.num_choices, 1, MOST_CHOICES)
        _check_range("top_logprobs", self.top_logprobs, 0, MOST_TOP_LOGPROBS)
        if len(self.stops) > MOST_STOPS:
            raise ConfigError(
                f"stop has {len(self.stops)} strings, limit {MOST_STOPS}: send fewer", param="stop"
            )
        if any(not 1 <= len(stop) <= MOST_STOP_CHARACTERS for stop in self.stops):
            raise ConfigError(
                f"a stop string must have 1 to {MOST_STOP_CHARACTERS} characters: change stop",
                param="stop",
            )


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation to answer. `template_variables` reach the checkpoint's chat template.

    `continues_final`: the last message is the answer's beginning, and the answer what follows.
    Without `has_generation_prompt` the prompt ends with the last message, and begins no answer.
    `has_special_tokens`: the token that texts begin with comes before what the template writes.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    has_parallel_tool_calls: bool = True
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    continues_final: bool = False
    has_generation_prompt: bool = True
    has_special_tokens: bool = False
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A text, or token ids taken as they are, to go on from.

    `suffix` is the text after a gap to fill. `echo` returns the prompt's own tokens first, with
    their log-probabilities if those are asked for. `has_special_tokens`: a text gets the token that
    texts begin with. `splits_special_tokens`: their names in a text are text like any other.
    """

    model: str
    prompt: str | tuple[int, ...]
    suffix: str | None = None
    echo: bool = False
    has_special_tokens: bool = True
    splits_special_tokens: bool = True
    options: Options = field(default_factory=Options)


Request = ChatRequest | CompletionRequest


def read_text(message: Message) -> str:
    """Return what a turn says to a model that reads text only; ConfigError if it shows images."""
    if isinstance(message.content, tuple):
        raise ConfigError(
            "the conversation has an image, but this model reads text only: leave it out, or ask a"
            " model that sees",
            param="messages",
        )
    return message.content or ""


def overlong(request: Request, size: str, limit: int) -> ContextLengthError:
    """Return the error of a prompt of this size, in the words by which clients know it."""
    return ContextLengthError(
        f"the prompt is too long: it has {size}, and this model's maximum context length is"
        f" {limit} tokens: shorten it",
        param="messages" if isinstance(request, ChatRequest) else "prompt",
    )


def _check_range(name: str, value: int | None, low: int, high: int | None) -> None:
    if value is not None and not (low <= value and (high is None or value <= high)):
        upto = "or more" if high is None else f"to {high}"
        raise ConfigError(f"{name} is {value}: it must be {low} {upto}", param=name)
