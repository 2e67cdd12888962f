"""The pre-check: every rule alone, all of them at once, and files as people write them."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import msgspec
import pytest

from redemption.merchants.application import (
    LONG_TERM,
    Application,
    from_document,
    read_application,
    to_document,
)
from redemption.merchants.check import Known, precheck
from redemption.merchants.findings import WORDS, Code
from redemption.merchants.register import BadFile, Register, read_public_list, read_register
from tests.merchant_world import TODAY, application, business, code, known, listing, name, paper, store

Change = Callable[[Application], Application]


def told(asked: Application, what_is_known: Known | None = None, today: date = TODAY) -> list[tuple[str, str]]:
    found = precheck(asked, what_is_known or known(), today)
    assert all(one.zh and one.en and "{" not in one.zh + one.en for one in found), found
    return [(one.code.value, one.where) for one in found]


def having(**changes: Any) -> Application:
    return application(**changes)


def with_paper(place: int, **changes: Any) -> Application:
    papers = list(application().papers)
    papers[place] = msgspec.structs.replace(papers[place], **changes)
    return application(papers=tuple(papers))


def test_a_complete_application_has_no_findings() -> None:
    assert told(application()) == []


@pytest.mark.parametrize(
    ("asked", "finding"),
    [
        (having(payee_bank=""), ("FIELD_MISSING", "payee_bank")),
        (having(payee_account="12-34"), ("FIELD_WRONG", "payee_account")),
        (having(merchant_id="M1"), ("FIELD_WRONG", "merchant_id")),
        (having(district="x" * 65), ("FIELD_WRONG", "district")),
        (having(district="a\x00b"), ("FIELD_WRONG", "district")),
        (having(credit_code=""), ("FIELD_MISSING", "credit_code")),
        (having(credit_code="91420103MA4K0000"), ("CREDIT_CODE_FORM", "credit_code")),
        (having(credit_code=code(1)[:-1] + "Y"), ("CREDIT_CODE_CHECK_DIGIT", "credit_code")),
        (having(payee_name="李雷"), ("PAYEE_DIFFERS", "payee_name")),
        (having(papers=application().papers[:2]), ("PAPER_MISSING", "papers")),
        (with_paper(0, valid_until="2026-04-30"), ("PAPER_EXPIRED", "papers[0].valid_until")),
        (with_paper(1, valid_from="2026-05-02"), ("PAPER_NOT_YET_VALID", "papers[1].valid_from")),
        (with_paper(1, valid_from="1 May"), ("FIELD_WRONG", "papers[1].valid_from")),
        (with_paper(1, valid_from=LONG_TERM), ("FIELD_WRONG", "papers[1].valid_from")),
        (with_paper(1, valid_until=""), ("FIELD_MISSING", "papers[1].valid_until")),
        (with_paper(2, holder="别家餐饮有限公司"), ("PAPER_HOLDER_DIFFERS", "papers[2].holder")),
        (with_paper(0, number="JY1"), ("PAPER_NUMBER_DIFFERS", "papers[0].number")),
        (with_paper(2, sha256="00"), ("FIELD_WRONG", "papers[2].sha256")),
        (with_paper(2, sha256=paper("ACCOUNT_PROOF").sha256), ("PAPER_FILE_TWICE", "papers[2].sha256")),
        (having(stores=()), ("STORE_MISSING", "stores")),
        (having(stores=(store(terminals=()),)), ("TERMINAL_MISSING", "stores[0].terminals")),
        (having(stores=(store("S 1"),)), ("FIELD_WRONG", "stores[0].store_id")),
        (having(stores=(store("S1"), store("S1", "T2"))), ("STORE_TWICE", "stores[1].store_id")),
        (having(stores=(store("S1"), store("S2"))), ("TERMINAL_TWICE", "stores[1].terminals[0]")),
    ],
)
def test_each_thing_that_is_wrong_is_told(asked: Application, finding: tuple[str, str]) -> None:
    assert finding in told(asked)
    assert {where for _, where in told(asked)} - {finding[1]} <= {"papers[0].number"}  # the licence has the code, too


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"business": None}, ("NOT_IN_REGISTER", "credit_code")),
        ({"business": business(name="另一家有限公司")}, ("NAME_DIFFERS", "name")),
        ({"business": business(status="REVOKED")}, ("BUSINESS_NOT_ACTIVE", "credit_code")),
        ({"business": business(valid_until=TODAY - timedelta(days=1))}, ("BUSINESS_EXPIRED", "credit_code")),
        ({"listing": listing()}, ("ON_PUBLIC_LIST", "credit_code")),
        ({"is_id_taken": True}, ("MERCHANT_ID_TAKEN", "merchant_id")),
        ({"code_taken_by": "M000009"}, ("CREDIT_CODE_TAKEN", "credit_code")),
        ({"numbers": {("FOOD_PERMIT", "F00000001"): "M000009"}}, ("PAPER_NUMBER_TAKEN", "papers[2].number")),
        ({"files": {paper("FOOD_PERMIT").sha256: "M000009"}}, ("PAPER_FILE_TAKEN", "papers[2].sha256")),
    ],
)
def test_what_the_city_knows_is_held_against_it(changes: dict[str, Any], finding: tuple[str, str]) -> None:
    assert told(application(), known(**changes)) == [finding]


def test_last_days_still_count_and_the_day_after_does_not() -> None:
    asked, last = with_paper(2, valid_until="2027-02-28"), date(2027, 2, 28)
    ends = known(business=business(valid_until=last))
    assert told(asked, ends, last) == []
    after = told(asked, ends, last + timedelta(days=1))
    assert after == [("BUSINESS_EXPIRED", "credit_code"), ("PAPER_EXPIRED", "papers[2].valid_until")]
    assert told(application(), known(listing=listing(until=last)), last) == [("ON_PUBLIC_LIST", "credit_code")]
    assert told(application(), known(listing=listing(until=last)), last + timedelta(days=1)) == []


def test_names_are_one_whatever_their_brackets() -> None:
    here = known(business=business(name="武汉（江汉）热干面 有限公司"))
    wide = application(name="武汉(江汉)热干面有限公司", payee_name="武汉（江汉）热干面有限公司", papers=())
    assert [finding for finding, _ in told(wide, here)] == ["PAPER_MISSING"] * 3


def test_a_category_is_known_once_there_is_a_campaign() -> None:
    assert told(application(), known(categories=frozenset({"dining"}))) == []
    found = told(application(), known(categories=frozenset({"malls"})))
    assert found == [("CATEGORY_UNKNOWN", "category"), ("CATEGORY_UNKNOWN", "stores[0].category")]


def test_a_food_permit_is_asked_of_whoever_has_one_store_that_needs_it() -> None:
    licences = application().papers[:2]
    mall = application(category="malls", papers=licences, stores=(store(category="malls"),))
    assert told(mall) == []
    both = msgspec.structs.replace(mall, stores=(store(category="malls"), store("S02", "T9")))
    assert told(both) == [("PAPER_MISSING", "papers")]


def test_two_permits_of_one_kind_may_be_shown_but_not_the_same_twice() -> None:
    second = paper("FOOD_PERMIT", number="F2", sha256="ab" * 32)
    assert told(application(papers=(*application().papers, second))) == []
    again = msgspec.structs.replace(second, number="F00000001")
    assert told(application(papers=(*application().papers, again))) == [("PAPER_NUMBER_TWICE", "papers[3].number")]


def test_everything_is_listed_at_once() -> None:
    nothing = told(Application(), Known())
    assert len(nothing) == 11
    assert {finding for finding, _ in nothing} == {"FIELD_MISSING", "PAPER_MISSING", "STORE_MISSING"}


def test_every_code_has_words() -> None:
    assert set(WORDS) == set(Code)


# ---------------------------------------------------------------- files


def as_yaml(asked: Application) -> bytes:
    return msgspec.json.encode(asked)  # JSON is YAML


def test_a_file_is_read_as_it_was_written() -> None:
    assert read_application(as_yaml(application()), lambda _: None) == (application(), [])
    assert from_document(to_document(application())) == application()


def test_numbers_and_dates_stay_what_they_are_and_files_are_hashed() -> None:
    text = """
        merchant_id: 000777
        credit_code: 91420103-ma4k-0000 1
        payee_account: 0062220000
        category: dining
        papers: [{kind: FOOD_PERMIT, number: jy 0123, valid_from: 2018-05-01, valid_until: 长期, file: food.pdf}]
        stores: [{store_id: 001, terminals: [01, 2]}, {store_id: "2", category: malls}]
    """
    asked, found = read_application(text.encode(), {"food.pdf": "AB" * 32}.get)
    assert found == []
    assert (asked.merchant_id, asked.payee_account, asked.credit_code) == ("000777", "0062220000", "91420103MA4K00001")
    [permit] = asked.papers
    assert (permit.number, permit.valid_until, permit.sha256) == ("JY0123", LONG_TERM, "ab" * 32)
    assert [(one.store_id, one.category, one.terminals) for one in asked.stores] == [
        ("001", "dining", ("01", "2")),
        ("2", "malls", ()),
    ]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (b"\xff", ("FILE_UNREADABLE", "(file)")),
        (b"a: [", ("FILE_UNREADABLE", "(file)")),
        (b"[" * 5_000, ("FILE_UNREADABLE", "(file)")),
        (b" " * 600_000, ("FILE_UNREADABLE", "(file)")),
        (b"", ("FIELD_WRONG", "(file)")),
        (b"- a", ("FIELD_WRONG", "(file)")),
        (b"nmae: x", ("FIELD_UNKNOWN", "nmae")),
        (b"name: x\nname: y", ("FIELD_TWICE", "name")),
        (b"name: [x]", ("FIELD_WRONG", "name")),
        (b"papers: x", ("FIELD_WRONG", "papers")),
        (b"papers: [x]", ("FIELD_WRONG", "papers[0]")),
        (b"papers: [{file: gone.pdf}]", ("FILE_UNREADABLE", "papers[0].file")),
        (b"papers: &a [*a]", ("FIELD_WRONG", "papers[0]")),
        (b"stores: [{terminals: T1}]", ("FIELD_WRONG", "stores[0].terminals")),
        (b"stores: [" + b"{}," * 501 + b"]", ("FIELD_WRONG", "stores")),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: bytes, finding: tuple[str, str]) -> None:
    _, found = read_application(text, lambda _: None)
    assert [(one.code.value, one.where) for one in found] == [finding]


# ---------------------------------------------------------------- the register and the public list


def test_the_register_and_the_list_are_read() -> None:
    head = "\ufeffcredit_code,name,status,valid_until\r\n"
    text = f"{head}{code(1)},{name(1)},存续,2038-04-30\n{code(2)},b,CANCELLED,长期\n"
    taken = read_register(text.encode())
    assert isinstance(taken, Register)
    assert taken.entries == [business(1), business(2, name="b", status="CANCELLED", valid_until=None)]
    text = f"listed_until,credit_code,reason,listed_on\n2027-02-28,{code(1)},forged permit,2026-03-01\n"
    assert read_public_list(text.encode()) == Register([listing(1)])


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("", "there is no entry"),
        (f"{code(1)},a,ACTIVE", "line 2: has more or fewer columns"),
        (f"{code(1)},a,ACTIVE,,", "line 2: has more or fewer columns"),
        (f"{code(1)[:-1]}I,a,ACTIVE,", "line 2: 91420103MA4K00001I is no credit code (FORM)"),
        (f"{code(1)[:-1]}Y,a,ACTIVE,", "is no credit code (CHECK_DIGIT)"),
        (f"{code(1)},a,ALIVE,", "line 2: status is one of"),
        (f"{code(1)},,ACTIVE,", "line 2: name has 1 to 200"),
        (f"{code(1)},a,ACTIVE,2038-02-30", "line 2: valid_until is a day"),
        (f"{code(1)},a,ACTIVE,\n{code(1)},b,ACTIVE,", f"line 3: {code(1)} is there twice"),
        (f'{code(1)},"a', "after line 1: unexpected end of data"),
    ],
)
def test_a_bad_line_of_the_register_is_named_and_nothing_is_taken(lines: str, complaint: str) -> None:
    bad = read_register(f"credit_code,name,status,valid_until\n{lines}\n".encode())
    assert isinstance(bad, BadFile)
    assert len(bad.complaints) == 1
    assert complaint in bad.complaints[0]


def test_a_list_without_an_end_or_in_another_code_is_refused() -> None:
    head = "credit_code,reason,listed_on,listed_until\n"
    for line in (f"{code(1)},forged,2026-03-01,", f"{code(1)},forged,2026-03-01,2026-02-28"):
        assert isinstance(read_public_list((head + line).encode()), BadFile)
    assert read_public_list("名单".encode("gb18030")) == BadFile(["byte 0 is not UTF-8; save the file as UTF-8"])
    assert read_public_list(b"code,reason\n") == BadFile([f"the first line must be {head.strip()}"])
