
from uuid import UUID
import pytest
from tests.town import *
from tests.settling import *
from tests.settling import approved_again
from redemption.reconciliation.our_flow import our_flow
from redemption.reconciliation.flow_file import *
from redemption.reconciliation.flow_xlsx import write_flow_xlsx
from redemption.reconciliation.reconcile import reconcile
from redemption.settlement.statement import statement
from redemption.settlement.expire import expire_over
from redemption.settlement.settle import close_day
from kernel.codes import CodeBook
import time

async def test_scale(database):
    async with database.connection() as conn:
        town = await build(conn, buckets=4, merchants=9999)
        t=time.perf_counter()
        def lap(what):
            nonlocal t
            n=time.perf_counter(); print(f"{what}: {n-t:.2f}s", flush=True); t=n
        for b in range(4):
            await conn.execute("INSERT INTO voucher SELECT (1::bigint<<38)|(($1::bigint*256)<<28)|n, now(), n, $2, 1, $1::int, 'CLAIM-'||n FROM generate_series(1,400000) n", b, UUID(int=7))
            await conn.execute("INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, items, reference, booked_at) VALUES ($1, 1, 'ISSUE', 'BUDGET', 'ISSUED', 400000*50, 400000, 'x', now())", b)
        await conn.execute("update pg_class set reltuples=reltuples") if False else None
        lap("vouchers 1.6M")
        for d in range(3):
            for b in range(4):
                await conn.execute("""INSERT INTO redemption SELECT (1::bigint<<38)|(($1::bigint*256)<<28)|n, 50, 6800, $3, 1, (n*7919 % 9999)+1, 1, $2, $1::int, 1, 'USE-'||$1||'-'||n, 'ORDER-'||n FROM generate_series($4::int,$4::int+74999) n""", b, later(d), at(later(d)), 1+d*75000)
        lap("redemptions 900k")
        await conn.execute("VACUUM ANALYZE")
        lap("vacuum analyze")
        for d in range(3):
            for b in range(4):
                await conn.execute("SELECT close_day($1,$2,$3)", b, later(d), at(later(3)))
            lap(f"close_day x4 of day {d}")
            b_ = await proposed(town, later(d)); lap(f"propose {b_.line_count}")
            import asyncio
            async def watch():
                await asyncio.sleep(20)
                async with database.connection() as c2:
                    for r in await c2.fetch("select query, wait_event, state from pg_stat_activity where datname=current_database()"): print(dict(r))
            w = asyncio.create_task(watch())
            b_ = await asyncio.wait_for(approved_again(town, b_), 40); lap("approve"); w.cancel()
            o = await exported(town, b_, Format.PAIN001); lap("pain001")
            o = await exported(town, b_); 
            data = write_answer(b_.batch_id, o.sha256, await told(town, b_)); lap("csv + answer file")
            r = await answer(conn, b_.batch_no, data, by="x", now=MORNING); lap("answer")
        rows = await our_flow(conn, 1, 1, DAY); lap(f"our_flow {len(rows)}")
        data = write_flow_file("wepay", CAMPAIGN, DAY, rows); lap("write flow")
        x = write_flow_xlsx("wepay", CAMPAIGN, DAY, rows); lap(f"write xlsx {len(x)}")
        f = read_flow_file(data, None); lap(f"read flow {len(data)}")
        run = await reconcile(conn, 1, DAY, flows=[f], by="x", now=at(later(3))); lap(f"reconcile {run}")
        run = await reconcile(conn, 1, DAY, flows=[f._replace(rows=f.rows[:-50000], lines=f.lines[:-50000], sha256=bytes(32))], by="x", now=at(later(3))); lap(f"reconcile 50k breaks {run.added}")
        for i in range(3):
            s = await statement(conn, 5, DAY, CodeBook({1: bytes(16)})); lap(f"statement {len(s.entries)}")
        n = await conn.fetchval("SELECT sum(balance_fen) FROM balance"); lap("balance view")
        e = await expire_over(conn, at(later(31))); lap(f"expire {e}")
