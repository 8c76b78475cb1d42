"""specjax as a contender of `experiments.benchmark_peer`, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax

import specjax
from experiments.benchmarking import cycle_cost, floor
from specjax import drafters
from specjax.core.compile_cache import use_compile_cache
from specjax.drafters import LM, NoDraft
from specjax.prompts.ids import prompt_ids


class OwnSide:
    """Both models in each type, and what is asked of them."""

    def __init__(self, target: str, draft: str, dtypes: Sequence[str], cache: str):

        if cache:
            use_compile_cache(cache)
        self.targets = {d: specjax.load(target, dtype=d) for d in dtypes}
        self.drafts = {d: specjax.load(draft, dtype=d) for d in dtypes}
        if next(iter(self.targets.values())).tokenizer is None:
            raise ValueError(f"--target={target} has no tokenizer, which the prompts need.")

    def describe(self) -> dict[str, str]:
        return {"jax": jax.__version__, "backend": jax.default_backend()}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        target = next(iter(self.targets.values()))
        return prompt_ids(target, texts)

    def _drafter(self, dtype: str, way: str, k: int) -> Any:
        return drafters.make(
            "none" if way == "plain" else way, model=self.drafts[dtype], num_draft=k
        )

    def generate(
        self, dtype: str, way: str, k: int, prompt: Sequence[int], max_new_tokens: int
    ) -> dict[str, Any]:
        drafter = self._drafter(dtype, way, k)
        begin = time.perf_counter()
        out = specjax.generate(
            self.targets[dtype],
            drafter,
            list(prompt),
            max_new_tokens=max_new_tokens,
            stop_token_ids=(),
        )
        seconds = time.perf_counter() - begin
        return {"tokens": out.tokens[0], "seconds": seconds, "passes": out.trace.num_cycles}

    def costs(
        self, dtype: str, prompt: Sequence[int], new_tokens: int, lm_k: int, threads: int
    ) -> dict[str, Any]:
        """The step and its parts against the memory floor, in seconds and bytes."""
        target, draft = self.targets[dtype], self.drafts[dtype]
        slots = 256
        while slots < len(prompt) + new_tokens + 1:
            slots *= 2
        cycles = {"cycles": 40, "repeats": 5}

        def cycle(drafter: Any, *, host_loop: bool = False) -> float:
            program = cycle_cost.CycleProgram(
                target, drafter, prompt, slots=slots, host_loop=host_loop
            )
            return program.seconds(**cycles)

        weights = floor.weight_bytes(target.net)
        cache = floor.cache_bytes(target.net, len(prompt) + new_tokens / 2)
        # The model's own size, and one that no processor cache holds.
        bandwidths = {
            name: {
                "product": floor.product_bandwidth(size, dtype),
                "host_copy": floor.host_copy_bandwidth(size, threads),
            }
            for name, size in (("model_size", weights), ("256 MiB", 2**28))
        }
        step = cycle(NoDraft())
        verify = {k: cycle(cycle_cost.Silent(k)) for k in sorted({1, 2, 4, 8, lm_k})}
        return {
            "weight_bytes": weights,
            "cache_bytes": cache,
            "bandwidth": bandwidths,
            "floor_seconds": (weights + cache) / max(bandwidths["model_size"].values()),
            "step": step,
            "host_loop_step": cycle(NoDraft(), host_loop=True),
            "products": cycle_cost.products_seconds(target.net, steps=40),
            "pass": cycle_cost.pass_seconds(
                target.net, slots=slots, length=len(prompt) + new_tokens // 2, steps=40
            ),
            "verify": verify,
            "draft_cost": (cycle(LM(draft, lm_k)) - verify[lm_k]) / lm_k / step,
        }
