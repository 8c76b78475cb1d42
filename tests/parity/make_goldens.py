"""Tiny checkpoints of families that the parity kit lacks, and what Transformers makes of them.

    pip install torch transformers
    python tests/parity/make_goldens.py tests/data/families

Configs are spelled as the published ones are; Transformers reads them, weights are random numbers
that bfloat16 holds. `tests/test_family_parity.py` compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from specjax.checkpoint.reference import reference_outputs

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {
        **_SIZES,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1000.0,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 2,
    },
    "mistral": {
        **_SIZES,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 12,  # not the width over the number of heads
        "rope_theta": 1000.0,
        "sliding_window": 7,
    },
    "ministral": {
        **_SIZES,
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "head_dim": 8,
        "rope_theta": 1000.0,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma3": {
        **{k: v for k, v in _SIZES.items() if k != "rms_norm_eps"},
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 12,
        "rope_theta": 3000.0,
        "rope_local_base_freq": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
}


def make(directory: Path, settings: dict[str, Any], seed: int) -> None:
    """Writes config.json, model.safetensors and golden.npz."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    config = transformers.AutoConfig.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_config(config)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.tensor(rng.normal(size=tuple(parameter.shape)))
            if "norm" in name:  # around a gain of 1
                drawn = 0.3 * drawn + (0.0 if settings["model_type"] == "gemma3_text" else 1.0)
            elif parameter.ndim == 2 and "embed" not in name:
                drawn = 1.2 * drawn / parameter.shape[1] ** 0.5
            parameter.copy_(drawn.to(torch.bfloat16).float())
    model = model.to(torch.bfloat16)
    model.save_pretrained(directory, safe_serialization=True)
    # As the published ones spell it, not as this version of Transformers writes it.
    (directory / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (directory / "generation_config.json").unlink(missing_ok=True)
    golden = reference_outputs(directory, settings["vocab_size"])
    np.savez_compressed(directory / "golden.npz", **golden)


if __name__ == "__main__":
    for number, (name, settings) in enumerate(CONFIGS.items()):
        make(Path(sys.argv[1]) / name, settings, seed=number)
        print(name)
