"""Tool calls come out of a stream in every family's way of writing, and nothing else is lost."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.text.calls import CallArguments, CallStart, Text, ToolEvent
from moestro.text.tools import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    GIGACHAT_3,
    GIGACHAT_31,
    HERMES,
    KIMI_K2,
    ToolFormat,
    ToolStream,
    detect,
)
from tests.unit.text.cuts import cut

PLAIN_FORMATS = (DEEPSEEK_V3, DEEPSEEK_V31, HERMES, KIMI_K2)
FORMATS = (*PLAIN_FORMATS, GIGACHAT_3, GIGACHAT_31)
CALLS = (("get_weather", '{"city": "Par\\u0069s", "n": [1, {"a": "}"}]}'), ("now", "{}"))
CUTS = st.lists(st.integers(0, 400), max_size=12)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_calls_are_read_from_every_family(form: ToolFormat, step: int) -> None:
    text = f"Let me look.{write(form, CALLS)}"
    events = read(form, [text[start : start + step] for start in range(0, len(text), step)])
    first, second = ids(form)
    assert events == [
        Text("Let me look."),
        CallStart(0, first, "get_weather"),
        CallArguments(0, CALLS[0][1]),
        CallStart(1, second, "now"),
        CallArguments(1, CALLS[1][1]),
    ]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_arguments_come_out_as_they_grow(form: ToolFormat) -> None:
    stream = ToolStream(form)
    text = write(form, CALLS[:1])
    half = text.index("Par")
    events = stream.push(text[:half])
    assert [type(event) for event in events] == [CallStart, CallArguments]
    assert events[1] == CallArguments(0, '{"city": "')


FRAGMENTS = st.sampled_from(
    [
        *(marker for form in FORMATS for marker in form.markers),
        *("function", "get_weather", "functions.f:0", "```json\n", "\n```", "x", " ", "\n"),
        *('{"a": 1}', '{"name": "f", "arguments": {"a": [1]}}', '{"name": "f"', "}", '"', "<"),
    ]
)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@given(parts=st.lists(FRAGMENTS, max_size=14), places=CUTS)
def test_borders_between_texts_change_nothing(
    form: ToolFormat, parts: list[str], places: list[int]
) -> None:
    text = "".join(parts)
    assert read(form, cut(text, places)) == read(form, [text]) == read(form, list(text))


@pytest.mark.parametrize("form", PLAIN_FORMATS, ids=lambda form: form.name)
@given(parts=st.lists(FRAGMENTS, max_size=14))
def test_text_without_a_call_comes_out_unchanged(form: ToolFormat, parts: list[str]) -> None:
    text = "".join(parts)
    events = read(form, [text])
    if not any(isinstance(event, CallStart) for event in events):
        assert "".join(event.text for event in events if isinstance(event, Text)) == text


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, "<tool_call>\nnot json\n</tool_call>"),
        (HERMES, '<tool_call>{"nam": "f", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "\\ud800", "x": 1}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f"'),
        (HERMES, '<tool_call>["name"]</tool_call>'),
        (DEEPSEEK_V31, f"{DEEPSEEK_V31.section_begin}{DEEPSEEK_V31.section_end}"),
        (DEEPSEEK_V31, f"{DEEPSEEK_V31.section_begin}f{{}}"),
        (DEEPSEEK_V31, f"{DEEPSEEK_V31.begin}{DEEPSEEK_V31.separator}{{}}{DEEPSEEK_V31.end}"),
        (DEEPSEEK_V31, f"{DEEPSEEK_V31.begin}f{DEEPSEEK_V31.separator}[1]{DEEPSEEK_V31.end}"),
        (DEEPSEEK_V3, f"{DEEPSEEK_V3.begin}f\n{{}}{DEEPSEEK_V3.end}"),
        (KIMI_K2, f"{KIMI_K2.begin}{'f' * 600}{KIMI_K2.separator}{{}}{KIMI_K2.end}"),
        (KIMI_K2, f"{KIMI_K2.begin}f"),
    ],
)
def test_a_malformed_call_is_plain_text(form: ToolFormat, text: str) -> None:
    assert read(form, [text]) == [Text(text)]
    assert read(form, list(text)) == [Text(text)]


@pytest.mark.parametrize("form", [GIGACHAT_3, GIGACHAT_31], ids=lambda form: form.name)
def test_the_mark_behind_a_turn_is_no_part_of_its_text(form: ToolFormat) -> None:
    turn_end = f"{form.section_begin}\n\n"
    for text in (f"Hello.{turn_end}", "Hello."):
        assert read(form, [text]) == read(form, list(text)) == [Text("Hello.")]
    call = f'{turn_end}{form.begin}{{"name": "f", "arguments": {{"a": 1}}}}'
    expected = [CallStart(0, "id0", "f"), CallArguments(0, '{"a": 1}')]
    assert read(form, list(f"Wait.{call}{turn_end}")) == [Text("Wait."), *expected]
    assert read(form, [f"{turn_end}{form.begin}no call"]) == [Text(f"{form.begin}no call")]


def test_a_good_call_after_a_malformed_one_is_read() -> None:
    text = '<tool_call>oh</tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>ok'
    assert read(HERMES, [text]) == [
        Text("<tool_call>oh</tool_call>"),
        CallStart(0, "id0", "f"),
        CallArguments(0, "{}"),
        Text("ok"),
    ]


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"arguments": {"a": 1}, "name": "f"}', '{"a": 1}'),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "f", "parameters": {"a": "</tool_call>"}}', '{"a": "</tool_call>"}'),
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "arguments": null}', "{}"),
        ('{"name": "f", "arguments": {"a": 1}, "id": {"b": 2}}', '{"a": 1}'),
    ],
)
def test_hermes_calls_may_be_written_in_other_ways(body: str, arguments: str) -> None:
    events = read(HERMES, list(f"<tool_call>\n{body}\n</tool_call>"))
    assert events == [CallStart(0, "id0", "f"), CallArguments(0, arguments)]


def test_a_call_that_is_cut_off_keeps_what_it_had() -> None:
    text = f'{DEEPSEEK_V31.begin}f{DEEPSEEK_V31.separator}{{"a": "b'
    expected = [CallStart(0, "id0", "f"), CallArguments(0, '{"a": "b')]
    assert read(DEEPSEEK_V31, [text]) == expected
    assert read(HERMES, ['<tool_call>{"name": "f", "arguments": {"a": "b']) == expected


def test_a_call_without_arguments_has_an_empty_object() -> None:
    text = f"{KIMI_K2.begin}functions.now:3{KIMI_K2.separator}{KIMI_K2.end}"
    assert read(KIMI_K2, list(text)) == [
        CallStart(0, "functions.now:3", "now"),
        CallArguments(0, "{}"),
    ]


def test_white_space_between_calls_is_dropped_and_before_text_is_kept() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    kinds = [type(event) for event in read(HERMES, [f"{call}\n{call}\n"])]
    assert kinds == [CallStart, CallArguments] * 2
    assert read(HERMES, [f"{call}\n\ndone"])[-1] == Text("\n\ndone")


def test_ids_differ_from_call_to_call() -> None:
    call = '<tool_call>{"name": "f"}</tool_call>'
    starts = [each for each in ToolStream(HERMES).push(call * 2) if isinstance(each, CallStart)]
    assert len({start.id for start in starts}) == 2


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (f"{{{{ '{DEEPSEEK_V31.section_begin}' }}}}", DEEPSEEK_V31),
        (f"{{{{ '{DEEPSEEK_V31.section_begin}' + '```json' }}}}", DEEPSEEK_V3),
        ("<|tool_calls_section_begin|>{{ call.id }}", KIMI_K2),
        ("<tool_call>{{ call | tojson }}</tool_call>", HERMES),
        ("<|role_sep|><|message_sep|>{{ {'role': 'function call', 'content': x} }}", GIGACHAT_3),
        ("<|message_sep|>{{ '<|function_call|>' ~ call }}", GIGACHAT_31),
        ("<|message_sep|>{% if message['role'] == 'function call' %}", None),
        ("<tool_call><function={{ call.name }}></tool_call>", None),
        ("{{ messages }}", None),
    ],
)
def test_the_template_tells_the_format(source: str, form: ToolFormat | None) -> None:
    assert detect(source) == form


def write(form: ToolFormat, calls: tuple[tuple[str, str], ...]) -> str:
    texts = []
    for index, (name, arguments) in enumerate(calls):
        if not form.separator:
            texts.append(
                f'{form.begin}\n{{"name": "{name}", "arguments": {arguments}}}\n{form.end}'
            )
            continue
        header = f"functions.{name}:{index}" if form == KIMI_K2 else name
        fence = "\n```" if form == DEEPSEEK_V3 else ""
        texts.append(f"{form.begin}{header}{form.separator}{arguments}{fence}{form.end}")
    between = "\n".join(texts)
    return f"{form.section_begin}{between}{form.section_end}"


def ids(form: ToolFormat) -> tuple[str, str]:
    return ("functions.get_weather:0", "functions.now:1") if form == KIMI_K2 else ("id0", "id1")


def read(form: ToolFormat, texts: list[str]) -> list[ToolEvent]:
    numbers = count()
    stream = ToolStream(form, make_id=lambda: f"id{next(numbers)}")
    events = [event for text in texts for event in stream.push(text)] + stream.finish()
    assert stream.num_calls == sum(isinstance(event, CallStart) for event in events)
    return join(events)


def join(events: list[ToolEvent]) -> list[ToolEvent]:
    """Join neighboring texts, and neighboring arguments of one call."""
    joined: list[ToolEvent] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            assert event.index == last.index
            joined[-1] = CallArguments(last.index, last.delta + event.delta)
        else:
            joined.append(event)
    for event in joined:
        assert not isinstance(event, CallArguments) or event.delta
    return joined
