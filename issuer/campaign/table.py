"""One mapping of a campaign file: reads its fields, and complains with a line about what it cannot read."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Generic, TypeVar

import msgspec
import yaml

from issuer.campaign.complaints import Code, Complaints, Spot
from issuer.campaign.kinds import Kind, Unreadable
from issuer.campaign.source import line_of

T = TypeVar("T")

NAME_MAX = 40
"""Letters of a field's name that are looked at; all names are shorter."""

_NULL = "tag:yaml.org,2002:null"


class Table:
    """The fields of one mapping. What cannot be read is None, and a complaint tells why.

    known   the names a field may have here; others are complained about
    what    what the mapping describes, in words, for complaints
    """

    def __init__(
        self, node: yaml.MappingNode, *, path: str, what: str, known: Iterable[str], complaints: Complaints
    ) -> None:
        self.spot = Spot(line_of(node), path)
        self.what = what
        self.complaints = complaints
        self._known = tuple(known)
        self._fields: dict[str, yaml.Node] = {}
        self._seen: dict[str, int] = {}
        for key, value in node.value:
            self._take(key, value)

    def has(self, key: str) -> bool:
        """Is the field written, readable or not?"""
        return key in self._fields

    def spot_of(self, key: str) -> Spot:
        """Where the field stands, or the mapping where it is left out."""
        node = self._fields.get(key)
        return Spot(line_of(node) if node else self.spot.line, self._path(key))

    def complain(self, code: Code, key: str, message: str) -> None:
        """Adds a complaint about a field."""
        self.complaints.add(self.spot_of(key), code, message)

    def read(self, key: str, kind: Kind[T], *, required: bool = True) -> T | None:
        """The field's value; None when it is left out or cannot be read."""
        node = self._find(key, kind.example, required=required)
        if node is None:
            return None
        if not isinstance(node, yaml.ScalarNode):
            self.complain(Code.WRONG_SHAPE, key, f'{key} must be a single value; write "{key}: {kind.example}"')
            return None
        try:
            return kind.of(node)
        except Unreadable as why:
            self.complain(why.code, key, f"{key}: {why}")
            return None

    def table(self, key: str, *, what: str, known: Iterable[str], required: bool = True) -> "Table | None":
        """The mapping in a field."""
        known = tuple(known)
        example = "{" + ", ".join(f"{name}: ..." for name in known) + "}"
        node = self._find(key, example, required=required)
        if node is None:
            return None
        if not isinstance(node, yaml.MappingNode):
            self.complain(Code.WRONG_SHAPE, key, f"{key} must hold fields; write {key}: {example}")
            return None
        return Table(node, path=self._path(key), what=what, known=known, complaints=self.complaints)

    def rows(self, key: str, *, what: str, known: Iterable[str], most: int, required: bool = True) -> "list[Table]":
        """The mappings of a list in a field, those that are mappings; at most `most`."""
        known = tuple(known)
        node = self._find(key, f"a list with one {what} a line, each after a dash", required=required)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            words = f"{key} must be a list; write one {what} a line, each after a dash and a space"
            self.complain(Code.WRONG_SHAPE, key, words)
            return []
        if len(node.value) > most:
            self.complain(Code.TOO_MANY, key, f"{key} has {len(node.value)} entries; at most {most} are possible")
            return []
        rows = [self._row(child, f"{self._path(key)}[{i}]", what, known) for i, child in enumerate(node.value)]
        return [row for row in rows if row is not None]

    def values(self, key: str, kind: Kind[T], *, most: int) -> tuple[T, ...]:
        """The values of a list in a field that may be left out, those that can be read; none of them twice."""
        node = self._find(key, f"[{kind.example}]", required=False)
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode) or not 1 <= len(node.value) <= most:
            self.complain(Code.WRONG_SHAPE, key, f"{key} must be a list of 1 to {most}; write {key}: [{kind.example}]")
            return ()
        found: dict[T, None] = {}
        for child in node.value:
            value = self._value(key, child, kind)
            if value in found:
                self.complaints.add(
                    Spot(line_of(child), self._path(key)), Code.DUPLICATE_ID, f"{value} stands here twice"
                )
            elif value is not None:
                found[value] = None
        return tuple(found)

    def _value(self, key: str, node: yaml.Node, kind: Kind[T]) -> T | None:
        spot = Spot(line_of(node), self._path(key))
        if not isinstance(node, yaml.ScalarNode):
            self.complaints.add(spot, Code.WRONG_SHAPE, f"{key} holds single values; write {key}: [{kind.example}]")
            return None
        try:
            return kind.of(node)
        except Unreadable as why:
            self.complaints.add(spot, why.code, f"{key}: {why}")
            return None

    def _row(self, node: yaml.Node, path: str, what: str, known: tuple[str, ...]) -> "Table | None":
        if isinstance(node, yaml.MappingNode):
            return Table(node, path=path, what=what, known=known, complaints=self.complaints)
        words = f'a {what} must hold fields; write "- {known[0]}: ..."'
        self.complaints.add(Spot(line_of(node), path), Code.WRONG_SHAPE, words)
        return None

    def _take(self, key: yaml.Node, value: yaml.Node) -> None:
        name = key.value[:NAME_MAX] if isinstance(key, yaml.ScalarNode) else "?"
        spot = Spot(line_of(key), self._path(name))
        if name in self._seen:
            words = f"{name} is written twice, first on line {self._seen[name]}; keep one of them"
            self.complaints.add(spot, Code.DUPLICATE_KEY, words)
            return
        self._seen[name] = spot.line
        if name in self._known:
            self._fields[name] = value
        else:
            self.complaints.add(spot, Code.UNKNOWN_FIELD, f"{self.what} has no field {name!r}; {self._advice(name)}")

    def _advice(self, name: str) -> str:
        near = get_close_matches(name, self._known, n=1)
        return f"did you mean {near[0]}?" if near else f"it has {', '.join(self._known)}"

    def _find(self, key: str, example: str, *, required: bool) -> yaml.Node | None:
        node = self._fields.get(key)
        if node is None:
            if required and key not in self._seen:
                self.complain(Code.MISSING_FIELD, key, f"{self.what} lacks {key}; write {key}: {example}")
            return None
        if node.tag == _NULL:
            self.complain(Code.MISSING_FIELD, key, f"{key} is empty; write {key}: {example}")
            return None
        return node

    def _path(self, key: str) -> str:
        return f"{self.spot.path}.{key}" if self.spot.path else key


class Written(msgspec.Struct, Generic[T], frozen=True):
    """A value and the mapping it was read from."""

    value: T
    table: Table
