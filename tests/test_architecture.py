"""The house rules as tests. Each rule has a bad sample that it must catch.

imports      arrows point one way: stack -> issuer, redemption -> antifraud.gate -> kernel
size         functions up to 70 lines, files up to 500
sql and lua  live in their own files, not in Python strings
clock        only kernel/clock.py reads the system's clock
money        integer fen: no float, no true division
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("kernel", "sql", "issuer", "redemption", "antifraud", "stack", "loadtests")

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500

# Who may import whom, besides itself. antifraud.gate is the only door into antifraud.
ARROWS = {
    "kernel": (),
    "sql": ("kernel",),
    "antifraud": ("kernel", "sql"),
    "issuer": ("antifraud.gate", "kernel", "sql"),
    "redemption": ("antifraud.gate", "kernel", "sql"),
    "stack": ("issuer", "redemption", "antifraud", "kernel", "sql"),
    "loadtests": (),
    "tests": OURS,
}


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root and its syntax tree."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        return self.path.partition("/")[0]


Rule = Callable[[Source], Iterator[str]]


@cache
def sources() -> list[Source]:
    """Every Python file of the project."""
    return [
        Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for folder in (*OURS, "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


# ---------------------------------------------------------------- rules


def imports(source: Source) -> Iterator[str]:
    """Imports of ours that point the wrong way."""
    allowed = (source.package, *ARROWS[source.package])
    for line, module in _imported(source):
        if module.partition(".")[0] in OURS and not _covered(module, allowed):
            yield f"{source.path}:{line} imports {module}"


def _imported(source: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # "from antifraud import gate" is antifraud.gate
            deeper = node.module in OURS
            for name in node.names:
                yield node.lineno, f"{node.module}.{name.name}" if deeper else node.module


def _covered(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == door or module.startswith(f"{door}.") for door in allowed)


def size(source: Source) -> Iterator[str]:
    """Functions and files that are too long."""
    lines = source.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield f"{source.path} has {lines} lines"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{source.path}:{node.lineno} {node.name} has {length} lines"


_STATEMENT = re.compile(
    r"""\s*(?:--[^\n]*\n\s*)*(
        SELECT\s.+ | INSERT\s+INTO\s | UPDATE\s+\S+\s+SET\s | DELETE\s+FROM\s
      | (CREATE|ALTER|DROP|TRUNCATE)\s+(TABLE|VIEW|INDEX|ROLE|TYPE|DATABASE|SCHEMA|FUNCTION)\s
      | WITH\s+\w+\s+AS\s*\( | COPY\s+\S+\s+(FROM|TO)\s | LOCK\s+TABLE\s | MERGE\s+INTO\s
    )""",
    re.VERBOSE | re.DOTALL,
)
_LUA = re.compile(r"redis\.(call|pcall)|server\.(call|pcall)\s*\(")


def statements(source: Source) -> Iterator[str]:
    """SQL or Lua in Python strings; docstrings may talk about them."""
    if source.package == "tests":
        return  # tests look at rows and break them on purpose
    documentation = set(_docstrings(source.tree))
    for node in ast.walk(source.tree):
        if node not in documentation and isinstance(node, ast.Constant | ast.JoinedStr):
            text = _text(node)
            if _STATEMENT.match(text) or _LUA.search(text):
                yield f"{source.path}:{node.lineno} holds a statement: {text[:40]!r}"


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) for part in parts)
    return "inserted"


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


_CLOCKS = {
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
}


def clock(source: Source) -> Iterator[str]:
    """Reads of the system's clock outside kernel/clock.py."""
    if source.path == "kernel/clock.py" or source.package in ("tests", "loadtests"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and _last_two(node) in _CLOCKS:
            yield f"{source.path}:{node.lineno} reads {_last_two(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            for name in node.names:
                if f"time.{name.name}" in _CLOCKS:
                    yield f"{source.path}:{node.lineno} imports time.{name.name}"


def _last_two(node: ast.Attribute) -> str:
    return ".".join(ast.unparse(node).split(".")[-2:])


def money(source: Source) -> Iterator[str]:
    """Floats near an amount in fen."""
    for node in ast.walk(source.tree):
        if _is_float_money(node):
            yield f"{source.path}:{getattr(node, 'lineno', 0)} {ast.unparse(node)}"


def _is_float_money(node: ast.AST) -> bool:
    match node:
        case ast.AnnAssign(target=target, annotation=kind) if _is_fen(target):
            return _mentions_float(kind)
        case ast.arg(arg=name, annotation=ast.expr() as kind) if name.endswith("_fen"):
            return _mentions_float(kind)
        case ast.Call(func=ast.Name(id="float"), args=arguments):
            return any(_is_fen(inner) for one in arguments for inner in ast.walk(one))
        case ast.BinOp(op=ast.Div(), left=left, right=right):
            return any(_is_fen(inner) for one in (left, right) for inner in ast.walk(one))
        case ast.AugAssign(op=ast.Div(), target=target):
            return _is_fen(target)
        case ast.FunctionDef(name=name, returns=ast.expr() as kind) if name.endswith("_fen"):
            return _mentions_float(kind)
    return False


def _is_fen(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.endswith("_fen") or name == "fen"
    return False


def _mentions_float(kind: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "float" for node in ast.walk(kind))


# ---------------------------------------------------------------- the project keeps them

RULES: list[Rule] = [imports, size, statements, clock, money]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    broken = [finding for source in sources() for finding in rule(source)]
    assert not broken, "\n".join(broken)


def test_the_rules_see_the_project() -> None:
    assert {source.package for source in sources()} >= {"kernel", "sql", "stack", "tests"}


# ---------------------------------------------------------------- each rule can fail

BAD = [
    (imports, "kernel/x.py", "import sql"),
    (imports, "sql/x.py", "from stack.running import Stack"),
    (imports, "issuer/x.py", "from redemption.offers import Offer"),
    (imports, "issuer/x.py", "import redemption"),
    (imports, "redemption/x.py", "def f():\n    from issuer import stock"),
    (imports, "issuer/x.py", "from antifraud.rules import Rule"),
    (imports, "issuer/x.py", "from antifraud import rules"),
    (imports, "antifraud/x.py", "from issuer import claim"),
    (imports, "loadtests/x.py", "from kernel import codes"),
    (imports, "stack/x.py", "import loadtests"),
    (size, "kernel/x.py", "def f():\n" + "    pass\n" * FUNCTION_LINES_MAX),
    (size, "kernel/x.py", "x = 1\n" * (FILE_LINES_MAX + 1)),
    (statements, "issuer/x.py", 'q = "SELECT 1"'),
    (statements, "issuer/x.py", 'q = """\n  -- all\n  INSERT INTO voucher VALUES (1)"""'),
    (statements, "issuer/x.py", 'q = f"UPDATE {table} SET x = 1"'),
    (statements, "issuer/x.py", 'q = "DELETE FROM voucher"'),
    (statements, "issuer/x.py", 'q = "CREATE TABLE t ()"'),
    (statements, "issuer/x.py", 'q = "WITH a AS (SELECT 1) TABLE a"'),
    (statements, "issuer/x.py", "s = \"return redis.call('GET', KEYS[1])\""),
    (clock, "issuer/x.py", "from datetime import datetime\ndatetime.now()"),
    (clock, "issuer/x.py", "import datetime\ndatetime.datetime.utcnow()"),
    (clock, "issuer/x.py", "import time\ntime.time()"),
    (clock, "issuer/x.py", "from time import time\ntime()"),
    (clock, "stack/x.py", "from datetime import date\ndate.today()"),
    (clock, "stack/x.py", "import time\nnow = time.time_ns"),
    (money, "issuer/x.py", "face_value_fen: float = 1"),
    (money, "issuer/x.py", "def f(paid_fen: float | None) -> None: ..."),
    (money, "issuer/x.py", "def paid_fen() -> float: ..."),
    (money, "issuer/x.py", "x = float(offer.face_value_fen)"),
    (money, "issuer/x.py", "x = float(str(paid_fen))"),
    (money, "issuer/x.py", "yuan = paid_fen / 100"),
    (money, "issuer/x.py", "share = 3 / (2 * row.paid_fen)"),
    (money, "issuer/x.py", "paid_fen /= 2"),
]

GOOD = [
    (imports, "issuer/x.py", "from antifraud.gate import verdict\nfrom antifraud import gate"),
    (imports, "redemption/x.py", "import redemption.ledger\nimport sql\nfrom kernel import money"),
    (imports, "stack/x.py", "import issuer.app\nfrom antifraud.rules import Rule"),
    (size, "kernel/x.py", "def f():\n" + "    pass\n" * (FUNCTION_LINES_MAX - 1)),
    (statements, "issuer/x.py", '"""SELECT is what sql/queries/x.sql does."""'),
    (statements, "issuer/x.py", 'say("Select a round", "with love", "update later", "delete it")'),
    (clock, "kernel/clock.py", "import time\ntime.time()"),
    (clock, "issuer/x.py", "import time\ntime.monotonic()\nclock.now()"),
    (money, "issuer/x.py", "paid_fen: int = 1\nhalf_fen = paid_fen // 2\nratio: float = 1 / 3"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_the_rule_catches(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_the_rule_lets_pass(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(Source(path, text)))
