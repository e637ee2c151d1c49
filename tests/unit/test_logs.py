"""Logging: our own words at the level asked for, on standard error only, libraries quiet."""

import logging
import sys
import warnings
from collections.abc import Iterator
from io import StringIO

import pytest

from moestro import logs
from moestro.errors import ConfigError

ours = logging.getLogger("moestro.train.loop")
theirs = logging.getLogger("some_library")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    names = [None, "moestro", "py.warnings"]
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = list(logging.getLogger().handlers)
    yield
    logging.captureWarnings(False)
    logging.getLogger().handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_log_lines_go_to_standard_error_and_nothing_to_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.apply()
    ours.info("step %d", 3)
    assert capsys.readouterr() == ("", "INFO: step 3\n")


def test_a_line_does_not_go_on_where_another_process_shows_its_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_terminal, before in ((True, "\r\x1b[K"), (False, "")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        logs.apply(is_beside_progress=True)
        ours.info("ready")
        assert capsys.readouterr().err == f"{before}INFO: ready\n"


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.apply("warning")
    ours.info("small")
    ours.warning("large")
    assert capsys.readouterr().err == "WARNING: large\n"


def test_libraries_speak_only_when_something_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    logs.apply("debug")
    theirs.info("chatter")
    theirs.warning("trouble")
    assert capsys.readouterr().err.endswith("some_library WARNING: trouble\n")


def test_a_library_warning_is_shown_only_to_who_debugs(capsys: pytest.CaptureFixture[str]) -> None:
    for level, is_shown in (("info", False), ("debug", True)):
        logs.apply(level)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)
            warnings.warn("old spelling", DeprecationWarning, stacklevel=1)
            logging.captureWarnings(False)
        assert ("old spelling" in capsys.readouterr().err) == is_shown


def test_a_second_call_does_not_repeat_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.apply()
    logs.apply()
    ours.info("once")
    assert capsys.readouterr().err == "INFO: once\n"


def test_lines_follow_standard_error_to_where_a_display_moves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logs.apply()
    moved = StringIO()
    monkeypatch.setattr(sys, "stderr", moved)
    ours.info("beside the bar")
    assert moved.getvalue() == "INFO: beside the bar\n"


def test_a_closed_standard_error_does_not_stop_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    class Gone(StringIO):
        def write(self, text: str, /) -> int:
            refused.append(text)
            raise BrokenPipeError(len(text))

    logs.apply()
    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(logging, "raiseExceptions", False)
    ours.info("nobody reads this")
    assert refused == ["INFO: nobody reads this\n"]


def test_an_unknown_level_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'loud'.*debug, info, warning, error"):
        logs.apply("loud")
