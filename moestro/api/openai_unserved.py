"""Fields that other servers serve and this one does not, read only to be refused.

An answer that passed over one of them would be another than was asked for. What they may be is what
changes nothing. Next: openai_bodies.py.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)


@dataclass(frozen=True)
class Unserved:
    """Marks a field that is not served; `advice` names it and says what to do instead."""

    advice: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> object:
        """Make pydantic say it."""
        return WrapValidator(self._check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(
        self,
        schema: Any,  # noqa: ANN401 (pydantic's own)
        handler: GetJsonSchemaHandler,
    ) -> dict[str, Any]:
        """Make the OpenAPI document say it."""
        return {**handler(schema), "description": f"{self.advice}."}

    def _check(self, value: object, accept: ValidatorFunctionWrapHandler) -> object:
        try:
            return accept(value)
        except ValidationError as error:
            raise ValueError(self.advice) from error


_Nothing = Annotated[list[Any], Field(max_length=0, fail_fast=True)] | None
_Off = Literal[False] | None


class UnservedOptions(BaseModel):
    """Of completions and chats, as vLLM, SGLang and llama.cpp have them."""

    prompt_logprobs: Annotated[
        None,
        Unserved(
            "prompt_logprobs is not served: ask /v1/completions with echo true, logprobs and"
            " max_tokens 0"
        ),
    ] = None
    logprob_token_ids: Annotated[
        _Nothing, Unserved("logprob_token_ids is not served: ask for the likeliest with logprobs")
    ] = None
    allowed_token_ids: Annotated[
        None, Unserved("allowed_token_ids is not served: send structured_outputs.choice or regex")
    ] = None
    return_token_ids: Annotated[
        _Off, Unserved("return_token_ids is not served: send the text to /tokenize")
    ] = None
    return_tokens_as_token_ids: Annotated[
        _Off,
        Unserved("return_tokens_as_token_ids is not served: logprobs have tokens' texts and bytes"),
    ] = None
    use_beam_search: Annotated[
        _Off, Unserved("use_beam_search is not served: ask for several answers with n")
    ] = None
    logits_processors: Annotated[
        _Nothing, Unserved("logits_processors is not served: send logit_bias or bad_words")
    ] = None
    custom_logit_processor: Annotated[
        None, Unserved("custom_logit_processor is not served: send logit_bias or bad_words")
    ] = None
    thinking_token_budget: Annotated[
        None, Unserved("thinking_token_budget is not served: send max_tokens or reasoning_effort")
    ] = None
    prompt_embeds: Annotated[
        None, Unserved("prompt_embeds is not served: send text or token ids")
    ] = None
    lora_path: Annotated[
        None, Unserved("lora_path is not served: merge the adapter into a checkpoint of its own")
    ] = None
    regex: Annotated[None, Unserved("regex is not served: send structured_outputs.regex")] = None
    ebnf: Annotated[
        None, Unserved("ebnf is not served: send structured_outputs.grammar, in Lark's notation")
    ] = None
    grammar: Annotated[
        None, Unserved("grammar is not served: send structured_outputs.grammar, in Lark's notation")
    ] = None
    stop_regex: Annotated[None, Unserved("stop_regex is not served: send stop")] = None
    no_stop_trim: Annotated[
        _Off, Unserved("no_stop_trim is not served: send include_stop_str_in_output")
    ] = None


class UnservedOfChats(BaseModel):
    """Of chats, as OpenAI had or has them, and vLLM."""

    functions: Annotated[_Nothing, Unserved("functions is not served: send tools")] = None
    modalities: Annotated[
        list[Literal["text"]] | None, Unserved("modalities is not served: answers are text")
    ] = None
    web_search_options: Annotated[
        None, Unserved("web_search_options is not served: search by a tool of your own")
    ] = None
    chat_template: Annotated[
        None, Unserved("chat_template is not served: send the whole prompt to /v1/completions")
    ] = None
    documents: Annotated[
        _Nothing, Unserved("documents is not served: send them in chat_template_kwargs")
    ] = None
