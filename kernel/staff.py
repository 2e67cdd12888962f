"""Names of people who sign decisions: one way of writing them, so that nobody is two by typing wide letters."""

import unicodedata

STAFF_NAME_LENGTH_MAX = 64


def tidy_staff_name(name: str) -> str | None:
    """A name as it is signed: compatibility-normalised, single blanks, up to 64 characters; None when it is no name."""
    tidy = " ".join(unicodedata.normalize("NFKC", name).split())
    return tidy if tidy and len(tidy) <= STAFF_NAME_LENGTH_MAX and tidy.isprintable() else None
