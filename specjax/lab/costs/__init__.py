"""Records of what speculation did, what cycles cost, and the figures drawn from both."""

from __future__ import annotations

import importlib
from typing import Any

from specjax.trace.trace import Cycle, Trace

__all__ = ["Cycle", "Trace", "calibrate", "compare", "figures", "predict", "survival_of"]

# Imported when they are asked for: what they need, imports this package.
_LAZY = {
    "calibrate": "specjax.lab.costs.calibration",
    "compare": "specjax.trace.metrics",
    "figures": "specjax.trace.metrics",
    "predict": "specjax.lab.costs.cost_model",
    "survival_of": "specjax.lab.costs.cost_model",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
