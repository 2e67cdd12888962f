"""Ports for services: free, never twice, and none that an outgoing connection may take meanwhile."""

import socket

from stack import ports


def test_many_ports_are_all_different() -> None:
    given = [*ports.free_ports(50), *(ports.free_port() for _ in range(50))]
    assert len(set(given)) == 100
    assert not any(ports.is_taken(port) for port in given)


def test_no_port_is_one_of_the_outgoing() -> None:
    first, last = (int(text) for text in ports._OUTGOING.read_text(encoding="ascii").split())
    assert not [port for port in ports.free_ports(50) if first <= port <= last]


def test_a_listener_takes_its_port() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.free_port()))
        listener.listen()
        port = listener.getsockname()[1]
        assert ports.is_taken(port)
    assert not ports.is_taken(port)
