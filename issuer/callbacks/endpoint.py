"""A partner's address on the network: one POST at a time is judged here, and nothing else reaches out.

The address was given by someone else, so it is not trusted: no redirects, no cookies, no proxies from the
environment, a bounded answer, a deadline; and unless the subscription says so, only https and only public
addresses. The address is checked where the connection is made, after the name was resolved, so a name that
changes its mind does not help.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp

DEADLINE_S = 5.0
"""Connecting, sending and the first line of the answer together."""
ANSWER_BYTES_MAX = 4_096
PEEK_S = 0.2
"""How long the words of an answer are waited for once its status is known."""
TAKEN = (200, 204)
ERROR_CHARS_MAX = 200
URL_CHARS_MAX = 500


def complaint_about(url: str, *, may_be_private: bool) -> str | None:
    """What is wrong with a partner's URL, or None. An address that is a name is judged when it is called."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"it cannot be read: {error}"
    if parts.scheme != "https" and not (may_be_private and parts.scheme == "http"):
        return "it must begin with https://"
    if (
        not host
        or parts.username is not None
        or parts.fragment
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    ):
        return "it must be of the form https://host[:port]/path, without user, password and fragment"
    if len(url) > URL_CHARS_MAX:
        return f"it has more than {URL_CHARS_MAX} characters"
    with suppress(ValueError):
        if not may_be_private and not is_public(host):
            return f"{host} is not a public address"
    return None


def is_public(host: str) -> bool:
    """Whether an IP address is one of the public internet. ValueError when it is no IP address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_global and not mapped.is_multicast


class Endpoint:
    """Sends to one URL. Made inside a running loop; `close` it at the end."""

    def __init__(self, url: str, *, may_be_private: bool, connections: int) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections, socket_factory=None if may_be_private else _public_socket
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=DEADLINE_S),
            headers={"User-Agent": "Hanquan-Callbacks"},
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> str | None:
        """None when the partner took it (200 or 204 within the deadline), else why not, in a line."""
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                return await _judge(response)
        except TimeoutError:
            return f"no answer within {DEADLINE_S:.0f} s"
        except aiohttp.ClientConnectorCertificateError:
            return "its certificate is not trusted"
        except aiohttp.ClientConnectorDNSError:
            return "its name does not resolve"
        except aiohttp.ClientConnectorError as error:
            return _line(f"cannot connect: {error.os_error.strerror or error.os_error}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _line(f"{type(error).__name__}: {error}")


async def _judge(response: aiohttp.ClientResponse) -> str | None:
    said = b""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(PEEK_S):
            said = await response.content.read(ANSWER_BYTES_MAX)  # also lets the connection be used again
    if response.status in TAKEN:
        return None
    if 300 <= response.status < 400:
        return f"HTTP {response.status}: redirects are not followed"
    return _line(f"HTTP {response.status} {said.decode('utf-8', 'replace')}")


def _line(text: str) -> str:
    """One line that is safe to show on a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)[:ERROR_CHARS_MAX].strip()


def _public_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, where = address
    if not is_public(where[0]):
        raise OSError(errno.EACCES, f"{where[0]} is not a public address")
    return socket.socket(family=family, type=kind, proto=protocol)
