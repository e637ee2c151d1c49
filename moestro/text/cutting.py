"""How llama.cpp names the ways in which byte-level tokenizers cut a text before they merge bytes.

A name there stands for regular expressions, applied one after the other; the table has those that
this model family comes with. Knows no file. Next: byte_level.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MARKED_WORDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_HAN_OR_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_OR_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# DeepSeek-V3's own, which learn.py gives to new vocabularies.
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    _HAN_OR_KANA,
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# Letters of the scripts with capitals, as its authors listed them.
_CASED = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295"
    "-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-"
    "\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-"
    "\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-"
    "\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"
    "\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-"
    "\U0001e943]+"
)
_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
# Moonshot's, of Moonlight and Kimi K2: Han letters alone, capitals only where a word begins.
_UPPER, _LOWER = (
    rf"[{cases}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for cases in (r"\p{Lu}\p{Lt}", r"\p{Ll}")
)
_BEFORE_WORD, _AFTER_WORD = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_KIMI_K2 = (
    r"[\p{Han}]+"
    rf"|{_BEFORE_WORD}{_UPPER}*{_LOWER}+{_AFTER_WORD}|{_BEFORE_WORD}{_UPPER}+{_LOWER}*{_AFTER_WORD}"
    r"|\p{N}{1,3}|" + _MARKED_WORDS
)
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Cutting:
    """Regular expressions in their order, and whether a whole piece in the vocabulary is a token.

    `has_own_regex`: they are what the ByteLevel step cuts with by itself.
    """

    stages: tuple[str, ...]
    ignores_merges: bool = False
    has_own_regex: bool = False


CUTTINGS = {
    "deepseek-v3": Cutting(DEEPSEEK_V3),
    "deepseek-llm": Cutting((r"[\r\n]", _CASED, _MARKS, r"\s+$", _HAN_OR_HANGUL, r"\p{N}")),
    "deepseek-coder": Cutting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_OR_HANGUL, r"\p{N}")),
    "llama-bpe": Cutting((_ENDINGS + r"\p{N}{1,3}|" + _MARKED_WORDS,), ignores_merges=True),
    "qwen2": Cutting((_ENDINGS + r"\p{N}|" + _MARKED_WORDS,)),
    "kimi-k2": Cutting((_KIMI_K2,), ignores_merges=True),
    "gpt-2": Cutting((_GPT_2,), has_own_regex=True),
}
# Further names for the same.
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "gigachat": "gpt-2"}


def name_of(parsed: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for how a tokenizer.json cuts, or None where it has none."""
    found = _read(parsed.get("pre_tokenizer"))
    ignores_merges = parsed["model"].get("ignore_merges") is True
    names = (
        name
        for name, cutting in CUTTINGS.items()
        if cutting.stages == found and cutting.ignores_merges == ignores_merges
    )
    return next(names, None)


def write(cutting: Cutting) -> dict[str, Any]:
    """Return the pre_tokenizer section of a tokenizer.json."""
    own = {"add_prefix_space": False, "trim_offsets": True, "use_regex": cutting.has_own_regex}
    spell = {"type": "ByteLevel"} | own
    if cutting.has_own_regex:
        return spell
    splits = [
        {"type": "Split", "pattern": {"Regex": stage}, "behavior": "Isolated", "invert": False}
        for stage in cutting.stages
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, spell]}


def _read(section: object) -> tuple[str, ...] | None:
    """Return the regular expressions of a pre_tokenizer section, or None if it does more."""
    stages: list[str] = []
    steps = list(_flatten(section))
    for number, step in enumerate(steps, start=1):
        match step:
            case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if (
                step.get("invert") is not True
            ):
                stages.append(regex.replace("\r", r"\r").replace("\n", r"\n"))
            case {"type": "Digits", "individual_digits": True}:
                stages.append(r"\p{N}")
            case {"type": "ByteLevel"} if number == len(steps):
                if step.get("add_prefix_space") is not False:
                    return None
                if step.get("use_regex", True):
                    stages.append(_GPT_2)
            case _:
                return None
    return tuple(stages)


def _flatten(section: object) -> list[Mapping[str, Any]]:
    if not isinstance(section, Mapping):
        return []
    if section.get("type") != "Sequence":
        return [section]
    return [step for part in section.get("pretokenizers", ()) for step in _flatten(part)]
