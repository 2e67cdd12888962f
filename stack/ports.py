"""Free and taken TCP ports."""

import random
import socket
from collections.abc import Iterator
from itertools import chain, cycle, islice
from pathlib import Path

_LOWEST = 10_240  # below lie the ports that well-known services listen on
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_OUTGOING_USUALLY = (32_768, 60_999)
_PORT_END = 65_536


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at this moment."""
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody listens on at this moment, no two the same.

    None of them is one that the kernel gives to outgoing connections: such a port may be taken
    between this answer and its first listener. This process is given none of them twice until it
    has had all; another process has its own order, so that two seldom meet. Raises OSError when
    there are not so many.
    """
    free = (port for port in islice(_IN_TURN, _PORT_END) if not is_taken(port, host))
    ports = list(islice(free, count))
    if len(set(ports)) < count:
        raise OSError(f"{count} free TCP ports are not to be had on {host}")
    return ports


def is_taken(port: int, host: str = "127.0.0.1") -> bool:
    """Does somebody listen on the port?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
        return False


def _outgoing() -> range:
    try:
        first, last = (int(text) for text in _OUTGOING.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # not Linux, or hidden
        first, last = _OUTGOING_USUALLY
    return range(first, last + 1)


def _in_turn() -> Iterator[int]:
    outgoing = _outgoing()
    below, above = range(_LOWEST, outgoing.start), range(max(outgoing.stop, _LOWEST), _PORT_END)
    ports = [*chain(below, above)] or [*range(_LOWEST, _PORT_END)]
    random.SystemRandom().shuffle(ports)
    return cycle(ports)


_IN_TURN = _in_turn()
