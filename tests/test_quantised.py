"""Matrices in 8 bits: what they stand for, and that decoding with them is lossless for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import specjax
from specjax.checkpoint.drafters.export import save_drafter
from specjax.checkpoint.drafters.named import parse
from specjax.checkpoint.export import save_pretrained
from specjax.checkpoint.load import num_packed
from specjax.checkpoint.packed import mxfp4
from specjax.core.cache import Rounded
from specjax.core.ops import linear
from specjax.core.quantised import Quantised, quantise
from specjax.drafters import LM
from specjax.lab.audit import passes, rounding
from specjax.lab.costs import account


@pytest.mark.parametrize("kind,close", [("int8", 1 / 254), ("fp8", 2**-4)])
def test_values_are_the_nearest(kind: str, close: float) -> None:
    """Within half a step of the largest of a row (int8), or of the number itself (fp8)."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 40)), jnp.float32).at[2].set(0.0)
    held = quantise(w, kind)
    of = jnp.abs(w) if kind == "fp8" else jnp.abs(w).max(-1, keepdims=True)
    assert (jnp.abs(held[...] - w) <= close * of + 1e-3 * jnp.abs(w).max()).all()
    assert (held[2] == 0).all() and held.nbytes == 6 * 40 + 4 * 6
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 40)), jnp.float32)
    np.testing.assert_allclose(linear(x, held), x @ held[...].T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_moe", "deepseek_v3"])
def test_text_is_the_quantised_targets_own(family: str, tmp_path: Path) -> None:
    """That of plain decoding with the same weights, and of a whole model with them written out."""
    save_pretrained(tiny.model(family).net.module, tmp_path, dtype=jnp.float32)
    target = specjax.load(tmp_path, dtype="float32", quantize="int8")
    whole = specjax.load(tmp_path, dtype="float32")
    kinds = [isinstance(x, Quantised) for x in jax.tree.leaves(target.net.params, is_leaf=_is_one)]
    assert sum(kinds) >= 8 and target.quantized == "int8"
    assert account.weight_bytes(target.net) < 0.5 * account.weight_bytes(whole.net)
    prompts, asked = tiny.prompts(4), {"max_new_tokens": 16, "rule": "coupled"}
    warm = {"temperature": [0.0, 1.0, 0.0, 1.0], **asked}
    want = specjax.generate(target, None, prompts, **warm).tokens
    written = jax.tree.map(
        lambda x: x[...] if isinstance(x, Quantised) else x, target.net.params, is_leaf=_is_one
    )
    same = tiny.with_params(whole, written)
    tokens = jnp.asarray([p + [0] * (12 - len(p)) for p in (q[:12] for q in prompts)])
    a, b = (tiny.full_logits(m, tokens) for m in (target, same))
    np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(a).max())
    out = specjax.generate(target, LM(tiny.near(whole), 3), prompts, **warm)
    assert out.tokens == want and out.tau > 1.2


def _is_one(x: object) -> bool:
    return isinstance(x, Quantised)


def test_text_of_keys_and_values_in_8_bits_is_their_own() -> None:
    """However many tokens a pass is fed."""
    whole = tiny.model("qwen3")
    target = whole.remembering("fp8")
    held, small = (m.net.init_cache(2, 64).num_bytes for m in (whole, target))
    assert small < 0.5 * held and target.stored == "float32, cache in fp8"
    prompts, asked = tiny.prompts(4), {"max_new_tokens": 16, "rule": "coupled"}
    warm = {"temperature": [0.0, 1.0, 0.0, 1.0], **asked}
    want = specjax.generate(target, None, prompts, **warm).tokens
    out = specjax.generate(target, LM(tiny.near(whole), 3), prompts, **warm)
    assert out.tokens == want and out.tau > 1.2


def test_what_is_remembered_in_8_bits_is_that_of_one_pass() -> None:
    target = tiny.model("qwen3").remembering("int8")
    report = specjax.audit(target=target, checks=["entries", "stale"])
    assert report.passed and "keys and values, in int8" in report.checks[0].tested


def factors_stay(self: Rounded, part: Any, length: Any, count: Any) -> Rounded:
    return dataclasses.replace(COMMIT(self, part, length, count), key_factors=self.key_factors)


def one_slot_early(self: Rounded, part: Any, length: Any, count: Any) -> Rounded:
    return COMMIT(self, part, jnp.maximum(length - 1, 0), count)


def rounded_down(self: Rounded, part: Any, length: Any, count: Any) -> Rounded:
    """A step of some numbers: with states as rough as of fp8, that they are many tells it."""
    right = COMMIT(self, part, length, count)
    down = lambda x: jnp.where(x % 9 == 0, x - 1, x)
    return dataclasses.replace(right, values=down(right.values))


COMMIT = Rounded.commit


@pytest.mark.parametrize("wrong", [factors_stay, one_slot_early, rounded_down])
def test_a_wrong_commit_in_8_bits_is_found(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rounded, "commit", wrong)
    anew = jax.jit(lambda cache, block, count, path: cache.commit(block, count, path))
    monkeypatch.setattr(passes, "commit", anew)
    if wrong is rounded_down:
        monkeypatch.setitem(rounding.TOLERANCES, "int8", rounding.TOLERANCES["fp8"])
    report = specjax.audit(target=tiny.model("qwen3").remembering("int8"), checks=["entries"])
    found = str(report.failed[0].counterexample)
    assert "(Rounded)" in found and ("steps of int8" in found) == (wrong is rounded_down)


def test_a_cache_without_keys_and_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kv_cache=int8: no layer of .* \(Latent alone\)"):
        tiny.model("deepseek_v3").remembering("int8")


def test_packed_experts_never_expand(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while they are loaded; the text is lossless for them, in the cycle that drafts."""
    monkeypatch.setattr(mxfp4, "_VALUES", None)  # what writing them out looks up
    target = specjax.load(shared / "parity" / "gpt-oss", weights="packed", dtype="float32")
    prompts, asked = [[5, 6, 7, 5, 6], [9, 8, 9]], {"max_new_tokens": 12, "rule": "coupled"}
    warm = {"temperature": [0.0, 1.0], **asked}
    want = specjax.generate(target, None, prompts, **warm).tokens
    assert specjax.generate(target, "ngram:3", prompts, **warm).tokens == want
    with pytest.raises(TypeError):
        specjax.load(shared / "parity" / "gpt-oss", weights="float32")


DRAFTERS = {
    "dflash-qwen3": "qwen3",
    "eagle3-llama3": "llama3",
    "medusa-llama3": "llama3",
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_drafters_are_rounded_at_load(name: str, shared: Path) -> None:
    """They guess as with their matrices written out, and the text stays the target's."""
    target = specjax.load(shared / "parity" / DRAFTERS[name], dtype="float32")
    path, prompts = shared / "parity" / name, [[5, 6, 7, 5, 6], [9, 8, 9]]
    whole: Any = specjax.load_drafter(path, target)
    spec: Any = specjax.load_drafter(path, target, quantize="int8")
    net = spec.net
    held = [x for x in jax.tree.leaves(net.params, is_leaf=_is_one) if _is_one(x)]
    assert len(held) > 2 and "int8" in spec.name
    assert account.weight_bytes(net) < 0.6 * account.weight_bytes(whole.net)
    params = jax.tree.map(lambda x: x[...] if _is_one(x) else x, net.params, is_leaf=_is_one)
    written = dataclasses.replace(net, params=params)
    same = dataclasses.replace(spec, net=written)
    asked: dict[str, Any] = {"max_new_tokens": 16, "stop_token_ids": [], "rule": "coupled"}
    asked |= {"temperature": [0.0, 1.0]}
    want = specjax.generate(target, whole, prompts, **asked)
    out, again = (specjax.generate(target, s, prompts, **asked) for s in (spec, same))
    assert out.tokens == want.tokens == again.tokens
    assert out.trace.rows == again.trace.rows


def test_a_packed_head_of_the_target_stays_packed(shared: Path) -> None:
    """DeepSeek's own, in FP8 blocks: experts, latent attention and projections."""
    path = shared / "parity" / "deepseek-v3-fp8"
    target = specjax.load(path, dtype="float32")
    packed: Any = parse("mtp:3").load(target, weights="packed")
    assert "matrices packed)" in packed.name
    assert num_packed(packed.net) > 8 and num_packed(parse("mtp:3").load(target).net) == 0  # type: ignore[attr-defined]
    prompts, asked = [[5, 6, 7, 5, 6], [9, 8, 9]], {"max_new_tokens": 12, "rule": "coupled"}
    warm: dict[str, Any] = {"temperature": [0.0, 1.0], "stop_token_ids": [], **asked}
    want = specjax.generate(target, None, prompts, **warm).tokens
    assert specjax.generate(target, packed, prompts, **warm).tokens == want


def test_a_drafter_that_cannot_be_kept_so_is_refused(shared: Path) -> None:
    target = specjax.load(shared / "parity" / "qwen3", dtype="float32")
    with pytest.raises(ValueError, match=r"Drafter ngram reads no weights .* kept as int8"):
        parse("ngram:3").load(target, quantize="int8")
    with pytest.raises(ValueError, match=r"weights=packed, but no matrix there is packed"):
        specjax.load_drafter(shared / "parity" / "dflash-qwen3", target, weights="packed")
    spec = specjax.load_drafter(shared / "parity" / "dflash-qwen3", target, quantize="fp8")
    with pytest.raises(ValueError, match="is kept in 4 or 8 bits"):
        save_drafter(spec, shared.parent / "never", format="zlab", target=target)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    save_pretrained(tiny.model("qwen3").net.module, tmp_path / "a", dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"quantize='int3': must be one of int8, fp8"):
        specjax.load(tmp_path / "a", quantize="int3")  # type: ignore[arg-type]
    for how, words in {
        ("weights", "int3"): "weights='int3': must be one of packed, unpacked",
        ("weights", "packed"): "weights=packed, but no matrix there is packed",
        ("weights", "packed", "quantize", "int8"): "weights=packed and quantize=int8 exclude",
        ("weights", "bfloat16", "dtype", "float32"): "weights=bfloat16 and dtype=float32 differ",
    }.items():
        with pytest.raises(ValueError, match=words):
            specjax.load(tmp_path / "a", **dict(zip(how[::2], how[1::2])))  # type: ignore[arg-type]
    target = specjax.load(tmp_path / "a", quantize="fp8")
    with pytest.raises(ValueError, match="is kept in 4 or 8 bits; load it without quantize"):
        save_pretrained(target.net.module, tmp_path / "b")
