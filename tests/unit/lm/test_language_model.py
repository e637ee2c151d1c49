"""A model and its tokenizer: logits, completions that repeat, and limits that are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moestro.errors import CheckpointError, ConfigError, DataError
from moestro.files import read_json, write_json
from moestro.lm.language_model import LanguageModel, load
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer
from moestro.weights.export import save_model
from moestro.weights.find import find_checkpoint
from tests.builders import linear_budget, random_model, tiny_config

CONTEXT = 64
TEXT = "def add(a, b):\n    return a + b\n" * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn([TEXT], 270)


@pytest.fixture(scope="module")
def language_model(tokenizer: Tokenizer) -> LanguageModel:
    config = tiny_config(vocab_size=300)
    return LanguageModel(random_model(config.with_budget(linear_budget(config))), tokenizer)


def ending_model(tokenizer: Tokenizer, num_tokens: int) -> LanguageModel:
    """Build a model that counts up from token 100 and ends the text after `num_tokens`."""
    model = random_model(tiny_config(vocab_size=300, hidden_size=300))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.zero_()
        follower = torch.arange(300) + 1
        follower[100 + num_tokens] = tokenizer.eos_id
        # A prompt's last token, whatever it is, is followed by token 100's successor.
        follower[: 100 + 1] = 101
        model.embed_tokens.weight.copy_(torch.eye(300))
        model.norm.weight.fill_(1)
        model.lm_head.weight.copy_(torch.eye(300)[follower.clamp(max=299)].T)
    return LanguageModel(model, tokenizer)


def test_logits_are_one_float32_row_for_each_token(language_model: LanguageModel) -> None:
    logits = language_model.logits([0, 5, 299])
    assert isinstance(logits, np.ndarray)
    assert (logits.shape, logits.dtype) == ((3, 300), np.float32)
    # A row does not depend on what follows it.
    np.testing.assert_allclose(language_model.logits([0, 5])[1], logits[1], atol=1e-5)
    np.testing.assert_allclose(language_model.logits(np.array([0, 5]))[1], logits[1], atol=1e-5)


@pytest.mark.parametrize(
    ("message", "tokens"),
    [
        ("no tokens given", []),
        ("token 300 is outside the vocabulary of 300", [1, 300]),
        ("token -1 is outside", [-1]),
        ("the text takes 65 tokens, limit 64", [1] * 65),
    ],
)
def test_tokens_that_the_model_cannot_take_are_refused(
    language_model: LanguageModel, message: str, tokens: list[int]
) -> None:
    with pytest.raises(DataError, match=message):
        language_model.logits(tokens)


def test_the_whole_context_can_be_used(language_model: LanguageModel) -> None:
    assert len(language_model.logits([1] * CONTEXT)) == CONTEXT


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_seed_gives_one_completion(language_model: LanguageModel, temperature: float) -> None:
    first, second = (
        language_model.generate("def", max_tokens=12, temperature=temperature, seed=3)
        for _ in range(2)
    )
    assert first == second
    assert 1 <= len(first.tokens) <= 12
    assert first.text == language_model.tokenizer.decode(first.tokens, continues=True)


def test_another_seed_gives_another_completion_when_sampling(
    language_model: LanguageModel,
) -> None:
    texts = {
        language_model.generate("def", max_tokens=12, temperature=1.0, seed=seed).text
        for seed in range(4)
    }
    assert len(texts) > 1
    greedy = {language_model.generate("def", max_tokens=12, seed=seed).text for seed in range(4)}
    assert len(greedy) == 1


def test_greedy_completion_takes_the_likeliest_token_of_the_whole_text(
    language_model: LanguageModel,
) -> None:
    ids = [language_model.tokenizer.bos_id, *language_model.tokenizer.encode("return a")]
    made = language_model.generate("return a", max_tokens=10).tokens
    for token in made:
        assert token == int(language_model.logits(ids)[-1].argmax())
        ids.append(token)


@pytest.mark.parametrize("num_tokens", [1, 3, 7])
def test_a_completion_stops_before_the_end_of_the_text(
    tokenizer: Tokenizer, num_tokens: int
) -> None:
    model = ending_model(tokenizer, num_tokens)
    made = model.generate("a", max_tokens=20)
    assert made.tokens == [100 + i for i in range(1, num_tokens + 1)]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_completion_stops_at_each_token_that_ends_a_text_by_its_folder(
    tokenizer: Tokenizer, tmp_path: Path, file: str
) -> None:
    model = ending_model(tokenizer, 7)
    save_model(model.model, tmp_path)
    tokenizer.save(tmp_path)
    assert len(load(tmp_path, device="cpu").generate("a", max_tokens=20).tokens) == 7
    named = read_json(tmp_path / file) | {"eos_token_id": [tokenizer.eos_id, 104]}
    write_json(tmp_path / file, named)
    made = load(tmp_path, device="cpu").generate("a", max_tokens=20)
    assert made.tokens == [101, 102, 103]


def test_the_smallest_share_leaves_the_likeliest_token_alone(language_model: LanguageModel) -> None:
    wishes = [{"top_p": 1e-6}, {"top_p": 1.0}, {"temperature": 0.0}]
    drawn, free, greedy = (
        language_model.generate("def", max_tokens=12, **({"temperature": 1.0} | wish)).tokens  # type: ignore[arg-type]
        for wish in wishes
    )
    assert drawn == greedy != free


def test_a_completion_ends_with_the_context(tokenizer: Tokenizer) -> None:
    model = ending_model(tokenizer, 150)
    num_prompt = 1 + len(tokenizer.encode(TEXT[:60]))
    made = model.generate(TEXT[:60], max_tokens=500)
    assert len(made.tokens) == CONTEXT - num_prompt


def test_a_prompt_that_fills_the_context_is_refused(language_model: LanguageModel) -> None:
    with pytest.raises(DataError, match=r"the prompt with room for an answer takes .* limit 64"):
        language_model.generate(TEXT * 5)


@pytest.mark.parametrize("experts", [2, 2.5, 3, 4, None])
def test_experts_are_kept_within_the_budget(
    language_model: LanguageModel, experts: float | None
) -> None:
    made = language_model.generate("def", max_tokens=8, experts=experts)
    assert made.mean_experts is not None
    assert 2 <= made.mean_experts <= 4
    if experts in (2, 4, None):
        assert made.mean_experts == (experts or 4)


@pytest.mark.parametrize("experts", [1, 1.99, 4.01, 16, -3, float("nan"), float("inf")])
def test_experts_outside_the_limits_are_refused(
    language_model: LanguageModel, experts: float
) -> None:
    with pytest.raises(ConfigError, match="this model takes 2 to 4 per token"):
        language_model.generate("def", experts=experts)
    with pytest.raises(ConfigError, match="this model takes 2 to 4 per token"):
        language_model.logits([1], experts=experts)
    with pytest.raises(ConfigError, match="this model takes 2 to 4 per token"):
        language_model.score(["def"], experts=experts)


def test_without_a_table_only_all_experts_can_be_had(tokenizer: Tokenizer) -> None:
    model = LanguageModel(random_model(tiny_config(vocab_size=300)), tokenizer)
    assert model.generate("def", max_tokens=2, experts=4).mean_experts == 4
    with pytest.raises(ConfigError, match="no budget table: calibrate it first"):
        model.generate("def", experts=3)


@pytest.mark.parametrize(
    ("message", "wishes"),
    [
        ("max_tokens is 0", {"max_tokens": 0}),
        ("temperature is -1", {"temperature": -1.0}),
        ("temperature is nan", {"temperature": float("nan")}),
        ("temperature is inf", {"temperature": float("inf")}),
        ("top_p is 0", {"top_p": 0.0}),
    ],
)
def test_wishes_that_make_no_sense_are_refused(
    language_model: LanguageModel, message: str, wishes: dict[str, float]
) -> None:
    with pytest.raises(ConfigError, match=message):
        language_model.generate("def", **wishes)  # type: ignore[arg-type]


def test_an_empty_prompt_is_the_beginning_of_a_text(language_model: LanguageModel) -> None:
    assert language_model.generate("", max_tokens=3).tokens


def test_a_gap_is_filled_between_prompt_and_suffix(language_model: LanguageModel) -> None:
    made = language_model.generate("def add(", suffix="return", max_tokens=5)
    fim = language_model.tokenizer.fim
    assert fim is not None
    before, after = (language_model.tokenizer.encode(text) for text in ("def add(", "return"))
    ids = [language_model.tokenizer.bos_id, *fim.prompt(before, after)]
    assert made.tokens[0] == int(language_model.logits(ids)[-1].argmax())


def test_one_text_may_be_scored_without_a_list(language_model: LanguageModel) -> None:
    assert language_model.score("def f():").nats == language_model.score(["def f():"]).nats


def test_a_score_counts_documents_bytes_and_tokens(language_model: LanguageModel) -> None:
    texts = ["return a\n", "\u00e4\u00e4", TEXT]
    result = language_model.score(texts)
    num_tokens = sum(len(language_model.tokenizer.encode(text)) for text in texts)
    assert (result.documents, result.bytes) == (3, sum(len(text.encode()) for text in texts))
    assert result.tokens == num_tokens
    assert result.mean_experts == 4
    assert language_model.score(texts, experts=2).mean_experts == 2


def test_a_saved_model_answers_as_the_one_in_memory(
    language_model: LanguageModel, tmp_path: Path
) -> None:
    save_model(language_model.model, tmp_path)
    language_model.tokenizer.save(tmp_path)
    loaded = load(tmp_path, device="cpu")
    assert np.array_equal(loaded.logits([0, 7, 9], 2.5), language_model.logits([0, 7, 9], 2.5))
    assert loaded.generate("def", max_tokens=9) == language_model.generate("def", max_tokens=9)
    close = load(tmp_path, dtype="bfloat16", device="cpu").logits([0, 7, 9])
    assert close.dtype == np.float32
    assert np.median(np.abs(close - language_model.logits([0, 7, 9]))) < 0.1
    with pytest.raises(ConfigError, match="dtype is 'float8'"):
        load(tmp_path, dtype="float8")


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(random_model(tiny_config(vocab_size=40)), tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(CheckpointError, match="the model's vocab_size is 40"):
        load(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "missing")
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        find_checkpoint(tmp_path)


def test_a_run_means_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "checkpoints/step-00000002").mkdir(parents=True)
    (tmp_path / "latest").write_text("step-00000002\n")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints/step-00000002"
