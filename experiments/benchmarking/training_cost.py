"""What training a DFlash drafter takes: memory as the compiler plans it, and measured speed."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.drafters.dflash import fresh_config
from specjax.drafters.dflash.net import DFlashConfig, DFlashNet
from specjax.drafters.dflash.objective import DFlashObjective
from specjax.models import Frozen
from specjax.models import family as registered
from specjax.train.objectives.base import Batch
from specjax.train.optimizer import make_optimizer
from specjax.train.state import Skeleton, init_state
from specjax.train.step import make_step

# Dense bfloat16 FLOP/s by what a device calls itself, from the makers' data sheets.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """A random target, its drafter, and the batches."""

    raw: dict[str, Any]  # of the target, as in its config.json
    layers: int  # of the draft
    anchors: int  # blocks a row
    block: int = 16
    chunk: int = 16  # blocks that are run at once
    rows: int = 1
    seq_len: int = 1024

    @property
    def tokens(self) -> int:
        """The tokens of one step."""
        return self.rows * self.seq_len


def measure(setup: Setup, *, steps: int, target: Frozen | None = None) -> dict[str, float]:
    """The compiled step's bytes, and its speed over ``steps`` of them (0: it is not run).

    A step is a whole one: both passes, gradients, clipping, AdamW on float32 masters.

    Args:
      setup: what is trained.
      steps: how many are timed; the median counts.
      target: random weights of ``setup.raw`` that are there already; None: they are drawn.
    """
    family = registered(setup.raw["model_type"])
    config = family.read_config(setup.raw)
    draft = fresh_config(
        config, setup.block - 1, layers=setup.layers, num_taps=min(5, config.num_layers - 1)
    )
    optimizer = make_optimizer("adamw", lambda step: 1e-4, weight_decay=0.0, clip_norm=1.0)

    def make_target() -> Any:
        return family(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    def make_draft() -> Any:
        return DFlashNet(draft, dtype=jnp.float32, rngs=nnx.Rngs(1))

    skeleton, masters = Skeleton.of(nnx.eval_shape(make_draft))
    objective = DFlashObjective(skeleton, draft, anchors=setup.anchors, chunk=setup.chunk)
    state = jax.eval_shape(lambda masters: init_state(masters, optimizer), masters)
    if target is None:
        graphdef, params = nnx.split(nnx.eval_shape(make_target))
        abstract = Frozen(params=params, graphdef=graphdef, config=config)
    else:
        abstract = target
    batch = jax.eval_shape(lambda: _batch(setup, config.vocab_size))

    began = time.perf_counter()
    compiled = make_step(objective, optimizer).lower(state, batch, abstract).compile()  # type: ignore[attr-defined]
    memory: Any = compiled.memory_analysis()
    figures = {
        "compile_s": time.perf_counter() - began,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }
    if not steps:
        return figures
    if target is None:
        target = Frozen.of(jax.jit(make_target)())
    state = init_state(Skeleton.of(jax.jit(make_draft)())[1], optimizer)
    filled = _batch(setup, config.vocab_size)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, filled, target))
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[1:])
    figures["seconds"] = median
    figures["tokens_per_s"] = setup.tokens / median
    figures["flops_per_s"] = flops(setup, config, draft) / median
    if peak := peak_flops():
        figures["share_of_peak"] = figures["flops_per_s"] / peak
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return figures if used is None else {**figures, "peak_bytes": used}


def _batch(setup: Setup, vocab: int) -> Batch:
    """One micro-batch of random text [1, B, T], all of it labels."""
    shape = (1, setup.rows, setup.seq_len)
    tokens = jax.random.randint(jax.random.key(2), shape, 0, vocab - 1)
    lengths = jnp.full(shape[:2], setup.seq_len, jnp.int32)
    return Batch(tokens, jnp.ones(shape, jnp.bool_), lengths)


def peak_flops() -> float | None:
    """The peak of the first device in bfloat16; None: not known."""
    kind = jax.devices()[0].device_kind
    return next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


def flops(setup: Setup, target: Any, draft: DFlashConfig) -> float:
    """Operations of the products with weights: 2 a weight and token, thrice where trained.

    Recomputation is not counted (it is no progress), nor is attention.
    """
    d = draft.backbone

    def layer(x: Any) -> int:
        heads = x.num_heads + x.num_kv_heads
        return 2 * x.hidden_size * x.head_dim * heads + 3 * x.hidden_size * x.intermediate_size

    slots = setup.rows * setup.anchors * draft.block_size
    head = slots * target.vocab_size * target.hidden_size
    fused = len(draft.taps) * target.hidden_size
    keys_values = 2 * d.num_layers * d.num_kv_heads * d.head_dim
    context = setup.tokens * d.hidden_size * (fused + keys_values)
    blocks = slots * d.num_layers * layer(d)
    # The head is frozen: its backward pass has one product, not two.
    passes = setup.tokens * max(draft.taps) * layer(target)  # layers behind the last tap do not run
    return 2.0 * (passes + 3 * (context + blocks) + 2 * head)
