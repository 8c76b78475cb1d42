"""DeepSeek-V3, R1 (DeepSeek-AI 2024, arXiv:2412.19437), Kimi-K2 and K2.5.

Latent attention; after some dense layers mixtures with a shared expert, whose router scores by
sigmoids, corrects them for choosing and keeps the best groups.
"""

from __future__ import annotations

import dataclasses
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
from specjax.models.layers.latent import LatentAttention, LatentConfig
from specjax.models.llama import LlamaLayer
from specjax.models.places import Place
from specjax.models.registry import register
from specjax.models.rope_config import read_rope

_SIZES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
# Where they are left out, Transformers has those of the published model, and others have 1.
_ROUTING = ("n_group", "topk_group", "routed_scaling_factor")


@dataclasses.dataclass(frozen=True)
class DeepseekConfig(MixtureConfig):
    """``head_dim`` is that of a head's query."""

    latent: LatentConfig = dataclasses.field(kw_only=True)
    num_nextn: int = 0  # layers that predict further tokens, behind the others in the file

    def for_model_axis(self, size: int) -> DeepseekConfig:
        # One latent vector serves all heads, so that no number of key/value heads has to fit.
        found = dataclasses.replace(self, num_kv_heads=size)
        found = super(DeepseekConfig, found).for_model_axis(size)
        return dataclasses.replace(found, num_kv_heads=self.num_kv_heads)


@register("deepseek_v3")
@register("kimi_k2")
@register("kimi_k25")
class DeepseekV3(Decoder):
    used_share = staticmethod(used_share)
    small: ClassVar = {
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "q_lora_rank": 12,
        "kv_lora_rank": 6,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    }

    @staticmethod
    def skipped(config: Any) -> tuple[str, ...]:
        """What reads images, and the layers for further tokens, which are a drafter."""
        first, images = config.num_layers, (r"vision_tower\..*", r"mm_projector\..*")
        return *images, *(rf"model\.layers\.{first + i}\..*" for i in range(config.num_nextn))

    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        assert isinstance(config, DeepseekConfig)
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        mlp = None
        if config.is_mixture(index):
            mlp = MixtureMLP(config, config.mixture, shared=config.shared_width, **kwargs)
        attention = LatentAttention(config.latent, **kwargs)
        return LlamaLayer(config, attention=attention, mlp=mlp, **kwargs)

    @classmethod
    def place_of(cls, config: Any, path: str, root: str = "model") -> str | Place:
        path = path.replace(".mlp.router.", ".mlp.gate.")
        path = path.replace(".mlp.shared.", ".mlp.shared_experts.")
        if ".mlp.experts." in path:
            group, _, matrix = f"{root}.{path}".rpartition(".")
            return place_of_experts(group, config.mixture.num, matrix)
        return super().place_of(config, path, root)

    nextn_key = "num_nextn_predict_layers"
    nextn_shared = False

    @classmethod
    def place_of_nextn(cls, config: Any, path: str) -> str | Place:
        _, head, first, rest = path.split(".", 3)
        layer = config.num_layers + int(head)
        if first == "layer":
            return cls.place_of(config, f"layers.{layer}.{rest}")
        name = "shared_head.norm" if first == "norm" else first
        return f"model.layers.{layer}.{name}.{rest}"

    @staticmethod
    def nextn_tensors(config: Any, heads: int) -> tuple[str, str]:
        numbers = "|".join(str(config.num_layers + i) for i in range(heads))
        root = rf"model\.layers\.({numbers})\."
        return root + ".*", root + r"(embed_tokens|shared_head\.head)\..*"

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DeepseekConfig:
        for key in (*_SIZES, *_ROUTING):
            if raw.get(key) is None:
                raise ValueError(f"config.json: lacks {key}; add it.")
        for key, known in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")):
            if raw.get(key) not in (None, known):
                raise ValueError(f"config.json: {key}={raw[key]!r} is not supported, only {known}.")
        if raw.get("moe_layer_freq") not in (None, 1):
            raise ValueError("config.json: moe_layer_freq is not supported, only 1.")
        plain, rotary = raw["qk_nope_head_dim"], raw["qk_rope_head_dim"]
        said = {
            **raw,
            "head_dim": plain + rotary,
            "num_key_value_heads": raw.get("num_attention_heads"),
        }
        base = read_decoder_config(said, rope=read_rope(raw))
        shared = raw.get("n_shared_experts") or 0
        mixture = Mixture.read(
            raw,
            "n_routed_experts",
            score="sigmoid",
            renormalised=raw.get("norm_topk_prob") is not False,
            scale=float(raw["routed_scaling_factor"]),
            corrected=True,
            groups=raw["n_group"],
            kept_groups=raw["topk_group"],
        )
        latent = LatentConfig(
            base.hidden_size,
            base.num_heads,
            raw.get("q_lora_rank"),
            raw["kv_lora_rank"],
            plain,
            rotary,
            raw["v_head_dim"],
            base.rope,
            bias=base.attention_bias,
        )
        return extended(
            DeepseekConfig,
            base,
            mixture=mixture,
            dense_layers=tuple(range(raw.get("first_k_dense_replace") or 0)),
            shared_width=shared * mixture.width or None,
            latent=latent,
            num_nextn=raw.get("num_nextn_predict_layers") or 0,
        )

    architecture = "DeepseekV3ForCausalLM"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        assert isinstance(config, DeepseekConfig)
        m, a = config.mixture, config.latent
        settings = write_decoder_config(config, cls.architecture)
        del settings["head_dim"]
        return {
            **settings,
            "model_type": "deepseek_v3",
            "n_routed_experts": m.num,
            "num_experts_per_tok": m.chosen,
            "moe_intermediate_size": m.width,
            "n_shared_experts": (config.shared_width or 0) // m.width,
            "norm_topk_prob": m.renormalised,
            "routed_scaling_factor": m.scale,
            "n_group": m.groups,
            "topk_group": m.kept_groups,
            "scoring_func": m.score,
            "topk_method": "noaux_tc",
            "first_k_dense_replace": len(config.dense_layers),
            "q_lora_rank": a.query_rank,
            "kv_lora_rank": a.rank,
            "qk_nope_head_dim": a.plain_dim,
            "qk_rope_head_dim": a.rotary_dim,
            "v_head_dim": a.value_dim,
            "num_nextn_predict_layers": 0,
        }
