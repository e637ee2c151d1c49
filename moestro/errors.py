"""The exception tree. Each class says who must act; the CLI turns each into one line and status 2.

Knows nothing of where errors come from. Next: settings.py.
"""


class MoestroError(Exception):
    """Something a person can put right; the message names thing, value and next step."""


class ConfigError(MoestroError):
    """A setting is unknown, ill-typed or impossible: the user must change it."""


class DataError(MoestroError):
    """The text given cannot be used: the user must give other text."""


class CheckpointError(MoestroError):
    """A model or run folder is damaged or of another kind: its owner must replace it."""


class StorageError(MoestroError):
    """The disk refused bytes: whoever runs the machine must make room or grant access."""


class Interrupted(MoestroError):
    """A person stopped a run; its work was saved, and the same command goes on with it."""
