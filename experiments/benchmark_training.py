"""Training speed and memory of a DFlash drafter against anchors and vocabulary.

Memory is what the compiler plans for one step's temporaries (no device needs to hold it), so that
the shapes of real models can be asked on any machine; tokens a second are measured where --time
names sizes that fit. Expected: memory does not grow with the anchors (docs/benchmarks.md).

  python -m experiments.benchmark_training --output=training.json
  python -m experiments.benchmark_training --shape=8b --anchors=64,512 --vocab=151936 --time
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.benchmarking.training_cost import Setup, measure
from specjax.core.files import write_atomically

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
_OUTPUT = cli.define_file("output", "A .json file for the figures.")


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
    table = Table(
        "vocabulary", "anchors", "temporaries", "weights, moments", "tokens/s", "arithmetic"
    )
    for vocab in map(int, _VOCAB.value):
        for anchors in map(int, _ANCHORS.value):
            figures = measure(setup_of(vocab, anchors), steps=_STEPS.value if _TIME.value else 0)
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


def setup_of(vocab: int, anchors: int) -> Setup:
    sizes = dict(SHAPES[_SHAPE.value])
    layers = sizes.pop("draft_layers")
    return Setup(
        raw={"model_type": "qwen3", "vocab_size": vocab, **sizes},
        layers=layers,
        anchors=anchors,
        block=_BLOCK.value,
        chunk=_CHUNK.value,
        rows=_ROWS.value,
        seq_len=_SEQ_LEN.value,
    )


if __name__ == "__main__":
    cli.run(main)
