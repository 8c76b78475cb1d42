"""specjax as a contender, in a process of its own."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from specjax import api, drafters
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.load import load
from specjax.core.compile_cache import use_compile_cache
from specjax.drafters import LM, NoDraft
from specjax.drafters.spec import with_num_draft
from specjax.lab.bench import roofs
from specjax.lab.costs import account, turns
from specjax.lab.costs.parts import Part, pass_alone, products_alone
from specjax.lab.costs.programs import CycleProgram, Silent
from specjax.lab.records.peer import LARGE, OWN, Bandwidth, Generated, StepCosts
from specjax.prompts.ids import prompt_ids
from specjax.session.slots import bucket

Timed = Callable[[], float]  # -> seconds of a step

_STEPS, _ROUNDS = 40, 7


class OwnSide:
    """All models in each type, and what is asked of them."""

    def __init__(
        self, target: str, draft: str, trained: Sequence[str], dtypes: Sequence[str], cache: str
    ):
        """``trained``: checkpoints of drafters for the target; each is a way to decode."""
        if cache:
            use_compile_cache(cache)
        self.targets = {d: load(target, dtype=d) for d in dtypes}
        self.drafts = {d: load(draft, dtype=d) for d in dtypes}
        self.trained = {
            (d, name): load_drafter(name, model, dtype=d)
            for d, model in self.targets.items()
            for name in trained
        }
        if next(iter(self.targets.values())).tokenizer is None:
            raise ValueError(f"--target={target} has no tokenizer, which the prompts need.")

    def describe(self) -> dict[str, str]:
        return {"jax": jax.__version__, "backend": jax.default_backend()}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return prompt_ids(next(iter(self.targets.values())), texts)

    def generate(
        self, dtype: str, way: str, k: int, prompt: Sequence[int], max_new_tokens: int
    ) -> Generated:
        if (dtype, way) in self.trained:
            drafter: Any = with_num_draft(self.trained[dtype, way], k)
        else:
            name = "none" if way == "plain" else way
            drafter = drafters.make(name, model=self.drafts[dtype], num_draft=k)
        begin = time.perf_counter()
        out = api.generate(
            self.targets[dtype],
            drafter,
            list(prompt),
            max_new_tokens=max_new_tokens,
            stop_token_ids=(),
        )
        seconds = time.perf_counter() - begin
        return Generated(tuple(out.tokens[0]), seconds, out.trace.num_cycles)

    def costs(
        self, dtype: str, prompt: Sequence[int], new_tokens: int, lm_k: int, threads: int
    ) -> StepCosts:
        """The step and its parts against the memory floor."""
        target, draft = self.targets[dtype], self.drafts[dtype]
        slots, half = bucket(len(prompt) + new_tokens + 1), len(prompt) + new_tokens // 2

        def cycle(drafter: Any, *, host_loop: bool = False) -> Timed:
            program = CycleProgram(target, drafter, prompt, slots=slots, host_loop=host_loop)
            return functools.partial(program.seconds, cycles=_STEPS)

        def part(found: Part) -> Timed:
            return functools.partial(found.seconds, steps=_STEPS)

        floor = account.plain_step(target, slots=slots, context=half)
        bandwidths = {
            name: Bandwidth(
                roofs.product_bandwidth(size, dtype), roofs.host_copy_bandwidth(size, threads)
            )
            for name, size in ((OWN, floor.weight_bytes), (LARGE, 2**28))
        }
        guesses = sorted({1, 2, 4, 8, lm_k})
        took = _in_turns(
            {
                "step": cycle(NoDraft()),
                "host loop": cycle(NoDraft(), host_loop=True),
                "pass": part(pass_alone(target.net, slots=slots, length=half)),
                "drafting": cycle(LM(draft, lm_k)),
                **{("products", k): part(products_alone(target.net, tokens=k + 1)) for k in (0, 8)},
                **{("verify", k): cycle(Silent(k)) for k in guesses},
            }
        )
        step = took["step"]
        return StepCosts(
            weight_bytes=floor.weight_bytes,
            cache_bytes=floor.cache_bytes,
            bandwidth=bandwidths,
            floor_seconds=(floor.weight_bytes + floor.cache_bytes) / bandwidths[OWN].best,
            step=step,
            host_loop_step=took["host loop"],
            products={k + 1: took["products", k] for k in (0, 8)},
            whole_pass=took["pass"],
            verify={k: took["verify", k] for k in guesses},
            draft_cost=(took["drafting"] - took["verify", lm_k]) / lm_k / step,
        )


def _in_turns(runs: Mapping[Any, Timed]) -> dict[Any, float]:
    """Medians over rounds in which each runs once: what drifts meets all alike."""
    rounds = [turns.take(list(runs.values()), turn) for turn in range(_ROUNDS)]
    return dict(zip(runs, map(statistics.median, zip(*rounds, strict=True)), strict=True))
