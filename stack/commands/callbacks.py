"""./hanquan callbacks: who is told what became of vouchers, what is stuck, and what to send again."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import asyncpg
import msgspec
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from issuer.callbacks import desk
from issuer.callbacks.envelope import CallbackKey
from issuer.callbacks.event import Kind
from issuer.callbacks.retry import DEFAULT_RETRY_AFTER_S
from kernel.clock import CITY_ZONE, open_clock, rfc3339
from kernel.postgres import Connection
from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.reach import Reach

ROLE = "hanquan_operator"
SHOWN_MAX = 50
WIDTH_MAX = 400

Answer = TypeVar("Answer")

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
Partner = Annotated[str, Parameter(help="The partner's id in the campaign file.")]

app = App(name="callbacks", help="Tell partners what became of their vouchers; see and mend what did not arrive.")


@dataclass(frozen=True)
class _Seat:
    conn: Connection
    master_key: bytes
    now: datetime


@app.command
def subscribe(
    partner: Partner,
    url: Annotated[str, Parameter(help="Where messages are posted to.")],
    *,
    events: Annotated[str, Parameter(help="Kinds of event, with commas between.")] = ",".join(Kind),
    schedule: Annotated[
        str, Parameter(help="Seconds from each failed attempt to the next, with commas between.")
    ] = ",".join(map(str, DEFAULT_RETRY_AFTER_S)),
    allow_private: Annotated[
        bool, Parameter(negative=(), help="Take http:// and addresses that are not public: a leased line, a test.")
    ] = False,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Begin or change a partner's subscription. The first time its key is printed, this once."""
    wish = desk.Wish(url=url, kinds=_kinds(events), may_be_private=allow_private, retry_after_s=_seconds(schedule))
    done = _granted(run(_subscribe(data, partner, wish)))
    if json:
        _print_json({"partner_id": partner, "url": url, "kinds": done.kinds, "key": done.key and _shown(done.key)})
        return
    out.print(f"{partner} is told of {', '.join(done.kinds)} at {url}", markup=False, soft_wrap=True)
    if done.key is not None:
        _print_key(done.key)


@app.command
def rotate(
    partner: Partner,
    *,
    in_hours: Annotated[int, Parameter(help="When the new key takes over; 0: at once.")] = 24,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Give a partner a new key. Until it takes over, the partner puts it beside the old one."""
    if in_hours < 0:
        raise StackError("a key takes over in 0 hours or more")
    key, since = _granted(run(_rotate(data, partner, in_hours)))
    if json:
        _print_json({"partner_id": partner, "key": _shown(key), "not_before": rfc3339(since)})
        return
    out.print(f"{partner}: the new key seals messages from {rfc3339(since)} on", markup=False)
    _print_key(key)


@app.command
def unsubscribe(partner: Partner, *, data: Data = DEFAULT) -> None:
    """Tell a partner nothing more. What waits stays, and goes out if it subscribes again."""
    _granted(run(_unsubscribe(data, partner)))
    out.print(f"{partner} is told nothing more", markup=False)


@app.command(name="list")
def list_subscriptions(*, json: Json = False, data: Data = DEFAULT) -> None:
    """List subscriptions."""
    listed = run(_list(data)) or []
    if json:
        _print_json(listed)
        return
    table = _table("partner", "state", "events", "url", "newest key", "since")
    for one in listed:
        state = "active" if one.is_active else "ended"
        newest = one.serial_nos[0] if one.serial_nos else "none"
        table.add_row(one.partner_id, state, ",".join(one.kinds), _plain(one.url), newest, _time(one.changed_at))
    _print(table if listed else "nobody subscribes")


@app.command
def status(*, json: Json = False, data: Data = DEFAULT) -> None:
    """Say for each subscriber what waits, since when, and what was given up."""
    queues, expiries, now = run(_status(data)) or ([], 0, None)
    if json:
        _print_json({"queues": queues, "open_expiries": expiries})
        return
    table = _table("partner", "state", "waiting >", "due >", "oldest >", "delivered >", "dead >", "last delivered")
    for one in queues:
        counts = (f"{one.waiting:,}", f"{one.due:,}", _age(one.oldest_at, now), f"{one.delivered:,}", f"{one.dead:,}")
        state = "active" if one.is_active else "ended"
        table.add_row(one.partner_id, state, *counts, _time(one.last_delivered_at))
    _print(table if queues else "nobody subscribes")
    if expiries:
        _print(f"{expiries} expiries (stock and bucket) are still being turned into events")


@app.command
def dead(
    *,
    partner: Annotated[str | None, Parameter(help="Of this partner only.")] = None,
    limit: int = SHOWN_MAX,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """List events that were given up, the newest first, and why."""
    letters, now = run(_dead(data, partner, limit)) or ([], None)
    if json:
        _print_json(letters)
        return
    table = _table("event", "partner", "happened", "tries >", "given up >", "last answer")
    for one in letters:
        age = _age(one.died_at, now)
        table.add_row(one.event_id, one.partner_id, _time(one.happened_at), str(one.tries), age, _plain(one.last_error))
    _print(table if letters else "no dead letters")


@app.command
def redeliver(
    event_ids: Annotated[list[str] | None, Parameter(help="Ids of events, delivered or dead.")] = None,
    /,
    *,
    partner: Annotated[str | None, Parameter(help="All dead letters of this partner.")] = None,
    since: Annotated[str | None, Parameter(help="Of what happened since: 2020-04-23 or 2020-04-23T12:00.")] = None,
    delivered_too: Annotated[bool, Parameter(negative=(), help="With --partner: what was delivered, too.")] = False,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Put events back at the start of their schedule. They keep their ids."""
    if bool(event_ids) == bool(partner) or bool(partner) != bool(since):
        raise StackError("name events by their ids, or --partner with --since")
    if partner is not None and since is not None:
        count = _granted(run(_redeliver_since(data, partner, _moment(since), delivered_too)))
    else:
        count = _granted(run(_redeliver(data, event_ids or [])))
    if json:
        _print_json({"events": count})
    else:
        _print(f"{count} event{'' if count == 1 else 's'} will be sent again")


# ---------------------------------------------------------------- at the database


@asynccontextmanager
async def _seat(data: Path) -> AsyncIterator[_Seat]:
    reach = Reach(DataFolder(data))
    clock = open_clock(os.environ.get("HANQUAN_CLOCK_FILE"))
    conn = await asyncpg.connect(reach.dsn(ROLE), timeout=5, command_timeout=60, server_settings={"TimeZone": "UTC"})
    try:
        yield _Seat(conn, bytes.fromhex(reach.secrets.master_key), clock.now())
    finally:
        await conn.close(timeout=5)


async def _subscribe(data: Path, partner: str, wish: desk.Wish) -> desk.Subscribed | desk.Refused:
    async with _seat(data) as seat:
        return await desk.subscribe(seat.conn, seat.master_key, partner, wish, seat.now)


async def _rotate(data: Path, partner: str, in_hours: int) -> tuple[CallbackKey, datetime] | desk.Refused:
    async with _seat(data) as seat:
        since = seat.now + timedelta(hours=in_hours)
        key = await desk.rotate(seat.conn, seat.master_key, partner, since)
        return key if isinstance(key, desk.Refused) else (key, since)


async def _unsubscribe(data: Path, partner: str) -> bool | desk.Refused:
    async with _seat(data) as seat:
        return await desk.unsubscribe(seat.conn, partner, seat.now) or True


async def _list(data: Path) -> list[desk.Listed]:
    async with _seat(data) as seat:
        return await desk.subscriptions(seat.conn)


async def _status(data: Path) -> tuple[list[desk.Queue], int, datetime]:
    async with _seat(data) as seat:
        return await desk.queues(seat.conn, seat.now), await desk.open_expiries(seat.conn), seat.now


async def _dead(data: Path, partner: str | None, limit: int) -> tuple[list[desk.DeadLetter], datetime]:
    async with _seat(data) as seat:
        return await desk.dead_letters(seat.conn, partner, limit), seat.now


async def _redeliver(data: Path, event_ids: Sequence[str]) -> int | desk.Refused:
    async with _seat(data) as seat, seat.conn.transaction():
        for event_id in event_ids:
            if (refused := await desk.redeliver(seat.conn, event_id, seat.now)) is not None:
                raise StackError(f"{refused.detail}; nothing was put back")
    return len(event_ids)


async def _redeliver_since(data: Path, partner: str, since: datetime, delivered_too: bool) -> int | desk.Refused:
    async with _seat(data) as seat:
        return await desk.redeliver_since(seat.conn, partner, since, seat.now, delivered_too=delivered_too)


# ---------------------------------------------------------------- reading and printing


def _granted(answer: Answer | desk.Refused | None) -> Answer:
    if answer is None:
        raise StackError("interrupted")
    if isinstance(answer, desk.Refused):
        raise StackError(answer.detail)
    return answer


def _kinds(text: str) -> list[Kind]:
    try:
        return [Kind(name.strip().upper()) for name in text.split(",") if name.strip()]
    except ValueError:
        raise StackError(f"--events takes {', '.join(Kind)}, with commas between; not {text}") from None


def _seconds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise StackError(f"--schedule takes seconds with commas between, such as 15,30,180; not {text}") from None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise StackError(f"--since takes a day or a time of the city, such as 2020-04-23T12:00; not {text}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=CITY_ZONE)


def _shown(key: CallbackKey) -> dict[str, str]:
    return {"serial_no": key.serial_no, "signing_key": key.signing.hex(), "encryption_key": key.encryption.hex()}


def _print_key(key: CallbackKey) -> None:
    for name, value in _shown(key).items():
        _print(f"{name:<15} {value}")
    _print("Hand these to the partner now, by a safe way: they are not shown again.")


def _table(*titles: str) -> Table:
    """A table; a title that ends in ">" sets its column right."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title.removesuffix(" >"), justify="right" if title.endswith(" >") else "left", no_wrap=True)
    return table


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone(CITY_ZONE):%F %T}"


def _age(moment: datetime | None, now: datetime | None) -> str:
    if moment is None or now is None:
        return "-"
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _plain(text: str) -> str:
    """Brackets of text from outside are letters, not rich's markup."""
    return text.replace("[", "\\[")


def _print(shown: object) -> None:
    Console(width=max(WIDTH_MAX, out.width), highlight=False).print(shown)


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
