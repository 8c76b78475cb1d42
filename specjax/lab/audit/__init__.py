"""The losslessness audit: `audit` a drafter and a rule, get an `AuditReport`."""

from specjax.lab.audit.plan import CHECKS, Plan, audit, prepare
from specjax.lab.audit.report import AuditReport, Check
from specjax.lab.audit.target import TARGET_CHECKS

__all__ = ["CHECKS", "TARGET_CHECKS", "AuditReport", "Check", "Plan", "audit", "prepare"]
