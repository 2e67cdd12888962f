"""./hanquan stock: the life of stocks, as operators lead it."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, Parameter
from rich.table import Table

from issuer.operator.answers import StockAnswer, StockDetailAnswer, detail_answer, stock_answer
from issuer.operator.budget import Edited, edit_budget
from issuer.operator.life import Moved, list_stocks, move_stock, show_stock
from issuer.operator.office import WHY_LENGTH_MAX, Office
from issuer.operator.rollover import RolledOver, roll_over
from issuer.operator.store import Verb
from kernel.errors import Refusal
from stack.console import Data, run
from stack.data_folder import DEFAULT
from stack.errors import StackError
from stack.finance import Json, plain, table, tell, yuan
from stack.operating import granted, office

app = App(name="stock", version_flags=(), help="Lead a stock through its life: approve, pause, end, change its budget.")

Answer = TypeVar("Answer")

StockId = Annotated[str, Parameter(help="The stock's id, as `stock list` shows it.")]
By = Annotated[str, Parameter(name="--by", help="Who does it. Whoever submitted a stock cannot approve it.")]
Why = Annotated[str, Parameter(help="The reason; it stands in the books.")]
QUANTITY_MAX = 2_000_000_000


@app.command(name="list")
def list_(campaign: str | None = None, /, *, json: Json = False, data: Data = DEFAULT) -> None:
    """List stocks as they stand now: all, or those of one campaign."""

    async def work(desk: Office) -> list[StockAnswer]:
        return [stock_answer(row) for row in await list_stocks(desk, campaign)]

    answer = _at_work(data, "nobody", work)
    if answer is not None:
        tell(answer, lambda: _stocks(answer), json=json)


@app.command
def show(stock_id: StockId, /, *, json: Json = False, data: Data = DEFAULT) -> None:
    """Show a stock with all that was done to it."""

    async def work(desk: Office) -> StockDetailAnswer | Refusal:
        detail = await show_stock(desk, stock_id)
        return detail if isinstance(detail, Refusal) else detail_answer(detail)

    answer = _at_work(data, "nobody", work)
    if answer is not None:
        tell(answer, lambda: _detail(answer), json=json)


@app.command
def submit(stock_id: StockId, /, *, by: By, json: Json = False, data: Data = DEFAULT) -> None:
    """Submit a draft for audit."""
    _move(stock_id, Verb.SUBMIT, by, "", json, data)


@app.command
def approve(stock_id: StockId, /, *, by: By, json: Json = False, data: Data = DEFAULT) -> None:
    """Approve a stock in audit; it runs when its round opens. Somebody else must have submitted it."""
    _move(stock_id, Verb.APPROVE, by, "", json, data)


@app.command
def reject(stock_id: StockId, /, *, by: By, why: Why, json: Json = False, data: Data = DEFAULT) -> None:
    """Turn a stock in audit down; it is a draft again."""
    _move(stock_id, Verb.REJECT, by, why, json, data)


@app.command
def pause(stock_id: StockId, /, *, by: By, why: Why = "", json: Json = False, data: Data = DEFAULT) -> None:
    """Hold a stock back at once: nobody can claim from it until it is resumed."""
    _move(stock_id, Verb.PAUSE, by, why, json, data)


@app.command
def resume(stock_id: StockId, /, *, by: By, why: Why = "", json: Json = False, data: Data = DEFAULT) -> None:
    """Let a paused stock go on."""
    _move(stock_id, Verb.RESUME, by, why, json, data)


@app.command
def end(stock_id: StockId, /, *, by: By, why: Why, json: Json = False, data: Data = DEFAULT) -> None:
    """End a stock before its round closes, for good."""
    _move(stock_id, Verb.END, by, why, json, data)


@app.command
def close(stock_id: StockId, /, *, by: By, json: Json = False, data: Data = DEFAULT) -> None:
    """Close a stock that is over, once all its vouchers are in the books. A rollover does it by itself."""
    _move(stock_id, Verb.CLOSE, by, "", json, data)


@app.command
def budget(
    stock_id: StockId,
    current: Annotated[int, Parameter(help="How many vouchers it has now; refused if that is not so.")],
    target: Annotated[int, Parameter(help="How many it shall have.")],
    /,
    *,
    by: By,
    why: Why,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Change how many vouchers a stock has, also while it runs."""
    if not 1 <= target <= QUANTITY_MAX or not 0 <= current <= QUANTITY_MAX:
        raise StackError(f"a stock has 1 to {QUANTITY_MAX:,} vouchers")

    async def work(desk: Office) -> Edited | Refusal:
        return await edit_budget(desk, stock_id, current, target, _tidy(why))

    answer = _at_work(data, by, work)
    if answer is not None:
        tell(answer, lambda: f"{answer.stock_id} has {answer.quantity:,} vouchers{_before(answer.replayed)}", json=json)


@app.command
def rollover(
    campaign: str,
    from_round: Annotated[str, Parameter(help="The id of a round that is over.")],
    to_round: Annotated[str, Parameter(help="The id of the round that gets what is left.")],
    /,
    *,
    by: By,
    why: Why = "",
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Close a round that is over, and carry its unclaimed vouchers and the money that finance returned into another."""

    async def work(desk: Office) -> RolledOver | Refusal:
        return await roll_over(desk, campaign, from_round, to_round, why)

    answer = _at_work(data, by, work)
    if answer is not None:
        tell(answer, lambda: _rolled(answer), json=json)


def _move(stock_id: str, verb: Verb, by: str, why: str, json: bool, data: Path) -> None:
    async def work(desk: Office) -> Moved | Refusal:
        return await move_stock(desk, stock_id, verb, _tidy(why))

    answer = _at_work(data, by, work)
    if answer is not None:
        tell(answer, lambda: f"{answer.stock_id} is {answer.state}{_before(answer.replayed)}", json=json)


def _at_work(data: Path, by: str, work: Callable[[Office], Coroutine[Any, Any, Answer | Refusal]]) -> Answer | None:
    async def at_work() -> Answer:
        async with office(data, by) as desk:
            return granted(await work(desk))

    return run(at_work())


def _tidy(why: str) -> str:
    if len(why) > WHY_LENGTH_MAX:
        raise StackError(f"a reason has up to {WHY_LENGTH_MAX} characters")
    return why.strip()


def _before(replayed: bool) -> str:
    return " (it was before)" if replayed else ""


def _stocks(stocks: list[StockAnswer]) -> Table:
    made = table("", "stock", "state", "vouchers >", "in the books >", "face, yuan >", "opens", "closes")
    for one in stocks:
        numbers = f"{one.quantity:,}", f"{one.issued:,}", yuan(one.face_value_fen)
        made.add_row(one.stock_id, one.state, *numbers, one.opens_at[:16], one.closes_at[:16])
    return made


def _detail(detail: StockDetailAnswer) -> Table:
    stock = detail.stock
    left = "" if detail.left is None else f", {detail.left:,} left to claim"
    title = f"{stock.stock_id}: {stock.state}, {stock.quantity:,} vouchers, {stock.issued:,} in the books{left}"
    made = table(title, "when", "what", "from", "to", "by", "why")
    rows = [(m["moved_at"], m["verb"], m["from_state"], m["to_state"], m["moved_by"], m["why"]) for m in detail.moves]
    for e in detail.edits:
        what = f"QUANTITY ({e['state']})"
        quantities = f"{e['current_quantity']:,}", f"{e['target_quantity']:,}"
        rows.append((e["asked_at"], what, *quantities, e["asked_by"], e["why"]))
    for row in sorted(rows):
        made.add_row(*(plain(cell) for cell in row))
    return made


def _rolled(rolled: RolledOver) -> Table:
    title = (
        f"rollover {rolled.rollover_no}{_before(rolled.replayed)}, {rolled.from_round_id} to {rolled.to_round_id}: "
        f"{yuan(rolled.carried_fen)} yuan carried, {yuan(rolled.returned_fen)} yuan returned by finance"
    )
    made = table(title, "from", "to", "vouchers >")
    for one in rolled.stocks:
        made.add_row(one.from_stock_id, one.to_stock_id or "nowhere: no such stock there", f"{one.units:,}")
    return made
