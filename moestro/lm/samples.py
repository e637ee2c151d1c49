"""Places in held-out documents where a person can judge a completion, and the completions.

A place is a function's body, or else mid-document. Which ones are chosen depends on the documents
alone, so every model of a run is asked the same. Next: review.py, language_model.py.
"""

import ast
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from moestro.data.corpus import Document
from moestro.lm.language_model import LanguageModel
from moestro.text.tokenizer import Tokenizer

_PROMPT_LINES = 25
_REFERENCE_LINES = 12
_BODY_LINES = range(3, 26)
# Enough to find a few functions in; more would only take time.
_MAX_DOCUMENTS = 200
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class HeldOutPassage:
    """A prompt and how its document goes on.

    Code that is indented no more than `margin` is past the function's end; without its last
    `num_needed` lines the prompt would make no sense.
    """

    name: str
    domain: str
    prompt: str
    reference: str
    margin: int | None = None
    num_needed: int = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A passage with the model's own continuation."""

    name: str
    domain: str
    prompt: str
    reference: str
    completion: str
    mean_experts: float | None

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values."""
        return asdict(self)


def choose_passages(
    documents: Sequence[Document], tokenizer: Tokenizer, max_tokens: int, num: int = 3
) -> list[HeldOutPassage]:
    """Choose up to `num` passages of different documents: Python functions first.

    Each prompt has at most `max_tokens` tokens: its first lines go, or else the passage.
    """
    ordered = sorted(documents, key=lambda document: document.draw("samples", 0))[:_MAX_DOCUMENTS]
    # A docstring tells the model what a person would have been told.
    kinds = (
        partial(_function, has_docstring=True),
        partial(_function, has_docstring=False),
        _middle,
    )
    chosen: dict[str, HeldOutPassage] = {}
    for find in kinds:
        for document in ordered:
            if len(chosen) == num:
                break
            passage = (
                None if document.text in chosen else _fit(find(document), tokenizer, max_tokens)
            )
            if passage is not None:
                chosen[document.text] = passage
    return list(chosen.values())


def complete(
    lm: LanguageModel,
    passage: HeldOutPassage,
    *,
    max_tokens: int = 64,
    experts: float | None = None,
) -> Sample:
    """Let the model go on from a passage, greedily, up to the end of the function or paragraph."""
    tokens: list[int] = []
    taken = []
    text = ""
    for item in lm.stream(passage.prompt, max_tokens=max_tokens, experts=experts):
        tokens.append(item.token)
        if item.mean_experts is not None:
            taken.append(item.mean_experts)
        text = lm.tokenizer.decode(tokens, continues=True)
        whole_lines = text[: text.rfind("\n") + 1]
        if _lines(whole_lines, passage.margin)[1]:
            break
    return Sample(
        name=passage.name,
        domain=passage.domain,
        prompt=passage.prompt,
        reference=passage.reference,
        completion=cut(text, passage.margin),
        mean_experts=sum(taken) / len(taken) if taken else None,
    )


def cut(text: str, margin: int | None) -> str:
    """End a text at its first blank line, or where code steps back to `margin` columns."""
    return "\n".join(_lines(text, margin)[0]).rstrip()


def _lines(text: str, margin: int | None) -> tuple[list[str], bool]:
    """Return the lines before the end, and whether the text reaches it."""
    kept: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            if kept:
                return kept, True
            continue
        indent = len(line) - len(line.lstrip())
        # The first line stays, whatever it is: nothing at all would show nothing.
        if kept and margin is not None and indent <= margin:
            return kept, True
        kept.append(line)
    return kept, False


def _function(document: Document, *, has_docstring: bool) -> HeldOutPassage | None:
    is_python = document.domain == "python" or document.name.partition("#")[0].endswith(".py")
    functions = _functions(document.text) if is_python else iter(())
    found = [each for each in functions if (ast.get_docstring(each) is not None) == has_docstring]
    if not found:
        return None
    function = found[int(document.draw("function", 0) * len(found))]
    lines = document.text.splitlines(keepends=True)
    first = _body(function)[0].lineno - 1
    signature = min([function.lineno, *(each.lineno for each in function.decorator_list)]) - 1
    return HeldOutPassage(
        name=f"{document.name}:{function.name}",
        domain=document.domain,
        prompt="".join(lines[max(0, min(signature, first - _PROMPT_LINES)) : first]),
        reference=cut("".join(lines[first : first + _REFERENCE_LINES]), function.col_offset),
        margin=function.col_offset,
        num_needed=first - signature,
    )


def _functions(text: str) -> Iterator[_Function]:
    lines = text.splitlines()
    try:
        with warnings.catch_warnings():
            # Other people's escape sequences are not ours to warn of.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    # Only \n ends a line of the syntax tree; where a text has other ends, the numbers do not match.
    if len(lines) != len(text.removesuffix("\n").split("\n")):
        return
    for node in ast.walk(tree):
        body = _body(node) if isinstance(node, _Function) else []
        if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 in _BODY_LINES:
            begins_line = not lines[body[0].lineno - 1][: body[0].col_offset].strip()
            if begins_line and isinstance(node, _Function):
                yield node


def _body(function: _Function) -> list[ast.stmt]:
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def _middle(document: Document) -> HeldOutPassage | None:
    text = document.text
    place = _line_end(text, len(text) // 2)
    start = place
    for _ in range(_PROMPT_LINES):
        start = text.rfind("\n", 0, max(start - 1, 0)) + 1
    reference = cut("".join(text[place:].splitlines(keepends=True)[:_REFERENCE_LINES]), None)
    if not text[start:place].strip() or not reference:
        return None
    return HeldOutPassage(
        name=document.name, domain=document.domain, prompt=text[start:place], reference=reference
    )


def _line_end(text: str, middle: int) -> int:
    """Find the line's end nearest before the middle, else after it, else a gap between words."""
    for mark in ("\n", " "):
        before = text.rfind(mark, 0, middle) + 1
        if before:
            return before
        after = text.find(mark, middle) + 1
        if after:
            return after
    return middle


def _fit(
    passage: HeldOutPassage | None, tokenizer: Tokenizer, max_tokens: int
) -> HeldOutPassage | None:
    """Drop a prompt's first lines until it fits; None if nothing sensible is left."""
    if passage is None:
        return None
    lines = passage.prompt.splitlines(keepends=True)
    sizes = [len(ids) for ids in tokenizer.encode_batch(lines)] if lines else []
    # Tokens may join over lines' ends, so the sum is an upper bound or nearly one: keep one spare.
    while lines and sum(sizes) >= max_tokens:
        del lines[0], sizes[0]
    prompt = "".join(lines)
    if len(lines) < passage.num_needed or not prompt.strip():
        return None
    return replace(passage, prompt=prompt)
