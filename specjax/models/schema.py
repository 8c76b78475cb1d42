"""What the keys of a config may hold: one table for every config that is read.

A name means the same wherever it stands, at the top or in a block. `check` looks through a config
before anything is read from it, so that its readers can trust types and bounds; null counts as
absent, and names that are not in the table are left to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a key must hold, in words for messages, and the test of it."""

    what: str
    fits: Callable[[Any], bool]


def _integer(least: int, most: int = 2**31 - 1) -> Kind:
    return Kind(
        f"an integer from {least:,} to {most:,}", lambda v: type(v) is int and least <= v <= most
    )


def _number(least: float, most: float, *, excluded: bool = False) -> Kind:
    """A finite number; ``excluded``: ``least`` is not one of them."""
    start = f"above {least:g}" if excluded else f"from {least:g}"
    return Kind(
        f"a number {start} to {most:g}",
        # Comparisons with NaN are false.
        lambda v: type(v) in (int, float) and (least < v if excluded else least <= v) and v <= most,
    )


def _is_token(value: Any) -> bool:
    return isinstance(value.get("content") if isinstance(value, Mapping) else value, str)


def _list_of(what: str, kind: type, *, empty: bool = False) -> Kind:
    def fits(value: Any) -> bool:
        whole = isinstance(value, list) and all(type(v) is kind for v in value)
        return whole and (empty or bool(value))

    return Kind(f"a list of {what}", fits)


_SIZE, _WIDTH, _LAYERS = _integer(1), _integer(1, 2**24), _integer(1, 10_000)
_COUNT = _integer(0)  # 0: none of it
_POSITIVE = _number(1e-30, 1e30)  # what float32 holds
_FLAG = Kind("true or false", lambda v: isinstance(v, bool))
_TEXT = Kind("a text", lambda v: isinstance(v, str))
_TEXTS = _list_of("texts", str, empty=True)
_IDS = _list_of("integers", int)
_OBJECT = Kind("an object", lambda v: isinstance(v, Mapping))
_OBJECTS = Kind(
    "a list of objects", lambda v: isinstance(v, list) and all(isinstance(x, Mapping) for x in v)
)
_TOKEN = Kind("a token's text, or an object with its content", _is_token)

TABLE: dict[str, Kind] = {
    # Any model.
    "architectures": _TEXTS,
    "model_type": _TEXT,
    "dtype": _TEXT,
    "torch_dtype": _TEXT,
    "vocab_size": _integer(1, 2**28),
    "hidden_size": _WIDTH,
    "intermediate_size": _integer(1, 2**28),
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _WIDTH,
    "num_key_value_heads": _WIDTH,
    "head_dim": _WIDTH,
    "max_position_embeddings": _SIZE,
    "hidden_act": _TEXT,
    "rms_norm_eps": _number(1e-30, 1),
    "tie_word_embeddings": _FLAG,
    "attention_bias": _FLAG,
    "mlp_bias": _FLAG,
    "layer_types": _TEXTS,
    "sliding_window": _COUNT,
    "use_sliding_window": _FLAG,
    "max_window_layers": _COUNT,
    "quantization_config": _OBJECT,
    "text_config": _OBJECT,
    "hidden_activation": _TEXT,
    "query_pre_attn_scalar": _POSITIVE,
    "rope_local_base_freq": _number(1, 1e30, excluded=True),
    "sliding_window_pattern": _SIZE,
    "_sliding_window_pattern": _SIZE,
    "attn_logit_softcapping": _number(0, 1e30),
    "use_bidirectional_attention": _FLAG,
    # Mixtures of experts.
    "num_experts": _WIDTH,
    "num_local_experts": _WIDTH,
    "n_routed_experts": _WIDTH,
    "n_shared_experts": _COUNT,
    "num_experts_per_tok": _WIDTH,
    "moe_intermediate_size": _WIDTH,
    "shared_expert_intermediate_size": _COUNT,
    "decoder_sparse_step": _COUNT,
    "mlp_only_layers": _list_of("integers", int, empty=True),
    "norm_topk_prob": _FLAG,
    "n_group": _WIDTH,
    "topk_group": _WIDTH,
    "routed_scaling_factor": _POSITIVE,
    "first_k_dense_replace": _COUNT,
    "moe_layer_freq": _SIZE,
    "scoring_func": _TEXT,
    "topk_method": _TEXT,
    "swiglu_limit": _POSITIVE,
    # Gated DeltaNet, and latent attention.
    "linear_num_key_heads": _WIDTH,
    "linear_num_value_heads": _WIDTH,
    "linear_key_head_dim": _WIDTH,
    "linear_value_head_dim": _WIDTH,
    "linear_conv_kernel_dim": _integer(1, 64),
    "full_attention_interval": _SIZE,
    "attn_output_gate": _FLAG,
    "q_lora_rank": _WIDTH,
    "kv_lora_rank": _WIDTH,
    "qk_nope_head_dim": _WIDTH,
    "qk_rope_head_dim": _WIDTH,
    "v_head_dim": _WIDTH,
    "num_nextn_predict_layers": _COUNT,
    "mtp_num_hidden_layers": _COUNT,
    # Rotary embedding.
    "rope_scaling": _OBJECT,
    "rope_parameters": _OBJECT,
    "rope_theta": _number(1, 1e30, excluded=True),
    "rope_type": _TEXT,
    "type": _TEXT,
    "partial_rotary_factor": _number(1e-6, 1),
    "factor": _number(1, 1e9),
    "low_freq_factor": _POSITIVE,
    "high_freq_factor": _POSITIVE,
    "original_max_position_embeddings": _SIZE,
    "beta_fast": _POSITIVE,
    "beta_slow": _POSITIVE,
    "attention_factor": _POSITIVE,
    "attn_factor": _POSITIVE,
    "mscale": _number(0, 1e6),
    "mscale_all_dim": _number(0, 1e6),
    "truncate": _FLAG,
    # Drafters: what they share,
    "target_hidden_size": _WIDTH,
    "num_target_layers": _LAYERS,
    "draft_vocab_size": _integer(1, 2**28),
    "target_layer_ids": _IDS,
    "aux_hidden_state_layer_ids": _IDS,
    "eagle_aux_hidden_state_layer_ids": _IDS,
    # the DFlash family,
    "dflash_config": _OBJECT,
    "block_size": _integer(1, 4096),
    "mask_token_id": _COUNT,
    "is_causal": _FLAG,
    "causal": _FLAG,
    "use_swa": _FLAG,
    "swa_window_size": _SIZE,
    "input_embedding_scale": _POSITIVE,
    "output_multiplier": _POSITIVE,
    "final_logit_softcapping": _number(0, 1e30),
    "conv_kernel_size": _integer(0, 4096),
    "conv_group_size": _WIDTH,
    "selector_rank": _integer(0, 2**24),
    "selector_top_k": _WIDTH,
    "markov_rank": _integer(0, 2**24),
    "markov_head_type": _TEXT,
    "projector_type": _TEXT,
    "attention_mode": _TEXT,
    "enable_confidence_head": _FLAG,
    "confidence_head_with_markov": _FLAG,
    "confidence_head_alpha": _number(0, 1e30),
    "sample_from_anchor": _FLAG,
    "sliding_window_non_causal": _FLAG,
    # EAGLE-3,
    "eagle_config": _OBJECT,
    "norm_before_residual": _FLAG,
    "norm_before_fc": _FLAG,
    "fc_norm": _FLAG,
    "norm_output": _FLAG,
    "use_aux_norm": _FLAG,
    "use_moe": _FLAG,
    "num_aux_hidden_states": _SIZE,
    "embed_requires_grad": _FLAG,
    "use_aux_hidden_state": _FLAG,
    "use_input_layernorm_in_first_layer": _FLAG,
    "use_last_layernorm": _FLAG,
    "use_mtp_layernorm": _FLAG,
    "next_layer_regular": _FLAG,
    "parallel_draft_step": _SIZE,
    "parallel_draft_heads_num_layers": _COUNT,
    # Medusa, and speculators.
    "medusa_num_heads": _COUNT,
    "medusa_num_layers": _COUNT,
    "speculators_model_type": _TEXT,
    "transformer_layer_config": _OBJECT,
    "speculators_config": _OBJECT,
    "proposal_methods": _OBJECTS,
    "proposal_type": _TEXT,
    "default_proposal_method": _TEXT,
    "speculative_tokens": _integer(1, 4096),
    # tokenizer_config.json
    "bos_token": _TOKEN,
    "eos_token": _TOKEN,
    "pad_token": _TOKEN,
    "unk_token": _TOKEN,
    "add_bos_token": _FLAG,
    "add_eos_token": _FLAG,
}
# Looked through as well.
_BLOCKS = (
    "text_config",
    "rope_scaling",
    "rope_parameters",
    "dflash_config",
    "eagle_config",
    "transformer_layer_config",
    "speculators_config",
    "proposal_methods",
)


def check(raw: Mapping[str, Any], where: str, place: str = "") -> None:
    """Refuses values that no model can have.

    Args:
      raw: a parsed config, or a block of one.
      where: begins the message.
      place: of the block, ``"rope_scaling."``.

    Raises:
      ValueError: naming the key, its value and what it must be.
    """
    for name, value in raw.items():
        kind = TABLE.get(name)
        if kind is None or value is None:
            continue
        if not kind.fits(value):
            raise ValueError(f"{where}: {place}{name}={shown(value)}: must be {kind.what}.")
        if name in _BLOCKS:
            for block in value if isinstance(value, list) else [value]:
                check(block, where, f"{place}{name}.")


def shown(value: Any) -> str:
    """A value for a message, at most some 60 characters."""
    if isinstance(value, int) and abs(value) >= 10**40:  # Python refuses to print very long ones
        return "a number of more than 40 digits"
    if isinstance(value, list | Mapping) and len(value) > 10:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
