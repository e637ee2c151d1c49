"""One real server for all modules of tests that name this one in `pytest_plugins`.

Starting one takes seconds. Its settings are the hardest for the engine: drafts whether or not they
pay, small blocks, prompts in chunks. Next: real.py.
"""

from collections.abc import Iterator

import openai
import pytest

from moestro.lm.language_model import LanguageModel, load
from tests.flow.real import Served, serving


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that nobody may hurt."""
    with serving(
        tmp_path_factory.mktemp("real"),
        max_batch=16,
        max_batch_tokens=96,
        cache={"block_size": 16},
        draft={"mode": "always"},
    ) as server:
        yield server


@pytest.fixture(scope="session")
def real_client(real_server: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's client of it."""
    with real_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def real_lm(real_server: Served) -> LanguageModel:
    """The same folder, loaded in this process."""
    return load(real_server.folder)
