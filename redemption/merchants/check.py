"""The pre-check: everything that is missing or wrong in an application, all at once, before anybody travels.

Pure rules over data. `Known` is what the city knows already; `today` is a day of the city's calendar.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date

import msgspec

from redemption.merchants.application import LONG_TERM, Application, Paper, Store, plain
from redemption.merchants.credit_code import Flaw, flaw_of
from redemption.merchants.findings import Code, Finding, finding

TEXT_LENGTH_MAX = 200
LABEL_LENGTH_MAX = 64


class PaperRule(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of paper, and who must show it: shops of these categories; None: nobody must."""

    kind: str
    zh: str
    en: str
    categories: frozenset[str] | None = None
    for_all: bool = False
    is_numbered_by_code: bool = False
    """Its number is the business's credit code."""


PAPER_RULES = {
    rule.kind: rule
    for rule in (
        PaperRule(
            kind="BUSINESS_LICENCE", zh="营业执照", en="the business licence", for_all=True, is_numbered_by_code=True
        ),
        PaperRule(kind="ACCOUNT_PROOF", zh="开户证明", en="the bank's proof of the account", for_all=True),
        PaperRule(
            kind="FOOD_PERMIT",
            zh="食品经营许可证",
            en="the food permit",
            categories=frozenset(("dining", "supermarkets", "groceries")),
        ),
        PaperRule(kind="PREMISES_PROOF", zh="经营场所证明", en="the proof of premises"),
    )
}


class Business(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the register. `valid_until` is the last day of its term; None: no end."""

    credit_code: str
    name: str
    status: str
    valid_until: date | None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the public list; `listed_until` is its last day."""

    credit_code: str
    listed_on: date
    listed_until: date
    reason: str


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the city knows of an applicant and of others. Others' papers: the merchant id by number or by file."""

    business: Business | None = None
    listing: Listing | None = None
    is_id_taken: bool = False
    code_taken_by: str | None = None
    numbers: Mapping[tuple[str, str], str] = {}
    files: Mapping[str, str] = {}
    categories: frozenset[str] = frozenset()


def precheck(application: Application, known: Known, today: date) -> list[Finding]:
    """Every finding, in the order of the form. None: the application can be submitted."""
    return [
        *_fields(application),
        *_business(application, known, today),
        *_payee(application),
        *_categories(application, known),
        *_missing_papers(application),
        *(one for place, paper in enumerate(application.papers) for one in _paper(application, place, paper, today)),
        *_papers_twice(application.papers),
        *_papers_taken(application.papers, known),
        *_stores(application.stores),
    ]


def is_same_name(one: str, other: str) -> bool:
    """Whether two names of businesses are one, blanks and wide letters aside."""
    return plain(one) == plain(other)


# ---------------------------------------------------------------- fields


class _Form(msgspec.Struct, frozen=True):
    pattern: str
    zh: str
    en: str


_TEXT = _Form(rf".{{1,{TEXT_LENGTH_MAX}}}", f"至多 {TEXT_LENGTH_MAX} 个字符", f"up to {TEXT_LENGTH_MAX} characters")
_LABEL = _Form(rf".{{1,{LABEL_LENGTH_MAX}}}", f"至多 {LABEL_LENGTH_MAX} 个字符", f"up to {LABEL_LENGTH_MAX} characters")
_ID = _Form(r"[A-Za-z0-9_-]{1,32}", "1 至 32 位字母、数字、_ 或 -", "1 to 32 letters, digits, _ or -")
_MERCHANT_ID = _Form(r"[A-Za-z0-9_-]{4,32}", "4 至 32 位字母、数字、_ 或 -", "4 to 32 letters, digits, _ or -")
_ACCOUNT = _Form(r"[0-9]{8,32}", "8 至 32 位数字", "8 to 32 digits")
_SHA256 = _Form(r"[0-9a-f]{64}", "SHA-256，64 位十六进制", "a SHA-256, 64 hex digits")
_DAY = _Form("", "日期，如 2038-04-30", "a day such as 2038-04-30")
_UNTIL = _Form("", "日期，如 2038-04-30，或“长期”", f"a day such as 2038-04-30, or {LONG_TERM}")
_NOT_BEFORE = _Form("", "不早于 valid_from", "no earlier than valid_from")

_APPLICATION = {
    "merchant_id": _MERCHANT_ID,
    "name": _TEXT,
    "category": _LABEL,
    "district": _LABEL,
    "payee_name": _TEXT,
    "payee_account": _ACCOUNT,
    "payee_bank": _TEXT,
}
_PAPER = {"kind": _LABEL, "number": _LABEL, "holder": _TEXT, "sha256": _SHA256}
_STORE = {"store_id": _ID, "name": _TEXT, "district": _LABEL, "address": _TEXT, "category": _LABEL}


def _fields(application: Application) -> Iterator[Finding]:
    yield from _shape(application, _APPLICATION, "")
    if not application.credit_code:
        yield finding(Code.FIELD_MISSING, "credit_code")


def _shape(thing: msgspec.Struct, forms: Mapping[str, _Form], prefix: str) -> Iterator[Finding]:
    for name, form in forms.items():
        yield from _value(getattr(thing, name), form, f"{prefix}{name}")


def _value(text: str, form: _Form, where: str) -> Iterator[Finding]:
    if not text:
        yield finding(Code.FIELD_MISSING, where)
    elif not (re.fullmatch(form.pattern, text) and text.isprintable()):
        yield _wrong(where, form)


def _wrong(where: str, form: _Form) -> Finding:
    return finding(Code.FIELD_WRONG, where, form=form.en, form_zh=form.zh)


def read_day(text: str) -> date | None:
    """A day as 2038-04-30, or None."""
    try:
        return date.fromisoformat(text) if len(text) == len("2038-04-30") else None
    except ValueError:
        return None


# ---------------------------------------------------------------- the business


def _business(application: Application, known: Known, today: date) -> Iterator[Finding]:
    if application.merchant_id and known.is_id_taken:
        yield finding(Code.MERCHANT_ID_TAKEN, "merchant_id")
    if not application.credit_code:
        return
    match flaw_of(application.credit_code):
        case Flaw.FORM:
            yield finding(Code.CREDIT_CODE_FORM, "credit_code")
        case Flaw.CHECK_DIGIT:
            yield finding(Code.CREDIT_CODE_CHECK_DIGIT, "credit_code")
        case None:
            yield from _registered(application, known, today)


def _registered(application: Application, known: Known, today: date) -> Iterator[Finding]:
    if known.code_taken_by is not None:
        yield finding(Code.CREDIT_CODE_TAKEN, "credit_code", other=known.code_taken_by)
    if known.listing is not None and known.listing.listed_on <= today <= known.listing.listed_until:
        until, reason = known.listing.listed_until, known.listing.reason
        yield finding(Code.ON_PUBLIC_LIST, "credit_code", until=until, reason=reason)
    business = known.business
    if business is None:
        yield finding(Code.NOT_IN_REGISTER, "credit_code")
        return
    if application.name and not is_same_name(application.name, business.name):
        yield finding(Code.NAME_DIFFERS, "name", registered=business.name)
    if business.status != "ACTIVE":
        yield finding(Code.BUSINESS_NOT_ACTIVE, "credit_code", status=business.status)
    if business.valid_until is not None and business.valid_until < today:
        yield finding(Code.BUSINESS_EXPIRED, "credit_code", until=business.valid_until)


def _payee(application: Application) -> Iterator[Finding]:
    if application.payee_name and application.name and not is_same_name(application.payee_name, application.name):
        yield finding(Code.PAYEE_DIFFERS, "payee_name")


def _categories(application: Application, known: Known) -> Iterator[Finding]:
    """Nothing is unknown before the first campaign is loaded."""
    places = [("category", application.category)]
    places += [(f"stores[{place}].category", store.category) for place, store in enumerate(application.stores)]
    for where, category in places:
        if category and known.categories and category not in known.categories:
            yield finding(Code.CATEGORY_UNKNOWN, where, known=", ".join(sorted(known.categories)))


# ---------------------------------------------------------------- papers


def _missing_papers(application: Application) -> Iterator[Finding]:
    categories = {application.category, *(store.category for store in application.stores)}
    shown = {paper.kind for paper in application.papers}
    for rule in PAPER_RULES.values():
        if (rule.for_all or (rule.categories or frozenset()) & categories) and rule.kind not in shown:
            yield finding(Code.PAPER_MISSING, "papers", kind=rule.kind, paper=rule.en, paper_zh=rule.zh)


def _paper(application: Application, place: int, paper: Paper, today: date) -> Iterator[Finding]:
    prefix = f"papers[{place}]."
    yield from _shape(paper, _PAPER, prefix)
    yield from _validity(paper, prefix, today)
    rule = PAPER_RULES.get(paper.kind)
    if paper.kind and rule is None:
        yield finding(Code.PAPER_KIND_UNKNOWN, f"{prefix}kind", known=", ".join(PAPER_RULES))
    if rule is not None and rule.is_numbered_by_code and paper.number not in ("", application.credit_code):
        yield finding(Code.PAPER_NUMBER_DIFFERS, f"{prefix}number")
    if paper.holder and application.name and not is_same_name(paper.holder, application.name):
        yield finding(Code.PAPER_HOLDER_DIFFERS, f"{prefix}holder")


def _validity(paper: Paper, prefix: str, today: date) -> Iterator[Finding]:
    since, until = read_day(paper.valid_from), read_day(paper.valid_until)
    for name, day, form in (("valid_from", since, _DAY), ("valid_until", until, _UNTIL)):
        text = getattr(paper, name)
        if not text:
            yield finding(Code.FIELD_MISSING, f"{prefix}{name}")
        elif day is None and not (name == "valid_until" and text == LONG_TERM):
            yield _wrong(f"{prefix}{name}", form)
    if since is not None and until is not None and until < since:
        yield _wrong(f"{prefix}valid_until", _NOT_BEFORE)
    if since is not None and since > today:
        yield finding(Code.PAPER_NOT_YET_VALID, f"{prefix}valid_from", since=since)
    if until is not None and until < today:
        yield finding(Code.PAPER_EXPIRED, f"{prefix}valid_until", until=until)


def _papers_twice(papers: Iterable[Paper]) -> Iterator[Finding]:
    numbers: dict[tuple[str, str], str] = {}
    files: dict[str, str] = {}
    for place, paper in enumerate(papers):
        where = f"papers[{place}]"
        if paper.number and (first := numbers.setdefault((paper.kind, paper.number), where)) != where:
            yield finding(Code.PAPER_NUMBER_TWICE, f"{where}.number", other=first)
        if paper.sha256 and (first := files.setdefault(paper.sha256, where)) != where:
            yield finding(Code.PAPER_FILE_TWICE, f"{where}.sha256", other=first)


def _papers_taken(papers: Iterable[Paper], known: Known) -> Iterator[Finding]:
    for place, paper in enumerate(papers):
        if (other := known.numbers.get((paper.kind, paper.number))) is not None:
            yield finding(Code.PAPER_NUMBER_TAKEN, f"papers[{place}].number", other=other)
        if (other := known.files.get(paper.sha256)) is not None:
            yield finding(Code.PAPER_FILE_TAKEN, f"papers[{place}].sha256", other=other)


# ---------------------------------------------------------------- stores


def store_findings(store: Store) -> list[Finding]:
    """What is wrong with a store alone."""
    return list(_shape(store, _STORE, ""))


def terminal_findings(terminal_id: str) -> list[Finding]:
    """What is wrong with the id of a terminal."""
    return list(_value(terminal_id, _ID, "terminal_id"))


def _stores(stores: Iterable[Store]) -> Iterator[Finding]:
    seen: set[str] = set()
    terminals: set[str] = set()
    for place, store in enumerate(stores):
        prefix = f"stores[{place}]."
        yield from _shape(store, _STORE, prefix)
        if store.store_id in seen:
            yield finding(Code.STORE_TWICE, f"{prefix}store_id")
        seen.add(store.store_id)
        if not store.terminals:
            yield finding(Code.TERMINAL_MISSING, f"{prefix}terminals")
        for number, terminal in enumerate(store.terminals):
            yield from _value(terminal, _ID, f"{prefix}terminals[{number}]")
            if terminal in terminals:
                yield finding(Code.TERMINAL_TWICE, f"{prefix}terminals[{number}]")
            terminals.add(terminal)
    if not seen:
        yield finding(Code.STORE_MISSING, "stores")
