"""Mistral (Jiang et al. 2023, arXiv:2310.06825), Mixtral's dense kin and Ministral.

Llama's layers. Where a config has a ``sliding_window``, all layers see it; Ministral's may say in
``layer_types`` which do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.models.config import DecoderConfig, read_decoder_config, write_decoder_config
from specjax.models.llama import Llama
from specjax.models.registry import register
from specjax.models.windows import read_windows


@register("mistral")
class Mistral(Llama):
    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
        layers, window = raw.get("num_hidden_layers") or 0, raw.get("sliding_window") or None
        config = read_decoder_config({**raw, "layer_types": None, "use_sliding_window": None})
        return dataclasses.replace(config, windows=(window,) * layers if window else ())

    architecture = "MistralForCausalLM"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        settings = write_decoder_config(config, cls.architecture)
        return {**settings, "sliding_window": config.window_of(0)}


@register("ministral")
class Ministral(Mistral):
    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
        config = Mistral.read_config(raw)
        if raw.get("layer_types") is None:
            return config
        windows = read_windows(raw, config.num_layers)
        return dataclasses.replace(config, windows=windows if any(windows) else ())

    architecture = "MinistralForCausalLM"
