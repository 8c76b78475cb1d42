"""A family in one file, with a config that lacks what dense models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from test_bad_input import complain

import specjax
from specjax.core import own

FAMILY = '''
"""Experts instead of an MLP, and a config of its own that knows of no MLP's width."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.extend import Attention, Decoder, RMSNorm, Rope


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    experts: int
    width: int
    max_position_embeddings: int = 128
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope(10000.0)
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    kv_repeat: int = 1
    model_type: str = "moe"


class Experts(nnx.Module):
    """Each token goes through the one expert that its router likes best."""

    def __init__(self, c, *, dtype, rngs):
        self.router = nnx.Linear(c.hidden_size, c.experts, param_dtype=dtype, rngs=rngs)
        shape = (c.experts, c.hidden_size, c.width)
        self.up = nnx.Param(jax.random.normal(rngs.params(), shape).astype(dtype))
        self.down = nnx.Param(jax.random.normal(rngs.params(), shape).astype(dtype))

    def __call__(self, x):
        gate = jax.nn.one_hot(self.router(x).argmax(-1), self.up.shape[0], dtype=x.dtype)
        inner = jax.nn.silu(jnp.einsum("btd,edw,bte->btw", x, self.up[...], gate))
        return jnp.einsum("btw,edw,bte->btd", inner, self.down[...], gate)


class Layer(nnx.Module):
    def __init__(self, c, *, dtype, rngs):
        norm = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        self.input_layernorm = RMSNorm(c.hidden_size, **norm)
        self.self_attn = Attention(c, head_norm=False, dtype=dtype, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, **norm)
        self.experts = Experts(c, dtype=dtype, rngs=rngs)

    def init_entry(self, rows, slots, dtype):
        return self.self_attn.init_entry(rows, slots, dtype)

    def __call__(self, x, entry, before, reading):
        mixed, part = self.self_attn(self.input_layernorm(x), entry, before, reading)
        x = x + mixed
        return x + self.experts(self.post_attention_layernorm(x)), part


class Moe(Decoder):
    @staticmethod
    def make_layer(config, index, *, dtype, rngs):
        return Layer(config, dtype=dtype, rngs=rngs)

    @staticmethod
    def read_config(raw):
        names = {f.name for f in dataclasses.fields(Config)} - {"rope"}
        return Config(**{n: v for n, v in raw.items() if n in names})

    @staticmethod
    def used_share(config, weight):
        return 1 / config.experts if weight.endswith((".up", ".down")) else 1.0


class Written(Moe):
    @staticmethod
    def write_config(config):
        return {**dataclasses.asdict(config), "rope": None, "architectures": ["Moe"]}
'''


def test_a_family_is_one_file(tmp_path: Path) -> None:
    """With a config that lacks what dense models have: what needs it works or says so."""
    from specjax.checkpoint.drafters.export import save_drafter
    from specjax.checkpoint.export import save_pretrained
    from specjax.lab.costs import account
    from specjax.models.surgery import narrowed

    (tmp_path / "family.py").write_text(FAMILY)
    name = f"{tmp_path / 'family.py'}:Written"
    written, config = own.find(name), own.find(f"{tmp_path / 'family.py'}:Config")
    module = written(
        config(31, 16, 2, 4, 2, 8, experts=4, width=12), dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    save_pretrained(module, tmp_path / "moe", dtype=jnp.float32)
    target = specjax.load(f"{name}:{tmp_path / 'moe'}")
    assert type(target.net.module) is written and target.config.experts == 4
    complain(lambda: specjax.load(tmp_path / "moe"), "model_type 'moe' is not supported")

    # What a draft has of its own must be given where the target has no such thing.
    sizes: dict[str, Any] = {"num_draft": 3, "num_taps": 1}
    fresh = specjax.drafters.DFlash.fresh
    complain(lambda: fresh(target, **sizes), r"sizes.intermediate_size: a moe model has none")
    spec = fresh(target, **sizes, intermediate_size=24)
    out = specjax.generate(target, spec, [[1, 2, 3]], max_new_tokens=12)
    assert out.tokens == specjax.generate(target, None, [[1, 2, 3]], max_new_tokens=12).tokens
    complain(
        lambda: fresh(target, **sizes, intermediate_size=24, from_target=True),
        "say from_target=False",
    )
    complain(lambda: specjax.drafters.Eagle3.fresh(target, num_draft=2), "intermediate_size")
    complain(lambda: narrowed(target.net, 8), "narrowed")

    # Writing: its own config, or a word on what is missing.
    plainly = own.find(f"{tmp_path / 'family.py'}:Moe")(
        target.config, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    complain(lambda: save_pretrained(plainly, tmp_path / "no"), "lacks a static method write_con")
    complain(
        lambda: save_drafter(spec, tmp_path / "s", format="speculators", target=target),
        "has none .a class attribute architecture",
    )
    save_drafter(spec, tmp_path / "z", format="zlab", target=target)

    # The floor counts what one token uses of the experts.
    read = account.read(target.net)
    assert read["layers.0.experts.up"] == 16 * 12 and read["layers.0.experts.router.bias"] == 4
    products = account.products(target.net)
    dense = sum(n for w, n in read.items() if ".experts.router.b" not in w and "norm" not in w)
    assert products == dense
