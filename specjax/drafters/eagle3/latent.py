"""Latent attention in a draft's config: the keys of DeepSeek-V3, at the draft's own sizes.

Kimi's drafts have it (architecture ``Eagle3DeepseekV2ForCausalLM``, which vLLM, SGLang and
TorchSpec know): the two projections down take an embedding beside a state, the MLP is dense
whatever the config says of the target's experts, and the two norms inside have the config's eps.
"""

from __future__ import annotations

from typing import Any

from specjax.checkpoint.drafters.keys import Keys
from specjax.checkpoint.drafters.source import Source
from specjax.checkpoint.errors import CheckpointError
from specjax.models.config import DecoderConfig
from specjax.models.layers.latent import LatentConfig

ARCHITECTURES = ("Eagle3DeepseekV2ForCausalLM", "Eagle3DeepseekV3ForCausalLM")
_SIZES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
# Of a config that was copied from a target with experts; the draft has none.
# fmt: off
_OF_EXPERTS = (
    "first_k_dense_replace", "moe_intermediate_size", "moe_layer_freq", "n_group",
    "n_routed_experts", "n_shared_experts", "norm_topk_prob", "num_experts_per_tok",
    "routed_scaling_factor", "scoring_func", "topk_group", "topk_method",
)
# fmt: on
KEYS = (*_SIZES, "q_lora_rank", *_OF_EXPERTS)


def has_latent(source: Source) -> bool:
    """By its tensors, or its config where that is all there is."""
    if source.tensors:
        return any(name.endswith("self_attn.kv_b_proj.weight") for name in source.tensors)
    named = source.raw.get("architectures") or ()
    return bool(source.raw.get("kv_lora_rank")) or any(name in ARCHITECTURES for name in named)


def said(source: Source) -> dict[str, Any]:
    """The config with what `read_decoder_config` must know of such heads.

    Raises:
      CheckpointError: naming a key that is missing.
    """
    raw = source.raw
    if missing := [key for key in _SIZES if raw.get(key) is None]:
        raise CheckpointError(
            f"{source.where}: its attention is latent, but config.json lacks "
            f"{', '.join(missing)}; add it."
        )
    wide = raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"]
    return {**raw, "head_dim": wide, "num_key_value_heads": raw.get("num_attention_heads")}


def read(keys: Keys, backbone: DecoderConfig) -> LatentConfig:
    """The sizes of the attention of a draft with that ``backbone``."""
    rank, plain, rotary, values = (keys.integer(name) for name in _SIZES)
    keys.only("use_moe", False)
    return LatentConfig(
        backbone.hidden_size,
        backbone.num_heads,
        keys.get("q_lora_rank"),
        rank,
        plain,
        rotary,
        values,
        backbone.rope,
        bias=backbone.attention_bias,
        eps=backbone.rms_norm_eps,
    )


def write(latent: LatentConfig) -> dict[str, Any]:
    """The keys that `read` reads, and what stands for a draft without experts."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "kimi_k2",
        "q_lora_rank": latent.query_rank,
        "kv_lora_rank": latent.rank,
        "qk_nope_head_dim": latent.plain_dim,
        "qk_rope_head_dim": latent.rotary_dim,
        "v_head_dim": latent.value_dim,
    }
