"""Events cut out of bytes, however these come; what each says; what is none."""

import json

import pytest

from moestro.gateway import events
from moestro.gateway.events import Cutter, Garbage, Unreadable, is_end, read_data, read_event, split
from moestro.gateway.incoming import read_retry_after
from tests.unit.gateway.upstreams import events_of


@pytest.mark.parametrize("step", [1, 2, 7, 50, 10_000])
@pytest.mark.parametrize("border", [b"\n", b"\r\n"])
def test_bytes_in_any_pieces_come_out_as_whole_events(step: int, border: bytes) -> None:
    whole = b"".join(events_of({"model": "m", "messages": []})).replace(b"\n", border)
    cutter = Cutter()
    blocks = [cutter.feed(whole[at : at + step]) for at in range(0, len(whole), step)]
    assert b"".join(blocks) == whole
    assert cutter.rest == b""
    told = [event for block in blocks if block for event in split(block)]
    assert len(told) == 15
    assert all(event.endswith(b"\n\n") for event in told)


def test_an_event_without_end_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LONGEST_EVENT_BYTES", 100)
    with pytest.raises(Garbage):
        Cutter().feed(b"data: " + b"x" * 100)


def test_all_that_an_event_may_hold_is_read() -> None:
    assert read_data(b"event: a\nid: 1\n: hm\nretry: 3\ndata: 1\ndata:2\n\n") == b"1\n2"
    assert read_event(b": ping\n\n") is None
    assert read_event(b"data: [DONE]\n\n") is None
    with pytest.raises(Unreadable):
        read_event(b'data: {"choices": 5}\n\n')
    piece = read_event(b'data: {"id": "a", "choices": [{"text": "x", "other": 1}]}\n\n')
    assert piece is not None
    assert piece.choices is not None
    assert piece.choices[0].text == "x"
    assert is_end(b"data:[DONE]\n\n")


@pytest.mark.parametrize(
    "event", [b"hello\n\n", b'data: {"a\n\n', b"data: \xff\n\n", b"data: {]}\n\n"]
)
def test_what_is_no_event_is_garbage(event: bytes) -> None:
    with pytest.raises(Garbage):
        read_event(event)


def test_times_to_come_back_are_read_in_both_forms() -> None:
    assert read_retry_after(None) is None
    assert read_retry_after(b"3") == 3
    assert read_retry_after(b"soon") is None
    assert read_retry_after(b"-1") is None
    assert read_retry_after(b"nan") is None
    assert read_retry_after(b"Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize("value", [b"1e9", b"86400", b"Fri, 31 Dec 9998 23:59:59 GMT"])
def test_nobody_is_left_alone_for_longer_than_an_hour(value: bytes) -> None:
    assert read_retry_after(value) == 3600


def test_an_event_is_written_as_json() -> None:
    assert json.loads(events.write_event({"a": "\u00e9"})[6:]) == {"a": "\u00e9"}
