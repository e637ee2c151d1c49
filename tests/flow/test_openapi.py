"""Requests made from our own OpenAPI document, right and wrong ones: it says how each is answered.

Knows no route. Next: serving.py.
"""

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from moestro.backends.scripted import ScriptedBackend
from moestro.server.app import build_app
from tests.flow.serving import serving

# Not that all it allows is answered: which budgets there are, for one, is the model's to say.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]


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
