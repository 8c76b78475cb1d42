"""Qwen2 and 2.5, dense (Yang et al. 2024, arXiv:2407.10671): Llama with biases on q, k and v.

Layers from ``max_window_layers`` on see a window, where ``use_sliding_window`` says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.models.config import DecoderConfig, read_decoder_config, write_decoder_config
from specjax.models.llama import Llama
from specjax.models.registry import register


@register("qwen2")
class Qwen2(Llama):
    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
        # The class has these biases, whatever a config says.
        biased = {**raw, "attention_bias": True}
        return dataclasses.replace(read_decoder_config(biased, windows=True), output_bias=False)

    architecture = "Qwen2ForCausalLM"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        return write_decoder_config(config, cls.architecture)
