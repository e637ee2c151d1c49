"""What OpenAI's clients send, as JSON: types, ranges and sizes, checked before anything else.

A field that is null is as if it were absent; unknown fields are ignored, as vLLM does, but for
those in openai_unserved.py. Every list has a limit and ends at its first mistake, or a body of a
few megabytes would take minutes. Knows no defaults and no meaning. Next: openai_requests.py.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictStr,
    Tag,
)

from moestro.api.chat import MOST_CHOICES, MOST_STOP_CHARACTERS, MOST_STOPS, MOST_TOP_LOGPROBS
from moestro.api.openai_unserved import Unserved, UnservedOfChats, UnservedOptions

MOST_PROMPTS = 128
MOST_MESSAGES = 4096
MOST_TOOLS = 128
MOST_BIASES = 1024
MOST_BAD_WORDS = 128
MOST_PARTS = 1024
MOST_TOOL_CALLS = 128
MOST_WORDS = 1024
MOST_IDS = 2**20
_MOST_INT = 2**63 - 1


def _read_whole(value: object) -> object:
    # JSON has one kind of number: 16.0 is an integer to it.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_biases(value: object) -> object:
    # Pydantic counts an object's fields only after it has looked at all of them.
    if isinstance(value, dict) and len(value) > MOST_BIASES:
        raise ValueError(f"logit_bias has {len(value)} entries, limit {MOST_BIASES}: send fewer")
    return value


Whole = Annotated[
    int, BeforeValidator(_read_whole), Field(strict=True, ge=-_MOST_INT - 1, le=_MOST_INT)
]
Count = Annotated[Whole, Field(ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
Schema = dict[str, Any]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]
TokenKey = Annotated[StrictStr, Field(pattern=r"^[0-9]{1,18}$")]
Bias = Annotated[Number, Field(ge=-100, le=100)]
# Without the detour over floats: there may be a million.
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
TokenIds = Annotated[list[TokenId], Field(max_length=MOST_IDS, fail_fast=True)]
PromptIds = Annotated[TokenIds, Field(min_length=1)]
Words = Annotated[list[StrictStr], Field(min_length=1, max_length=MOST_WORDS, fail_fast=True)]


def by_type(default: str, *others: str) -> Discriminator:
    """Return what tells tagged parts apart; one that does not say its type is the default."""

    def read_type(value: Any) -> Any:  # noqa: ANN401 (whatever a caller sends)
        found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return default if found is None else found

    *first, last = (default, *others)
    return Discriminator(
        read_type,
        custom_error_type="part_type",
        custom_error_message=f"Input should be of type {', '.join(first)} or {last}",
    )


class _Body(BaseModel):
    # A field may be called `model_...` or `json` without being taken for pydantic's own.
    model_config = ConfigDict(protected_namespaces=(), extra="ignore")


class StreamOptions(_Body):
    """What a stream sends beside the answer."""

    include_usage: StrictBool | None = None
    continuous_usage_stats: StrictBool | None = Field(
        None, description="With `include_usage`, every event has the usage so far."
    )


class StructuredOutputs(_Body):
    """What an answer must look like, in vLLM's words; one of them."""

    json_: Schema | StrictStr | None = Field(None, alias="json")
    regex: StrictStr | None = None
    choice: Words | None = None
    grammar: StrictStr | None = None
    json_object: StrictBool | None = None
    structural_tag: Annotated[
        None, Unserved("structured_outputs.structural_tag is not served: send json or grammar")
    ] = None


class OptionsBody(_Body, UnservedOptions):
    """What completions and chats have in common."""

    model: StrictStr | None = Field(None, description="May be left out where one model is served.")
    n: Annotated[Whole, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=MOST_BIASES)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1)] | None = Field(None, description="0 and -1 are off.")
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    logit_bias: (
        Annotated[
            dict[TokenKey, Bias], BeforeValidator(_check_biases), Field(max_length=MOST_BIASES)
        ]
        | None
    ) = None
    seed: Whole | None = None
    min_tokens: Count | None = None
    ignore_eos: StrictBool | None = None
    include_stop_str_in_output: StrictBool | None = None
    skip_special_tokens: StrictBool | None = Field(
        None, description="False shows special tokens by their names."
    )
    bad_words: Annotated[list[Stop], Field(max_length=MOST_BAD_WORDS, fail_fast=True)] | None = (
        Field(None, description="Words that the answer must not have.")
    )
    truncate_prompt_tokens: Annotated[Whole, Field(ge=1)] | Literal[-1] | None = Field(
        None,
        description="So many of the prompt's last tokens are read at most; -1: as many as leave"
        " room for the answer.",
    )
    priority: Whole | None = Field(None, description="A lower one is served first.")
    guided_json: Schema | StrictStr | None = None
    guided_regex: StrictStr | None = None
    guided_choice: Words | None = None
    guided_grammar: StrictStr | None = Field(None, description="In Lark's notation.")
    structured_outputs: StructuredOutputs | None = None
    experts: Annotated[Number, Field(gt=0)] | Literal["min", "auto"] | None = Field(
        None,
        description="Mean number of routed experts per token, within the model's limits; `min` "
        "takes the fewest, `auto` what the load allows.",
    )
    xray: StrictBool | None = Field(None, description="Return the experts of each token.")


class CompletionBody(OptionsBody):
    """A text, or token ids, to go on from; or several, which are answered together."""

    prompt: (
        StrictStr
        | PromptIds
        | Annotated[list[StrictStr], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Annotated[list[PromptIds], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    )
    suffix: StrictStr | None = Field(None, description="The text after a gap to fill.")
    echo: StrictBool | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    add_special_tokens: StrictBool | None = Field(
        None, description="False leaves out the token that texts begin with."
    )
    split_special_tokens: StrictBool | None = Field(
        None, description="False reads names of special tokens in the prompt as these tokens."
    )
    best_of: Whole | None = Field(None, description="Must equal `n`.")


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: StrictStr


class ImageUrl(_Body):
    """Where an image is, or its bytes as a data URL."""

    url: StrictStr
    detail: StrictStr | None = None


class ImagePart(_Body):
    """An image in a message, for models that see."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[ImagePart, Tag("image_url")],
    by_type("text", "image_url"),
]
Parts = Annotated[list[ContentPart], Field(max_length=MOST_PARTS, fail_fast=True)]


class FunctionCall(_Body):
    """A function and, as JSON text, its arguments."""

    name: StrictStr
    arguments: StrictStr


class ToolCallBody(_Body):
    """A call that an earlier answer asked for."""

    id: StrictStr
    type: Literal["function"] | None = None
    function: FunctionCall


ToolCalls = Annotated[list[ToolCallBody], Field(max_length=MOST_TOOL_CALLS, fail_fast=True)]


class MessageBody(_Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | Parts | None = None
    name: StrictStr | None = None
    reasoning_content: StrictStr | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: StrictStr | None = None


class FunctionBody(_Body):
    """A function that the model may ask for; `parameters` is a JSON schema."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=256)]
    description: StrictStr | None = None
    parameters: Schema | None = None


class ToolBody(_Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionBody


class FunctionName(_Body):
    """A function by its name."""

    name: StrictStr


class NamedTool(_Body):
    """A tool by its function's name."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(_Body):
    """The tools that may be used, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(max_length=MOST_TOOLS, fail_fast=True)]


class AllowedToolsChoice(_Body):
    """Some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchemaBody(_Body):
    """A named JSON schema."""

    name: StrictStr | None = None
    schema_: Schema = Field(alias="schema")


class ResponseFormat(_Body):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class ConversationBody(_Body):
    """Messages and what their template gets to see."""

    messages: Annotated[
        list[MessageBody], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    ]
    tools: Annotated[list[ToolBody], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: StrictStr | None = Field(
        None, description="How much to think, for the model's template to read; `none` is not."
    )
    continue_final_message: StrictBool | None = Field(
        None, description="Go on with the last message, the assistant's, instead of a new one."
    )
    add_generation_prompt: StrictBool | None = Field(
        None,
        description="False begins no answer; must not be true with `continue_final_message`.",
    )
    add_special_tokens: StrictBool | None = Field(
        None, description="True puts the token that texts begin with before the template's text."
    )


class ChatBody(ConversationBody, OptionsBody, UnservedOfChats):
    """A conversation to answer."""

    tool_choice: (
        Literal["auto", "none", "required"]
        | Annotated[
            Annotated[NamedTool, Tag("function")]
            | Annotated[AllowedToolsChoice, Tag("allowed_tools")],
            by_type("function", "allowed_tools"),
        ]
        | None
    ) = None
    parallel_tool_calls: StrictBool | None = None
    response_format: ResponseFormat | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    max_completion_tokens: Count | None = None
    echo: StrictBool | None = Field(
        None, description="Begin the answer with the last message, if it is the assistant's."
    )


class TokenizeTextBody(_Body):
    """A text to cut into tokens, as a prompt for a completion is."""

    model: StrictStr | None = None
    prompt: StrictStr
    add_special_tokens: StrictBool | None = None
    split_special_tokens: StrictBool | None = Field(
        None, description="False reads names of special tokens in the prompt as these tokens."
    )
    return_token_strs: StrictBool | None = None


class TokenizeChatBody(ConversationBody):
    """A conversation to cut into tokens, as a prompt for a chat is."""

    model: StrictStr | None = None
    return_token_strs: StrictBool | None = None


class DetokenizeBody(_Body):
    """Tokens to make text of."""

    model: StrictStr | None = None
    tokens: TokenIds
