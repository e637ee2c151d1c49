"""Vocabularies as Moonlight and Kimi K2 come with them: tiktoken's own tokens, one-line errors."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import CheckpointError
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer

# As Moonshot's tokenization_moonshot.py has it.
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
SAMPLE = (
    "def add(first, second):\n    return first + second  # it's 12345, isn't it?\n\n\n",
    "HTTPServer'S \u4f60\u597d\u4e16\u754c, \u043f\u0440\u0438\u0432\u0435\u0442 == !== \t\t    \n",
) * 4
TEXTS = st.text(
    st.one_of(
        st.sampled_from(
            "aAbBeEst'Ss 019.,!=\n\r\t/\u4f60\u597d\u3007\u043f\u0416\u0301\u02b0\U0001f600"
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)
SETTINGS = {
    "tokenizer_class": "TikTokenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
    "chat_template": "{{ messages }}",
}


def base_ranks() -> dict[bytes, int]:
    """Return ranks of a vocabulary that was learned: single bytes first, then what they join to."""
    learned = learn(SAMPLE, vocab_size=420)
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [each for each in learned.pieces.table if len(each) > 1]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


RANKS = base_ranks()
NUM_RANKS = len(RANKS)
NAMED = {
    "[BOS]": NUM_RANKS,
    "[EOS]": NUM_RANKS + 1,
    "<|im_end|>": NUM_RANKS + 2,
    "<think>": NUM_RANKS + 9,
}


def write(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Write both files of a checkpoint."""
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in RANKS.items())
    (folder / "tiktoken.model").write_text("".join(lines))
    decoder = {
        str(token_id): {"content": name, "special": name != "<think>"}
        for name, token_id in NAMED.items()
    }
    settings = SETTINGS | {"added_tokens_decoder": decoder} | dict(changes or {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write(tmp_path_factory.mktemp("moonlight")))


@given(text=TEXTS)
def test_a_text_becomes_the_tokens_that_tiktoken_gives_it(loaded: Tokenizer, text: str) -> None:
    theirs = tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens=NAMED)
    ids = theirs.encode(text, disallowed_special=())
    assert loaded.encode(text) == ids
    assert loaded.decode(ids) == text


def test_its_special_tokens_are_those_beside_it_and_reserved_ones(loaded: Tokenizer) -> None:
    assert (loaded.bos_id, loaded.eos_id) == (NAMED["[BOS]"], NAMED["[EOS]"])
    assert loaded.vocab_size == NUM_RANKS + 256
    assert loaded.token_text(NUM_RANKS + 3) == f"<|reserved_token_{NUM_RANKS + 3}|>"
    assert loaded.encode_trusted("<|im_end|><think>") == [NAMED["<|im_end|>"], NAMED["<think>"]]
    assert NAMED["<|im_end|>"] not in loaded.encode("<|im_end|>")


def test_what_is_written_is_a_tokenizer_without_code(loaded: Tokenizer, tmp_path: Path) -> None:
    loaded.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in settings
    assert settings["chat_template"] == SETTINGS["chat_template"]
    again = Tokenizer.load(tmp_path)
    assert again.encode(SAMPLE[1]) == loaded.encode(SAMPLE[1])
    assert again.fingerprint == loaded.fingerprint


def test_a_tokenizer_json_beside_it_comes_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"AA== 0\n", b"AA== zero\n", "tiktoken.model: line 1 is not a token in base64 and its"),
        (b"AA== 0\n", b"A* 0\n", "tiktoken.model: line 1 is not a token"),
        (b"AA== 0\n", b"", "tiktoken.model: its ranks are not 0, 1, 2"),
        (b"AA== 0\n", b"AAAA 0\n", "tiktoken.model: no token for the byte 0x00"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    file = write(tmp_path) / "tiktoken.model"
    data = file.read_bytes()
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Tokenizer.load(tmp_path)


def test_texts_that_are_cut_otherwise_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"tokenizer_class": "QWenTokenizer"})
    with pytest.raises(CheckpointError, match=r"tokenizer_class is 'QWenTokenizer', but"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: no such file"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("decoder", [{"x": {"content": "a"}}, {"300": {}}, {"300": "a"}, [1]])
def test_special_tokens_that_cannot_be_read_are_named(tmp_path: Path, decoder: object) -> None:
    write(tmp_path, {"added_tokens_decoder": decoder})
    with pytest.raises(CheckpointError, match=r"added_tokens_decoder"):
        Tokenizer.load(tmp_path)
