"""What the device benchmark measures, and what of it cannot be."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from typing import Literal

import jax

from specjax.core.choices import TUNED
from specjax.core.options import option, whole_numbers
from specjax.core.platform import allowed_kernels, allowed_splits
from specjax.core.program import tries_all_tilings
from specjax.lab.costs.programs import begins_at
from specjax.models.shapes import SHAPES

PARTS = (  # in this order
    *(
        "tune",
        "plain",
        "verify",
        "cycles",
        "batches",
        "contexts",
        "start",
        "training",
        "transformers",
    ),
    "profile",
)
WIDEST = 15  # guesses of the DFlash drafter
CONTEXT_GUESSES = 7  # that passes behind long texts verify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    shape: str = option("llama-3.1-8b", f"Of the random model: {', '.join(SHAPES)}.")
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "Of weights and cache.")
    skip: tuple[str, ...] = option((), f"Parts to leave out, of {','.join(PARTS)}.")
    num_draft: tuple[int | str, ...] = option((4, 8, 15), "Guesses a cycle, each a program.")
    tau: tuple[float | str, ...] = option((2, 3, 4, 5, 6.5), "Assumed of the trained drafters.")
    batches: tuple[int | str, ...] = option((8, 32), "Rows of the part batches.")
    anchors: int = option(256, "Blocks a text in training.", least=1)
    seq_len: int = option(3072, "Tokens of a text in training.", least=64)
    slots: int = option(2048, "Length of the cache.", least=256)
    cycles: int = option(100, "In one device call.", least=1)
    repeats: int = option(5, "Calls; medians are reported.", least=1)
    contexts: tuple[int | str, ...] = option(
        (), "Tokens in the cache, such as 256,1024,4096,16000: what a pass costs behind them."
    )
    context_slots: int = option(16384, "Length of the cache for --contexts.", least=256)
    context_rows: int = option(8, "Texts for --contexts, all so long or one of them.", least=1)
    tune: bool = option(
        False,
        "Times the variants of operations on shapes that cycles call, and keeps the fastest for "
        "--kernels=tuned, in the file that --tuned names.",
    )
    exhaustive: bool = option(
        False, "XLA tries every tiling of products on a GPU; compiling takes several times as long."
    )
    copy_mib: int | None = option(
        None, "Size of the buffer copied and read. Default: 4096, on a CPU 128.", least=1
    )
    start_dir: str | None = option(
        None, "Where the part start writes its checkpoint. Default: where temporary files go."
    )
    minutes: float = option(7.0, "After these, nothing further is begun.", least=0.0)
    profile_dir: str | None = option(
        None, "Keeps the traces (xprof) of the part profile.", directory=True
    )
    peer_seconds: int = option(100, "After these the part transformers is ended.", least=1)
    hlo_dir: str | None = option(None, "The optimised programs go there.", directory=True)
    output: str | None = option(None, "A .json file for everything that was measured.", file="")

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"--shape={self.shape}: must be one of {', '.join(SHAPES)}.")
        if unknown := [part for part in self.skip if part not in PARTS]:
            raise ValueError(f"--skip={unknown[0]}: must be among {', '.join(PARTS)}.")
        if self.profile_dir is not None and "profile" in self.skip:
            raise ValueError(f"--profile_dir={self.profile_dir}: --skip leaves out the profile.")
        if self.start_dir is not None and not os.path.isdir(self.start_dir):
            raise ValueError(f"--start_dir={self.start_dir}: is no directory.")
        if math.isnan(self.minutes):
            raise ValueError("--minutes=nan: must be a number of at least 0.")
        whole_numbers("batches", self.batches)
        widest = max(WIDEST, *self.ks)
        if not self.tau or not all(_is_tau(str(v)) for v in self.tau):
            raise ValueError("--tau: must be numbers of at least 1, such as 3,6.5.")
        if self.anchors > self.seq_len:
            raise ValueError(f"--anchors={self.anchors}: more than --seq_len={self.seq_len}.")
        room = self.context_slots - 8 * (CONTEXT_GUESSES + 1)
        if self.contexts and max(whole_numbers("contexts", self.contexts)) > room:
            raise ValueError(f"--contexts: at most {room} tokens fit into --context_slots.")
        if begins_at(self.slots) + 2 * (widest + 1) > self.slots:
            raise ValueError(f"--slots={self.slots}: too few for {widest} guesses a cycle.")
        if self.shape.startswith("llama-3.1-") and jax.default_backend() == "cpu":
            raise ValueError(f"--shape={self.shape} on a CPU: try the script with --shape=tiny.")

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of guesses."""
        return whole_numbers("num_draft", self.num_draft)

    @property
    def command(self) -> str:
        """The command line that measures this, whoever asked for it."""
        words = ["python", "-m", "experiments.benchmark_device"]
        for field in dataclasses.fields(self):
            told, usual = map(_as_flag, (getattr(self, field.name), field.default))
            if told != usual:
                words.append(f"--{field.name}={told}")
        if (kernels := allowed_kernels()) != "attention":
            words.append(f"--kernels={kernels}")
        if (splits := allowed_splits()) != "off":
            words.append(f"--split_k={splits}")
        if named := os.environ.get(TUNED):
            words.append(f"--tuned={named}")
        if tries_all_tilings() and not self.exhaustive:
            words.append("--exhaustive=True")
        flags = os.environ.get("XLA_FLAGS")
        before = f"XLA_FLAGS={shlex.quote(flags)} " if flags else ""
        return before + shlex.join(words)


def _as_flag(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_tau(text: str) -> bool:
    try:
        return 1 <= float(text) < math.inf
    except ValueError:
        return False
