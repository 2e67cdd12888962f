"""What operators' commands share: a seat at the stores of the stack that runs, and how a refusal is told."""

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg
import structlog

from antifraud.gate import GateLimits
from issuer.operator.office import Office
from issuer.operator.store import StockBook
from issuer.stock import StockStore
from kernel.clock import open_clock
from kernel.errors import Refusal, Unavailable
from kernel.staff import STAFF_NAME_LENGTH_MAX, tidy_staff_name
from kernel.valkey import open_valkey
from stack.data_folder import DataFolder
from stack.errors import StackError
from stack.reach import Reach

ROLE = "hanquan_operator"
COMMAND_TIMEOUT_S = 15.0

Answer = TypeVar("Answer")


@asynccontextmanager
async def office(data: Path, by: str = "nobody") -> AsyncIterator[Office]:
    """An operator at the stores of the stack that runs in a data folder. Raises StackError when none runs, or when a
    store does not answer; the same command may then be given again."""
    _log_to_stderr()
    reach, name = Reach(DataFolder(data)), staff_name(by)
    settings = {"application_name": "operator", "TimeZone": "UTC"}
    conn = await asyncpg.connect(
        reach.dsn(ROLE), timeout=5, command_timeout=COMMAND_TIMEOUT_S, server_settings=settings
    )
    valkey = open_valkey(reach.valkey_url, connections=32)
    try:
        shards, now = await StockBook(conn).shards(), open_clock(os.environ.get("HANQUAN_CLOCK_FILE")).now()
        store = StockStore(valkey, GateLimits(), reach.replicas_acked)
        yield Office(conn=conn, store=store, shards=shards, by=name, now=now)
    except (Unavailable, TimeoutError) as error:
        raise StackError(f"not finished, give the same command again: {str(error) or type(error).__name__}") from error
    finally:
        await valkey.aclose()
        await conn.close(timeout=5)


def _log_to_stderr() -> None:
    """What goes wrong only, and never between the lines of an answer."""
    loud = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=loud, logger_factory=structlog.PrintLoggerFactory(sys.stderr))


def staff_name(name: str) -> str:
    """A name as it is signed. Raises StackError when it is none."""
    tidy = tidy_staff_name(name)
    if tidy is None:
        raise StackError(f"a name of 1 to {STAFF_NAME_LENGTH_MAX} printable characters must sign this")
    return tidy


def granted(answer: Answer | Refusal) -> Answer:
    """The answer, or the refusal as one line for the user."""
    if isinstance(answer, Refusal):
        raise StackError(f"{answer.rule or answer.code}: {answer.detail}")
    return answer
