"""What an answer must look like, in the words of OpenAI and of vLLM -> one constraint.

Whether a schema or grammar makes sense, the backend finds out. Next: openai_bodies.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from moestro.api.chat import Constraint
from moestro.api.openai_bodies import ChatBody, OptionsBody, ResponseFormat, StructuredOutputs
from moestro.errors import ConfigError


def read_constraint(body: OptionsBody) -> Constraint | None:
    """Return the one thing asked for; two of them are a mistake."""
    found = dict(_find(body))
    if len(found) > 1:
        raise ConfigError(
            f"{' and '.join(found)} are both given: an answer obeys one, send one",
            param=list(found)[1],
        )
    return next((replace(each, param=name) for name, each in found.items()), None)


def _find(body: OptionsBody) -> Iterator[tuple[str, Constraint]]:
    if body.guided_json is not None:
        yield "guided_json", _schema(body.guided_json)
    if body.guided_regex is not None:
        yield "guided_regex", Constraint(kind="regex", source=body.guided_regex)
    if body.guided_choice is not None:
        yield "guided_choice", _choice(body.guided_choice)
    if body.guided_grammar is not None:
        yield "guided_grammar", Constraint(kind="lark", source=body.guided_grammar)
    if body.structured_outputs is not None:
        yield from _find_structured(body.structured_outputs)
    if isinstance(body, ChatBody) and body.response_format is not None:
        yield from _find_format(body.response_format)


def _find_structured(outputs: StructuredOutputs) -> Iterator[tuple[str, Constraint]]:
    if outputs.json_ is not None:
        yield "structured_outputs.json", _schema(outputs.json_)
    if outputs.regex is not None:
        yield "structured_outputs.regex", Constraint(kind="regex", source=outputs.regex)
    if outputs.choice is not None:
        yield "structured_outputs.choice", _choice(outputs.choice)
    if outputs.grammar is not None:
        yield "structured_outputs.grammar", Constraint(kind="lark", source=outputs.grammar)
    if outputs.json_object:
        yield "structured_outputs.json_object", Constraint(kind="json_object")


def _find_format(wanted: ResponseFormat) -> Iterator[tuple[str, Constraint]]:
    if wanted.type == "json_object":
        yield "response_format", Constraint(kind="json_object")
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise ConfigError(
                "response_format.json_schema is missing: send the schema",
                param="response_format.json_schema",
            )
        yield "response_format", _schema(wanted.json_schema.schema_)


def _schema(schema: dict[str, Any] | str) -> Constraint:
    source = schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
    return Constraint(kind="json_schema", source=source)


def _choice(choices: list[str]) -> Constraint:
    # A JSON string is a Lark string: both escape quotes and line ends alike.
    quoted = (msgspec.json.encode(choice).decode() for choice in choices)
    return Constraint(kind="lark", source=f"start: {' | '.join(quoted)}")
