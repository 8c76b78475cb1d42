"""What the scripts do, as functions: their keywords are the options of the command line.

    specjax.jobs.report(run=("runs/bench",), output="page")

They print as the scripts do, and end no process: what cannot be used is a ValueError in one line.
"""

import importlib
from typing import TYPE_CHECKING, Any

from specjax import lab

if TYPE_CHECKING:
    from specjax.jobs.auditing import audit as audit
    from specjax.jobs.benchmarking import benchmark as benchmark
    from specjax.jobs.benchmarks import benchmark_device as benchmark_device
    from specjax.jobs.benchmarks import benchmark_load as benchmark_load
    from specjax.jobs.benchmarks import benchmark_peer as benchmark_peer
    from specjax.jobs.benchmarks import benchmark_training as benchmark_training
    from specjax.jobs.chatting import chat as chat
    from specjax.jobs.comparing import parity as parity
    from specjax.jobs.compiling import compile_report as compile_report
    from specjax.jobs.diagnosing import diagnose as diagnose
    from specjax.jobs.drafter_training import train_drafter as train_drafter
    from specjax.jobs.exporting import export as export
    from specjax.jobs.generating import generate as generate
    from specjax.jobs.lm_training import train_lm as train_lm
    from specjax.jobs.passages import heldout_prompts as heldout_prompts
    from specjax.jobs.planning import plan as plan
    from specjax.jobs.predicting import predict_check as predict_check
    from specjax.jobs.regenerating import regenerate as regenerate
    from specjax.jobs.reporting import report as report

_PLACES = {
    "audit": "auditing",
    "benchmark": "benchmarking",
    "benchmark_device": "benchmarks",
    "benchmark_load": "benchmarks",
    "benchmark_peer": "benchmarks",
    "benchmark_training": "benchmarks",
    "chat": "chatting",
    "compile_report": "compiling",
    "diagnose": "diagnosing",
    "export": "exporting",
    "generate": "generating",
    "heldout_prompts": "passages",
    "parity": "comparing",
    "plan": "planning",
    "predict_check": "predicting",
    "regenerate": "regenerating",
    "report": "reporting",
    "train_drafter": "drafter_training",
    "train_lm": "lm_training",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"specjax.jobs.{name}: {lab.told(error)}") from None


def __dir__() -> list[str]:
    return list(_PLACES)
