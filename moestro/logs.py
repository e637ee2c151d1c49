"""Set-up of logging: our own words at the level asked for, libraries only when something is wrong.

Everything goes to standard error, because standard output is for data. Knows nothing of who logs
what. Next: cli/main.py.
"""

import logging
import sys

from moestro.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")


def apply(level: str = "info") -> None:
    """Send log lines of `level` and above to standard error; a second call replaces the first."""
    if level not in LEVELS:
        raise ConfigError(f"log level is {level!r}: choose one of {', '.join(LEVELS)}")
    is_debug = level == "debug"
    handler = _StandardError()
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

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except OSError:
            self.handleError(record)
