"""specjax: lossless speculative decoding as one XLA program.

target = specjax.load("demo:target")
draft = specjax.load("demo:draft")
out = specjax.generate(target, specjax.drafters.LM(draft, num_draft=5), "def area(", seed=0)
out.text, out.tau, out.trace
"""

import importlib
from typing import TYPE_CHECKING, Any

from specjax import drafters, measure, verify
from specjax.api import Output, Piece, check, generate, stream
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.load import Model, load
from specjax.core.sharding import make_mesh, parse_mesh
from specjax.diagnosis import DrafterReport, check_drafter
from specjax.measure.trace import Cycle, Trace
from specjax.memory import Memory
from specjax.sampling import Options

if TYPE_CHECKING:
    from specjax import extend
    from specjax.auditing import AuditReport, audit
    from specjax.view.figures import plot_acceptance, plot_heat, plot_speedup, plot_timeline
    from specjax.view.html import show
    from specjax.view.race import race
    from specjax.view.tables import table

__all__ = [
    "AuditReport",
    "Cycle",
    "DrafterReport",
    "Memory",
    "Model",
    "Options",
    "Output",
    "Piece",
    "Trace",
    "audit",
    "check",
    "check_drafter",
    "drafters",
    "extend",
    "generate",
    "load",
    "load_drafter",
    "make_mesh",
    "measure",
    "parse_mesh",
    "plot_acceptance",
    "plot_heat",
    "plot_speedup",
    "plot_timeline",
    "race",
    "show",
    "stream",
    "table",
    "verify",
]

# Name -> module: matplotlib and pages are imported by whoever wants a picture.
_LAZY = {
    "AuditReport": "specjax.auditing",
    "audit": "specjax.auditing",
    "plot_acceptance": "specjax.view.figures",
    "plot_heat": "specjax.view.figures",
    "plot_speedup": "specjax.view.figures",
    "plot_timeline": "specjax.view.figures",
    "race": "specjax.view.race",
    "show": "specjax.view.html",
    "table": "specjax.view.tables",
}


def __getattr__(name: str) -> Any:
    if name == "extend":
        return importlib.import_module("specjax.extend")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """The public names: what a notebook completes, without modules that lie around."""
    return list(__all__)
