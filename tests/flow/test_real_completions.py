"""Completions of a real model behind a real server process, asked for by OpenAI's own client.

What the server says is held against what `moestro.load` computes from the same folder. Next:
test_real_chat.py.
"""

import asyncio
import json
import math
from typing import Any

import openai
import pytest
from openai.types import Completion, CompletionChoice

from moestro.lm.language_model import LanguageModel
from tests.flow.real import NAME, Served, prompt_ids

pytest_plugins = ["tests.flow.real_server"]
PROMPT = "def area_3(radius, height=5):\n    return"
# Letters only, so that an answer's tokens can be told apart in its text.
WORDS = {"guided_regex": "[a-z]{40}"}


def ask(client: openai.OpenAI, **fields: Any) -> CompletionChoice:
    return create(client, **fields).choices[0]


def create(client: openai.OpenAI, **fields: Any) -> Completion:
    defaults: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 24}
    defaults["temperature"] = 0
    answer = client.completions.create(**(defaults | fields))
    assert isinstance(answer, Completion)
    return answer


def logprobs_of(choice: CompletionChoice) -> list[float | None]:
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    return list(choice.logprobs.token_logprobs)


@pytest.mark.parametrize("experts", [None, 2, 2.5])
def test_an_echoed_prompts_log_probabilities_are_the_models_own(
    real_client: openai.OpenAI, real_lm: LanguageModel, experts: float | None
) -> None:
    body = {"experts": experts} if experts else {}
    choice = ask(real_client, echo=True, logprobs=2, max_tokens=0, extra_body=body)
    found = logprobs_of(choice)
    assert choice.text == PROMPT
    ids = prompt_ids(real_lm.tokenizer, PROMPT)
    logits = real_lm.logits(ids, experts).astype("float64")
    for place, token_id in enumerate(ids[1:]):
        expected = logits[place, token_id] - math.log(sum(map(math.exp, logits[place])))
        assert found[place] == pytest.approx(expected, abs=1e-4)
    total = sum(value for value in found if value is not None)
    assert total == pytest.approx(-real_lm.score([PROMPT], experts).nats, abs=1e-3)
    assert len(found) == len(ids) - 1 > 10


def test_an_echo_goes_on_with_the_answer(real_client: openai.OpenAI) -> None:
    alone, both = ask(real_client, logprobs=0), ask(real_client, logprobs=0, echo=True)
    assert both.text == PROMPT + alone.text
    assert logprobs_of(both)[-24:] == logprobs_of(alone)


def test_a_gap_is_filled_as_the_library_fills_it(
    real_client: openai.OpenAI, real_lm: LanguageModel
) -> None:
    expected = real_lm.generate(PROMPT, suffix="\n\ndef ", max_tokens=24)
    assert ask(real_client, suffix="\n\ndef ").text == expected.text
    assert ask(real_client).text == real_lm.generate(PROMPT, max_tokens=24).text != expected.text


def test_several_choices_differ_and_the_first_is_that_of_one_alone(
    real_client: openai.OpenAI,
) -> None:
    fields: dict[str, Any] = {"temperature": 1, "seed": 4}
    answer = create(real_client, n=3, **fields)
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 3
    assert texts[0] == ask(real_client, **fields).text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * 24


def test_a_stop_string_across_tokens_ends_the_answer_before_it(real_client: openai.OpenAI) -> None:
    whole = ask(real_client, logprobs=0, extra_body=WORDS)
    assert whole.logprobs is not None
    assert whole.logprobs.tokens is not None
    before, after = "".join(whole.logprobs.tokens[:3]), "".join(whole.logprobs.tokens[3:])
    stop = before[-2:] + after[:2]
    cut = ask(real_client, stop=["never", stop], extra_body=WORDS)
    assert cut.text == whole.text.partition(stop)[0]
    assert cut.finish_reason == "stop"
    assert cut.to_dict()["stop_reason"] == stop


def test_a_stop_string_is_kept_where_that_is_asked_for(real_client: openai.OpenAI) -> None:
    whole = ask(real_client, extra_body=WORDS).text
    stop = whole[4:7]
    kept = ask(real_client, stop=stop, extra_body=WORDS | {"include_stop_str_in_output": True})
    assert kept.text == whole.partition(stop)[0] + stop


def test_bad_words_never_come_and_nothing_changes_before_one_would(
    real_client: openai.OpenAI,
) -> None:
    def tokens(**more: Any) -> list[str]:
        logprobs = ask(real_client, logprobs=0, extra_body=WORDS | more).logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        return logprobs.tokens

    free = tokens()
    place = next(place for place in range(3, 24) if free[place] not in free[:place])
    answer = tokens(bad_words=[free[place]])
    assert answer[:place] == free[:place]
    assert free[place] not in answer
    assert len(answer) > 10
    assert tokens(bad_words=["0"]) == free


def test_special_tokens_are_shown_where_that_is_asked_for(
    real_client: openai.OpenAI, real_lm: LanguageModel
) -> None:
    (special,) = real_lm.tokenizer.encode_trusted("<|im_start|>")
    bias = {str(special): 100}
    assert ask(real_client, logit_bias=bias, max_tokens=2).text == ""
    shown = {"skip_special_tokens": False}
    named = ask(real_client, logit_bias=bias, max_tokens=2, extra_body=shown).text
    assert named == "<|im_start|>" * 2


def test_of_an_overlong_prompt_the_last_tokens_are_read(
    real_client: openai.OpenAI, real_lm: LanguageModel
) -> None:
    ids = real_lm.tokenizer.encode("area " * 600)
    cut = create(real_client, prompt=ids, extra_body={"truncate_prompt_tokens": -1})
    assert cut.usage is not None
    assert cut.usage.prompt_tokens == 512 - 24
    expected = ask(real_client, prompt=ids[-(512 - 24) :])
    assert cut.choices[0].text == expected.text


def test_a_bias_forces_a_token_and_forbids_another(
    real_client: openai.OpenAI, real_lm: LanguageModel
) -> None:
    (wanted,) = real_lm.tokenizer.encode("z")
    assert ask(real_client, logit_bias={str(wanted): 100}, max_tokens=5).text == "zzzzz"
    first = real_lm.generate(PROMPT, max_tokens=1).tokens[0]
    logprobs = ask(real_client, logit_bias={str(first): -100}, max_tokens=1, logprobs=5).logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    # They are the model's own: the likeliest token is still shown, and was not taken.
    assert logprobs.token_logprobs[0] < max(logprobs.top_logprobs[0].values())


def test_a_seed_repeats_an_answer(real_client: openai.OpenAI) -> None:
    seeds = (7, 7, 8, None, None)
    texts = [ask(real_client, temperature=1, **({"seed": s} if s else {})).text for s in seeds]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_a_stream_tells_what_a_whole_answer_does(
    real_server: Served, real_client: openai.OpenAI
) -> None:
    fields: dict[str, Any] = {"temperature": 1, "seed": 3, "n": 2, "logprobs": 1}
    whole = create(real_client, **fields)

    async def stream() -> list[Completion]:
        async with real_server.async_client() as client:
            events = await client.completions.create(
                model=NAME,
                prompt=PROMPT,
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
                **fields,
            )
            return [event async for event in events]

    *events, last = asyncio.run(stream())
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    pieces = [choice for event in events for choice in event.choices]
    assert len(pieces) > 20
    for expected in whole.choices:
        own = [piece for piece in pieces if piece.index == expected.index]
        assert "".join(piece.text for piece in own) == expected.text
        told = [value for each in own if each.logprobs for value in logprobs_of(each)]
        assert told == logprobs_of(expected)
        assert own[-1].finish_reason == expected.finish_reason


@pytest.mark.parametrize(
    ("experts", "granted", "mean"),
    [(None, None, 4.0), (2, "2", 2.0), (2.5, "2.5", None), ("min", "2", 2.0), ("auto", None, 4.0)],
)
def test_the_budget_is_the_requests_own(
    real_client: openai.OpenAI,
    real_lm: LanguageModel,
    experts: float | str | None,
    granted: str | None,
    mean: float | None,
) -> None:
    raw = real_client.completions.with_raw_response.create(
        model=NAME,
        prompt=PROMPT,
        max_tokens=24,
        temperature=0,
        extra_body={} if experts is None else {"experts": experts},
    )
    answer = raw.parse()
    budget = float(granted) if granted else None
    expected = real_lm.generate(PROMPT, max_tokens=24, experts=budget)
    assert raw.headers.get("x-moestro-experts") == granted
    assert raw.headers["x-moestro-model"] == NAME
    assert answer.choices[0].text == expected.text
    assert answer.usage is not None
    found = answer.usage.to_dict()["mean_experts"]
    assert found == pytest.approx(expected.mean_experts if mean is None else mean)
    assert expected.mean_experts is not None
    assert mean is not None or 2 < expected.mean_experts < 3


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        (
            {"prompt": "area " * 600},
            openai.BadRequestError,
            "context length is 512 tokens: shorten it",
        ),
        ({"extra_body": {"experts": 5}}, openai.BadRequestError, "takes 2 to 4 per token"),
        ({"extra_body": {"experts": 1.9}}, openai.BadRequestError, "takes 2 to 4 per token"),
        ({"model": "gpt-9"}, openai.NotFoundError, "'gpt-9' is not served here: choose tiny"),
        ({"prompt": [1, 10**6]}, openai.BadRequestError, "outside the vocabulary"),
        ({"extra_body": {"guided_regex": "("}}, openai.BadRequestError, "regular expression"),
        ({"extra_body": {"prompt_logprobs": 1}}, openai.BadRequestError, "with echo true"),
        ({"logit_bias": {"9999": 1}}, openai.BadRequestError, "logit_bias names token 9999"),
        (
            {"extra_body": {"guided_json": {"type": "strange"}}},
            openai.BadRequestError,
            "JSON schema",
        ),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_mistakes_are_refused_before_the_answer(
    real_client: openai.OpenAI,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    message: str,
    is_stream: bool,
) -> None:
    question: dict[str, Any] = {"model": NAME, "prompt": "x", "stream": is_stream}
    with pytest.raises(kind, match=message) as caught:
        real_client.completions.create(**(question | fields))
    (named,) = fields.get("extra_body", fields)
    assert caught.value.param == named


def test_what_is_not_json_cannot_be_forced_to_be(real_client: openai.OpenAI) -> None:
    choice = ask(
        real_client, max_tokens=200, extra_body={"guided_json": {"enum": [[1, "a"], None]}}
    )
    assert json.loads(choice.text) in ([1, "a"], None)
