"""From the bytes of a campaign file to a YAML tree whose every node knows its line.

Only plain YAML is taken: mappings, lists and scalars. Anchors, aliases, tags and further
documents are refused, so that what a reader sees on a line is all there is to it.
"""

import re

import yaml

from issuer.campaign.complaints import Code, Complaints, Spot

FILE_BYTES_MAX = 512 * 1024
DEPTH_MAX = 8

_WHOLE_FILE = "(file)"

# What PyYAML says, and what a clerk can do about it.
_PLAIN_WORDS = {
    "mapping values are not allowed here": "a colon stands where none is expected; put text that holds a colon in"
    " quotes, and check that the line starts as far to the right as its neighbours",
    "could not find expected ':'": 'this line is no "name: value"; write a colon and a space after the name',
    "found unexpected end of stream": "a quote is opened and never closed",
    "expected ',' or '}'": "a { is not closed by }, or a comma is missing between two fields",
    "expected ',' or ']'": "a [ is not closed by ], or a comma is missing between two entries",
    "expected <block end>": "this line is indented differently from its neighbours; start it below theirs",
    "cannot start any token": "a value may not start with this sign; put the value in quotes",
}
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # as YAML counts lines
_WIDE_COLON = re.compile(r"\s*(?:- *)?[a-z_]+\s*：")
_NO_SPACE = re.compile(r"\s*(?:- )?[a-z_]+:[^\s]")


def read_tree(data: bytes, complaints: Complaints) -> yaml.MappingNode | None:
    """The top mapping of the file, or None when it cannot be read; then the complaints say why."""
    text = _decode(data, complaints)
    if text is None or not _has_plain_characters(text, complaints):
        return None
    try:
        if not _is_plain(text, complaints):
            return None
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        spot, words = _explain(error, text)
        complaints.add(spot, Code.NOT_YAML, words)
        return None
    if isinstance(node, yaml.MappingNode):
        return node
    what = "the file is empty" if node is None else "the file does not start with a field"
    complaints.add(Spot(line_of(node) if node else 1, _WHOLE_FILE), Code.EMPTY, f'{what}; start with "id: my-campaign"')
    return None


def line_of(node: yaml.Node) -> int:
    """The line on which a node starts, counted from 1."""
    line: int = node.start_mark.line
    return line + 1


def _decode(data: bytes, complaints: Complaints) -> str | None:
    if len(data) > FILE_BYTES_MAX:
        words = f"the file has {len(data):,} bytes; a campaign has at most {FILE_BYTES_MAX:,}"
        complaints.add(Spot(1, _WHOLE_FILE), Code.TOO_BIG, words)
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        words = f'byte {data[error.start]:#04x} is not UTF-8; save the file again and choose the encoding "UTF-8"'
        complaints.add(Spot(data[: error.start].count(b"\n") + 1, _WHOLE_FILE), Code.NOT_UTF8, words)
        return None


def _has_plain_characters(text: str, complaints: Complaints) -> bool:
    for number, line in enumerate(_LINE_END.split(text), start=1):
        spot = Spot(number, _WHOLE_FILE)
        if (match := yaml.reader.Reader.NON_PRINTABLE.search(line)) is not None:
            words = f"the invisible character U+{ord(match[0]):04X} stands on this line; delete it"
            complaints.add(spot, Code.ODD_CHARACTER, words)
        if "\t" in line:
            complaints.add(spot, Code.TAB, "this line has a tab in it; write spaces instead")
        if _WIDE_COLON.match(line):
            words = "this line has a full-width colon (：); write an ordinary colon and a space instead (: )"
            complaints.add(spot, Code.FULL_WIDTH_COLON, words)
    return not len(complaints)


def _is_plain(text: str, complaints: Complaints) -> bool:
    """Looks at the events before a tree is built: an alias could make it endless, depth could exhaust the stack."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        spot = Spot(event.start_mark.line + 1 if event.start_mark else 1, _WHOLE_FILE)
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            complaints.add(spot, Code.TOO_DEEP, f"brackets or indentation nest more than {DEPTH_MAX} deep")
            return False
        if documents > 1:
            complaints.add(spot, Code.SECOND_DOCUMENT, "a second document starts here (---); write one campaign a file")
            return False
        _refuse_clever(event, spot, complaints)
    return not len(complaints)


def _refuse_clever(event: yaml.Event, spot: Spot, complaints: Complaints) -> None:
    if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
        sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
        words = f"{sign}{event.anchor} is a YAML shortcut; write the value out, or in quotes if it is text"
        complaints.add(spot, Code.ANCHOR, words)
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
        words = f"{event.tag} is a YAML tag; leave it out, or put the text in quotes"
        complaints.add(spot, Code.TAG, words)


def _explain(error: yaml.MarkedYAMLError, text: str) -> tuple[Spot, str]:
    problem = error.problem or "this is not YAML"
    is_key_broken = "expected ':'" in problem or "end of stream" in problem
    mark = (error.context_mark if is_key_broken else None) or error.problem_mark or error.context_mark
    line = (mark.line if mark else 0) + 1
    lines = _LINE_END.split(text)
    if line <= len(lines) and _NO_SPACE.match(lines[line - 1]):
        return Spot(line, _WHOLE_FILE), "a space is missing after the colon; write name: value"
    words = next((plain for said, plain in _PLAIN_WORDS.items() if said in problem), f"this is not YAML: {problem}")
    return Spot(line, _WHOLE_FILE), words
