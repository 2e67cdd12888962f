"""The order to the bank as CSV, for banks that take a table and for people who want to look at it."""

from collections.abc import Sequence

from redemption.settlement.batch import Batch, Line
from redemption.settlement.sealed_csv import Form, write_sealed

ORDER = Form(
    kind="HANQUAN-ORDER",
    head=("batch_id", "campaign_id", "day", "payer_name", "payer_account", "payer_bank"),
    columns=(
        "line_no", "end_to_end_id", "merchant_id", "payee_name", "payee_account", "payee_bank",
        "amount_fen", "amount_yuan", "purpose",
    ),
    amount="amount_fen",
    rows_max=1_000_000,
)  # fmt: skip


def write_order(batch: Batch, lines: Sequence[Line], payer: Sequence[str], *, for_spreadsheet: bool = False) -> bytes:
    """The payable lines of a batch; `payer`: name, account and bank of the city."""
    head = (batch.batch_id, batch.campaign_id, batch.day.isoformat(), *payer)
    return write_sealed(ORDER, head, (_row(line) for line in lines), for_spreadsheet=for_spreadsheet)


def end_to_end_id(line: Line) -> str:
    """What names a payment from us through all banks to the merchant's account, up to 35 characters."""
    return f"{line.batch_id}-{line.line_no:06d}"


def yuan(fen: int) -> str:
    """Fen as banks write yuan: no commas, two decimals."""
    return f"{fen // 100}.{fen % 100:02d}"


def purpose(line: Line) -> str:
    """What the merchant reads on its account statement."""
    return f"消费券结算 {line.day.isoformat()} {line.merchant_id}"


def _row(line: Line) -> tuple[str | int, ...]:
    return (
        line.line_no, end_to_end_id(line), line.merchant_id, line.payee_name, line.payee_account, line.payee_bank,
        line.amount_fen, yuan(line.amount_fen), purpose(line),
    )  # fmt: skip
