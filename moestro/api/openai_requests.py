"""OpenAI's bodies -> what a backend is asked. Here are the defaults, and what one cannot ask for.

Knows no backend: whether the model exists and can do it, it says itself. Next: openai_answers.py,
openai_constraints.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from moestro.api.chat import (
    ChatRequest,
    CompletionRequest,
    Content,
    Image,
    Message,
    Options,
    Tool,
    ToolCall,
    ToolChoice,
    read_text,
)
from moestro.api.dialect import allow_tools, ask_effort, choose_tool, join, say
from moestro.api.openai_answers import UsageEvents
from moestro.api.openai_bodies import (
    AllowedToolsChoice,
    ChatBody,
    CompletionBody,
    ConversationBody,
    ImagePart,
    MessageBody,
    NamedTool,
    OptionsBody,
    TextPart,
)
from moestro.api.openai_constraints import read_constraint
from moestro.api.sampling import SamplingWish
from moestro.errors import ConfigError

# OpenAI's own default; a chat goes on to the end of the context instead.
COMPLETION_MAX_TOKENS = 16
MOST_ANSWERS = 1024

T = TypeVar("T")


def read_completions(body: CompletionBody, model: str) -> list[CompletionRequest]:
    """Return one request per prompt."""
    num_choices = _or(body.n, 1)
    if body.best_of is not None and body.best_of != num_choices:
        raise ConfigError(
            f"best_of is {body.best_of} and n {num_choices}: they must be equal, leave best_of out",
            param="best_of",
        )
    max_tokens = _or(body.max_tokens, COMPLETION_MAX_TOKENS)
    options = _read_options(body, max_tokens, body.logprobs)
    prompts = _prompts(body.prompt)
    if len(prompts) * num_choices > MOST_ANSWERS:
        raise ConfigError(
            f"{len(prompts)} prompts with n {num_choices} ask for {len(prompts) * num_choices}"
            f" answers, limit {MOST_ANSWERS}: send fewer at once",
            param="n",
        )
    return [
        CompletionRequest(
            model=model,
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            suffix=body.suffix,
            echo=bool(body.echo),
            has_special_tokens=_or(body.add_special_tokens, True),
            splits_special_tokens=_or(body.split_special_tokens, True),
            options=replace(options, turn=number * num_choices),
        )
        for number, prompt in enumerate(prompts)
    ]


def read_chat(body: ChatBody, model: str) -> ChatRequest:
    """Return the request that a chat is."""
    # 0 is what many a client sends with logprobs false: none.
    if body.top_logprobs and not body.logprobs:
        raise ConfigError(
            f"top_logprobs is {body.top_logprobs} without logprobs: set logprobs to true",
            param="top_logprobs",
        )
    top = _or(body.top_logprobs, 0) if body.logprobs else None
    max_tokens = _or(body.max_completion_tokens, body.max_tokens)
    conversation = read_conversation(body, model)
    tool_choice, tools = _read_tool_choice(body, conversation.tools)
    return replace(
        conversation,
        tools=tools,
        tool_choice=tool_choice,
        has_parallel_tool_calls=_or(body.parallel_tool_calls, True),
        options=_read_options(body, max_tokens, top),
    )


def find_echo(asked: ChatRequest) -> str:
    """Return what an answer with an echo begins with: the last message, if the assistant's."""
    last = asked.messages[-1]
    return read_text(last) if last.role == "assistant" else ""


def read_usage_events(body: OptionsBody) -> UsageEvents:
    """Return which events of a stream have a usage."""
    options = body.stream_options
    if options is None or not options.include_usage:
        return "none"
    return "all" if options.continuous_usage_stats else "last"


def _read_continuing(body: ConversationBody) -> bool:
    if not body.continue_final_message:
        return False
    if body.add_generation_prompt:
        raise ConfigError(
            "continue_final_message and add_generation_prompt are both true: leave out one",
            param="continue_final_message",
        )
    if body.messages[-1].role != "assistant":
        raise ConfigError(
            "continue_final_message is true, but the last message is not the assistant's: end with"
            " what is to be continued",
            param="continue_final_message",
        )
    return True


def read_conversation(body: ConversationBody, model: str) -> ChatRequest:
    """Return a conversation without any wish as to its answer."""
    is_continued = _read_continuing(body)
    return ChatRequest(
        model=model,
        messages=tuple(map(_read_message, body.messages)),
        tools=tuple(
            Tool(
                name=tool.function.name,
                description=tool.function.description or "",
                parameters=tool.function.parameters or {},
            )
            for tool in body.tools or ()
        ),
        template_variables=ask_effort(body.reasoning_effort) | (body.chat_template_kwargs or {}),
        continues_final=is_continued,
        has_generation_prompt=is_continued or _or(body.add_generation_prompt, True),
        has_special_tokens=bool(body.add_special_tokens),
    )


def _read_options(body: OptionsBody, max_tokens: int | None, top: int | None) -> Options:
    if body.stream_options is not None and not body.stream:
        raise ConfigError(
            "stream_options is given without stream: set stream to true", param="stream_options"
        )
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Options(
        max_tokens=max_tokens,
        num_choices=_or(body.n, 1),
        stops=stops,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        keeps_stop=bool(body.include_stop_str_in_output),
        shows_special=body.skip_special_tokens is False,
        bad_words=tuple(body.bad_words or ()),
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        sampling=_read_sampling(body),
        constraint=read_constraint(body),
        top_logprobs=top,
        experts=body.experts,
        priority=_or(body.priority, 0),
        wants_xray=bool(body.xray),
    )


def _read_sampling(body: OptionsBody) -> SamplingWish:
    biases = None
    if body.logit_bias is not None:
        biases = {int(token_id): bias for token_id, bias in body.logit_bias.items()}
    return SamplingWish(
        temperature=body.temperature,
        top_p=body.top_p,
        # Both 0 and -1 say that it is off.
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=biases,
        seed=body.seed,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
    )


def _prompts(
    prompt: str | list[int] | list[str] | list[list[int]],
) -> Sequence[str | Sequence[int]]:
    if isinstance(prompt, str):
        return [prompt]
    # All are of the first one's type, and there may be a million.
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _read_message(body: MessageBody) -> Message:
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in body.tool_calls or ()
    )
    return Message(
        # What OpenAI's newer models call a developer, templates know as the system.
        role="system" if body.role == "developer" else body.role,
        content=say(_read_content(body.content), calls),
        name=body.name,
        reasoning=body.reasoning_content,
        tool_calls=calls,
        tool_call_id=body.tool_call_id,
    )


def _read_content(content: str | Sequence[TextPart | ImagePart] | None) -> Content:
    if content is None or isinstance(content, str):
        return content or ""
    return join([_read_part(part) for part in content])


def _read_part(part: TextPart | ImagePart) -> str | Image:
    if isinstance(part, TextPart):
        return part.text
    return Image(url=part.image_url.url, detail=part.image_url.detail)


def _read_tool_choice(
    body: ChatBody, tools: tuple[Tool, ...]
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    choice = body.tool_choice
    if isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        return allow_tools(allowed.mode, [each.function.name for each in allowed.tools], tools)
    if isinstance(choice, NamedTool):
        return choose_tool("named", choice.function.name, tools), tools
    return choose_tool(choice or "auto", None, tools), tools


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
