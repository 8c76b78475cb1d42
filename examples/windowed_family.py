"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825): Llama whose layers see a sliding window.

A token sees itself and the W - 1 tokens before it (section 2, figure 1), and the cache of such a
layer is a ring of the window's size ("rolling buffer cache", figure 2). ``layer_types`` may let
some layers see everything, as later models alternate; without it all slide, as in Mistral. (The
library has Mistral as ``mistral``; this one is called ``windowed``.)

    python -m experiments.generate --import=examples/windowed_family.py --target=DIR --draft=DIR
    python -m experiments.generate --target=examples/windowed_family.py:Windowed:DIR
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.extend import (
    DecoderConfig,
    Llama,
    LlamaLayer,
    read_decoder_config,
    read_windows,
    register_family,
)


class Windowed(Llama):
    architecture = "MistralForCausalLM"  # as config.json has it, for writing

    @staticmethod
    def make_layer(config: DecoderConfig, index: int, *, dtype: Any, rngs: Any) -> LlamaLayer:
        return LlamaLayer(config, window=config.windows[index], dtype=dtype, rngs=rngs)

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
        config = read_decoder_config(raw, windows=True)
        layers = config.num_layers
        kinds = raw.get("layer_types") or ["sliding_attention"] * layers
        if not raw.get("sliding_window"):  # null in Mistral 7B v0.2 and later
            kinds = raw.get("layer_types") or ["full_attention"] * layers
        windows = read_windows({**raw, "layer_types": kinds}, layers)
        return dataclasses.replace(config, windows=windows)

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        """What `read_config` reads; Transformers' Mistral knows no ``layer_types``."""
        window = next((w for w in config.windows if w), None)
        said = super().write_config(config) | {"sliding_window": window}
        if window and None in config.windows:
            kinds = ["sliding_attention" if w else "full_attention" for w in config.windows]
            said["layer_types"] = kinds
        return said


register_family("windowed", Windowed)
