"""The optimizers, of optax's parts, and the schedule of the learning rate."""

from __future__ import annotations

from collections.abc import Callable

import optax

from specjax.train.muon import scale_by_muon
from specjax.train.state import Params


def schedule(
    *, peak_lr: float, warmup_steps: int, steps: int, final_fraction: float = 0.1
) -> optax.Schedule:
    """Linear warm-up, then a cosine down to ``final_fraction`` of the peak at ``steps``."""
    return optax.warmup_cosine_decay_schedule(
        0.0, peak_lr, warmup_steps, steps, end_value=final_fraction * peak_lr
    )


# Tables that are looked up by token: a row that a batch lacks would decay without ever being used.
_TABLES = (
    "embed_tokens.weight",
    "markov_w1.weight",
    "predecessor_codebook",
    "successor_codebook",
)


def decayed(params: Params) -> dict[str, bool]:
    """By name, whether weight decay is for it: for matrices that multiply.

    Norms, biases and embeddings are left alone; so is an embedding that is the head as well.
    """
    # Muon hides some leaves: they have no ndim.
    return {
        name: getattr(p, "ndim", 0) == 2 and not name.endswith(_TABLES)
        for name, p in params.items()
    }


def adamw(lr: optax.Schedule, *, weight_decay: float) -> optax.GradientTransformation:
    """Loshchilov & Hutter 2019, arXiv:1711.05101."""
    return optax.adamw(lr, b1=0.9, b2=0.95, weight_decay=weight_decay, mask=decayed)


def muon(lr: optax.Schedule, *, weight_decay: float) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for embedding, head and norms."""

    def kinds(params: Params) -> dict[str, str]:
        hidden = {n for n, p in params.items() if n.startswith("layers.") and p.ndim == 2}
        return {name: "muon" if name in hidden else "adam" for name in params}

    matrices = optax.chain(
        scale_by_muon(), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(lr)
    )
    return optax.partition({"muon": matrices, "adam": adamw(lr, weight_decay=weight_decay)}, kinds)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": adamw, "muon": muon}


def make_optimizer(
    name: str, lr: optax.Schedule, *, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """The named optimizer behind clipping by global norm.

    Raises:
      ValueError: if there is none of that name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r} is unknown (known: {', '.join(OPTIMIZERS)}).")
    inner = OPTIMIZERS[name](lr, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), inner)
