"""Several backends as one: names decide, everything else is passed on."""

import asyncio
from dataclasses import replace

import pytest

from moestro.api.chat import CompletionRequest
from moestro.api.chunks import Started
from moestro.backends.models import Models
from moestro.backends.scripted import DEFAULT_CARD, ScriptedBackend
from moestro.errors import ConfigError, UnknownModelError


def scripted(name: str) -> ScriptedBackend:
    return ScriptedBackend(f"I am {name}.", cards=[replace(DEFAULT_CARD, id=name)])


def test_each_request_goes_to_the_model_it_names() -> None:
    async def claim() -> None:
        first, second = scripted("a"), scripted("b")
        models = Models([first, second])
        await models.start()
        assert [card.id for card in models.cards()] == ["a", "b"]
        assert [stats.model for stats in models.stats()] == ["a", "b"]
        request = CompletionRequest(model="b", prompt="who?")
        pieces = [piece async for piece in models.stream(request)]
        assert isinstance(pieces[0], Started)
        assert pieces[0].model == "b"
        assert (len(first.requests), len(second.requests)) == (0, 1)
        ids = await models.tokenize(request)
        assert await models.detokenize("b", ids) == "who?"
        with pytest.raises(UnknownModelError, match="choose a, b"):
            await models.tokenize(replace(request, model="c"))
        await models.stop(0)
        assert {stats.state for stats in models.stats()} == {"stopped"}

    asyncio.run(claim())


def test_closing_a_stream_closes_the_one_within() -> None:
    async def claim() -> None:
        backend = scripted("a")
        models = Models([backend])
        await models.start()
        stream = models.stream(CompletionRequest(model="a", prompt="who?"))
        await anext(stream)
        await stream.aclose()
        assert len(backend.aborted) == 1

    asyncio.run(claim())


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two models are named a"):
        Models([scripted("a"), scripted("a")])
