"""A family like Mistral 7B (Jiang et al. 2023, arXiv:2310.06825): Llama's block with windows.

    python -m experiments.generate --target=examples/windowed_family.py:Windowed:MISTRAL_DIR

With --import=examples/windowed_family.py the directory alone does: model_type "mistral" is known.
A layer's memory has as many slots as its window, however long the text.
"""

import dataclasses

from flax import nnx

from specjax.extend import (
    MLP,
    Attention,
    Decoder,
    DecoderConfig,
    LlamaLayer,
    RMSNorm,
    read_decoder_config,
    register_family,
)


@dataclasses.dataclass(frozen=True)
class WindowedConfig(DecoderConfig):
    window: int | None = None  # a token sees itself and the window - 1 before it


class WindowedLayer(LlamaLayer):
    def __init__(self, config: WindowedConfig, *, dtype, rngs: nnx.Rngs):
        made = {"dtype": dtype, "rngs": rngs}
        norm = {"eps": config.rms_norm_eps, **made}
        self.input_layernorm = RMSNorm(config.hidden_size, **norm)
        self.self_attn = Attention(config, head_norm=False, window=config.window, **made)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, **norm)
        self.mlp = MLP(config, **made)


class Windowed(Decoder):
    architecture = "MistralForCausalLM"

    @staticmethod
    def make_layer(config, index, *, dtype, rngs):
        del index  # all alike
        return WindowedLayer(config, dtype=dtype, rngs=rngs)

    @staticmethod
    def read_config(raw):
        plain = read_decoder_config(raw, windows=True)  # its windows are read here
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        return WindowedConfig(**fields, window=raw.get("sliding_window"))


register_family("mistral", Windowed)
