"""A small city for the tests of money: merchants, vouchers, and the ledger's real functions to move them."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID, uuid4

from kernel.clock import CITY_ZONE
from kernel.ids import pack_voucher_id
from kernel.partitions import PARTITIONS
from kernel.postgres import Connection

CAMPAIGN = "wuhan-2020"
CAMPAIGN_NO = 1
DAY = date(2020, 4, 20)
FUND_FEN = 100_000_000
FACE_FEN = 2_000
VALID_DAYS = 30

SETUP = """
INSERT INTO city (buckets, shards) VALUES ({buckets}, 1);
INSERT INTO partner (partner_id, name_zh, name_en) VALUES ('wepay', '微', 'We'), ('alipal', '支', 'Ali');
INSERT INTO campaign (campaign_id, title_zh, title_en, fund_fen, document, loaded_at)
SELECT id, id, id, {fund}, '', '2020-04-01+08' FROM unnest(ARRAY['wuhan-2020', 'other-2020']) id;
INSERT INTO round (round_no, campaign_no, round_id, opens_at, closes_at, budget_fen, per_person_and_partner_limit)
SELECT no, no, 'R1', '2020-04-19 12:00+08', '2020-04-26+08', {fund}, 9 FROM generate_series(1, 2) no;
INSERT INTO stock (stock_id, round_no, partner_no, category, quantity, face_value_fen, transaction_minimum_fen,
                   city_bp, platform_bp, merchant_bp, funded_fen, valid_from, valid_until, refund_policy, state)
SELECT x.stock_id, x.round_no, x.partner_no, 'dining', 1000000, 2000, 6000,
       10000, 0, 0, 2000, '2020-04-19+08', {until}, x.policy, 'SCHEDULED'
  FROM (VALUES ('RESTORE-1', 1, 1, 'RESTORE'), ('RETURN-1', 1, 2, 'RETURN_TO_BUDGET'), ('OTHER-1', 2, 1, 'RESTORE'))
       AS x(stock_id, round_no, partner_no, policy);
INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, reference, booked_at)
SELECT 0, campaign_no, 'FUND', 'CITY_FUND', 'BUDGET', {fund}, 'fund ' || campaign_no, '2020-04-01+08' FROM campaign;
SELECT open_round_storage(1::smallint), open_round_storage(2::smallint);
"""

ADD_MERCHANTS = """
INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank, refund_debt_fen_max)
SELECT 'M' || lpad(n::text, 4, '0'), '店 ' || n, 'dining', 'wuchang', '热干面店 ' || n,
       (62220200000000 + n)::text, '汉口银行', $2
  FROM generate_series(1, $1) n RETURNING merchant_no
"""

BOOKS = """
WITH side AS (
    SELECT debit_bucket AS bucket, campaign_no, debit_merchant_no AS merchant_no, debit AS kind,
           amount_fen AS debits_fen, 0::bigint AS credits_fen FROM posting
    UNION ALL
    SELECT credit_bucket, campaign_no, credit_merchant_no, credit, 0, amount_fen FROM posting
), truth AS (
    SELECT bucket, campaign_no, merchant_no, kind, sum(debits_fen) AS debits_fen, sum(credits_fen) AS credits_fen
      FROM side GROUP BY 1, 2, 3, 4
)
SELECT * FROM truth t FULL JOIN balance b USING (bucket, campaign_no, merchant_no, kind)
 WHERE coalesce(t.debits_fen, 0) <> coalesce(b.debits_fen, 0)
    OR coalesce(t.credits_fen, 0) <> coalesce(b.credits_fen, 0)
"""


def at(day: date, hour: int = 12, minute: int = 0) -> datetime:
    """A moment of a day in the city."""
    return datetime.combine(day, time(hour, minute), CITY_ZONE).astimezone(UTC)


def later(days: int) -> date:
    """A day after DAY."""
    return DAY + timedelta(days=days)


_REFUND = """
    WITH asked AS (
        SELECT a.item, coalesce(r.subsidy_fen, 0) AS subsidy_fen,
               coalesce(k.refund_policy = 'RESTORE' AND $2 < k.valid_until, false) AS restored,
               (SELECT count(*) FROM refund f
                 WHERE f.bucket = $1 AND f.voucher_id = a.voucher_id AND f.attempt = r.attempt)::smallint AS refunds
          FROM unnest($4::bigint[], $5::integer[], $6::text[]) WITH ORDINALITY
               AS a(voucher_id, merchant_no, use_no, item)
          LEFT JOIN redemption r ON r.bucket = $1 AND r.voucher_id = a.voucher_id
           AND r.merchant_no = a.merchant_no AND r.use_request_no = a.use_no
          LEFT JOIN stock k ON k.stock_no = r.stock_no
    )
    SELECT b.item, b.outcome::text FROM refund_batch($1, $2, $3, $4, $5, $6, $7, $8,
        (SELECT array_agg(subsidy_fen ORDER BY item) FROM asked), (SELECT array_agg(restored ORDER BY item) FROM asked),
        (SELECT array_agg(refunds ORDER BY item) FROM asked)) b ORDER BY b.item
"""
"""Refunds in full, worked out from what there is."""
_WORDS = {"DONE": "REFUNDED", "RETURNED": "ALREADY_REFUNDED"}


@dataclass(frozen=True)
class Sale:
    """A redemption that was asked for, and what became of it."""

    voucher_id: int
    bucket: int
    merchant_no: int
    use_request_no: str
    outcome: str


@dataclass
class Town:
    """The city of one test. Voucher, merchant and request numbers are handed out in order."""

    conn: Connection
    buckets: int
    merchants: list[int] = field(default_factory=list)
    _serials: Any = field(default_factory=lambda: itertools.count(1))
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def issue(self, count: int = 1, *, stock_no: int = 1, bucket: int = 0) -> list[int]:
        """Vouchers of a stock in a bucket, with the transfer that pays for them."""
        round_no = 2 if stock_no == 3 else 1
        partition = -(-bucket * PARTITIONS // self.buckets)
        ids = [pack_voucher_id(round_no, partition, next(self._serials)) for _ in range(count)]
        await self.conn.execute(
            "INSERT INTO voucher (voucher_id, claimed_at, request_key, person, stock_no, bucket, out_request_no)"
            " SELECT v, $2, hashint8(v), $3, $4, $5, 'CLAIM-' || v FROM unnest($1::bigint[]) v",
            ids, at(DAY, 0, 30), UUID(int=7), stock_no, bucket,
        )  # fmt: skip
        await self.conn.execute(
            "INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, items, reference, booked_at)"
            " VALUES ($1, $2, 'ISSUE', 'BUDGET', 'ISSUED', $3, $4, $5, $6)",
            bucket, round_no, count * FACE_FEN, count, f"chunk {ids[0]}", at(DAY, 0, 30),
        )  # fmt: skip
        return ids

    async def redeem(
        self, voucher_ids: Sequence[int], merchant_no: int, moment: datetime, *, bucket: int = 0, stock_no: int = 1,
        subsidy_fen: int = FACE_FEN, conn: Connection | None = None,
    ) -> list[Sale]:  # fmt: skip
        """Redeems vouchers of one bucket at one merchant."""
        uses = [f"USE-{next(self._numbers):06d}" for _ in voucher_ids]
        count = len(voucher_ids)
        day = moment.astimezone(CITY_ZONE).date()
        rows = await (conn or self.conn).fetch(
            "SELECT item, outcome::text FROM redeem_batch($1, $2, 0, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,"
            " $14, $15, $15, $16, $17, $18) ORDER BY item",
            bucket, moment, voucher_ids, [stock_no] * count, [merchant_no] * count, [1] * count, [6_800] * count,
            [subsidy_fen] * count, uses, [f"ORDER-{use}" for use in uses], [None] * count, [uuid4() for _ in uses],
            [uuid4() for _ in uses], [0] * count, [True] * count, [moment] * count, [day] * count, [False] * count,
        )  # fmt: skip
        return [
            Sale(voucher_id, bucket, merchant_no, use, row["outcome"])
            for voucher_id, use, row in zip(voucher_ids, uses, rows, strict=True)
        ]

    async def sell(
        self, merchant_no: int, day: date, count: int = 1, *, bucket: int = 0, stock_no: int = 1
    ) -> list[Sale]:
        """New vouchers, redeemed at once."""
        ids = await self.issue(count, stock_no=stock_no, bucket=bucket)
        sales = await self.redeem(ids, merchant_no, at(day), bucket=bucket, stock_no=stock_no)
        assert {sale.outcome for sale in sales} == {"DONE"}
        return sales

    async def refund(
        self, sales: Iterable[Sale], moment: datetime, *, numbers: Sequence[str] = (), conn: Connection | None = None
    ) -> list[str]:
        """Refunds sales of one bucket; the outcome of each."""
        asked = list(sales)
        nos = list(numbers) or [f"REF-{next(self._numbers):06d}" for _ in asked]
        vouchers, shops, uses = zip(*((s.voucher_id, s.merchant_no, s.use_request_no) for s in asked), strict=True)
        rows = await (conn or self.conn).fetch(_REFUND, asked[0].bucket, moment, moment.astimezone(CITY_ZONE).date(),
                                               vouchers, shops, uses, nos, [6_800] * len(asked))  # fmt: skip
        return [_WORDS.get(row["outcome"], row["outcome"]) for row in rows]

    async def hold(self, merchant_no: int, reason: str = "under review") -> int:
        """Holds a merchant's payments."""
        hold_id: int = await self.conn.fetchval(
            "INSERT INTO merchant_hold (merchant_no, reason_code, reason, placed_at) VALUES ($1, 'TEST', $2, $3)"
            " RETURNING hold_id",
            merchant_no, reason, at(DAY),
        )  # fmt: skip
        return hold_id

    async def release(self, hold_id: int) -> None:
        """Lets a merchant be paid again."""
        await self.conn.execute(
            "INSERT INTO merchant_hold_release (hold_id, released_by, note, released_at) VALUES ($1, 'x', 'x', $2)",
            hold_id, at(DAY),
        )  # fmt: skip

    async def balance(self, kind: str, merchant_no: int | None = None, campaign_no: int = CAMPAIGN_NO) -> int:
        """What accounts of a kind hold now, closed and open days together."""
        return int(
            await self.conn.fetchval(
                "SELECT coalesce(sum(balance_fen), 0)::bigint FROM balance WHERE kind = $1::text::account_kind"
                " AND campaign_no = $3 AND ($2::integer IS NULL OR merchant_no = $2)",
                kind, merchant_no, campaign_no,
            )
        )  # fmt: skip


async def build(conn: Connection, *, buckets: int = 2, merchants: int = 3, debt_fen_max: int = 1_000_000) -> Town:
    """A town with two campaigns, three stocks (1 RESTORE, 2 RETURN_TO_BUDGET, 3 of the other campaign)."""
    until = at(later(VALID_DAYS)).isoformat()
    await conn.execute(SETUP.format(buckets=buckets, fund=FUND_FEN, until=f"'{until}'"))
    rows = await conn.fetch(
        ADD_MERCHANTS,
        merchants, debt_fen_max,
    )  # fmt: skip
    town = Town(conn, buckets)
    town.merchants = sorted(row["merchant_no"] for row in rows)
    await conn.executemany(
        "INSERT INTO terminal (merchant_no, terminal_id) VALUES ($1, 'T1')", [(no,) for no in town.merchants]
    )
    return town


async def contents(conn: Connection) -> dict[str, list[str]]:
    """Every row of every table, to compare before and after what must change nothing."""
    tables = await conn.fetch(
        "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'public' AND c.relkind = 'r' ORDER BY 1"
    )
    return {
        one["name"]: [row[0] for row in await conn.fetch(f"SELECT t::text FROM {one['name']} t ORDER BY 1")]
        for one in tables
    }


async def assert_books(conn: Connection) -> None:
    """Balances recompute from postings, and the fund is where it must be (audit 4 and 5)."""
    wrong = await conn.fetch(BOOKS)
    assert not wrong, [dict(row) for row in wrong]
    fund = await conn.fetch(
        "SELECT campaign_no, sum(CASE WHEN kind = 'CITY_FUND' THEN balance_fen ELSE -balance_fen END) AS left_over"
        " FROM balance GROUP BY campaign_no"
    )
    assert {row["left_over"] for row in fund} <= {0}
    issued = await conn.fetchval("SELECT coalesce(min(balance_fen), 0) FROM balance WHERE kind = 'ISSUED'")
    assert issued >= 0
