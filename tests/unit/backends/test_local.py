"""The local backend: what a request becomes, and what an answer is made of."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from moestro.api.chunks import Started, Usage
from moestro.api.sampling import Sampling, SamplingWish
from moestro.engine.config import EngineConfig
from moestro.errors import (
    UnknownModelError,
)
from tests.unit.backends.local_parts import ask, build, chunks, completion, text_of, tokenizer


def test_an_answer_is_text_tokens_and_what_it_cost() -> None:
    backend, engine = build("return radius * 2", ends=True)
    pieces = ask(backend, completion("def area"))
    started = pieces[0]
    words = tokenizer()
    prompt = (words.bos_id, *words.encode("def area"))
    assert isinstance(started, Started)
    assert engine.requests[0].prompt == prompt
    assert (started.model, started.prompt_tokens, started.cached_tokens) == ("tiny", len(prompt), 1)
    assert text_of(pieces) == "return radius * 2"
    *rest, last = chunks(pieces)
    assert [chunk.finish for chunk in rest if chunk.finish] == ["stop"]
    tokens = [token for chunk in rest for token in chunk.tokens]
    assert [token.token_id for token in tokens] == words.encode("return radius * 2")
    assert b"".join(token.data for token in tokens) == b"return radius * 2"
    num = len(tokens) + 1
    assert last.usage == Usage(
        prompt_tokens=len(prompt),
        completion_tokens=num,
        cached_tokens=1,
        mean_experts=sum(2.0 + place % 2 for place in range(num)) / num,
        draft_tokens=4,
        accepted_draft_tokens=3,
    )
    assert last.timing is not None
    assert (last.timing.queue_s, last.timing.prefill_s, last.timing.decode_s) == (0.5, 0.25, 0.75)
    assert engine.aborted == []


def test_a_stop_string_across_tokens_ends_the_answer_and_frees_the_engine() -> None:
    backend, engine = build("return radius * 2 + radius * 3", ends=False)
    pieces = ask(backend, completion(stops=("us * 2 +",), max_tokens=40))
    assert text_of(pieces) == "return radi"
    assert engine.was_cut == [(engine.requests[0].id, 0)]
    ends = [chunk for chunk in chunks(pieces) if chunk.finish]
    assert [(chunk.finish, chunk.stop) for chunk in ends] == [("stop", "us * 2 +")]
    shown = b"".join(token.data for chunk in chunks(pieces) for token in chunk.tokens)
    assert shown.startswith(b"return radi")
    assert b"*" not in shown
    usage, timing = chunks(pieces)[-1].usage, chunks(pieces)[-1].timing
    read = len(tokenizer().encode("return radius * 2 +"))
    assert usage is not None
    assert usage.completion_tokens == read
    assert timing is not None
    assert timing.decode_s >= 0


def test_an_answer_ends_once_however_long_its_engine_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, engine = build("return radius * 2 + radius * 3", ends=False)
    cuts: list[int] = []
    monkeypatch.setattr(engine, "cut", lambda _, choice: cuts.append(choice))
    pieces = ask(backend, completion(stops=(" *",), max_tokens=40))
    assert [chunk.finish for chunk in chunks(pieces) if chunk.finish] == ["stop"]
    assert text_of(pieces) == "return radius"
    assert cuts == [0]


def test_choices_end_on_their_own_and_are_paid_together() -> None:
    backend, engine = build("radius radius", "area")
    pieces = ask(backend, completion(num_choices=3))
    assert [text_of(pieces, index) for index in range(3)] == [
        "radius radius", "area", "radius radius",
    ]  # fmt: skip
    finishes = [chunk.index for chunk in chunks(pieces) if chunk.finish == "stop"]
    assert sorted(finishes) == [0, 1, 2]
    words = tokenizer()
    usage = chunks(pieces)[-1].usage
    assert usage is not None
    expected = 2 * len(words.encode("radius radius")) + len(words.encode("area")) + 3
    assert usage.completion_tokens == expected
    assert engine.requests[0].num_choices == 3


def test_tokens_tell_what_was_asked_and_no_more() -> None:
    backend, _ = build("area")
    plain = chunks(ask(backend, completion()))[0].tokens[0]
    assert (plain.logprob, plain.alternatives, plain.visits) == (None, (), ())
    rich = chunks(ask(backend, completion(top_logprobs=2, wants_xray=True)))[0].tokens[0]
    assert rich.logprob == -1.0
    assert [(each.token_id, each.logprob) for each in rich.alternatives] == [
        (rich.token_id, -1.0), (65, -2.0),
    ]  # fmt: skip
    assert rich.alternatives[1].data == tokenizer().token_bytes(65)
    assert [(visit.expert, visit.weight) for visit in rich.visits[0]] == [(1, 0.5), (3, 0.25)]
    assert chunks(ask(backend, completion(top_logprobs=0)))[0].tokens[0].alternatives == ()


def test_an_echo_comes_first_without_the_token_that_was_put_before_it() -> None:
    backend, engine = build("area")
    pieces = ask(backend, completion("def", echo=True))
    assert text_of(pieces) == "defarea"
    assert not engine.requests[0].scores_prompt
    scored = chunks(ask(backend, completion("def", echo=True, top_logprobs=0)))
    assert engine.requests[1].scores_prompt
    first = scored[0]
    assert first.text == "def"
    assert [token.token_id for token in first.tokens] == tokenizer().encode("def")
    assert {token.logprob for token in first.tokens} == {-0.5}


def test_an_echo_of_token_ids_is_all_of_them() -> None:
    backend, engine = build("area")
    ids = tuple(tokenizer().encode("def area"))
    pieces = chunks(ask(backend, completion(ids, echo=True, top_logprobs=0, max_tokens=0)))
    assert engine.requests[0].prompt == ids
    assert [token.token_id for token in pieces[0].tokens] == list(ids)
    assert [chunk.finish for chunk in pieces] == [None, "length", None]


def test_an_answer_without_tokens_needs_no_engine() -> None:
    backend, engine = build("area")
    pieces = ask(backend, completion("def", echo=True, max_tokens=0))
    assert text_of(pieces) == "def"
    assert engine.requests == []
    usage = chunks(pieces)[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 0


def test_a_suffix_is_laid_out_around_the_gap() -> None:
    backend, engine = build("area")
    ask(backend, completion("def ", suffix="(radius)"))
    words = tokenizer()
    assert words.fim is not None
    gap = words.fim.prompt(words.encode("def "), words.encode("(radius)"))
    assert engine.requests[0].prompt == (words.bos_id, *gap)


@pytest.mark.parametrize(
    ("experts", "granted"),
    [(None, None), (4, None), (4.0, None), ("min", 2.0), (3, 3.0), (2.5, 2.5), ("auto", "auto")],
)
def test_a_budget_is_granted(experts: Any, granted: Any) -> None:
    backend, engine = build("area")
    pieces = ask(backend, completion(experts=experts))
    assert engine.requests[0].experts == granted
    assert isinstance(pieces[0], Started)
    assert pieces[0].experts == (3.0 if granted == "auto" else None)


def test_an_answer_is_clipped_to_the_context() -> None:
    backend, engine = build("area", config=EngineConfig(max_length=20))
    ask(backend, completion((1,) * 15))
    ask(backend, completion((1,) * 15, max_tokens=3))
    ask(backend, completion((1,) * 15, max_tokens=300))
    assert [request.max_tokens for request in engine.requests] == [5, 3, 5]
    assert backend.cards()[0].context_length == 20


def test_each_request_without_a_seed_gets_its_own() -> None:
    backend, engine = build("area")
    for _ in range(3):
        ask(backend, completion())
    ask(backend, completion(sampling=SamplingWish(seed=7)))
    seeds = [request.sampling.seed for request in engine.requests]
    assert len(set(seeds)) == 4
    assert seeds[3] == 7
    assert None not in seeds


def test_silent_requests_are_sampled_as_the_models_makers_recommend() -> None:
    own = Sampling(temperature=0.6, top_p=0.95)
    backend, engine = build("area", sampling=own)
    ask(backend, completion())
    ask(backend, completion(sampling=SamplingWish(temperature=1, top_k=5)))
    assert [replace(request.sampling, seed=None) for request in engine.requests] == [
        own, Sampling(temperature=1, top_p=0.95, top_k=5),
    ]  # fmt: skip
    assert backend.cards()[0].default_sampling == {"temperature": 0.6, "top_p": 0.95}


def test_who_ignores_the_end_gets_past_it() -> None:
    backend, engine = build("area")
    ask(backend, completion(sampling=SamplingWish(ignore_eos=True), stop_token_ids=(70,)))
    ask(backend, completion(stop_token_ids=(70,)))
    assert [set(request.stop_token_ids) for request in engine.requests] == [
        {70}, {70, tokenizer().eos_id},
    ]  # fmt: skip


def test_tokens_are_told_both_ways() -> None:
    async def claim() -> None:
        backend, _ = build("radius")
        words = tokenizer()
        ids = await backend.tokenize(completion("def area"))
        assert ids == [words.bos_id, *words.encode("def area")]
        bare = await backend.tokenize(completion("def area", has_special_tokens=False))
        assert bare == ids[1:]
        lead = words.token_text(words.bos_id)
        # As vLLM has it: what special tokens there are can be seen.
        assert await backend.detokenize("tiny", ids) == f"{lead}def area"
        shown = await backend.show_tokens("tiny", ids)
        assert (shown[0], "".join(shown[1:])) == (lead, "def area")
        with pytest.raises(UnknownModelError):
            await backend.detokenize("other", ids)

    asyncio.run(claim())


def test_a_card_tells_the_models_limits() -> None:
    backend, _ = build("radius")
    (card,) = backend.cards()
    assert (card.id, card.context_length, card.has_fim, card.has_chat_template) == (
        "tiny", 256, True, False,
    )  # fmt: skip
    assert (card.fewest_experts, card.most_experts, card.has_budget) == (2, 4, True)
    assert (card.num_moe_layers, card.num_experts) == (1, 8)
    assert 0 < card.num_active_parameters < card.num_parameters
