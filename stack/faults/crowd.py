"""Clients who claim, come again when they are not sure, and write down everything they were told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from random import Random
from time import monotonic
from typing import Any, NamedTuple

import aiohttp

from kernel.clock import Clock
from kernel.signing import Signer
from stack.audit.clientlog import UNKNOWN, ClaimTold
from stack.faults.witness import NO_ANSWER, UNSURE, Witness

TRIES_AT_ONCE = 3
TRY_AGAIN_S = 0.05
BATCH_MAX = 20
RESOLVE_BATCH = 200
RESOLVE_WITHIN_S = 20.0

OPEN = UNSURE | {"NOT_STARTED", "PAUSED"}
"""Outcomes after which a client sends the same request again."""


class Ask(NamedTuple):
    """One claim of one citizen."""

    number: str
    stock_id: str
    person: str


class Crowd(Witness):
    """Citizens of one platform. Each claim is signed, each goes to one of `addresses`.

    `won` (number to code), `asked` and `open` (not known yet, or to be sent again) are of the present round.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signer: Signer,
        clock: Clock,
        addresses: Sequence[str],
        stocks: Sequence[str],
        *,
        seed: int,
        write: Callable[[ClaimTold], None] = lambda told: None,
    ) -> None:
        super().__init__(session, clock, addresses)
        self._signer = signer
        self._write = write
        self._random = Random(seed)
        self._seed = seed
        self._people = 0
        self._prefix = "r0"
        self.stocks = stocks
        self.asked: dict[str, Ask] = {}
        self.won: dict[str, str] = {}
        self.open: set[str] = set()

    def begin(self, round_no: int, stocks: Sequence[str]) -> None:
        """A new round with numbers of its own: what came before was settled."""
        self._prefix = f"r{round_no}"
        self.stocks = stocks
        self.asked, self.won, self.open = {}, {}, set()

    def new_ask(self) -> Ask:
        """A claim of somebody who never claimed. One in four wants the last stock, which is small."""
        self._people += 1
        person = sha256(b"%d %d" % (self._seed, self._people)).hexdigest()[:32]
        stock = self.stocks[-1] if self._random.random() < 0.25 else self.stocks[0]
        return Ask(f"{self._prefix}-{self._people:08}", stock, person)

    # ------------------------------------------------------------ asking

    async def ask(self, asks: Sequence[Ask], address: str | None = None) -> None:
        """Sends one claim, or several as a batch, once. What is not known afterwards is in `open`."""
        for ask in asks:
            self.asked[ask.number] = ask
            self.open.add(ask.number)
        started = monotonic()
        try:
            replies = await self._send(asks, address or self.next_address())
        except asyncio.CancelledError:
            self._hear_nothing(asks)
            raise
        except NO_ANSWER:
            self._hear_nothing(asks)
            return
        self.slowest_s = max(self.slowest_s, monotonic() - started)
        for ask, (status, body) in zip(asks, replies, strict=True):
            self._hear(ask, status, body)

    async def _send(self, asks: Sequence[Ask], address: str) -> list[tuple[int, Any]]:
        claims = [{"out_request_no": ask.number, "stock_id": ask.stock_id, "person_token": ask.person} for ask in asks]
        single = len(claims) == 1
        path, body = ("/v1/claims", claims[0]) if single else ("/v1/claims:batch", {"claims": claims})
        heard = await self._post(self._signer, address, path, body, asks[0].number)
        if single or heard.status != 200:
            return [(heard.status, heard.body)] * len(asks)
        return [(item["status"], item.get("claim") or item["problem"]) for item in heard.body["results"]]

    def _hear(self, ask: Ask, status: int, body: Any) -> None:
        if status == 200:
            self._hear_won(ask, body)
            return
        self._note(ask, self._code(status, body, ask.number))

    def _hear_won(self, ask: Ask, body: Any) -> None:
        code = str(body["voucher_code"])
        if (body["out_request_no"], body["stock_id"]) != (ask.number, ask.stock_id):
            self.complain(f"{ask.number}: the voucher of {body['out_request_no']}")
        if self.won.setdefault(ask.number, code) != code:
            self.complain(f"{ask.number}: told two codes")
        self._note(ask, "GRANTED", code)

    def _hear_nothing(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            self._note(ask, UNKNOWN)

    def _note(self, ask: Ask, outcome: str, code: str | None = None) -> None:
        self.outcomes[outcome] += 1
        if outcome not in OPEN:
            self.open.discard(ask.number)
        self._write(
            ClaimTold(
                outcome=outcome,
                partner_id=self._signer.holder_id,
                person_token=ask.person,
                stock_id=ask.stock_id,
                out_request_no=ask.number,
                voucher_code=code,
            )
        )

    # ------------------------------------------------------------ how people behave

    @asynccontextmanager
    async def claims_go_on(self, clients: int, *, pause_s: float = 0.02) -> AsyncIterator[None]:
        """So many clients claim, one citizen after the other, as long as the block lasts."""
        stopping = asyncio.Event()
        tasks = [asyncio.create_task(self._client(stopping, pause_s)) for _ in range(clients)]
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*tasks)

    async def _client(self, stopping: asyncio.Event, pause_s: float) -> None:
        while not stopping.is_set():
            batched = self._random.random() < 0.2
            asks = [self.new_ask() for _ in range(self._random.randint(2, BATCH_MAX) if batched else 1)]
            await self._insist(asks, stopping)
            if self._random.random() < 0.05:  # presses once more, under another number
                await self.ask([asks[0]._replace(number=f"{asks[0].number}-again")])
            await asyncio.sleep(pause_s * self._random.random())

    async def _insist(self, asks: Sequence[Ask], stopping: asyncio.Event) -> None:
        for attempt in range(TRIES_AT_ONCE):
            await self.ask(asks)
            asks = [ask for ask in asks if ask.number in self.open]
            if not asks or stopping.is_set():
                return
            await asyncio.sleep(TRY_AGAIN_S * (attempt + 1))

    async def go_away(self, people: int, within_s: float) -> int:
        """So many send a claim and close their connection soon; how many did so before they had their answer."""

        async def one() -> bool:
            task = asyncio.create_task(self.ask([self.new_ask()]))
            await asyncio.sleep(self._random.random() * within_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return task.cancelled()

        return sum(await asyncio.gather(*(one() for _ in range(people))))

    async def probe(self, address: str) -> bool:
        """One claim of a new citizen at one worker: was it granted?"""
        ask = self.new_ask()._replace(stock_id=self.stocks[0])
        await self.ask([ask], address)
        return ask.number in self.won

    async def resolve(self) -> None:
        """Asks again, with the same numbers, until everything is known."""
        deadline = monotonic() + RESOLVE_WITHIN_S
        while self.open and monotonic() < deadline:
            numbers = sorted(self.open)
            for start in range(0, len(numbers), RESOLVE_BATCH):
                await self.ask([self.asked[number] for number in numbers[start : start + RESOLVE_BATCH]])
            if self.open:
                await asyncio.sleep(TRY_AGAIN_S * 4)
        for number in sorted(self.open):
            self.complain(f"{number}: still not known after {RESOLVE_WITHIN_S:g} s")
