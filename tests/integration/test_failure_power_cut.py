"""A power cut: what Valkey had not synced is gone. Every win that a citizen was told must be in what is left.

A kill alone does not try this, because the kernel keeps the pages of a killed process. So Valkey runs under a
watch (tests/syncs.py) that knows after which byte of the log the last sync returned; after the kill the log is
cut there, which is the disk as a power cut leaves it.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from stack.child import Child, Program
from stack.faults.drill import Weighed
from stack.valkey_server import ValkeyServer
from tests import stores, syncs
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock
from tests.crowds import AGREED, crowd_of, weigh_known

CITY = a_campaign("cut", a_round("noon", NOON, a_stock("cut_stock", quantity=20_000)))
LOG = ".incr.aof"

pytestmark = pytest.mark.skipif(not syncs.can_watch(), reason="this machine does not let us follow system calls")


class Cut(NamedTuple):
    """What came of a power cut."""

    acknowledged: int
    bytes_lost: int
    early_replies: int
    weighed: Weighed


async def power_cut(cluster: stores.Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch, appendfsync: str) -> Cut:
    """Clients claim, the power fails in the middle, and what was told is held against what is left."""
    seen = folder / "seen"
    plain = ValkeyServer.program
    monkeypatch.setattr(ValkeyServer, "program", lambda server: _watched(plain(server), seen))
    settings = {"appendfsync": appendfsync, "auto-aof-rewrite-percentage": "0"}
    async with open_city(cluster, folder, campaigns=[CITY], valkey_settings=settings) as city:
        monkeypatch.undo()
        crowd = crowd_of(city, "cut_stock")
        pid = (await city.valkey.client.info("server"))["process_id"]
        async with crowd.claims_go_on(4):
            await asyncio.sleep(0.7)
            os.kill(pid, signal.SIGKILL)
        await city.valkey.child.exited()
        events = syncs.read_events(seen)
        bytes_lost = _cut(city.valkey.server.data, syncs.synced_bytes(events))
        await _back(city)
        return Cut(len(crowd.won), bytes_lost, syncs.early_replies(events), await weigh_known(city, crowd))


def _watched(program: Program, seen: Path) -> Program:
    watch = (sys.executable, "-I", "-S", str(Path(syncs.__file__)), str(seen), LOG, "--")
    return replace(program, argv=(*watch, *program.argv))


def _cut(data: Path, synced: int) -> int:
    [log] = data.glob(f"appendonlydir/*{LOG}")
    size = log.stat().st_size
    os.truncate(log, synced)
    return size - synced


async def _back(city: City) -> None:
    child = Child(city.valkey.server.program())
    city.stack.callback(child.kill)
    await child.ready()
    await city.valkey.client.connection_pool.disconnect()


async def test_no_acknowledged_win_is_lost(
    cluster: stores.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = await power_cut(cluster, tmp_path, monkeypatch, "always")
    assert cut.acknowledged > 20
    assert cut.early_replies == 0, "an answer left before its entry was synced"
    assert cut.weighed == AGREED


async def test_control_without_a_sync_before_the_answer_wins_are_lost(
    cluster: stores.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill would not have told the two apart: the log was written, only not synced."""
    cut = await power_cut(cluster, tmp_path, monkeypatch, "no")
    assert cut.early_replies > 20
    assert cut.bytes_lost > 0
    assert len(cut.weighed.lost) == cut.acknowledged > 20


@pytest.mark.parametrize(
    ("events", "synced", "early"),
    [
        ([("W", 5), ("S", 5), ("R", 0), ("R", 0), ("W", 3), ("S", 8), ("R", 0)], 8, 0),
        ([("W", 5), ("R", 0), ("S", 5), ("R", 0)], 5, 1),
        ([("W", 5), ("S", 0), ("R", 0)], 0, 1),
        ([], 0, 0),
    ],
)
def test_the_watch_judges_the_order(events: Sequence[tuple[str, int]], synced: int, early: int) -> None:
    seen = [syncs.Event(*event) for event in events]
    assert (syncs.synced_bytes(seen), syncs.early_replies(seen)) == (synced, early)
