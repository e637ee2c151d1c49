"""A server may say a folder, a date or a tag with a model's name, and not another model's name."""

import pytest

from moestro.gateway.model_name import is_same_model

SAME = [
    ("gpt-4", "gpt-4-0613"),
    ("gpt-4o", "gpt-4o-2024-08-06"),
    ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
    ("command-r", "command-r-08-2024"),
    ("claude-3-haiku", "claude-3-haiku@20240307"),
    ("llama3", "llama3:latest"),
    ("openai/gpt-4o", "gpt-4o"),
    ("DeepSeek-V3", "/models/deepseek-v3"),
    ("qwen2-0_5b", "/models/qwen2-0_5b.gguf"),
    ("m", ""),
]
OTHERS = [
    ("gpt-4", "gpt-4o-mini"),
    ("gpt-4o", "gpt-4o-mini"),
    ("gpt-4.1", "gpt-4.1-nano"),
    ("gpt-3.5-turbo", "gpt-3.5-turbo-16k"),
    ("gpt-4-0613", "gpt-4-1106"),
    ("llama3:70b", "llama3:8b"),
    ("openai/gpt-oss", "somebody/gpt-oss"),
    ("large", "small"),
]


@pytest.mark.parametrize(("asked", "said"), SAME)
def test_what_a_server_adds_makes_no_other_model(asked: str, said: str) -> None:
    assert is_same_model(said, asked)


@pytest.mark.parametrize(("asked", "said"), OTHERS)
def test_another_model_is_told(asked: str, said: str) -> None:
    assert not is_same_model(said, asked)
