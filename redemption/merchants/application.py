"""An application as it is written down: a YAML file, read without losing count of what is wrong with it.

Every value is text until the check has looked at it, so that a number with leading zeros stays what it is.
"""

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import yaml

from redemption.merchants import credit_code
from redemption.merchants.findings import Code, Finding, finding

BYTES_MAX = 512 * 1024
ENTRIES_MAX = 500
LONG_TERM = "long-term"
"""`valid_until` of a paper without an end."""

_LONG_TERM_WORDS = {"长期", LONG_TERM}

HashOfFile = Callable[[str], str | None]
"""The SHA-256 in hex of a file by the name that the application gives; None when it cannot be read."""


class Paper(msgspec.Struct, frozen=True, kw_only=True):
    """A licence or certificate. Dates as 2038-04-30; `valid_until` may be LONG_TERM. `sha256` in hex."""

    kind: str = ""
    number: str = ""
    holder: str = ""
    valid_from: str = ""
    valid_until: str = ""
    sha256: str = ""


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """A shop with its tills."""

    store_id: str = ""
    name: str = ""
    district: str = ""
    address: str = ""
    category: str = ""
    terminals: tuple[str, ...] = ()


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """What a business applies with. "" is missing."""

    merchant_id: str = ""
    name: str = ""
    credit_code: str = ""
    category: str = ""
    district: str = ""
    payee_name: str = ""
    payee_account: str = ""
    payee_bank: str = ""
    papers: tuple[Paper, ...] = ()
    stores: tuple[Store, ...] = ()


def read_application(data: bytes, hash_of_file: HashOfFile) -> tuple[Application, list[Finding]]:
    """What can be read of a file, and every field that cannot. Whether it is enough says check.py."""
    reader = _Reader(hash_of_file)
    try:
        if len(data) > BYTES_MAX:
            raise ValueError(f"more than {BYTES_MAX // 1024} KiB")
        tree = yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        return Application(), [finding(Code.FILE_UNREADABLE, "(file)", why=why)]
    return reader.application(tree), reader.findings


def to_document(application: Application) -> str:
    """As it is kept."""
    return msgspec.json.encode(application).decode()


def from_document(document: str) -> Application:
    """As it was kept."""
    return msgspec.json.decode(document, type=Application)


def tidy_text(text: str) -> str:
    """A text with single blanks. Wide brackets stay: they may be part of a registered name."""
    return " ".join(text.split())


def plain(text: str) -> str:
    """A text for comparing: wide letters narrow, no blanks, no difference of case."""
    return "".join(unicodedata.normalize("NFKC", text).split()).casefold()


class _Reader:
    """Walks a YAML tree of a known shape and keeps a list of what does not fit."""

    def __init__(self, hash_of_file: HashOfFile) -> None:
        self._hash_of_file = hash_of_file
        self.findings: list[Finding] = []

    def application(self, tree: yaml.Node | None) -> Application:
        fields = self._fields(tree, "(file)", Application.__struct_fields__)
        papers, stores = (self._entries(fields.pop(name, None), name) for name in ("papers", "stores"))
        texts = self._texts(fields, "")
        texts["credit_code"] = credit_code.tidy(texts.get("credit_code", ""))
        category = texts.get("category", "")
        return Application(
            **texts,
            papers=tuple(self._paper(node, f"papers[{place}]") for place, node in enumerate(papers)),
            stores=tuple(self._store(node, f"stores[{place}]", category) for place, node in enumerate(stores)),
        )

    def _paper(self, node: yaml.Node, where: str) -> Paper:
        texts = self._texts(self._fields(node, where, (*Paper.__struct_fields__, "file")), f"{where}.")
        file = texts.pop("file", "")
        if file and not texts.get("sha256"):
            texts["sha256"] = self._hash_of_file(file) or ""
            if not texts["sha256"]:
                self._add(Code.FILE_UNREADABLE, f"{where}.file", why=file)
        number = plain(texts.get("number", "")).upper()
        until = texts.get("valid_until", "")
        return Paper(
            **texts
            | {
                "number": number,
                "valid_until": LONG_TERM if until in _LONG_TERM_WORDS else until,
                "sha256": texts.get("sha256", "").lower(),
            }
        )

    def _store(self, node: yaml.Node, where: str, category: str) -> Store:
        fields = self._fields(node, where, Store.__struct_fields__)
        terminals = self._entries(fields.pop("terminals", None), f"{where}.terminals")
        texts = self._texts(fields, f"{where}.")
        names = tuple(self._text(one, f"{where}.terminals[{place}]") for place, one in enumerate(terminals))
        return Store(**{"category": category} | texts, terminals=names)

    def _fields(self, node: yaml.Node | None, where: str, known: tuple[str, ...]) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._add(Code.FIELD_WRONG, where, form="a mapping of names to values", form_zh="名称与值的对应")
            return {}
        prefix = "" if where == "(file)" else f"{where}."
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name in known and name not in fields:
                fields[name] = value
            else:
                self._add(Code.FIELD_TWICE if name in fields else Code.FIELD_UNKNOWN, f"{prefix}{name}")
        return fields

    def _entries(self, node: yaml.Node | None, where: str) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._add(Code.FIELD_WRONG, where, form="a list", form_zh="列表")
            return []
        if len(node.value) > ENTRIES_MAX:
            self._add(Code.FIELD_WRONG, where, form=f"up to {ENTRIES_MAX} entries", form_zh=f"至多 {ENTRIES_MAX} 项")
        return list(node.value[:ENTRIES_MAX])

    def _texts(self, fields: Mapping[str, yaml.Node], prefix: str) -> dict[str, Any]:
        return {name: self._text(node, f"{prefix}{name}") for name, node in fields.items()}

    def _text(self, node: yaml.Node, where: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._add(Code.FIELD_WRONG, where, form="one value", form_zh="单个值")
            return ""
        return tidy_text(node.value)

    def _add(self, code: Code, where: str, **facts: object) -> None:
        self.findings.append(finding(code, where, **facts))
