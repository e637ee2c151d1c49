"""Tokenizers from files: exact bytes in every family, names of special tokens, one-line errors."""

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import CheckpointError, DataError
from moestro.text.tokenizer import Tokenizer

FALLBACK_TEXTS = st.text(st.sampled_from(["a", "b", " ", "\n", "\u00e9", "\U0001f600"]))


def test_a_saved_tokenizer_loads_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "model")
    for path in (tmp_path / "model", tmp_path / "model" / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.eos_id, loaded.bos_id, loaded.fim) == (0, 0, tokenizer.fim)


def test_transformers_loads_a_saved_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}')
    text = "def f(x):\n    return x  # 12345 \u00e9\n"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eos_id
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert fast.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert fast.decode([1, *tokenizer.encode(text), 0], skip_special_tokens=True) == text


@given(text=FALLBACK_TEXTS)
def test_a_byte_fallback_tokenizer_gives_exact_text(
    fallback_tokenizer: Tokenizer, text: str
) -> None:
    ids = fallback_tokenizer.encode(text)
    assert fallback_tokenizer.decode(ids) == text
    if text:
        assert fallback_tokenizer.decode(ids, continues=True) == f" {text}"


def test_bytes_of_the_tokens_are_those_of_the_text(
    tokenizer: Tokenizer, fallback_tokenizer: Tokenizer
) -> None:
    text = "ab \u00e9\U0001f600"
    for each in (tokenizer, fallback_tokenizer):
        assert each.decode_bytes(each.encode(text)) == text.encode()


def test_a_metaspace_tokenizer_puts_spaces_where_they_were(prefix_tokenizer: Tokenizer) -> None:
    ids = prefix_tokenizer.encode("a ab a")
    assert prefix_tokenizer.decode(ids) == "a ab a"
    assert prefix_tokenizer.decode(ids, continues=True) == " a ab a"


def test_special_tokens_of_a_llama_are_found_by_their_names(fallback_tokenizer: Tokenizer) -> None:
    assert (fallback_tokenizer.bos_id, fallback_tokenizer.eos_id) == (1, 2)
    assert fallback_tokenizer.fim is None
    assert fallback_tokenizer.token_text(2) == "</s>"
    assert not {1, 2} & {*fallback_tokenizer.encode("<s>a</s>")}


@pytest.mark.parametrize("spelling", ["</s>", {"content": "</s>"}])
def test_the_configuration_beside_it_names_the_end(
    tokenizer: Tokenizer, tmp_path: Path, spelling: object
) -> None:
    tokenizer.save(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["added_tokens"][1]["content"] = "</s>"
    raw["model"]["vocab"]["</s>"] = raw["model"]["vocab"].pop("<|fim_prefix|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    settings = {"eos_token": spelling, "chat_template": "{{ messages }}", "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.eos_id, loaded.bos_id) == (1, 1)
    loaded.save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert again["chat_template"] == "{{ messages }}"
    assert again["bos_token"] == "</s>"


def test_what_is_written_names_no_python_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    settings = {
        "tokenizer_class": "OtherTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_other.OtherTokenizer", None]},
        "padding_side": "left",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    Tokenizer.load(tmp_path).save(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "auto_map" not in written
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["padding_side"] == "left"


def test_added_tokens_that_are_not_special_are_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    raw["added_tokens"].append({"id": 320, "content": "<think>\u00e9 ", **flags})
    path.write_text(json.dumps(raw))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("<think>\u00e9 ") == [320]
    assert loaded.decode([320]) == loaded.token_text(320) == "<think>\u00e9 "
    assert loaded.vocab_size == 321


def test_half_a_character_is_shown_as_its_bytes(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("\u00e9")
    assert tokenizer.token_text(first) == r"\xc3"
    assert tokenizer.decode([first]) == "\ufffd"


def test_special_and_unknown_ids_stand_for_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0, 1, 5000, -1, *tokenizer.encode("x")]) == "x"
    assert tokenizer.token_text(5000) == ""


def test_a_vocabulary_that_does_not_fit_the_model_is_an_error(tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(320)
    with pytest.raises(CheckpointError, match="has 320 ids, but the model's vocab_size is 319"):
        tokenizer.check_fits(319)


def test_a_lone_surrogate_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\ud800")


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        Tokenizer.load(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "folder.json" / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match="Is a directory"):
        Tokenizer.load(tmp_path / "folder.json")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"model":', "not valid JSON"),
        ("[]", "holds no tokenizer"),
        ('{"model": {"type": "BPE"}}', "not a tokenizer that can be read"),
    ],
)
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, raw: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_tokenizer_without_an_end_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    settings = {"eos_token": "<|nowhere|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="no token ends a text"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("decoder", [None, {"type": "Fuse"}])
def test_a_tokenizer_of_another_family_is_an_error(
    tokenizer: Tokenizer, tmp_path: Path, decoder: object
) -> None:
    tokenizer.save(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"decoder": decoder}))
    with pytest.raises(CheckpointError, match="its decoder is"):
        Tokenizer.load(tmp_path)
