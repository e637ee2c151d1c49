"""What a client has been told of an answer so far: enough to go on with it elsewhere.

Knows OpenAI's events, no connection. Next: continuing.py.
"""

from moestro.gateway.asked import MOST_CHARACTERS_PER_TOKEN, Asked
from moestro.gateway.events import (
    ChoiceEvent,
    Garbage,
    Piece,
    Unreadable,
    Usage,
    as_count,
    is_end,
    read_event,
)


class BrokenAnswer(Garbage):
    """The backend says in its stream that it failed."""


class Told:
    """The events of one answer, taken in one by one before they are sent.

    `head` is the first event that had choices; later ones look alike wherever they come from.
    """

    def __init__(self, num_choices: int = 1) -> None:
        """`num_choices` were asked for: the answer is finished when all of them are."""
        self.head: Piece | None = None
        self.usage: Usage | None = None
        self.is_finished = False
        self.has_ended = False
        self._num_choices = num_choices
        self._finished: set[int] = set()
        self._is_going_on = False
        self._num_said = 0
        self._num_before = 0
        self._texts: list[str] = []
        self._is_single = True
        self._is_plain = True

    @property
    def text(self) -> str:
        """What the answer says so far."""
        return "".join(self._texts)

    @property
    def num_tokens(self) -> int:
        """How many tokens that is at the least: who goes on may have what its limit leaves.

        An event has one or more: as many as it lists, as the backend counted, or its text needs.
        """
        usage = self.usage
        stated = 0 if usage is None else as_count(usage.completion_tokens) or 0
        num_characters = sum(map(len, self._texts))
        needed = num_characters // MOST_CHARACTERS_PER_TOKEN
        return max(self._num_said, self._num_before + stated, needed)

    @property
    def is_visible(self) -> bool:
        """Whether anything has been said that cannot be taken back."""
        return bool(self._num_said)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing: an end, or a reason to have come to it."""
        return self.has_ended or self.is_finished

    @property
    def whole_usage(self) -> Usage | None:
        """The usage of all that was told, where the last backend began in the middle.

        Its prompt held what others had written before.
        """
        usage, num_before = self.usage, self._num_before
        if usage is None:
            return None
        prompt, completion = as_count(usage.prompt_tokens), as_count(usage.completion_tokens)
        if prompt is None or completion is None:
            return None
        return Usage(
            prompt_tokens=max(0, prompt - num_before),
            completion_tokens=completion + num_before,
            prompt_tokens_details=usage.prompt_tokens_details,
        )

    def go_on(self) -> int:
        """Expect another backend's events from here on; return how many tokens came before."""
        self._num_before = self.num_tokens
        self.is_finished = self.has_ended = False
        self._finished.clear()
        self._is_going_on = True
        self.usage = None
        return self._num_before

    def add(self, event: bytes) -> None:
        """Take the next event, before it is sent; Garbage if it must not be."""
        try:
            piece = read_event(event)
        except Unreadable as error:
            self._take_unreadable(error)
            return
        if piece is None:
            if is_end(event):
                self.has_ended = True
            return
        self.take(piece)

    def take(self, piece: Piece) -> None:
        """Take what an event says."""
        if piece.error is not None:
            raise BrokenAnswer("the backend failed in the middle of its answer")
        if piece.usage is not None:
            self.usage = piece.usage
        if not piece.choices:
            return
        if self.head is None:
            self.head = piece
        for choice in piece.choices:
            self._take_choice(choice)

    def may_continue(self, asked: Asked) -> bool:
        """Tell whether the text so far says all that another backend must know to go on.

        Several choices, calls of tools, thoughts and forms that a half does not have are not so.
        """
        if not self._is_single or not self._is_plain or asked.is_constrained:
            return False
        # They are of the prompt alone, and the next one's prompt is longer.
        if asked.has("echo") or asked.has("truncate_prompt_tokens"):
            return False
        if asked.kind == "completion":
            # Offsets are counted from the prompt's beginning.
            return isinstance(asked.look("prompt"), str) and asked.look("logprobs") is None
        return True

    def _take_unreadable(self, error: Exception) -> None:
        """Take what goes on unread: it may be a text, so nobody begins again or goes on behind."""
        if self._is_going_on:
            # It would have to be changed to look like those before it.
            raise Garbage("an event that cannot be joined to those before it") from error
        self._is_plain = False
        self._num_said += 1
        self.head = self.head or Piece()

    def _take_choice(self, choice: ChoiceEvent) -> None:
        index = choice.index or 0
        if index != 0:
            self._is_single = False
        if choice.finish_reason is not None:
            self._finished.add(index)
            self.is_finished = len(self._finished) >= self._num_choices
        delta = choice.delta
        if delta is None:
            text: object = choice.text
        else:
            text = delta.content
            thought = delta.reasoning_content or delta.reasoning
            if delta.tool_calls or delta.refusal or thought:
                self._is_plain = False
                self._num_said += 1
        if not text:
            return
        self._num_said += _count_listed(choice.logprobs) or 1
        if isinstance(text, str):
            self._texts.append(text)
        else:
            self._is_plain = False


def _count_listed(logprobs: object) -> int:
    if not isinstance(logprobs, dict):
        return 0
    listed = logprobs.get("content") or logprobs.get("tokens")
    return len(listed) if isinstance(listed, list) else 0
