"""The table of clients stays small, and forgets nobody with open requests."""

from moestro.server.clients import OwnClients


def test_the_client_not_seen_for_longest_is_forgotten_first() -> None:
    clients = OwnClients(most=2)
    first = clients.find("a", None, None, 0.0)
    second = clients.find("b", None, None, 0.0)
    assert clients.find("a", None, None, 0.0) is first
    clients.find("c", None, None, 0.0)
    assert clients.find("a", None, None, 0.0) is first
    assert clients.find("b", None, None, 0.0) is not second


def test_a_client_that_comes_while_all_others_are_busy_is_remembered() -> None:
    clients = OwnClients(most=1)
    clients.find("a", None, None, 0.0).change_open(1)
    newcomer = clients.find("b", 1, None, 0.0)
    assert clients.find("b", 1, None, 0.0) is newcomer


def test_a_busy_client_is_not_forgotten() -> None:
    clients = OwnClients(most=1)
    busy = clients.find("a", None, None, 0.0)
    busy.change_open(1)
    for name in "bcd":
        clients.find(name, None, None, 0.0)
    assert clients.find("a", None, None, 0.0) is busy
    assert len(clients) <= 2
