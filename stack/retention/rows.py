"""Rows beside the ledger: cases of anti-fraud, and callbacks that are over."""

from stack.retention.desk import Advance, Custodian, Done, Line, queries

PAGE = 2_000


class Cases:
    """Flags about people and devices, and blocks. Those about merchants stay with the holds they led to."""

    async def look(self, desk: Custodian) -> Line:
        row = await desk.conn.fetchrow(queries["old_cases"], desk.edge("cases"))
        assert row is not None
        return Line(
            family="cases",
            where="PostgreSQL flag, person_block",
            rule=f"{desk.keep_days['cases']} days after they were closed, or opened and never closed",
            unit="rows",
            items=row["items"],
            oldest=row["oldest"],
            due=row["due"],
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        removed = 0
        for query in ("delete_flags", "delete_blocks"):
            while gone := len(await desk.conn.fetch(queries[query], desk.edge("cases"), PAGE)):
                removed += gone
                advance(removed, removed)
        return Done(family="cases", unit="rows", items=removed)


class Callbacks:
    """Events that were delivered, and dead letters. What waits is never touched."""

    async def look(self, desk: Custodian) -> Line:
        row = await desk.conn.fetchrow(queries["old_callbacks"], desk.edge("callbacks"), desk.edge("dead_letters"))
        assert row is not None
        days, dead_days = desk.keep_days["callbacks"], desk.keep_days["dead_letters"]
        return Line(
            family="callbacks",
            where="PostgreSQL callback_event",
            rule=f"{days} days after delivery, {dead_days} days after it was given up",
            unit="rows",
            items=row["items"],
            oldest=row["oldest"],
            due=row["due"],
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        removed = 0
        for bucket in range(desk.buckets):
            voucher_id, attempt = 0, -1
            while True:
                edges = desk.edge("callbacks"), desk.edge("dead_letters")
                row = await desk.conn.fetchrow(queries["delete_callbacks"], *edges, bucket, voucher_id, attempt, PAGE)
                assert row is not None
                removed += row["removed"]
                if row["voucher_id"] is None:
                    break
                voucher_id, attempt = row["voucher_id"], row["attempt"]
            advance(bucket + 1, desk.buckets)
        return Done(family="callbacks", unit="rows", items=removed)
