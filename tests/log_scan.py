"""Looks through log files for what must not be in them: what is known of people and secrets, and what looks like it."""

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from kernel.codes import grouped

_LOOKS = {
    "a phone number": re.compile(rb"(?<![0-9A-Za-z])1[3-9]\d{9}(?![0-9A-Za-z])"),
    "an id number": re.compile(rb"(?<!\d)[1-9]\d{5}(?:19|20)\d{9}[\dXx](?!\d)"),
    "an Authorization header": re.compile(rb"(?i)HANQUAN-(?:HMAC|RSA)|mchid\W|signature\W{1,3}[A-Za-z0-9+/]{20}"),
}


@dataclass
class Known:
    """What a test told or was told. Tokens are hex, codes as answered."""

    tokens: set[str] = field(default_factory=set)
    codes: set[str] = field(default_factory=set)
    secrets: set[bytes] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def spellings(self) -> Iterator[tuple[str, bytes]]:
        """Everything in each form that a log could show; compared without regard to case."""
        for token in self.tokens:
            raw = bytes.fromhex(token)
            yield from (("a token", form) for form in (token.encode(), str(UUID(token)).encode(), raw))
            yield "a token", repr(raw)[2:-1].encode()
        for code in self.codes:
            yield from (("a voucher's code", form.encode()) for form in (code, grouped(code)))
        for secret in self.secrets:
            yield from (("a secret", form) for form in (secret, secret.hex().encode(), base64.b64encode(secret)))
        yield from (("a text", text.encode()) for text in self.texts)


def leaks(log: bytes, known: Known) -> list[str]:
    """What was found, each with the line; empty when the log is clean."""
    folded = log.lower()
    found = [f"{what}: {_line(folded, form.lower())}" for what, form in known.spellings() if form.lower() in folded]
    return found + [f"{what}: {line!r}" for what, line in _looks(log.splitlines())]


def _looks(lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    for line in lines:
        yield from ((what, line) for what, pattern in _LOOKS.items() if pattern.search(line))


def _line(log: bytes, part: bytes) -> str:
    at = log.index(part)
    return repr(log[max(0, at - 80) : at + len(part) + 20])
