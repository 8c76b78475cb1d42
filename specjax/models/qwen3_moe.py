"""Qwen3's mixtures of experts (Yang et al. 2025, arXiv:2505.09388): Qwen3 with `MixtureMLP`s.

A layer is dense where ``mlp_only_layers`` names it, and between every ``decoder_sparse_step``-th.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from specjax.models.config import (
    DecoderConfig,
    extended,
    read_decoder_config,
    write_decoder_config,
)
from specjax.models.layers.decoder import Decoder
from specjax.models.layers.experts import (
    Mixture,
    MixtureConfig,
    MixtureMLP,
    place_of_experts,
    used_share,
)
from specjax.models.places import Place
from specjax.models.qwen3 import Qwen3Layer
from specjax.models.registry import register


@register("qwen3_moe")
class Qwen3Moe(Decoder):
    small: ClassVar = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    used_share = staticmethod(used_share)

    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        assert isinstance(config, MixtureConfig)
        mlp = None
        if config.is_mixture(index):
            mlp = MixtureMLP(config, config.mixture, dtype=dtype, rngs=rngs)
        return Qwen3Layer(config, window=config.window_of(index), mlp=mlp, dtype=dtype, rngs=rngs)

    @classmethod
    def place_of(cls, config: Any, path: str, root: str = "model") -> str | Place:
        name = f"{root}.{path}".replace(".mlp.router.", ".mlp.gate.")
        if ".experts." in path:
            group, _, matrix = name.rpartition(".")
            return place_of_experts(group, config.mixture.num, matrix)
        return super().place_of(config, name.removeprefix(f"{root}."), root)

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> MixtureConfig:
        base = read_decoder_config(raw, windows=True)
        step = raw.get("decoder_sparse_step")
        step = 1 if step is None else step
        only = raw.get("mlp_only_layers") or ()
        dense = tuple(i for i in range(base.num_layers) if i in only or step == 0 or (i + 1) % step)
        return extended(
            MixtureConfig,
            base,
            mixture=Mixture.read(
                raw, "num_experts", renormalised=bool(raw.get("norm_topk_prob", False))
            ),
            dense_layers=dense,
        )

    architecture = "Qwen3MoeForCausalLM"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        assert isinstance(config, MixtureConfig)
        return {
            **write_decoder_config(config, cls.architecture),
            "num_experts": config.mixture.num,
            "num_experts_per_tok": config.mixture.chosen,
            "moe_intermediate_size": config.mixture.width,
            "norm_topk_prob": config.mixture.renormalised,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.dense_layers),
        }
