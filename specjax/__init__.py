"""specjax: lossless speculative decoding as one XLA program.

target = specjax.load("demo:target")
draft = specjax.load("demo:draft")
out = specjax.generate(target, specjax.drafters.LM(draft, num_draft=5), "def area(", seed=0)
out.text, out.tau, out.trace
"""

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# An installed script's imports, as in `experiments/__init__`: until `cli.script` takes over.
_COMMAND, _CTRL_C = os.path.basename((*sys.argv, "")[0]), signal.getsignal(signal.SIGINT)
if _COMMAND.startswith("specjax-") and _CTRL_C is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from specjax.trace.trace import Cycle, Trace  # noqa: E402 - behind the lines above

if TYPE_CHECKING:
    from specjax import drafters, extend, verify
    from specjax.api import Output, Piece, check, generate, stream
    from specjax.checkpoint.drafters.load import load_drafter
    from specjax.checkpoint.load import Model, load
    from specjax.core.sharding import make_mesh, parse_mesh
    from specjax.in_turn import Answer, generate_each
    from specjax.lab import costs as measure
    from specjax.lab.audit import AuditReport, audit
    from specjax.lab.diagnosis import DrafterReport, check_drafter
    from specjax.lab.view.figures import (
        plot_acceptance,
        plot_depth,
        plot_heat,
        plot_speedup,
        plot_timeline,
    )
    from specjax.lab.view.race import race
    from specjax.lab.view.show import show
    from specjax.lab.view.tables import table
    from specjax.sampling import Options
    from specjax.session.memory import Memory

__all__ = [
    "Answer",
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
    "generate_each",
    "load",
    "load_drafter",
    "make_mesh",
    "measure",
    "parse_mesh",
    "plot_acceptance",
    "plot_depth",
    "plot_heat",
    "plot_speedup",
    "plot_timeline",
    "race",
    "show",
    "stream",
    "table",
    "verify",
]

# Name -> module, imported when it is asked for: Flax alone takes longer than all else but JAX.
_CORE = {
    "Answer": "specjax.in_turn",
    "Memory": "specjax.session.memory",
    "Model": "specjax.checkpoint.load",
    "Options": "specjax.sampling",
    "Output": "specjax.api",
    "Piece": "specjax.api",
    "check": "specjax.api",
    "generate": "specjax.api",
    "generate_each": "specjax.in_turn",
    "load": "specjax.checkpoint.load",
    "load_drafter": "specjax.checkpoint.drafters.load",
    "make_mesh": "specjax.core.sharding",
    "parse_mesh": "specjax.core.sharding",
    "stream": "specjax.api",
}
_LAB = {
    "AuditReport": "specjax.lab.audit",
    "DrafterReport": "specjax.lab.diagnosis",
    "audit": "specjax.lab.audit",
    "check_drafter": "specjax.lab.diagnosis",
    "plot_acceptance": "specjax.lab.view.figures",
    "plot_depth": "specjax.lab.view.figures",
    "plot_heat": "specjax.lab.view.figures",
    "plot_speedup": "specjax.lab.view.figures",
    "plot_timeline": "specjax.lab.view.figures",
    "race": "specjax.lab.view.race",
    "show": "specjax.lab.view.show",
    "table": "specjax.lab.view.tables",
}
_MODULES = {
    "drafters": "specjax.drafters",
    "extend": "specjax.extend",
    "measure": "specjax.lab.costs",
    "verify": "specjax.verify",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _CORE:
        return getattr(importlib.import_module(_CORE[name]), name)
    if name not in _LAB:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_LAB[name]), name)
    except ModuleNotFoundError as error:
        return _not_installed(name, error)


def _not_installed(name: str, error: ModuleNotFoundError) -> Any:
    """What stands for a function that needs ``specjax[lab]``: it says so when it is called."""
    from specjax import lab

    message = f"specjax.{name}: {lab.told(error)}"

    def needs_lab(*args: Any, **kwargs: Any) -> None:
        raise ImportError(message)

    return needs_lab


def __dir__() -> list[str]:
    """The public names: what a notebook completes, without modules that lie around."""
    return list(__all__)


def _page(trace: Trace) -> str:
    """What a notebook's cell shows of a trace: its coloured text."""
    return __getattr__("show")(trace)._repr_html_()


Trace.page = _page
