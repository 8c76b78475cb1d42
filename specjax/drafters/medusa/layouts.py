"""The layout of a Medusa checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from specjax.checkpoint.drafters.layouts import Layout, Tensors, refuser
from specjax.drafters.medusa.net import MedusaConfig
from specjax.models.target import Target


def medusa(spec: Any, tensors: Tensors, target: Target, verifier: str) -> Layout:
    """That of FasterDecoding/Medusa: ``{head}.{block}.linear.*``, then ``{head}.{blocks}.weight``.

    The published readers want a PyTorch pickle, so the tensors are written twice.
    """
    del target
    c: MedusaConfig = spec.net.config
    no = refuser("medusa", spec)
    for name, value in tensors.items():
        first = ".".join("0" if i == 3 else x for i, x in enumerate(name.split(".")))
        same = "blocks" not in name or np.array_equal(value, tensors[first])
        no(not same, "several different blocks a head (readers make one serve for all)")
    renamed = {}
    for name, value in tensors.items():
        kind, head, *rest = name.split(".")
        assert kind == "heads"
        if rest[0] == "output":
            renamed[f"{head}.{c.num_layers}.weight"] = value
        else:  # blocks.j.linear.{weight,bias}
            renamed[".".join([head, *rest[1:]])] = value
    config = {
        "model_type": "medusa",
        "medusa_num_heads": c.num_heads,
        "medusa_num_layers": c.num_layers,
        "base_model_name_or_path": verifier,
        "hidden_size": c.hidden_size,
        "vocab_size": c.vocab_size,
    }
    return Layout(config, renamed, "medusa_lm_head.safetensors", "medusa_lm_head.pt")
