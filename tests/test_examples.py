"""The files of examples/, as a user outside the repository has them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx
from safetensors.numpy import save_file
from test_train_drafter import config_of, place, train  # noqa: F401 (a fixture)

import specjax
from specjax.auditing.targets import SIZES, loud
from specjax.checkpoint.export import named_tensors
from specjax.core import own
from specjax.models import FAMILIES

pytestmark = pytest.mark.usefixtures("quick_compile")
EXAMPLES = Path(__file__).parent.parent / "examples"


def test_suffix_decoding() -> None:
    """Greedy text is the target's; a continuation that most matches agree on is the guess."""
    suffix = own.find(f"{EXAMPLES / 'suffix_decoding.py'}:Suffix")
    run = jax.jit(lambda drafter, tokens, length: drafter.guess(tokens, length))
    guess = lambda text, **kw: run(
        suffix(3, **kw), jnp.asarray(text + [0] * (16 - len(text)), jnp.int32), len(text)
    )
    assert guess([1, 2, 3, 4, 1, 2]).tolist() == [3, 4, 1]
    assert guess([7, 2, 5, 1, 2, 6, 1, 2, 5, 9, 1, 2]).tolist()[0] == 5  # votes 1 + 2 against 2
    assert guess([1, 2, 3, 9, 9, 2]).tolist() == [3, 9, 9]
    assert guess([1, 2, 3]).tolist() == [-1, -1, -1]
    assert guess([1, 2, 9, 2], shortest=2).tolist() == [-1, -1, -1]
    target, prompts = tiny.model(), tiny.prompts(3)
    name = f"{EXAMPLES / 'suffix_decoding.py'}:Suffix:4"
    out = specjax.generate(target, name, prompts, max_new_tokens=20)
    assert out.tokens == specjax.generate(target, None, prompts, max_new_tokens=20).tokens
    assert out.tau > 1.0 and out.trace.setup["family"] == "lookup"


def test_windowed_family(tmp_path: Path) -> None:
    """Loaded by its file or its name; memory follows the window, and the text is the right one."""
    file = EXAMPLES / "windowed_family.py"
    cls: Any = own.find(f"{file}:Windowed")
    raw = {**SIZES, "model_type": "mistral", "vocab_size": 31, "num_hidden_layers": 2}
    raw |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6}
    module = cls(cls.read_config(raw), dtype=jnp.float32, rngs=nnx.Rngs(0))
    made = loud(module, "windowed", 6.0)
    tensors = named_tensors(made.net.params)
    stored = {n if n.startswith("lm_head") else f"model.{n}": x for n, x in tensors.items()}
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**raw, "torch_dtype": "float32"}))
    try:
        target = specjax.load(f"{file}:Windowed:{tmp_path}")
        assert type(specjax.load(tmp_path).net.module) is cls  # the file has registered the name
    finally:
        del FAMILIES["mistral"]
    assert target.config.window == 6
    small, large = (target.net.init_cache(1, slots) for slots in (64, 1024))
    sizes = [sum(x.size for x in jax.tree.leaves(cache.layers)) for cache in (small, large)]
    assert sizes[0] == sizes[1]
    prompts = tiny.prompts(3)
    out = specjax.generate(target, "ngram:3", prompts, max_new_tokens=20)
    for prompt, tokens in zip(prompts, out.tokens, strict=True):
        assert tokens == tiny.greedy_reference(target, prompt, 20)


def test_pard(place: Path, tmp_path: Path) -> None:  # noqa: F811
    """Trained by the script, tau as predicted; its state obeys the laws; text is the target's."""
    name = f"{EXAMPLES / 'pard.py'}:Pard"
    config = dataclasses.replace(
        config_of(place, "medusa"), kind=name, sizes={"layers": 1}, objective={}, peak_lr=2e-2
    )
    config = dataclasses.replace(config, steps=60, eval_every=60, checkpoint_every=60)
    train(config, tmp_path / "run", str(tmp_path / "pard"), only=False)
    first, *_, last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["measured_tau"] < 1.5 < 2.0 < json.loads(last)["measured_tau"]
    found = json.loads(last)
    assert found["predicted_tau"] == pytest.approx(found["measured_tau"], abs=1e-3)
    target = specjax.load(place / "target")
    ask: dict[str, Any] = {"max_new_tokens": 24}
    out = specjax.generate(target, f"{name}:{tmp_path / 'pard'}:2", "def f1(", **ask)
    assert out.text == specjax.generate(target, None, "def f1(", **ask).text and out.tau > 1.5
    assert specjax.audit(f"{name}:2", texts=500, checks=["guesses", "state"]).passed
