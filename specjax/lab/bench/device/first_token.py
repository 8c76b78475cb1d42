"""A process that starts, loads a checkpoint, and writes its first tokens: what each part takes.

    python -m specjax.lab.bench.device.first_token TARGET DRAFT CACHE TOKENS BEGUN

Its last line is JSON, of `records.device.StartRun`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time

import jax

from specjax.checkpoint.assemble import outlined
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.load import Model, load
from specjax.core.ahead import Ahead
from specjax.core.compile_cache import use_compile_cache
from specjax.drafters.spec import Spec
from specjax.lab.records import codec
from specjax.lab.records.device import StartRun
from specjax.sampling import Options
from specjax.session import Row, Session
from specjax.session.warming import outline

_STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
    "/jax/core/compile/backend_compile_duration": "compile",
}


class Watch:
    """What JAX says of the programs that it makes; several threads at once add up."""

    def __init__(self) -> None:
        self.seconds = {"trace": 0.0, "compile": 0.0}
        self.counts = {"cache_hits": 0, "cache_misses": 0}
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._took)
        jax.monitoring.register_event_listener(self._counted)

    def _took(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in _STAGES:
            with self._lock:
                self.seconds[_STAGES[event]] += duration_secs

    def _counted(self, event: str, **_: str | int) -> None:
        name = event.rpartition("/")[2]
        if name in self.counts:
            with self._lock:
                self.counts[name] += 1


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Models, and when what was there, by `time.perf_counter`."""

    target: Model
    drafter: Spec
    weights: float
    programs: float


def load_beside(target_dir: str, draft_dir: str, row: Row) -> Loaded:
    """Loads while what ``row`` needs is compiled."""
    ended = list[float]()

    def load_both() -> tuple[Model, Spec]:
        target = load(target_dir)
        return target, load_drafter(draft_dir, target)

    def compile_all(target: Model, drafter: Spec) -> None:
        with ahead.compiling():
            outline(target, drafter, [row])
            ahead.wait()
        ended.append(time.perf_counter())

    with Ahead() as ahead:
        with outlined():
            shapes = load_both()
        compiling = threading.Thread(target=compile_all, args=shapes)
        compiling.start()
        loaded = load_both()
        weights = time.perf_counter()
        compiling.join()
    return Loaded(*loaded, weights, ended[0])


def start(target_dir: str, draft_dir: str, cache: str, tokens: int, begun: float) -> StartRun:
    """Measures; ``begun`` is when the process was started, by `time.time`."""
    watch = Watch()
    use_compile_cache(cache)
    jax.devices()
    before, begin = time.time() - begun, time.perf_counter()
    row = Row(range(1, tokens + 1), Options(), seed=0, max_new_tokens=64, stop_token_ids=())
    loaded = load_beside(target_dir, draft_dir, row)
    ready = time.perf_counter()
    session = Session(loaded.target, loaded.drafter, [row])
    session.advance(1)
    first = time.perf_counter()
    Session(loaded.target, loaded.drafter, [row]).advance(1)
    again = time.perf_counter()
    return StartRun(
        seconds=before + first - begin,
        process_seconds=before,
        weights_seconds=loaded.weights - begin,
        programs_seconds=loaded.programs - begin,
        trace_seconds=watch.seconds["trace"],
        compile_seconds=watch.seconds["compile"],
        cache_hits=watch.counts["cache_hits"],
        cache_misses=watch.counts["cache_misses"],
        first_seconds=first - ready,
        again_seconds=again - first,
    )


if __name__ == "__main__":
    where, beside, kept, prompt, since = sys.argv[1:]
    print(json.dumps(codec.to_json(start(where, beside, kept, int(prompt), float(since)))))
