"""Why not, in words: what cashier and citizen are told of a refusal, in Chinese and English (words.yaml)."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec
import yaml

from kernel.answers import Words
from kernel.clock import CITY_ZONE
from kernel.errors import Refusal
from kernel.money import format_yuan

Fact = int | str | datetime


class Book(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All words: by rule, and by code or `code.pointer` where there is no rule."""

    rules: Mapping[str, Words]
    codes: Mapping[str, Words]

    def find(self, refusal: Refusal) -> Words:
        """The words for a refusal, its numbers not yet filled in. Raises KeyError for a code without words."""
        return (
            self.rules.get(refusal.rule or "")
            or self.codes.get(f"{refusal.code}.{refusal.pointer}")
            or self.codes[refusal.code]
        )


BOOK = msgspec.convert(yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8")), Book)


def words(refusal: Refusal, **facts: Fact) -> Words:
    """The words for a refusal, with its facts and those given filled in.

    Facts named `..._fen` are amounts, `..._at` aware moments. A fact that nobody tells is written "…": a till never
    fails for want of a word.
    """
    told = {**(refusal.facts or {}), **facts}
    found = BOOK.find(refusal)
    zh, en = _Facts(_written(told, "zh")), _Facts(_written(told, "en"))
    return Words(
        cashier_zh=found.cashier_zh.format_map(zh),
        cashier_en=found.cashier_en.format_map(en),
        citizen_zh=found.citizen_zh.format_map(zh),
        citizen_en=found.citizen_en.format_map(en),
    )


class _Facts(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "…"


def _written(facts: Mapping[str, Fact], language: str) -> dict[str, str]:
    return {name: _write(name, fact, language) for name, fact in facts.items()}


def _write(name: str, fact: Fact, language: str) -> str:
    if isinstance(fact, datetime):
        local = fact.astimezone(CITY_ZONE)
        day = f"{local.year}年{local.month}月{local.day}日" if language == "zh" else f"{local.day} {local:%B %Y}"
        return f"{day} {local:%H:%M}"
    return format_yuan(fact) if name.endswith("_fen") and isinstance(fact, int) else str(fact)
