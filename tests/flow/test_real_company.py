"""A real model's answers do not depend on who else asks, nor on which program is asked.

Through HTTP, with drafts, chunked prompts and shared prefixes, to the last bit of each
log-probability. Next: test_real_trouble.py.
"""

import asyncio
from pathlib import Path
from typing import Any

import openai
import torch
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

from moestro.text.tokenizer import Tokenizer
from tests.flow.program import fork
from tests.flow.real import NAME, TEXT, Served, prompt_ids, wait_until

pytest_plugins = ["tests.flow.real_server"]
PROMPT = "def area_3(radius, height=5):\n    return"
NUM_REQUESTS = 24


def requests() -> list[dict[str, Any]]:
    """Ask for all kinds of budgets and samplings, behind prompts of 3 to 300 characters."""
    budgets: tuple[Any, ...] = (None, 2, 2.5, "min", 3.25, 4)
    samplings: tuple[dict[str, Any], ...] = (
        {"temperature": 0},
        {"temperature": 1},
        {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 1},
        {"temperature": 1.5, "extra_body": {"top_k": 20, "repetition_penalty": 1.2}},
        {"temperature": 1, "n": 2, "frequency_penalty": 0.5},
    )
    made = []
    for number in range(NUM_REQUESTS):
        sampling = samplings[number % len(samplings)]
        body = {"experts": budgets[number % len(budgets)]} | sampling.get("extra_body", {})
        start = number % 4 * 50
        fields = {
            "model": NAME,
            "prompt": TEXT[start : start + 3 + number * 13],
            "max_tokens": 8 + number % 5,
            "seed": number,
            "logprobs": 3,
        }
        made.append(fields | sampling | {"extra_body": body})
    return made


def test_each_of_24_answers_is_bit_for_bit_the_one_it_got_alone(real_server: Served) -> None:
    asked = requests()

    async def ask() -> tuple[list[Any], list[Any]]:
        async with real_server.async_client() as client:
            create = client.completions.create
            alone = [await create(**fields) for fields in asked]
            together = await asyncio.gather(*(create(**fields) for fields in reversed(asked)))
            return alone, list(reversed(together))

    alone, together = asyncio.run(ask())
    assert {len(answer.choices) for answer in alone} == {1, 2}
    for expected, found in zip(alone, together, strict=True):
        assert found.to_dict()["choices"] == expected.to_dict()["choices"]
        assert found.usage.mean_experts == expected.usage.mean_experts
        assert found.usage.completion_tokens == expected.usage.completion_tokens


def test_a_known_beginning_is_not_computed_again(
    real_server: Served, real_client: openai.OpenAI
) -> None:
    fields: Any = {"model": NAME, "max_tokens": 4, "temperature": 0, "logprobs": 1}
    hits = real_server.settled("prefix_cache_hits_total")
    prompt = "A beginning that nobody else asks for. " + TEXT[:200]
    first, second = (real_client.completions.create(prompt=prompt, **fields) for _ in range(2))
    other = real_client.completions.create(prompt=prompt, **fields, extra_body={"experts": 2})
    cached = [
        answer.usage.prompt_tokens_details.cached_tokens
        for answer in (first, second, other)
        if answer.usage and answer.usage.prompt_tokens_details
    ]
    assert first.usage is not None
    assert cached == [0, (first.usage.prompt_tokens - 1) // 16 * 16, 0]
    assert cached[1] > 32
    assert second.to_dict()["choices"] == first.to_dict()["choices"]
    wait_until(lambda: real_server.metric("prefix_cache_hits_total") == hits + cached[1])


def test_three_programs_give_the_same_greedy_answer(
    real_server: Served, real_client: openai.OpenAI, tmp_path: Path
) -> None:
    served = real_client.completions.create(model=NAME, prompt=PROMPT, max_tokens=24, temperature=0)
    arguments = (real_server.folder, PROMPT, "--max-tokens", 24, "--json")
    generated = fork("generate", *arguments, cwd=tmp_path).document()
    tokenizer = Tokenizer.load(real_server.folder)
    theirs: Any = DeepseekV3ForCausalLM.from_pretrained(real_server.folder, dtype=torch.float32)
    ids = prompt_ids(tokenizer, PROMPT)
    with torch.no_grad():
        tokens = torch.tensor([ids])
        made = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
        )
    answer = made[0, len(ids) :].tolist()
    assert len(answer) == 24
    assert generated["tokens"] == answer
    assert generated["text"] == served.choices[0].text == tokenizer.decode(answer)


def test_a_conversation_becomes_the_same_tokens_in_transformers(real_server: Served) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "def area(radius):"},
    ]
    theirs = AutoTokenizer.from_pretrained(real_server.folder)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert real_server.post("/tokenize", {"messages": messages})["tokens"] == expected


def test_accepted_drafts_are_counted(real_server: Served, real_client: openai.OpenAI) -> None:
    # What the tests before it drafted must be counted by now.
    real_server.settled("spec_decode_num_draft_tokens_total")
    before = draft_counts(real_server)
    # So hot that noise decides, which is the same for a draft and for the token that it guesses.
    fields: Any = {"temperature": 8, "seed": 1, "extra_body": {"ignore_eos": True}}
    answer = real_client.completions.create(model=NAME, prompt=PROMPT, max_tokens=60, **fields)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    details = answer.usage.completion_tokens_details.to_dict()
    assert 5 < details["accepted_draft_tokens"] <= details["draft_tokens"] < 60
    drafted = before[0] + int(details["draft_tokens"])
    accepted = before[1] + int(details["accepted_draft_tokens"])
    wait_until(lambda: draft_counts(real_server) == (drafted, accepted))
    assert real_server.metric("draft_acceptance") == accepted / drafted > 0


def draft_counts(server: Served) -> tuple[float, float]:
    made = server.metric("spec_decode_num_draft_tokens_total")
    return made, server.metric("spec_decode_num_accepted_tokens_total")
