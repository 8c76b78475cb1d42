"""Kernels of our own, interpreted, against the references of their operations: the whole matrix.

    python -m pytest -n 0 tests/long/test_kernels.py

Not part of the suite, which has a few of these cases: on two cores this takes about 6 minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import attention_cases
import jax
import jax.numpy as jnp
import product_cases
import pytest
import state_cases
import tiny

import specjax
from specjax import drafters
from specjax.core.choices import Choices
from specjax.core.ops.attend import ATTEND, reference
from specjax.core.ops.gated import GATED, GatedInOneKernel
from specjax.core.ops.heads import HEADS, HeadsAtOnce
from specjax.core.ops.likeliest import LIKELIEST, InTheProduct
from specjax.core.ops.linear import PRODUCT, InOneKernel
from specjax.core.ops.norm import ADD_NORM, NormAtOnce
from specjax.core.ops.stream import ADD_PRODUCT, NORM_PRODUCT, AddedInside, NormedInside
from specjax.core.ops.valid_slots import ValidSlots
from specjax.core.ops.write import WRITE_ALL, Together
from specjax.core.platform import Platform
from specjax.lab.bench.device import tune
from specjax.models.joining import joined


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", attention_cases.CASES, ids=str)
def test_attention(case: attention_cases.Case, dtype: Any) -> None:
    attention_cases.check(case, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", state_cases.CASES, ids=str)
def test_heads(case: state_cases.Case, dtype: Any) -> None:
    state_cases.check(case, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 4096), (8, 1, 64), (2, 17, 1000)], ids=str)
@pytest.mark.parametrize("kind", state_cases.KINDS)
def test_sums_and_norms(kind: str, shape: tuple[int, ...], dtype: Any) -> None:
    for added in (True, False):
        state_cases.check_norm(kind, shape, dtype, added=added)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33, 64, 65, 128])
@pytest.mark.parametrize("width,columns", [(8, 1), (256, 32), (257, 31), (1000, 100), (30, 513)])
def test_products(rows: int, width: int, columns: int, dtype: Any) -> None:
    product_cases.check(rows, width, columns, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 8, 17, 64])
@pytest.mark.parametrize("width,columns", [(8, 1), (64, 16), (257, 31), (30, 513)])
def test_the_likeliest(rows: int, width: int, columns: int, dtype: Any) -> None:
    product_cases.check_likeliest(rows, width, columns, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 32])
@pytest.mark.parametrize("width,inner", [(64, 8), (1000, 100), (4096, 31)])
@pytest.mark.parametrize("kind", state_cases.KINDS)
def test_norms_within_products(kind: str, width: int, inner: int, rows: int, dtype: Any) -> None:
    product_cases.check_stream(rows, width, inner, state_cases.KINDS[kind], dtype)


def whole(*given: Any) -> Any:
    """What is left to the reference: what has no cache, or is written out first."""
    cached = given[4]
    assert cached is None or cached.write is not None
    return reference(*given)


@pytest.fixture
def kernels_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs for CPU made of kernels for GPUs, interpreted; those before and behind are not."""
    jax.clear_caches()
    monkeypatch.setitem(ATTEND.variants, "cpu", ValidSlots(whole, interpret=True))
    monkeypatch.setitem(WRITE_ALL.variants, "cpu", Together(interpret=True))
    monkeypatch.setitem(HEADS.variants, "cpu", HeadsAtOnce(interpret=True))
    monkeypatch.setitem(ADD_NORM.variants, "cpu", NormAtOnce(interpret=True))
    monkeypatch.setitem(PRODUCT.variants, "cpu", InOneKernel(interpret=True))
    monkeypatch.setitem(LIKELIEST.variants, "cpu", InTheProduct(interpret=True))
    monkeypatch.setitem(GATED.variants, "cpu", GatedInOneKernel(interpret=True))
    monkeypatch.setitem(NORM_PRODUCT.variants, "cpu", NormedInside(interpret=True))
    monkeypatch.setitem(ADD_PRODUCT.variants, "cpu", AddedInside(interpret=True))
    yield
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.parametrize(
    "family", ["llama", "int8 llama", "gpt_oss", "deepseek_v3", "qwen3_5", "gemma3", "qwen3"]
)
def test_texts(family: str, kernels_here: None) -> None:
    """Whole texts on several kinds of memory: those that the model writes without any cache."""
    target = tiny.model(family.removeprefix("int8 "))
    target = target.remembering("int8" if family.startswith("int8") else None)
    prompts = tiny.prompts(3)
    found = specjax.generate(target, drafters.make("ngram", num_draft=3), prompts, max_new_tokens=9)
    assert found.tokens == [tiny.greedy_reference(target, p, 9) for p in prompts]


def test_tuned_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some products in kernels of our own, some in XLA's, by choice: the same text."""
    monkeypatch.setitem(PRODUCT.variants, "cpu:pallas", InOneKernel(interpret=True))
    target, prompts, on = tiny.model(), tiny.prompts(2), Platform("cpu")
    found = tune.calls(target, drafters.NoDraft(), rows=2, slots=64, on=on)
    products = sorted({call.key for call in found if call.op is PRODUCT})
    ways = {key: ("pallas", "attention")[i % 2] for i, key in enumerate(products)}
    assert len(products) > 2
    tuned = dataclasses.replace(on, kernels="tuned", choices=Choices(ways))
    there = dataclasses.replace(target, net=target.net.on(tuned))
    texts = specjax.generate(there, drafters.NoDraft(), prompts, max_new_tokens=9).tokens
    assert texts == [tiny.greedy_reference(target, p, 9) for p in prompts]


@pytest.mark.parametrize("name", ["lm", "dflash", "eagle3", "medusa_tree"])
def test_drafters(name: str, kernels_here: None) -> None:
    """Drafters with memories of their own, one of them with trees."""
    target, prompts = tiny.model(), tiny.prompts(2)
    spec = tiny.make(name, target=target)
    if name == "dflash":  # then its context is one product
        spec = dataclasses.replace(spec, net=joined(spec.net))
    found = specjax.generate(target, spec, prompts, max_new_tokens=9)
    assert found.tokens == [tiny.greedy_reference(target, p, 9) for p in prompts]
