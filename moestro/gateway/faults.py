"""What can go wrong with a backend, and whether another one may be asked instead.

Messages name backends by the fleet's names: never an address, a key or what was asked. Next:
upstream.py.
"""

from typing import Literal

from moestro.errors import BackendError

Kind = Literal[
    "connect",
    "timeout",
    "broken",
    "garbage",
    "redirect",
    "status",
    "busy",
    "unready",
    "denied",
    "absent",
    "forbidden",
    "model",
]


class Fault(BackendError):
    """A backend did not answer as it should.

    `has_begun` says that it may have done work: nothing else than asking twice is lost by asking
    another, unless the request leaves something behind. `retry_after_s` is when it wants to be
    asked again.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        has_begun: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, retry_after_s)
        self.kind = kind
        self.has_begun = has_begun

    @property
    def is_of_request(self) -> bool:
        """Whether it lies in what was asked: the backend may well answer something else.

        To ask it for the same again is no use.
        """
        return self.kind in ("absent", "forbidden")
