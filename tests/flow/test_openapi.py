"""Requests made from our own OpenAPI document, right and wrong ones: it says how each is answered.

Knows no route. Next: serving.py.
"""

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from moestro.backends.scripted import ScriptedBackend
from moestro.server.app import build_app
from moestro.server.openapi import describe
from tests.flow.serving import serving
from tests.unit.server.asgi import ask

# Not that all it allows is answered: which budgets there are, for one, is the model's to say.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
APP = build_app(ScriptedBackend("yes"))
DOCUMENT = describe(APP)
PATHS = [path for path, methods in DOCUMENT["paths"].items() if "post" in methods]
SCHEMAS = DOCUMENT["components"]["schemas"].values()
NAMES = sorted({name for schema in SCHEMAS for name in schema.get("properties", ())})
# What each path needs, so that some of what is drawn beside it comes further.
ENOUGH = {
    "prompt": "x",
    "input": "x",
    "messages": [{"role": "user", "content": "x"}],
    "tokens": [353],
    "max_tokens": 2,
}
VALUES = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**63 - 1)
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(max_size=5)
    | strategies.sampled_from(["scripted", "user", "text", "auto", "json_schema"]),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_the_document_names(mode: GenerationMode) -> None:
    with serving(build_app(ScriptedBackend("yes"))) as address:
        document = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()
            if mode is GenerationMode.POSITIVE or operation.body:
                check(operation.as_strategy(generation_mode=mode))


def check(cases: Any) -> None:
    @hypothesis.given(cases)
    @hypothesis.settings(max_examples=20, suppress_health_check=list(hypothesis.HealthCheck))
    def validate(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    validate()


@pytest.mark.parametrize("path", PATHS)
@hypothesis.given(
    enough=strategies.sampled_from([{}, ENOUGH]),
    drawn=strategies.dictionaries(strategies.sampled_from(NAMES), VALUES, max_size=6),
)
def test_any_object_at_all_gets_an_answer_that_the_document_names(
    path: str, enough: dict[str, Any], drawn: dict[str, Any]
) -> None:
    answer = ask(APP, "POST", path, json=enough | drawn)
    assert str(answer.status_code) in DOCUMENT["paths"][path]["post"]["responses"]
    assert answer.status_code < 500
    assert answer.status_code == 200 or answer.json()["error"]["message"]
