"""What every crowd has: signed requests, a count of answers, and an eye for what no client may ever see."""

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp
import msgspec

from kernel.clock import Clock
from kernel.signing import Signer
from stack.audit.clientlog import UNKNOWN

ANSWER_WITHIN_S = 8.0
"""Deadlines of the services are shorter; whoever waits longer hangs."""
WRONG_SHOWN_MAX = 20

UNSURE = frozenset({UNKNOWN, "SYSTEM_BUSY", "SYSTEM_ERROR", "FREQUENCY_LIMITED", "CONFIRMING"})
"""Outcomes after which any client sends the same request again."""
NO_ANSWER = (aiohttp.ClientError, TimeoutError, msgspec.DecodeError)


class Heard(NamedTuple):
    """One answer."""

    status: int
    body: Any
    replayed: bool


class Witness:
    """Clients that go to `addresses` (workers' base URLs) in turn.

    `wrong` shows the first, and `wrong_count` counts all, of what no client may ever see: a 500, another's
    reply, a hang, a 503 that does not say that it is safe to ask again.
    """

    def __init__(self, session: aiohttp.ClientSession, clock: Clock, addresses: Sequence[str]) -> None:
        self._session = session
        self._clock = clock
        self._turn = 0
        self.addresses = addresses
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.wrong_count = 0
        self.slowest_s = 0.0

    def complain(self, what: str) -> None:
        """Counts something that may never be, and shows it if it is among the first."""
        self.wrong_count += 1
        if len(self.wrong) < WRONG_SHOWN_MAX:
            self.wrong.append(what)

    def next_address(self) -> str:
        """The workers in turn, as a proxy in front of them would."""
        self._turn += 1
        return self.addresses[self._turn % len(self.addresses)]

    async def _post(self, signer: Signer, url: str, path: str, body: object, what: str) -> Heard:
        """Signs and sends one request, and waits ANSWER_WITHIN_S at most. Raises NO_ANSWER."""
        data, request_id = msgspec.json.encode(body), secrets.token_hex(8)
        header = signer.authorization(
            "POST", path, data, timestamp_s=self._clock.now_ms() // 1000, nonce=secrets.token_hex(8)
        )
        headers = {"Authorization": header, "Content-Type": "application/json", "X-Request-Id": request_id}
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
        try:
            async with self._session.post(url + path, data=data, headers=headers, timeout=timeout) as response:
                read = msgspec.json.decode(await response.read())
        except TimeoutError:
            self.complain(f"{what}: no answer in {ANSWER_WITHIN_S:g} s")
            raise
        if response.headers.get("X-Request-Id") != request_id:
            self.complain(f"{what}: another request's reply")
        if response.status == 503 and "Retry-After" not in response.headers:
            self.complain(f"{what}: a 503 without Retry-After")
        return Heard(response.status, read, "Idempotent-Replayed" in response.headers)

    def _code(self, status: int, body: Any, what: str) -> str:
        """The code of a refusal."""
        code = str(body["code"])
        if status == 500 or (status == 503 and body["retry"] != "SAFE"):
            self.complain(f"{what}: {status} {code}, retry {body['retry']}")
        return code
