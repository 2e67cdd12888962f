"""Rounds of random faults, whoever is broken: load, faults, recovery, open questions, books; at the end the audits."""

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from random import Random
from time import monotonic
from typing import NamedTuple

from stack.audit import audit_city, check_client_log, read_log
from stack.errors import StackError
from stack.faults.field import LOST_TOUCH, Wired
from stack.faults.report import RECOVERY_MAX_S, Report
from stack.faults.witness import Witness

AUDIT_TRIES = 5


class Weighed(NamedTuple):
    """What does not agree between clients and books, in words that find it."""

    lost: list[str]
    """What clients were told was done, and is not there as told."""
    doubled: list[str]
    """What is there more than once."""
    unasked: list[str]
    """What is there and nobody sent, or was refused for good."""


class Drill(ABC):
    """Plays rounds and keeps the report. `seconds`: how long clients are at it before the faults of a round, about."""

    def __init__(self, ground: Wired, crowd: Witness, names: Collection[str], random: Random, seconds: float) -> None:
        self._ground = ground
        self._crowd = crowd
        self._random = random
        self._seconds = seconds
        self._recoveries: dict[str, list[float]] = defaultdict(list)
        self._rounds_s: list[float] = []
        self.report = Report(faults=dict.fromkeys(names, 0))

    @abstractmethod
    async def _begin(self, turn: int) -> None:
        """Makes a round ready, from 0."""

    @abstractmethod
    def _load(self) -> AbstractAsyncContextManager[None]:
        """Clients are at it as long as the block lasts."""

    @abstractmethod
    async def _inject(self, name: str, random: Random) -> float | None:
        """A fault; the moment (monotonic) at which it was over, None when it missed."""

    @abstractmethod
    async def _recovered(self, since: float) -> float:
        """Seconds from then on until everything works again."""

    @abstractmethod
    async def _resolve(self) -> None:
        """Clients ask again until they know."""

    @abstractmethod
    async def _weigh(self) -> tuple[int, Weighed]:
        """How much clients were told was done in this round, and what the books say of it."""

    async def round(self, turn: int, kinds: Sequence[str]) -> None:
        """Clients are at it, something breaks, the stack recovers, and everything that was told is looked up."""
        random = Random(self._random.getrandbits(64))
        await self._begin(turn)
        async with self._load():
            await asyncio.sleep(self._seconds * random.uniform(0.1, 0.9))
            over = await asyncio.gather(*(self._inject(name, Random(random.getrandbits(64))) for name in kinds))
            hits = {name: at for name, at in zip(kinds, over, strict=True) if at is not None}
            recovery_s = await self._recovered(max(hits.values(), default=monotonic()))
        where = f"round {turn + 1}, {' and '.join(hits) or 'all well'}"
        self._note_faults(where, kinds, hits, recovery_s)
        await self._resolve()
        self._note_books(where, *await self._weigh())

    def _note_faults(self, where: str, kinds: Sequence[str], hits: Collection[str], recovery_s: float) -> None:
        for name in kinds:
            self.report.count_fault(name, name in hits)
        for name in hits:
            self._recoveries[name].append(recovery_s)
        self._rounds_s.append(recovery_s)
        self.report.note_recovery(self._recoveries, self._rounds_s)
        if recovery_s > RECOVERY_MAX_S:
            self.report.add(f"{where}: recovery took {recovery_s:g} s")

    def _note_books(self, where: str, acknowledged: int, weighed: Weighed) -> None:
        crowd, report = self._crowd, self.report
        report.acknowledged += acknowledged
        report.lost += len(weighed.lost)
        report.doubled += len(weighed.doubled)
        for what in (*weighed.lost, *weighed.doubled, *weighed.unasked, *crowd.wrong):
            report.add(f"{where}: {what}")
        report.violations += crowd.wrong_count - len(crowd.wrong)
        crowd.wrong_count = 0
        crowd.wrong.clear()

    async def audit(self) -> None:
        """Both audits over everything, at the end."""
        ground, report = self._ground, self.report
        report.outcomes = dict(self._crowd.outcomes)
        report.slowest_answer_s = round(self._crowd.slowest_s, 3)
        await ground.caught_up()
        for _ in range(AUDIT_TRIES):
            with suppress(*LOST_TOUCH):
                await self._audit()
                return
            await asyncio.sleep(1)
        raise StackError(f"the audit could not be run; see {ground.stack.folder.logs}")

    async def _audit(self) -> None:
        ground, report = self._ground, self.report
        conn = await ground.auditor()
        try:
            async with ground.claim_store() as valkey:
                books = await audit_city(conn, valkey)
            ground.lines.flush()
            told = await check_client_log(conn, read_log(ground.log), ground.codes)
        finally:
            await conn.close(timeout=5)
        report.examined = books.examined + told.records
        for one in books.statements:
            report.add(*(f"ledger, {one.id}: {what}" for what in one.shown), count=one.violations)
        report.add(*(f"clients' log: {what}" for what in told.shown), count=told.violations)
