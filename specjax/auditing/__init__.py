"""The losslessness audit: `audit` a drafter and a rule, get an `AuditReport`."""

from specjax.auditing.plan import CHECKS, Plan, audit, prepare
from specjax.auditing.report import AuditReport, Check

__all__ = ["CHECKS", "AuditReport", "Check", "Plan", "audit", "prepare"]
