"""The rush: everyone presses the button at noon."""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from random import Random

import msgspec

from kernel.clock import Clock
from kernel.signing import Signer
from stack.audit.clientlog import UNKNOWN, ClaimTold
from stack.demo.client import Client, Reply
from stack.demo.people import Citizen

BATCH = 200
BATCHES_AT_ONCE = 4
SINGLES_AT_ONCE = 48
CLICKS_AGAIN = 0.02
"""Share of winners who press once more, under a new number: refused, and no stock is eaten."""
ASKS_AGAIN = 0.01
"""Share of answers that get lost on the way to the phone: the same number must bring the same voucher."""


class Press(msgspec.Struct, frozen=True):
    """One press of the button; `turn` counts the citizen's categories tried so far."""

    citizen: Citizen
    turn: int
    number: str
    repeats: str | None = None
    """The code that a repeated request must bring again."""


class Won(msgspec.Struct, frozen=True):
    """A voucher in a citizen's hand."""

    code: str
    person: str
    category: str
    face_fen: int
    minimum_fen: int
    partner_id: str
    stock_id: str
    out_request_no: str


class Platform(msgspec.Struct, frozen=True):
    """A partner: its key, its stocks by category, and whether it sends its users' claims in batches."""

    partner_id: str
    signer: Signer
    stock_ids: Mapping[str, str]
    batches: bool


class Rush(msgspec.Struct):
    """What the clients saw at noon."""

    won: list[Won] = msgspec.field(default_factory=list)
    told: list[ClaimTold] = msgspec.field(default_factory=list)
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    demand: dict[str, set[str]] = msgspec.field(default_factory=lambda: defaultdict(set))
    """People who asked for a stock and were let through or found it sold out."""
    latencies_ms: list[float] = msgspec.field(default_factory=list)
    answered: int = 0
    lost: int = 0
    replays_wrong: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0


class Noon:
    """Plays the rush of one round against the claim service."""

    def __init__(
        self, client: Client, clock: Clock, opens_at: datetime, seed: int, advance: Callable[[int], None]
    ) -> None:
        self._client = client
        self._clock = clock
        self._opens_at = opens_at
        self._random = Random(seed)
        self._advance = advance
        self._numbers = 0
        self.rush = Rush()

    async def play(self, platforms: Sequence[Platform], citizens: Sequence[Citizen]) -> Rush:
        """All platforms at once, until nobody wants to press any more."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for platform in platforms:
                crowd = [citizen for citizen in citizens if citizen.partner_id == platform.partner_id]
                group.create_task(self._platform(platform, crowd))
        self.rush.ended_s = loop.time()
        return self.rush

    async def _platform(self, platform: Platform, crowd: Sequence[Citizen]) -> None:
        early = [self._press(citizen) for citizen in crowd if citizen.early]
        await self._send_all(platform, deque(early))
        wait_s = (self._opens_at - self._clock.now()).total_seconds()
        await asyncio.sleep(max(wait_s, 0))
        self.rush.started_s = self.rush.started_s or asyncio.get_running_loop().time()
        await self._send_all(platform, deque(self._press(citizen) for citizen in crowd))

    async def _send_all(self, platform: Platform, presses: deque[Press]) -> None:
        at_once, size = (BATCHES_AT_ONCE, BATCH) if platform.batches else (SINGLES_AT_ONCE, 1)

        async def worker() -> None:
            while presses:
                some = [presses.popleft() for _ in range(min(size, len(presses)))]
                for press, reply in zip(some, await self._send(platform, some), strict=True):
                    presses.extend(self._hear(platform, press, reply))

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())

    async def _send(self, platform: Platform, presses: Sequence[Press]) -> list[Reply]:
        claims = [_body(platform, press) for press in presses]
        if not platform.batches:
            reply = await self._client.post(platform.signer, "/v1/claims", claims[0])
            self.rush.latencies_ms.append(reply.latency_ms)
            return [reply]
        reply = await self._client.post(platform.signer, "/v1/claims:batch", {"claims": claims})
        if reply.status != 200:
            return [reply] * len(presses)
        return [_item(item, reply.latency_ms) for item in reply.body["results"]]

    def _hear(self, platform: Platform, press: Press, reply: Reply) -> list[Press]:
        rush, citizen = self.rush, press.citizen
        category = citizen.categories[press.turn]
        stock_id = platform.stock_ids[category]
        self._advance(1)
        rush.answered += 1
        rush.told.append(_told(platform, press, stock_id, reply))
        if reply.status == 200:
            rush.demand[stock_id].add(citizen.person)
            return self._celebrate(press, category, reply)
        if reply.status == 0:
            rush.lost += 1
            return []
        rush.refused[reply.code] += 1
        if reply.code != "SOLD_OUT":
            return []
        rush.demand[stock_id].add(citizen.person)
        last = press.turn + 1 >= len(citizen.categories)
        return [] if last else [self._press(citizen, press.turn + 1)]

    def _celebrate(self, press: Press, category: str, reply: Reply) -> list[Press]:
        code = reply.body["voucher_code"]
        if press.repeats is not None:
            self.rush.replays_wrong += code != press.repeats or not reply.replayed
            return []
        self.rush.won.append(_won(press, category, reply))
        chance = self._random.random()
        if chance < ASKS_AGAIN:
            return [msgspec.structs.replace(press, repeats=code)]
        return [self._press(press.citizen, press.turn)] if chance < ASKS_AGAIN + CLICKS_AGAIN else []

    def _press(self, citizen: Citizen, turn: int = 0) -> Press:
        self._numbers += 1
        return Press(citizen, turn, f"grab-{self._numbers:09}")


def _body(platform: Platform, press: Press) -> dict[str, str]:
    citizen = press.citizen
    return {
        "out_request_no": press.number,
        "stock_id": platform.stock_ids[citizen.categories[press.turn]],
        "person_token": citizen.person,
        "device_token": citizen.device,
    }


def _item(item: dict[str, object], latency_ms: float) -> Reply:
    body = item.get("claim") or item.get("problem")
    status = item["status"]
    assert isinstance(status, int)
    return Reply(status, body, latency_ms, bool(item.get("replayed", False)))


def _won(press: Press, category: str, reply: Reply) -> Won:
    body = reply.body
    return Won(
        body["voucher_code"],
        press.citizen.person,
        category,
        body["face_value_fen"],
        body["transaction_minimum_fen"],
        press.citizen.partner_id,
        body["stock_id"],
        body["out_request_no"],
    )


def _told(platform: Platform, press: Press, stock_id: str, reply: Reply) -> ClaimTold:
    granted = reply.status == 200
    return ClaimTold(
        outcome="GRANTED" if granted else reply.code or UNKNOWN,
        partner_id=platform.partner_id,
        person_token=press.citizen.person,
        stock_id=stock_id,
        out_request_no=press.number,
        voucher_code=reply.body["voucher_code"] if granted else None,
    )
