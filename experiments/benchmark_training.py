"""Training speed and memory of a DFlash drafter against anchors and vocabulary.

Memory is what the compiler plans for one step's temporaries (no device needs to hold it), so that
the shapes of real models can be asked on any machine; tokens a second are measured where --time
names sizes that fit. Expected: memory does not grow with the anchors (docs/benchmarks.md).

  python -m experiments.benchmark_training --output=training.json
  python -m experiments.benchmark_training --shape=8b --anchors=64,512 --vocab=151936 --time
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from experiments import cli
from specjax.drafters.dflash import fresh_config
from specjax.measure.results import write_atomically
from specjax.models import FAMILIES, Frozen
from specjax.models.drafts.dflash import DFlashNet
from specjax.train import lm
from specjax.train.objectives.base import Batch
from specjax.train.objectives.dflash import DFlashObjective

SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "draft_layers": 2,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "draft_layers": 5,
    },
}

_SHAPE = flags.DEFINE_enum("shape", "small", list(SHAPES), "Of the random target (Qwen3).")
_ANCHORS = flags.DEFINE_list("anchors", ["16", "64", "256", "512"], "Blocks a row.")
_VOCAB = flags.DEFINE_list("vocab", ["4096", "32000", "151936"], "Tokens of the target.")
_BLOCK = flags.DEFINE_integer("block", 16, "Slots of a block.", 2)
_CHUNK = flags.DEFINE_integer("chunk", 16, "Blocks that are run at once.", 1)
_ROWS = flags.DEFINE_integer("rows", 1, "Texts a step.", 1)
_SEQ_LEN = flags.DEFINE_integer("seq_len", 1024, "Tokens of a text.", 64)
_TIME = flags.DEFINE_boolean("time", False, "Run each step too, on random weights.")
_STEPS = flags.DEFINE_integer("steps", 5, "Timed steps; the median counts.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "A .json file for the figures.")


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        for flag in (_ANCHORS, _VOCAB):
            if not all(v.isdecimal() and int(v) for v in flag.value):
                raise ValueError(f"--{flag.name}: must be positive integers, such as 64,512.")
        largest = max(map(int, _ANCHORS.value))
        if largest > _SEQ_LEN.value:
            raise ValueError(
                f"--anchors={largest}: more than the {_SEQ_LEN.value} tokens of a text."
            )
    console, found = Console(highlight=False), []
    table = Table("vocabulary", "anchors", "temporaries", "weights", "tokens/s", "arithmetic")
    for vocab in map(int, _VOCAB.value):
        for anchors in map(int, _ANCHORS.value):
            figures = measure(vocab, anchors)
            found.append({"vocab": vocab, "anchors": anchors, **figures})
            console.print(found[-1])
            if _OUTPUT.value:
                whole = {"settings": settings(), "results": found}
                write_atomically(Path(_OUTPUT.value), json.dumps(whole, indent=1) + "\n")
            speed = figures.get("tokens_per_s")
            table.add_row(
                f"{vocab:,}",
                str(anchors),
                f"{figures['temporary_bytes'] / 2**20:,.0f} MiB",
                f"{figures['argument_bytes'] / 2**20:,.0f} MiB",
                "-" if speed is None else f"{speed:,.0f}",
                "-" if speed is None else f"{figures['flops_per_s'] / 1e12:.3f} TFLOP/s",
            )
    console.print(table)


def settings() -> dict[str, Any]:
    names = (_SHAPE, _BLOCK, _CHUNK, _ROWS, _SEQ_LEN)
    device = {"backend": jax.default_backend(), "jax": jax.__version__}
    return {flag.name: flag.value for flag in names} | device


def measure(vocab: int, anchors: int) -> dict[str, float]:
    """One configuration: bytes of the compiled step, and its speed where --time asks for it."""
    sizes = dict(SHAPES[_SHAPE.value])
    layers = sizes.pop("draft_layers")
    cls = FAMILIES["qwen3"]
    config = cls.read_config({"model_type": "qwen3", "vocab_size": vocab, **sizes})
    draft = fresh_config(
        config, _BLOCK.value - 1, layers=layers, num_taps=min(5, config.num_layers - 1)
    )

    def make_target() -> Any:
        return cls(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    def make_draft() -> Any:
        return DFlashNet(draft, dtype=jnp.float32, rngs=nnx.Rngs(1))

    graphdef, params = nnx.split(nnx.eval_shape(make_target))
    target = Frozen(params=params, graphdef=graphdef, config=config)
    skeleton, masters = lm.Skeleton.of(nnx.eval_shape(make_draft))
    objective = DFlashObjective(skeleton, draft, anchors=anchors, chunk=_CHUNK.value)

    def step(masters: Any, batch: Batch, target: Frozen, key: Any) -> Any:
        def loss(masters: Any) -> Any:
            total, weight, _ = objective(masters, batch, target, key)
            return total / jnp.maximum(weight, 1)

        return jax.value_and_grad(loss)(masters)

    shape = (_ROWS.value, _SEQ_LEN.value)
    kinds = (jnp.int32, jnp.bool_, jnp.int32)
    places: list[Any] = [
        jax.ShapeDtypeStruct(size, kind) for size, kind in zip((shape, shape, shape[:1]), kinds)
    ]
    batch = Batch(*places)
    key = jax.eval_shape(lambda: jax.random.key(0))
    began = time.perf_counter()
    compiled = jax.jit(step).lower(masters, batch, target, key).compile()
    memory: Any = compiled.memory_analysis()
    cost = compiled.cost_analysis()
    figures = {
        "compile_s": time.perf_counter() - began,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }
    if not _TIME.value:
        return figures
    real = Frozen.of(jax.jit(make_target)())
    weights = lm.Skeleton.of(jax.jit(make_draft)())[1]
    tokens = jax.random.randint(jax.random.key(2), shape, 0, vocab - 1)
    filled = Batch(tokens, jnp.ones(shape, jnp.bool_), jnp.full(shape[:1], shape[1], jnp.int32))
    seconds = []
    for i in range(_STEPS.value + 1):
        began = time.perf_counter()
        jax.block_until_ready(compiled(weights, filled, real, jax.random.key(i)))
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[1:])
    figures["tokens_per_s"] = shape[0] * shape[1] / median
    figures["seconds"] = median
    figures["flops_per_s"] = flops(config, draft, anchors) / median
    figures["flops_counted_by_compiler"] = float((cost or {}).get("flops", float("nan")))
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return figures if peak is None else {**figures, "peak_bytes": peak}


def flops(target: Any, draft: Any, anchors: int) -> float:
    """Of the matrix products with weights, per step: 2 a weight and token, thrice with gradients.

    Recomputation is not counted (it is no progress), nor is attention.
    """
    c, d, tokens = target, draft.backbone, _ROWS.value * _SEQ_LEN.value

    def layer(x: Any) -> int:
        heads = x.num_heads + x.num_kv_heads
        return 2 * x.hidden_size * x.head_dim * heads + 3 * x.hidden_size * x.intermediate_size

    slots = _ROWS.value * anchors * draft.block_size
    head = slots * c.vocab_size * c.hidden_size
    context = (
        tokens
        * d.hidden_size
        * (len(draft.taps) * c.hidden_size + 2 * d.num_layers * d.num_kv_heads * d.head_dim)
    )
    blocks = slots * d.num_layers * layer(d)
    # The head is frozen: its backward pass has one product, not two.
    return 2.0 * (tokens * c.num_layers * layer(c) + 3 * (context + blocks) + 2 * head)


if __name__ == "__main__":
    cli.run(main)
