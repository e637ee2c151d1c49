"""A watch on the connection: whoever goes away stops the work at once.

Next: sse.py, relay.py.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from moestro.server.errors import ClientGone

T = TypeVar("T")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work in this task; if the client goes away, cancel it and raise ClientGone.

    The request's body must have been read, and the work must not swallow its cancellation.
    """
    me = asyncio.current_task()
    assert me is not None
    watching = asyncio.ensure_future(_wait_for_disconnect(receive))
    is_gone = is_over = False

    def leave(_: object) -> None:
        nonlocal is_gone
        # Once it is on its way, a callback cannot be taken back.
        if not is_over and not watching.cancelled():
            is_gone = True
            me.cancel()

    watching.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        # Unless somebody else wants this task to end as well.
        if is_gone and me.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        is_over = True
        watching.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
