"""The audit: recomputes what "correct" means from the rows that are never changed.

    report = await audit(connection)               # as hanquan_auditor
    report = await audit_city(connection, valkey)  # with the claim store's side of it
    report.holds, report.broken                    # True, ()

Statements are in statements.py, their SQL in sql/queries/audit.sql. What clients were told is
held against the books by `check_client_log`; its records are in clientlog.py.
"""

from stack.audit.clientlog import ClaimTold, ClientLogError, RedeemTold, RefundTold, Told, read_log
from stack.audit.report import SHOWN_MAX, AuditReport, StatementReport, Verdict
from stack.audit.run import audit, audit_city
from stack.audit.statements import STATEMENTS, Statement
from stack.audit.told import ClientLogReport, check_client_log

__all__ = [
    "SHOWN_MAX",
    "STATEMENTS",
    "AuditReport",
    "ClaimTold",
    "ClientLogError",
    "ClientLogReport",
    "RedeemTold",
    "RefundTold",
    "Statement",
    "StatementReport",
    "Told",
    "Verdict",
    "audit",
    "audit_city",
    "check_client_log",
    "read_log",
]
