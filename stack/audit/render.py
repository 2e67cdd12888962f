"""An audit's report for people (a table and what is wrong) and for programs (JSON)."""

from collections.abc import Iterator

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stack.audit.report import AuditReport, StatementReport, Verdict
from stack.audit.told import ClientLogReport

_STYLE = {Verdict.HOLDS: "green", Verdict.BROKEN: "bold red", Verdict.SKIPPED: "yellow"}
_WORD = {
    "en": {Verdict.HOLDS: "holds", Verdict.BROKEN: "BROKEN", Verdict.SKIPPED: "skipped"},
    "zh": {Verdict.HOLDS: "成立", Verdict.BROKEN: "不成立", Verdict.SKIPPED: "未查"},
}
_HEADS = {
    "en": ("", "statement", "", "examined", "violations"),
    "zh": ("", "陈述", "", "检查行数", "违反行数"),
}


def table(report: AuditReport, language: str = "en") -> RenderableType:
    """The statements, aligned, then the rows that break one, then one line that sums up.

    language: "en" or "zh".
    """
    parts: list[RenderableType] = [_statements(report, language)]
    parts += [*_violations(report, language), _summary(report, language)]
    return Group(*parts)


def client_log(log: ClientLogReport, language: str = "en") -> RenderableType:
    """What became of everything that clients were told."""
    if language == "zh":
        words = (
            f"客户端日志：{log.records:,} 条，其中成功 {log.acknowledged:,}、拒绝 {log.refused:,}、"
            f"未知 {log.unknown:,}（实际完成 {log.unknown_carried_out:,}）；违反 {log.violations:,}"
        )
    else:
        words = (
            f"clients' log: {log.records:,} answers, {log.acknowledged:,} acknowledged, {log.refused:,} refused,"
            f" {log.unknown:,} unknown ({log.unknown_carried_out:,} carried out); {log.violations:,} violations"
        )
    head = Text(words, style="green" if log.holds else "bold red")
    return Group(head, *(Text(f"  {what}") for what in log.shown))


def json(report: AuditReport, log: ClientLogReport | None = None) -> bytes:
    """The report as indented JSON, with `holds`, `violations` and `examined` on top."""
    whole = {
        "holds": report.holds and (log is None or log.holds),
        "violations": report.violations,
        "examined": report.examined,
        **msgspec.to_builtins(report),
        "client_log": msgspec.to_builtins(log),
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2)


def _statements(report: AuditReport, language: str) -> Table:
    made = Table(box=None, pad_edge=False, expand=False)
    identity, sentence, verdict, examined, violations = _HEADS[language]
    made.add_column(identity)
    made.add_column(sentence, overflow="fold")
    made.add_column(verdict)
    made.add_column(examined, justify="right")
    made.add_column(violations, justify="right")
    for statement in report.statements:
        made.add_row(
            statement.id,
            sentence_of(statement, language),
            Text(_WORD[language][statement.verdict], style=_STYLE[statement.verdict]),
            f"{statement.examined:,}",
            f"{statement.violations:,}" if statement.violations else "",
        )
    return made


def sentence_of(statement: StatementReport, language: str) -> str:
    """A statement's sentence, with the remark, if there is one."""
    if language == "zh":
        remark = statement.remark_zh
        return statement.sentence_zh + (f"（{remark}）" if remark else "")
    remark = statement.remark_en
    return statement.sentence_en + (f" ({remark})" if remark else "")


def _violations(report: AuditReport, language: str) -> Iterator[Text]:
    for statement in report.statements:
        if statement.verdict is Verdict.BROKEN:
            yield Text(f"\n{statement.id} {sentence_of(statement, language)}", style="bold red")
            yield from (Text(f"  {what}") for what in statement.shown)
            rest = statement.violations - len(statement.shown)
            if rest:
                yield Text(f"  ... {rest:,}" + (" more" if language == "en" else " 行未列出"))


def _summary(report: AuditReport, language: str) -> Text:
    held = sum(one.verdict is Verdict.HOLDS for one in report.statements)
    skipped = sum(one.verdict is Verdict.SKIPPED for one in report.statements)
    taken = report.taken_at.isoformat(timespec="seconds")
    if language == "zh":
        words = (
            f"\n{held} 条成立，{len(report.broken)} 条不成立，{skipped} 条未查；"
            f"快照 {taken}，用时 {report.elapsed_s:.1f} 秒"
        )
    else:
        words = (
            f"\n{held} hold, {len(report.broken)} broken, {skipped} skipped;"
            f" snapshot of {taken}, {report.elapsed_s:.1f} s"
        )
    return Text(words, style="green" if report.holds else "bold red")
