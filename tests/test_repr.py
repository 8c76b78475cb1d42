"""What a notebook shows of models, drafters and outputs: one line."""

from __future__ import annotations

from typing import Any

import jax
import pytest
import tiny

import specjax
from specjax.drafters import DRAFTERS


def test_models() -> None:
    target = tiny.model("llama", vocab=31)
    assert repr(target.net).startswith("llama(2 layers of 32, 31 tokens, ")
    assert repr(target.net).endswith("k parameters, float32, cpu:0)")
    assert repr(target) == f"Model({target.name}: {target.net!r})"
    seen: list[str] = []
    jax.jit(lambda net: seen.append(repr(net)))(target.net)
    assert "float32" in seen[0] and "cpu" not in seen[0]  # traced: it is nowhere


@pytest.mark.parametrize("name", DRAFTERS)
def test_drafters(name: str) -> None:
    target = tiny.model("llama")
    spec: Any = tiny.make(name, target=target)
    for value in (spec, spec.bind(target, "one_hot")):
        text = repr(value)
        assert text.startswith(type(value).__name__ + "(") and "\n" not in text
        assert len(text) < 400 and "Array" not in text
        assert name == "none" or "num_draft=3" in text


def test_outputs() -> None:
    target = tiny.model("llama")
    out = specjax.generate(target, "ngram:2", [[1, 2, 3], [4]], max_new_tokens=4)
    assert repr(out).startswith("Output(2 texts, 8 tokens, tau ") and len(repr(out)) < 100
    assert repr(out.trace).startswith("Trace(2 rows, ") and "8 tokens" in repr(out.trace)
