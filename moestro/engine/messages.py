"""What passes between a server and the process that holds its engine. No torch.

Plain values, sent over a private pipe between two processes of one program. Next: worker.py.
"""

from dataclasses import dataclass

from moestro.engine.request import EngineRequest, Event
from moestro.engine.stats import EngineStats


@dataclass(frozen=True)
class Submit:
    """Take this request."""

    request: EngineRequest


@dataclass(frozen=True)
class Abort:
    """Forget this request and free what it holds."""

    request_id: str


@dataclass(frozen=True)
class Cut:
    """End one choice as it is: its reader has all that is wanted, at a stop string say."""

    request_id: str
    choice: int


@dataclass(frozen=True)
class AskStats:
    """Send what is counted, once."""


Command = Submit | Abort | Cut | AskStats


@dataclass(frozen=True)
class Loading:
    """How far loading is: what is being done, and a fraction from 0 to 1."""

    stage: str
    fraction: float


@dataclass(frozen=True)
class Ready:
    """The engine takes requests."""


@dataclass(frozen=True)
class StepEvents:
    """All that one step gave, or what is counted, now and then."""

    events: tuple[Event, ...] = ()
    stats: EngineStats | None = None


@dataclass(frozen=True)
class Fault:
    """The engine cannot go on and its process ends; `is_lasting`: another try would end alike."""

    message: str
    is_lasting: bool


Report = Loading | Ready | StepEvents | Fault
