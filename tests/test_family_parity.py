"""Every family against the code of its authors: outputs, and every state of every layer.

The parity kit holds what Transformers computed for tiny checkpoints in published layouts;
tests/data/families what tests/parity/make_goldens.py made for those that it lacks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import specjax
from specjax.checkpoint.load import num_packed
from specjax.checkpoint.parity import Tolerances, compare_target
from specjax.checkpoint.plan import plan
from specjax.core.quantised import num_bytes
from specjax.lab.costs import account
from specjax.models.layers.norm import RMSNorm

HERE = Path(__file__).parent / "data" / "families"
KIT = (
    "qwen3-moe",
    "gpt-oss",
    "deepseek-v3",
    "kimi-k25",
    "qwen3-5",
    "qwen3-5-moe",
)
OWN = ("qwen2", "mistral", "ministral", "gemma3")
HYBRID = Tolerances(logits=4e-4)


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


def directory(name: str, shared: Path) -> Path:
    return HERE / name if name in OWN else shared / "parity" / name


@functools.cache
def golden(path: Path) -> dict[str, Any]:
    with np.load(path / "golden.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", (*KIT, *OWN))
def test_outputs_and_states_are_the_authors(name: str, shared: Path) -> None:
    """Also through the cache, a few tokens at a time, of which wrong ones are dropped."""
    path = directory(name, shared)
    model = specjax.load(path, dtype="float32")
    rows = compare_target(model, golden(path), HYBRID if "qwen3-5" in name else Tolerances())
    assert [row for row in rows if not row.passed] == []
    names = {row.name for row in rows}
    assert {"logits", "hidden_states", "greedy_tokens", "logits_in_windows"} <= names
    if name in KIT:
        states = {"rec_state_steps_L0", "conv_state_steps_L0"} if "qwen3-5" in name else set()
        assert {f"cache_k_L{model.config.num_layers - 1}", *states} <= names


def test_weights_in_blocks_of_8_bits_are_the_authors(shared: Path) -> None:
    path = shared / "parity" / "deepseek-v3-fp8"
    ids, want = golden(path)["input_ids"][None].astype(np.int32), golden(path)["logits"]
    assert np.abs(np.asarray(logits_of(loaded(path).net, ids))[0] - want).max() < 2e-4


@pytest.mark.parametrize("name,num", (("gpt-oss", 12), ("kimi-k25", 6), ("deepseek-v3-fp8", 24)))
def test_packed_weights_are_the_authors(name: str, num: int, shared: Path) -> None:
    """Kept as they are stored: outputs of the weights written out."""
    path = shared / "parity" / name
    ids, want = golden(path)["input_ids"][None].astype(np.int32), golden(path)["logits"]
    held, whole = specjax.load(path, dtype="float32", weights="packed"), loaded(path)
    assert num_packed(held.net) == num and f"{num} matrices" in held.stored
    a, b = (np.asarray(logits_of(m.net, ids))[0] for m in (held, whole))
    np.testing.assert_allclose(a, want, atol=2e-4)
    np.testing.assert_allclose(a, b, atol=2e-5)
    assert account.weight_bytes(held.net) < 0.8 * account.weight_bytes(whole.net)
    made = plan(path, {}, dtype=np.dtype(np.float32), packed=True)
    assert made.total("device") == sum(
        num_bytes(x.shape, x.dtype) for x in jax.tree.leaves(held.net.params)
    )


@pytest.mark.parametrize("name", ("qwen3-moe", "gpt-oss", "kimi-k25", "qwen3-5-moe", "gemma3"))
def test_in_bfloat16_clear_choices_are_the_same(name: str, shared: Path) -> None:
    """As it is stored: the likeliest token where it leads by more than rounding moves a logit."""
    path = directory(name, shared)
    ids, want = golden(path)["input_ids"][None].astype(np.int32), golden(path)["logits"]
    model = specjax.load(path)
    assert model.dtype == jax.numpy.bfloat16
    got = np.asarray(logits_of(model.net, ids))[0]
    second, first = np.sort(want, axis=-1)[:, -2:].T
    clear = first - second > 0.5
    assert clear.sum() > 10
    assert (got.argmax(-1) == want.argmax(-1))[clear].mean() > 0.9
    assert np.abs(got - want).mean() < 0.1


def with_config(model: specjax.Model, **changes: Any) -> specjax.Model:
    """The same weights in a module made for another config."""
    config = dataclasses.replace(model.config, **changes)
    return rebuilt(model, config)


def rebuilt(model: specjax.Model, config: Any) -> specjax.Model:
    from flax import nnx

    from specjax.models.joining import separated

    cls = type(model.net.module)
    made = nnx.eval_shape(lambda: cls(config, dtype=np.float32, rngs=nnx.Rngs(0)))
    nnx.update(made, nnx.state(separated(model.net).module))
    return dataclasses.replace(model, net=model.net.with_module(made))


def edited(model: specjax.Model, edit: Any) -> specjax.Model:
    """With a module that ``edit`` has changed."""
    module = model.net.module
    edit(module)
    return dataclasses.replace(model, net=model.net.with_module(module))


def without_sinks(module: Any) -> None:
    for layer in module.layers:
        layer.self_attn.has_sinks = False


def plain_norms(module: Any) -> None:
    for layer in module.layers:
        layer.input_layernorm.__class__ = RMSNorm


def ungated(module: Any) -> None:
    for layer in module.layers:
        if layer.is_full:
            layer.self_attn.gated = False


def reversed_taps(module: Any) -> None:
    for layer in module.layers:
        if not layer.is_full:
            conv = layer.linear_attn.conv1d
            conv.weight = conv.weight.replace(conv.weight[...][..., ::-1])


def uncorrected(module: Any) -> None:
    for layer in module.layers[1:]:
        router = layer.mlp.router
        bias = router.e_score_correction_bias
        router.e_score_correction_bias = bias.replace(0.0 * bias[...])


def mixture(model: specjax.Model, **changes: Any) -> specjax.Model:
    return with_config(model, mixture=dataclasses.replace(model.config.mixture, **changes))


def rope(model: specjax.Model, **changes: Any) -> specjax.Model:
    return with_config(model, rope=dataclasses.replace(model.config.rope, **changes))


def yarn(model: specjax.Model, **changes: Any) -> specjax.Model:
    return rope(model, scaling=dataclasses.replace(model.config.rope.scaling, **changes))


def shifted(windows: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return (*windows[1:], windows[0])


# One deliberate mistake each, of those that models of these families are known for.
MISTAKES: dict[str, tuple[str, Any]] = {
    "weights not renormalised": ("qwen3-moe", lambda m: mixture(m, renormalised=False)),
    "one expert too few": ("qwen3-moe", lambda m: mixture(m, chosen=2)),
    "sinks dropped": ("gpt-oss", lambda m: edited(m, without_sinks)),
    "window of 9 instead of 8": (
        "gpt-oss",
        lambda m: with_config(m, windows=tuple(w and w + 1 for w in m.config.windows)),
    ),
    "window on the other layers": (
        "gpt-oss",
        lambda m: with_config(m, windows=shifted(m.config.windows)),
    ),
    "edges of YaRN rounded": ("gpt-oss", lambda m: yarn(m, truncate=True)),
    "YaRN without its factor": ("gpt-oss", lambda m: yarn(m, attention_factor=1.0)),
    "no clamp": ("gpt-oss", lambda m: with_config(m, limit=1e9)),
    "softmax over all experts": (
        "gpt-oss",
        lambda m: mixture(m, score="softmax", renormalised=False),
    ),
    "correction left out": ("deepseek-v3", lambda m: edited(m, uncorrected)),
    "no groups": ("deepseek-v3", lambda m: mixture(m, groups=1, kept_groups=1)),
    "routed experts not scaled": ("deepseek-v3", lambda m: mixture(m, scale=1.0)),
    "norms without the 1": ("qwen3-5", lambda m: edited(m, plain_norms)),
    "attention without its gate": ("qwen3-5", lambda m: edited(m, ungated)),
    "whole heads rotated": ("qwen3-5", lambda m: rope(m, partial=1.0)),
    "convolution turned round": ("qwen3-5", lambda m: edited(m, reversed_taps)),
    "a window too far": ("mistral", lambda m: with_config(m, windows=(8,) * 4)),
    "windows on the wrong half": (
        "qwen2",
        lambda m: with_config(m, windows=m.config.windows[::-1]),
    ),
    "one RoPE for both kinds of layers": (
        "gemma3",
        lambda m: with_config(m, local_rope=m.config.rope),
    ),
    "scores by the width of a head": (
        "gemma3",
        lambda m: with_config(m, query_scalar=float(m.config.head_dim)),
    ),
}


@jax.jit
def logits_of(net: Any, tokens: Any) -> Any:
    return net.head(net(tokens).hidden)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails(mistake: str, shared: Path) -> None:
    name, make = MISTAKES[mistake]
    path = directory(name, shared)
    want, ids = golden(path)["logits"], golden(path)["input_ids"][None].astype(np.int32)
    model = loaded(path)
    assert np.abs(np.asarray(logits_of(model.net, ids))[0] - want).max() < 4e-4
    wrong = np.asarray(logits_of(make(model).net, ids))[0]
    assert np.abs(wrong - want).max() > 0.05


@functools.cache
def loaded(path: Path) -> specjax.Model:
    return specjax.load(path, dtype="float32")
