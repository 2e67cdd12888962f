"""./hanquan campaign: what it prints and how it exits."""

import json
from pathlib import Path

import pytest

from stack.commands.campaign import app
from stack.console import exit_status
from tests.small_campaign import SMALL, small


def hanquan(*words: str) -> int:
    return exit_status(lambda: app(words, result_action="return_value"))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(small(("fund: 1000", "fund: 1.5"), ("{id: r2", "{id: r1")), encoding="utf-8")
    return path


def test_check_of_a_good_campaign(capsys: pytest.CaptureFixture[str]) -> None:
    assert hanquan("check", "wuhan-2020") == 0
    printed = capsys.readouterr().out
    assert "武汉消费券" in printed
    assert "500,000,000.00" in printed
    assert "43,005,000 vouchers" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_check_tells_limits_packs_and_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert hanquan("check", "city-tour") == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert {
        "claims in a round at one partner         1  a pack is one claim",
        "claims in a round at all partners        2",
        "face in the campaign, yuan          300.00",
        "wechat   weekend      140.00  2 dining, 1 hotels      big-ticket",
        "wechat   welcome       70.00  1 groceries, 2 museums  granted",
        "may, autumn                  0:00:00           50 %",
        "june                         0:00:00        33.33 %",
        "                     1 day, 12:00:00          100 %",
    } <= set(lines)


def test_check_of_a_bad_file(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hanquan("check", str(bad)) == 1
    printed = capsys.readouterr().out
    assert "2 complaints" in printed
    assert "   4  fund" in printed
    assert "  22  rounds[1].id" in printed


def test_a_long_list_of_complaints_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tabs.yaml"
    path.write_text("\t\n" * 250, encoding="utf-8")
    assert hanquan("check", str(path)) == 1
    assert capsys.readouterr().out.endswith("\nand 50 more\n")


def test_check_as_json(bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hanquan("check", str(bad), "--json") == 1
    first, second = json.loads(capsys.readouterr().out)["complaints"]
    assert (first["line"], first["path"], first["code"]) == (4, "fund", "UNQUOTED_DECIMAL")
    assert (second["line"], second["code"]) == (22, "DUPLICATE_ID")
    good = tmp_path / "good.yaml"
    good.write_text(SMALL, encoding="utf-8")
    assert hanquan("check", str(good), "--json") == 0
    assert json.loads(capsys.readouterr().out)["fund_fen"] == 100_000


def test_check_of_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert hanquan("check", "nowhere.yaml") == 1
    assert "nowhere.yaml: No such file or directory" in capsys.readouterr().err


def test_show(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hanquan("show", "wuhan-2020") == 0
    printed = capsys.readouterr().out
    assert "r15    2020-07-23 12:00" in printed
    assert "meituan  culture" in printed
    assert hanquan("show", str(bad)) == 1
    assert hanquan("show", "wuhan-2020", "--json") == 0
