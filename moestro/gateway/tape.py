"""What is written down of an answer while it goes by, to be kept. Next: remembering.py."""

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Tape:
    """An answer's bytes as they go by; too many of them are let go.

    `name` is that of the question put to `model`.
    """

    name: str
    model: str
    max_bytes: int
    num_bytes: int = 0
    _pieces: list[bytes] = field(default_factory=list)

    def add(self, piece: bytes) -> None:
        """Take the next bytes."""
        self.num_bytes += len(piece)
        if self.is_whole:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    @property
    def is_whole(self) -> bool:
        """Whether all that went by is still here."""
        return self.num_bytes <= self.max_bytes

    @property
    def body(self) -> bytes:
        """What went by."""
        return b"".join(self._pieces)
