"""Tills that use vouchers and take purchases back, come again when they are not sure, and write down what they hear."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from time import monotonic
from typing import Any

import aiohttp

from kernel.clock import Clock
from kernel.signing import Signer
from stack.audit.clientlog import UNKNOWN, Told
from stack.faults.till_asks import FACE_FEN, OFFLINE, REDEEM, Ask, Forms, Key, told_of
from stack.faults.witness import NO_ANSWER, UNSURE, Heard, Witness

TRIES_AT_ONCE = 3
TRY_AGAIN_S = 0.05
RESOLVED_AT_ONCE = 64
RESOLVE_WITHIN_S = 25.0

OPEN = UNSURE | {"SIGN_ERROR"}
"""After these a till sends the same request again; SIGN_ERROR, because a worker's clock may be wrong."""
SUCCESS = {"redeem": "REDEEMED", "refund": "REFUNDED", "hold": "HELD", "cancel": "CANCELLED"}


class Tills(Witness):
    """The tills of some shops.

    Of the present round: `asked` by key, `done` (key to what was answered), `refused` (key to a code that no
    retry changes), and `open` (not known yet, or to be sent again). `fresh` are vouchers nobody used yet,
    `fleeting` those of a stock that may run out in this round.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signers: Sequence[Signer],
        clock: Clock,
        addresses: Sequence[str],
        *,
        seed: int,
        write: Callable[[Told], None] = lambda told: None,
    ) -> None:
        super().__init__(session, clock, addresses)
        self._signers = {signer.holder_id: signer for signer in signers}
        self._write = write
        self._random = Random(seed)
        self.forms = Forms([*self._signers], clock, self._random)
        self.fresh: list[str] = []
        self.fleeting: list[str] = []
        self.begin(("", ""))

    def begin(self, stocks: Sequence[str]) -> None:
        """A new round: what came before was settled. `stocks`: of the fresh vouchers, and of the fleeting ones."""
        self.stocks = stocks
        self.asked: dict[Key, Ask] = {}
        self.done: dict[Key, Any] = {}
        self.refused: dict[Key, str] = {}
        self.open: set[Key] = set()
        self.contested: dict[str, list[Key]] = {}
        """By voucher: the requests of tills that all wanted it at once; just one may have it."""
        self.ended_twice: list[tuple[Key, Key]] = []
        """Confirmations and cancellations of one hold, sent at once; only one may be done."""
        self._sold: list[Ask] = []

    # ------------------------------------------------------------ asking

    async def ask(self, ask: Ask, address: str | None = None) -> None:
        """Sends a request once. What is not known afterwards is in `open`."""
        await self.ask_all([ask], address)

    async def ask_all(self, asks: Sequence[Ask], address: str | None = None) -> None:
        """Sends one request, or several of one shop that were taken offline as an upload, once."""
        for ask in asks:
            if ask.key not in self.asked:
                self.asked[ask.key] = ask
                self.open.add(ask.key)
        started = monotonic()
        try:
            heard = await self._send(asks, address or self.next_address())
        except asyncio.CancelledError:
            self._hear_nothing(asks)
            raise
        except NO_ANSWER:
            self._hear_nothing(asks)
            return
        self.slowest_s = max(self.slowest_s, monotonic() - started)
        for ask, answer in zip(asks, heard, strict=True):
            self._hear(ask, answer)

    async def _send(self, asks: Sequence[Ask], address: str) -> list[Heard]:
        first = asks[0]
        is_upload = first.path == OFFLINE
        body = {"redemptions": [ask.body for ask in asks]} if is_upload else first.body
        heard = await self._post(self._signers[first.key.shop], address, first.path, body, first.key.number)
        if not is_upload or heard.status != 200:
            return [heard] * len(asks)
        return [
            Heard(item["status"], item.get("redemption") or item["problem"], item.get("replayed", False))
            for item in heard.body["results"]
        ]

    def _hear(self, ask: Ask, heard: Heard) -> None:
        if heard.status == 200:
            if self.done.setdefault(ask.key, heard.body) != heard.body:
                self.complain(f"{ask.key.number}: two answers to one request")
            if ask.key in self.refused:
                self.complain(f"{ask.key.number}: done after it was refused ({self.refused[ask.key]})")
            self._note(ask, SUCCESS[ask.key.verb], heard.body.get("subsidy_fen"))
            return
        code = self._code(heard.status, heard.body, ask.key.number)
        if code not in OPEN:
            self.refused[ask.key] = str(heard.body.get("rule") or code)
            if ask.key in self.done:
                self.complain(f"{ask.key.number}: {self.refused[ask.key]}, after it was done")
        self._note(ask, code)

    def _hear_nothing(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            self._note(ask, UNKNOWN)

    def _note(self, ask: Ask, outcome: str, subsidy_fen: int | None = None) -> None:
        self.outcomes[outcome] += 1
        if outcome not in OPEN:
            self.open.discard(ask.key)
        # What is asked again decides nothing, wherever it stands among the answers.
        if (told := told_of(ask, UNKNOWN if outcome in OPEN else outcome, subsidy_fen)) is not None:
            self._write(told)

    # ------------------------------------------------------------ how tills behave

    @asynccontextmanager
    async def sales_go_on(self, clients: int, *, pause_s: float = 0.02) -> AsyncIterator[None]:
        """So many tills are at work as long as the block lasts."""
        stopping = asyncio.Event()
        tasks = [asyncio.create_task(self._till(stopping, pause_s)) for _ in range(clients)]
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*tasks)

    async def _till(self, stopping: asyncio.Event, pause_s: float) -> None:
        deeds = {
            self._sell: 50,
            self._sell_twice: 8,
            self._press_again: 8,
            self._send_another_body: 4,
            self._take_back: 15,
            self._hold: 12,
            self._upload: 3,
        }
        while not stopping.is_set():
            [deed] = self._random.choices([*deeds], weights=[*deeds.values()])
            await deed(stopping)
            await asyncio.sleep(pause_s * self._random.random())

    async def _sell(self, stopping: asyncio.Event) -> None:
        """A voucher nobody used yet. It is refused only where its stock ran out."""
        is_fleeting = bool(self.fleeting) and self._random.random() < 0.25
        purse = self.fleeting if is_fleeting else self.fresh
        if not purse:
            return
        ask = self.forms.sale(purse.pop())
        await self._insist(ask, stopping)
        if ask.key in self.done:
            self._sold.append(ask)
        elif ask.key in self.refused and not is_fleeting:
            self.complain(f"{ask.key.number}: {self.refused[ask.key]} for a voucher that nobody had used")

    async def _sell_twice(self, stopping: asyncio.Event) -> None:
        """Two shops want one voucher."""
        if self.fresh:
            await self.contest(2, stopping)

    async def contest(self, tills: int, stopping: asyncio.Event | None = None) -> None:
        """So many tills want one voucher at once, each under its own number."""
        code = self.fresh.pop()
        asks = [self.forms.sale(code) for _ in range(tills)]
        self.contested[code] = [ask.key for ask in asks]
        await asyncio.gather(*(self._insist(ask, stopping) for ask in asks))

    async def _press_again(self, stopping: asyncio.Event) -> None:
        """A request once more, as it was."""
        if self._sold:
            await self.ask(self._random.choice(self._sold))

    async def _send_another_body(self, stopping: asyncio.Event) -> None:
        """A number that was used, with another bill: refused, whatever else goes on."""
        if not self._sold:
            return
        sold = self._random.choice(self._sold)
        number, another = sold.key.number, sold.fen + 1
        body = {"use_request_no": number, "voucher_code": sold.code, "order_no": sold.order_no, "bill_fen": another}
        try:
            [heard] = await self._send([sold._replace(path=REDEEM, body=body)], self.next_address())
        except NO_ANSWER:
            return
        if heard.status != 422 and heard.body.get("code") not in OPEN:
            self.complain(f"{number}: {heard.status} for another bill under its number")

    async def _take_back(self, stopping: asyncio.Event) -> None:
        """A purchase is taken back, at times in parts, at times twice at once; its voucher may then be used again."""
        if not self._sold:
            return
        sold = self._sold.pop(self._random.randrange(len(self._sold)))
        paid_fen, way = sold.fen - FACE_FEN, self._random.random()
        part_fen = self._random.randint(1, paid_fen - 1)
        amounts = [part_fen, paid_fen - part_fen] if way < 0.25 else [paid_fen, paid_fen] if way < 0.5 else [paid_fen]
        backs = [self.forms.back(sold, fen) for fen in amounts]
        await asyncio.gather(*(self._insist(back, stopping) for back in backs))
        alive = [back for back in backs if self.done.get(back.key, {}).get("voucher_state") == "EFFECTIVE"]
        if alive and self._random.random() < 0.5:
            again = self.forms.sale(sold.code)
            await self._insist(again, stopping)
            if again.key in self.done:
                self._sold.append(again)

    async def _hold(self, stopping: asyncio.Event) -> None:
        """A voucher is kept; then the payment goes through, or does not, or nobody is sure, or it is forgotten."""
        if not self.fresh:
            return
        hold = self.forms.hold(self.fresh.pop())
        await self._insist(hold, stopping)
        if hold.key not in self.done:
            return
        confirm, cancel, way = self.forms.confirm(hold), self.forms.cancel(hold), self._random.random()
        ends = [confirm] if way < 0.4 else [cancel] if way < 0.6 else [confirm, cancel] if way < 0.85 else []
        if len(ends) == 2:
            self.ended_twice.append((confirm.key, cancel.key))
        await asyncio.gather(*(self._insist(end, stopping) for end in ends))
        if confirm.key in self.done:
            self._sold.append(confirm)

    async def holds_that_run_out(self, vouchers: int, time_passes: Callable[[], None]) -> None:
        """So many vouchers are kept; their time ends while some payments go through, and others want them, too.
        Whoever comes afterwards can use those that were not paid with."""
        never, holds = asyncio.Event(), [self.forms.hold(self.fresh.pop()) for _ in range(vouchers)]
        await asyncio.gather(*(self._insist(hold, never) for hold in holds))
        rushing = [self._insist(self.forms.confirm(hold), never) for hold in holds[::2]]
        rushing += [self._insist(self.forms.sale(hold.code), never) for hold in holds[::3]]
        asyncio.get_running_loop().call_later(self._random.random() * 0.02, time_passes)
        await asyncio.gather(*rushing)
        await asyncio.sleep(0.03)
        used = {self.asked[key].code for key in [*self.done, *self.open] if key.verb == "redeem"}
        free = [hold.code for hold in holds if hold.key in self.done and hold.code not in used]
        late = [self.forms.sale(code) for code in free]
        await asyncio.gather(*(self._insist(sale, never) for sale in late))
        for sale in late:
            if sale.key in self.refused:
                self.complain(f"{sale.key.number}: {self.refused[sale.key]}, though the hold ran out")

    async def _upload(self, stopping: asyncio.Event) -> None:
        """A till that was offline sends what it took meanwhile, twice; another till wants one of the vouchers."""
        if len(self.fresh) < 10:
            return
        taken = [self.forms.sale(self.fresh.pop(), is_offline=True) for _ in range(self._random.randint(2, 8))]
        taken = [ask._replace(key=ask.key._replace(shop=taken[0].key.shop)) for ask in taken]
        rival = self.forms.sale(taken[0].code)
        self.contested[rival.code] = [taken[0].key, rival.key]
        await asyncio.gather(self.ask_all(taken), self._insist(rival, stopping), self.ask_all(taken))

    async def take_back_many(self, purchases: int) -> None:
        """So many purchases are taken back at once."""
        never = asyncio.Event()
        await asyncio.gather(*(self._take_back(never) for _ in range(purchases)))

    async def _insist(self, ask: Ask, stopping: asyncio.Event | None) -> None:
        for attempt in range(TRIES_AT_ONCE):
            await self.ask(ask)
            if ask.key not in self.open or (stopping is not None and stopping.is_set()):
                return
            await asyncio.sleep(TRY_AGAIN_S * (attempt + 1))

    async def go_away(self, tills: int, within_s: float) -> int:
        """So many send a redemption and close their connection soon; how many did so before they had their answer."""

        async def one() -> bool:
            task = asyncio.create_task(self.ask(self.forms.sale(self.fresh.pop())))
            await asyncio.sleep(self._random.random() * within_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return task.cancelled()

        return sum(await asyncio.gather(*(one() for _ in range(min(tills, len(self.fresh))))))

    async def probe(self, address: str) -> bool:
        """One new redemption at one worker: was it done?"""
        ask = self.forms.sale(self.fresh.pop())
        await self.ask(ask, address)
        return ask.key in self.done

    async def resolve(self) -> None:
        """Asks again, with the same numbers, until everything is known; then looks who got what many wanted."""
        deadline = monotonic() + RESOLVE_WITHIN_S
        while self.open and monotonic() < deadline:
            keys = sorted(self.open)
            for start in range(0, len(keys), RESOLVED_AT_ONCE):
                await asyncio.gather(*(self.ask(self.asked[key]) for key in keys[start : start + RESOLVED_AT_ONCE]))
            if self.open:
                await asyncio.sleep(TRY_AGAIN_S * 4)
        for key in sorted(self.open):
            self.complain(f"{key.number}: still not known after {RESOLVE_WITHIN_S:g} s")
        for code, keys in self.contested.items():
            had = sum(key in self.done for key in keys)
            if had != 1 and not self.open:
                self.complain(f"voucher {code}: {had} of {len(keys)} tills had it")
        for confirm, cancel in self.ended_twice:
            if confirm in self.done and cancel in self.done:
                self.complain(f"{confirm.number}, {cancel.number}: a hold was confirmed, and cancelled, too")
