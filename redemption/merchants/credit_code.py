"""Unified social credit codes, GB 32100-2015: 18 characters, the last one a check digit (ISO 7064, MOD 31-3)."""

import re
import unicodedata
from enum import StrEnum

ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
"""31 characters: no I, O, S, V and Z."""
LENGTH = 18

_FORM = re.compile(rf"[{ALPHABET}]{{2}}[0-9]{{6}}[{ALPHABET}]{{10}}")
_VALUE = {character: value for value, character in enumerate(ALPHABET)}
_WEIGHTS = tuple(pow(3, place, 31) for place in range(LENGTH - 1))


class Flaw(StrEnum):
    """What is wrong with a code."""

    FORM = "FORM"
    """Not 18 characters of the alphabet, or no six digits of a district in the third to eighth place."""
    CHECK_DIGIT = "CHECK_DIGIT"
    """Some character is wrong: the last one does not fit the others."""


def tidy(text: str) -> str:
    """A code as it is kept: narrow capitals, no blanks or dashes."""
    return re.sub(r"[\s-]", "", unicodedata.normalize("NFKC", text)).upper()


def check_digit(body: str) -> str:
    """The last character for the first 17. KeyError when one of them is not of the alphabet."""
    total = sum(weight * _VALUE[character] for weight, character in zip(_WEIGHTS, body, strict=True))
    return ALPHABET[-total % 31]


def flaw_of(code: str) -> Flaw | None:
    """What is wrong with a code, or None. Finds every change of one character and every swap of two neighbours."""
    if _FORM.fullmatch(code) is None:
        return Flaw.FORM
    return None if check_digit(code[:-1]) == code[-1] else Flaw.CHECK_DIGIT
