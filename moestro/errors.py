"""The exception tree. Each class says who must act; the CLI turns each into one line and status 2.

Knows nothing of where errors come from. Next: settings.py.
"""


class MoestroError(Exception):
    """Something a person can put right; the message names thing, value and next step.

    `param` is the field of a request that is at fault, where it is one.
    """

    def __init__(self, message: str = "", *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ConfigError(MoestroError):
    """A setting is unknown, ill-typed or impossible: the user must change it."""


class DataError(MoestroError):
    """The text given cannot be used: the user must give other text."""


class ContextLengthError(DataError):
    """A prompt is longer than the model can read: the user must shorten it."""


class CheckpointError(MoestroError):
    """A model or run folder is damaged or of another kind: its owner must replace it."""


class UnknownModelError(MoestroError):
    """The model asked for is not served here: the user must name one that is."""


class CapacityError(MoestroError):
    """Too much is asked at once: the same request may succeed after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BackendError(MoestroError):
    """Whoever should answer died or cannot be reached: another may, or this one later.

    `retry_after_s` is when it will be asked again, None where nobody knows.
    """

    def __init__(
        self, message: str = "", retry_after_s: float | None = None, *, param: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class StorageError(MoestroError):
    """The disk refused bytes: whoever runs the machine must make room or grant access."""


class Interrupted(MoestroError):
    """A person stopped a run; its work was saved, and the same command goes on with it."""


class UnknownKeyError(MoestroError):
    """The key is not, or no longer, known: the user must send another one."""


class ForbiddenError(MoestroError):
    """The key does not allow this: the user must ask for less, or its owner allow more."""


class QuotaError(MoestroError):
    """A key's budget is spent: its owner must raise it or wait `resets_in_s`, None if for ever."""

    def __init__(self, message: str, resets_in_s: float | None = None) -> None:
        super().__init__(message)
        self.resets_in_s = resets_in_s
