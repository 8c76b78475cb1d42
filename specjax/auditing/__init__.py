"""The losslessness audit: `audit` a drafter and a rule, get an `AuditReport`."""

from specjax.auditing.plan import CHECKS, Plan, audit, prepare
from specjax.auditing.report import AuditReport, Check
from specjax.auditing.target import TARGET_CHECKS

__all__ = ["CHECKS", "TARGET_CHECKS", "AuditReport", "Check", "Plan", "audit", "prepare"]
