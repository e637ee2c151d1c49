"""A byte-level BPE vocabulary learned from text: lossless for any Unicode, and the same every time.

Texts are cut like DeepSeek-V3's, which llama.cpp knows by name. Knows texts, not where they come
from. Next: cutting.py, tokenizer.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

from moestro.errors import ConfigError
from moestro.text.cutting import DEEPSEEK_V3
from moestro.text.tokenizer import Tokenizer

# The first one, id 0, begins and ends every document.
SPECIAL_TOKENS = ("<|end_of_text|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
NUM_BYTES = 256


def learn(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> Tokenizer:
    """Learn up to `vocab_size` tokens; the first special one ends a text."""
    smallest = NUM_BYTES + len(special_tokens)
    if vocab_size < smallest:
        raise ConfigError(
            f"vocab_size is {vocab_size}: bytes and special tokens alone take {smallest}"
        )
    if not special_tokens:
        raise ConfigError("special_tokens is empty: a text needs a token that ends it")
    inner = Inner(models.BPE())
    # No token crosses these borders: up to three digits; a word with one mark or space before it
    # (`.append`, ` return`); marks with the line's end (`):\n`); blank lines; indentation.
    splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in DEEPSEEK_V3]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, spell])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner.to_str(), _settings(special_tokens))


def _settings(special_tokens: Sequence[str]) -> dict[str, Any]:
    end, *others = special_tokens
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "additional_special_tokens": others,
        "clean_up_tokenization_spaces": False,
    }
