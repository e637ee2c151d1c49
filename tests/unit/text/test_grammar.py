"""Whatever a mask allows follows the grammar, and no grammar can stop the machine."""

import json
import random
import re
import time
from typing import Any

import jsonschema_rs
import pytest

from moestro.errors import CheckpointError, DataError
from moestro.text.grammar import GrammarFactory, GrammarKind, GrammarSpec
from moestro.text.tokenizer import Tokenizer
from tests.unit.text.walk import allowed_ids, walk

SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
            "mail": {"type": "string", "pattern": "^[a-z]{1,4}@[a-z]{1,4}$"},
        },
        "required": ["name", "age", "mail"],
        "additionalProperties": False,
    },
    "union": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}}]},
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"below": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                "required": ["below"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "number": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000},
}


@pytest.fixture(scope="module")
def factory(tokenizer: Tokenizer) -> GrammarFactory:
    return GrammarFactory(tokenizer, vocab_size=tokenizer.vocab_size + 37)


@pytest.mark.parametrize("name", SCHEMAS)
def test_any_walk_through_a_schema_gives_valid_json(
    factory: GrammarFactory, tokenizer: Tokenizer, name: str
) -> None:
    schema = SCHEMAS[name]
    start = factory.compile(GrammarSpec(kind="json_schema", source=json.dumps(schema)))
    validator = jsonschema_rs.validator_for(schema)
    texts = {walk(start.copy(), tokenizer, random.Random(seed)) for seed in range(20)}
    assert len(texts) > 3
    for text in texts:
        validator.validate(json.loads(text))


def test_any_walk_gives_a_json_object(factory: GrammarFactory, tokenizer: Tokenizer) -> None:
    start = factory.compile(GrammarSpec(kind="json_object"))
    for seed in range(20):
        assert isinstance(json.loads(walk(start.copy(), tokenizer, random.Random(seed))), dict)


@pytest.mark.parametrize(
    "pattern", ["[a-c]{2,5}[0-9]*x", "(ab|\u00e9)+", "[^-x]{3}-[A-Za-z]{3}", "yes|no|"]
)
def test_any_walk_matches_the_regex(
    factory: GrammarFactory, tokenizer: Tokenizer, pattern: str
) -> None:
    start = factory.compile(GrammarSpec(kind="regex", source=pattern))
    for seed in range(20):
        text = walk(start.copy(), tokenizer, random.Random(seed))
        assert re.fullmatch(pattern, text)


def test_a_walk_through_a_grammar_is_a_sentence_of_it(
    factory: GrammarFactory, tokenizer: Tokenizer
) -> None:
    source = 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/'
    start = factory.compile(GrammarSpec(kind="lark", source=source))
    for seed in range(20):
        text = walk(start.copy(), tokenizer, random.Random(seed))
        assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})*", text)


def test_white_space_in_json_is_bounded(factory: GrammarFactory, tokenizer: Tokenizer) -> None:
    source = '{"type": "array", "items": {"type": "integer"}}'
    grammar = factory.compile(GrammarSpec(kind="json_schema", source=source))
    for text, more in (("[", " "), (" ", None), ("1,\n", " ")):
        for token_id in single(tokenizer, text):
            grammar.accept(token_id)
        (space,) = single(tokenizer, " ")
        assert (space in allowed_ids(grammar)) == (more is not None)


def test_masks_have_the_models_size_and_never_allow_its_padding(
    factory: GrammarFactory, tokenizer: Tokenizer
) -> None:
    grammar = factory.compile(GrammarSpec(kind="regex", source=r"(?s:.*)"))
    size = tokenizer.vocab_size + 37
    assert len(grammar.mask()) == 4 * -(-size // 32)
    allowed = allowed_ids(grammar)
    assert max(allowed) < tokenizer.vocab_size
    special = [token for token in range(tokenizer.vocab_size) if not tokenizer.token_bytes(token)]
    assert [token for token in special if token in allowed] == [tokenizer.eos_id]
    with pytest.raises(CheckpointError, match="vocab_size is 10"):
        GrammarFactory(tokenizer, vocab_size=10)


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_offer_is_taken_just_where_the_mask_allows_it_and_changes_nothing_elsewhere(
    factory: GrammarFactory, tokenizer: Tokenizer, name: str
) -> None:
    draw = random.Random(5)
    grammar = factory.compile(GrammarSpec(kind="json_schema", source=json.dumps(SCHEMAS[name])))
    for _ in range(12):
        asked, masked, taken = grammar.copy(), allowed_ids(grammar), []
        for token_id in range(tokenizer.vocab_size):
            if asked.offer(token_id):
                taken.append(token_id)
                asked = grammar.copy()
        assert taken == masked
        grammar.accept(draw.choice(masked))
        if grammar.is_finished:
            break


def test_every_token_that_ends_a_text_may_end_it(tokenizer: Tokenizer) -> None:
    grammar = GrammarFactory(tokenizer, eos_ids=(0, 2)).compile(
        GrammarSpec(kind="regex", source="a*")
    )
    assert {*allowed_ids(grammar)} == {0, 2, *single(tokenizer, "a")}
    grammar.accept(2)
    assert grammar.is_finished
    assert allowed_ids(grammar) == [0, 2]


def test_a_complete_text_is_finished_and_can_only_end(
    factory: GrammarFactory, tokenizer: Tokenizer
) -> None:
    grammar = factory.compile(GrammarSpec(kind="regex", source="ab"))
    for token_id in single(tokenizer, "ab"):
        assert not grammar.is_finished
        assert allowed_ids(grammar) == [token_id]
        grammar.accept(token_id)
    assert grammar.is_finished
    assert allowed_ids(grammar) == [tokenizer.eos_id]
    grammar.accept(tokenizer.eos_id)
    with pytest.raises(DataError, match="does not follow the grammar"):
        grammar.accept(single(tokenizer, "a")[0])


def test_copies_go_separate_ways(factory: GrammarFactory, tokenizer: Tokenizer) -> None:
    first = factory.compile(GrammarSpec(kind="regex", source="ab|cd"))
    second = first.copy()
    a, b, c, d = single(tokenizer, "abcd")
    first.accept(a)
    second.accept(c)
    assert allowed_ids(first) == [b]
    assert allowed_ids(second) == [d]


def test_a_token_outside_the_mask_is_refused(factory: GrammarFactory, tokenizer: Tokenizer) -> None:
    grammar = factory.compile(GrammarSpec(kind="regex", source="ab"))
    with pytest.raises(DataError, match="token 10 does not follow the grammar"):
        grammar.accept(10)


def test_a_grammar_that_no_text_can_end_is_named_as_the_cause(factory: GrammarFactory) -> None:
    endless = GrammarSpec(kind="lark", source='start: "a" start', param="guided_grammar")
    grammar = factory.compile(endless)
    with pytest.raises(DataError, match="the grammar cannot be followed") as caught:
        grammar.force([])
    assert caught.value.param == "guided_grammar"


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "(", "unclosed group|regex parse error"),
        ("regex", "(?=a)b", "regular expression cannot be used"),
        ("regex", "\ud800", "lone surrogate"),
        ("lark", "start: b", 'unknown name: "b"'),
        ("lark", "", "Empty grammar"),
        ("lark", 'start: %json {"type": "string"}', "send a schema as json_schema"),
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", '{"minimum": NaN}', "NaN is not JSON"),
        ("json_schema", '{"minimum": 1e400}', "1e400 is beyond the range of numbers"),
        ("json_schema", '{"minimum": 1' + "0" * 4000 + "}", "cannot be used"),
        ("json_schema", "[1]", r"is \[1\]: give an object"),
        ("json_schema", "true", "is true: give an object"),
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", '{"const": "\\ud800"}', "lone surrogate"),
        ("json_schema", '{"$ref": "#"}', "cannot be used .no text follows it"),
        ("json_schema", '{"$ref": "https://example.com/x"}', "cannot be used"),
        ("json_schema", '{"type": "integer", "minimum": 2, "maximum": 1}', "cannot be used"),
    ],
)
def test_an_invalid_grammar_is_refused_in_one_line(
    factory: GrammarFactory, kind: GrammarKind, source: str, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        factory.compile(GrammarSpec(kind=kind, source=source))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def nest(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HUGE: dict[str, dict[str, Any]] = {
    "multiple": {"type": "integer", "multipleOf": 1000003},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]},
    "largest multiple": {"type": "integer", "multipleOf": 19997},
    "fraction": {"type": "number", "multipleOf": 0.123456789},
    "keys": {"type": "object", "properties": {f"p{i}": {} for i in range(5000)}},
    "items": {"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}},
    "length": {"type": "string", "minLength": 10**7},
    "pattern": {"type": "string", "pattern": "(a|aa){1,100000}b"},
    "depth": nest(500),
    "choices": {"enum": [f"v{i}" for i in range(9000)]},
    "bounds": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "loop": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "bomb": {
        "$defs": {
            **{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)},
            "d25": {"type": "string"},
        },
        "$ref": "#/$defs/d0",
    },
    "product": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"k{i}{j}": {}}} for j in range(3)]}
            for i in range(12)
        ]
    },
}
CATASTROPHES: list[tuple[GrammarKind, str]] = [
    *(("json_schema", json.dumps(schema)) for schema in HUGE.values()),
    ("json_schema", "[" * 100_000),
    ("json_schema", '{"const": "' + "x" * 200_000 + '"}'),
    ("regex", "a{1,1000000}"),
    ("regex", "(a|aa){1,100000}b"),
    ("regex", "((a{1,1000}){1,1000}){1,1000}"),
    ("regex", "(a|b)*a(a|b){30}"),
    ("regex", "(x+x+)+y"),
    ("regex", "(" * 5000 + "a" + ")" * 5000),
    ("regex", "a" * 100_000),
    ("lark", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    ("lark", 'start: a{1000000}\na: b{1000000}\nb: "x"'),
    ("lark", 'start: a\na: a a | "x"'),
    ("lark", "start: T\nT: /.*a.{18}/ & /.*b.{19}/ & /.*c.{17}/ & ~/.*d.{16}/"),
]


@pytest.mark.parametrize(("kind", "source"), CATASTROPHES, ids=lambda value: str(value)[:24])
def test_a_catastrophic_grammar_ends_soon(
    factory: GrammarFactory, tokenizer: Tokenizer, kind: GrammarKind, source: str
) -> None:
    start = time.thread_time()
    try:
        grammar = factory.compile(GrammarSpec(kind=kind, source=source))
        chance = random.Random(0)
        for _ in range(40):
            allowed = allowed_ids(grammar)
            grammar.accept(int(chance.choice(allowed)))
            if grammar.is_finished:
                break
    except DataError as error:
        reason = str(error)
    else:
        reason = ""
    assert "\n" not in reason
    assert time.thread_time() - start < 1.5


@pytest.mark.parametrize("name", ["multiple", "multiples", "fraction", "keys", "depth"])
def test_schemas_that_the_compiler_does_not_bound_are_refused(
    factory: GrammarFactory, name: str
) -> None:
    with pytest.raises(DataError, match=r"limit|at most|deeper"):
        factory.compile(GrammarSpec(kind="json_schema", source=json.dumps(HUGE[name])))


def test_options_of_the_compiler_in_a_schema_have_no_effect(
    factory: GrammarFactory, tokenizer: Tokenizer
) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    options = {"x-guidance": {"item_separator": ";", "whitespace_flexible": False}}
    source = json.dumps(schema | options)
    grammar = factory.compile(GrammarSpec(kind="json_schema", source=source))
    assert json.loads(walk(grammar, tokenizer, random.Random(0))) == [1, 1]


def single(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the one-byte tokens of a text."""
    ids = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    return [ids[letter.encode()] for letter in text]
