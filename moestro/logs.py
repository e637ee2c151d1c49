"""Set-up of logging: our own words at the level asked for, libraries only when something is wrong.

Everything goes to standard error, because standard output is for data. Knows nothing of who logs
what. Next: cli/main.py.
"""

import logging
import sys

from moestro.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
# Back to the line's begin, and erase it: what shows progress there writes it anew.
_FRESH_LINE = "\r\x1b[K"


def apply(level: str = "info", *, is_beside_progress: bool = False) -> None:
    """Send log lines of `level` and above to standard error; a second call replaces the first.

    `is_beside_progress` where another process may be showing its progress on the same terminal.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level is {level!r}: choose one of {', '.join(LEVELS)}")
    is_debug = level == "debug"
    handler = _StandardError(_FRESH_LINE if is_beside_progress and sys.stderr.isatty() else "")
    where = "%(asctime)s %(name)s " if is_debug else ""
    handler.setFormatter(logging.Formatter(f"{where}%(levelname)s: %(message)s"))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _StandardError)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("moestro").setLevel(level.upper())
    # A library's Python warnings are for programmers: shown when one is looking.
    logging.captureWarnings(True)
    # None of it is shown, and finding it out takes a third of a line's time.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.getLogger("py.warnings").setLevel(logging.WARNING if is_debug else logging.ERROR)


class _StandardError(logging.Handler):
    """Writes to whatever `sys.stderr` is now: a progress display puts its own stream there."""

    def __init__(self, before: str) -> None:
        super().__init__()
        self._before = before

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self._before}{self.format(record)}\n")
        except OSError:
            self.handleError(record)
