"""A connection that is used again, and closed just then: whose fault that is, and who asks again.

Next: test_connection.py.
"""

from typing import Any

import pytest

from moestro.gateway.faults import Fault
from tests.unit.gateway.test_connection import WHOLE, serving
from tests.unit.gateway.test_failover import run


def test_a_connection_that_is_closed_as_it_is_used_again_is_nobodys_fault() -> None:
    async def work() -> Any:
        async with serving([WHOLE], [None], [WHOLE]) as site:
            return [await site.ask() for _ in range(2)], len(site.heads), site.num_connections

    assert run(work()) == ([b"hello"] * 2, 3, 2)


@pytest.mark.parametrize(
    ("second", "is_repeatable", "num_sent"),
    [
        # The new connection is closed, too: then it is the server's fault.
        ([None], True, 3),
        # Of an answer that began something may have been meant.
        ([b"HTTP/1.1 20", None], True, 2),
        # What leaves something behind might do so twice.
        ([None], False, 2),
    ],
)
def test_a_request_is_sent_again_once_and_only_where_nothing_was_heard(
    second: list[bytes | None], is_repeatable: bool, num_sent: int
) -> None:
    async def work() -> int:
        async with serving([WHOLE], second) as site:
            await site.ask()
            with pytest.raises(Fault, match="m/0 closed the connection"):
                await site.ask(is_repeatable=is_repeatable)
            return len(site.heads)

    assert run(work()) == num_sent
