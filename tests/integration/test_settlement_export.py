"""The order to the bank: what it says, in which order, and that it never changes."""

import csv
import hashlib
import io
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator

import pytest

from kernel.errors import Broken
from redemption.settlement import pain001
from redemption.settlement.batch import get_lines
from redemption.settlement.export import Format, Order, export
from redemption.settlement.refusals import Refused, Why
from tests import stores
from tests.settling import MORNING, PAYER, answered, approved, exported
from tests.town import DAY, Town, at, build, contents, later

NS = {"p": pain001.NAMESPACE}


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town where two merchants sold and one of them is called like a formula."""
    async with database.connection() as conn:
        town = await build(conn)
        await conn.execute("UPDATE merchant SET payee_name = '=1+1 <&> \x01\"店\"' WHERE merchant_no = 2")
        await town.sell(1, DAY, 3)
        await town.sell(2, DAY, 5, bucket=1)
        yield town


def tags(element: ET.Element) -> list[str]:
    return [child.tag.rpartition("}")[2] for child in element]


async def test_pain001_has_the_structure_of_the_standard(town: Town) -> None:
    root = ET.fromstring((await exported(town, await approved(town), Format.PAIN001)).data)
    assert root.tag == f"{{{pain001.NAMESPACE}}}Document"
    initiation = root[0]
    header, payment = initiation
    assert tags(initiation) == ["GrpHdr", "PmtInf"]
    assert tags(header) == ["MsgId", "CreDtTm", "NbOfTxs", "CtrlSum", "InitgPty"]
    assert tags(payment) == [
        "PmtInfId", "PmtMtd", "BtchBookg", "NbOfTxs", "CtrlSum", "ReqdExctnDt", "Dbtr", "DbtrAcct", "DbtrAgt",
        "CdtTrfTxInf", "CdtTrfTxInf",
    ]  # fmt: skip
    for transfer in payment.iterfind("p:CdtTrfTxInf", NS):
        assert tags(transfer) == ["PmtId", "Amt", "CdtrAgt", "Cdtr", "CdtrAcct", "RmtInf"]


async def test_pain001_says_what_the_batch_says(town: Town) -> None:
    root = ET.fromstring((await exported(town, await approved(town), Format.PAIN001)).data)
    assert [element.text for element in root.iterfind(".//p:CtrlSum", NS)] == ["160.00", "160.00"]
    assert [element.text for element in root.iterfind(".//p:NbOfTxs", NS)] == ["2", "2"]
    assert [element.text for element in root.iterfind(".//p:InstdAmt", NS)] == ["60.00", "100.00"]
    assert {element.get("Ccy") for element in root.iterfind(".//p:InstdAmt", NS)} == {"CNY"}
    assert root.findtext(".//p:CreDtTm", namespaces=NS) == "2020-04-21T10:00:00+08:00"
    assert root.findtext(".//p:ReqdExctnDt/p:Dt", namespaces=NS) == "2020-04-21"
    assert root.findtext(".//p:DbtrAcct/p:Id/p:Othr/p:Id", namespaces=NS) == PAYER.account
    names = [element.text for element in root.iterfind(".//p:Cdtr/p:Nm", NS)]
    assert names == ["热干面店 1", '=1+1 <&>  "店"']
    ids = [element.text or "" for element in root.iterfind(".//p:EndToEndId", NS)]
    assert ids == ["HQS0000000001-000001", "HQS0000000001-000002"]
    assert max(map(len, ids)) <= 35


async def test_pain001_that_does_not_say_what_the_lines_say_is_not_handed_out(town: Town) -> None:
    batch = await approved(town)
    lines = await get_lines(town.conn, batch.batch_no)
    with pytest.raises(Broken):
        pain001.write_pain001(batch, lines[:1], PAYER, MORNING)


async def test_csv_has_ids_as_text_yuan_as_text_and_a_trailer(town: Town) -> None:
    order = await exported(town, await approved(town))
    rows = list(csv.reader(io.StringIO(order.data.decode("utf-8"))))
    assert rows[0] == ["HANQUAN-ORDER", "1", "HQS0000000001", "wuhan-2020", "2020-04-20", *PAYER]
    assert rows[2][:5] == ["1", "HQS0000000001-000001", "M0001", "热干面店 1", "62220200000001"]
    assert rows[2][6:] == ["6000", "60.00", "消费券结算 2020-04-20 M0001"]
    assert rows[-1] == ["TRAILER", "2", "16000"]
    assert b"\r" not in order.data


async def test_spreadsheet_csv_keeps_numbers_whole_and_runs_no_formula(town: Town) -> None:
    order = await exported(town, await approved(town), Format.CSV_SPREADSHEET)
    assert order.data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(order.data.decode("utf-8-sig"), newline="")))
    assert order.data.count(b"\r\n") == len(rows)
    assert rows[2][4] == "`62220200000001"
    assert rows[3][3].startswith("`=1+1")
    assert rows[2][6] == "6000"


@pytest.mark.parametrize("form", list(Format))
async def test_an_export_is_always_the_same_bytes(town: Town, form: Format) -> None:
    batch = await approved(town)
    first = await exported(town, batch, form)
    before = await contents(town.conn)
    again = await export(town.conn, batch.batch_no, payer=PAYER, form=form, by="zhang.min", now=at(later(9)))
    assert await contents(town.conn) == before
    assert again == first
    assert first.sha256 == hashlib.sha256(first.data).digest()
    # Neither the bank's answer nor a merchant's new name or account changes an old order.
    await answered(town, batch, rejected=(1,))
    await town.conn.execute("UPDATE merchant SET payee_name = 'other', payee_account = '99999999'")
    assert await export(town.conn, batch.batch_no, payer=PAYER, form=form, by="x", now=MORNING) == first


async def test_another_payer_would_be_another_order(town: Town) -> None:
    batch = await approved(town)
    await exported(town, batch)
    before = await contents(town.conn)
    other = PAYER._replace(account="1")
    outcome: Order | Refused = await export(
        town.conn, batch.batch_no, payer=other, form=Format.CSV, by="x", now=MORNING
    )
    assert isinstance(outcome, Refused)
    assert outcome.why is Why.EXPORT_DIFFERS
    assert await contents(town.conn) == before
