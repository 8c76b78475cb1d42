"""What a checkpoint needs in memory, told before it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from scripts import invoke, script

import specjax
from specjax.checkpoint import CheckpointError, memory
from specjax.checkpoint.located import DEMO
from specjax.checkpoint.plan import OTHERS, plan


def nbytes(directory: Path, **how: Any) -> int:
    params = specjax.load(directory, **how).net.params
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["gpt-oss", "kimi-k25", "deepseek-v3-fp8", "qwen3-5-moe"])
def test_a_plan_is_what_is_loaded(name: str, shared: Path) -> None:
    path = shared / "parity" / name
    made = plan(path, {}, dtype=jax.numpy.dtype("bfloat16"))
    assert made.total("device") == made.total("whole") == nbytes(path, dtype="bfloat16")
    parts = {part.name: part for part in made.parts}
    assert {"experts", "attention", "embedding", OTHERS} <= parts.keys()
    assert (parts["experts"].packed > 0) == (name in ("gpt-oss", "kimi-k25", "deepseek-v3-fp8"))
    assert parts["embedding"].packed == 0
    assert made.total("stored") <= (path / "model.safetensors").stat().st_size


def test_a_plan_on_a_mesh() -> None:
    """Of devices that are not here: what is split is halved, the rest is on each."""
    one, two = (plan(DEMO / "target", {"model": n}) for n in (1, 2))
    assert one.total("device") == nbytes(DEMO / "target")
    part = {p.name: p.device for p in two.parts}
    for before in one.parts:
        share = part[before.name] / before.device
        assert share == 0.5 if before.name in ("attention", "embedding") else share > 0.5
    quantised = plan(DEMO / "target", {}, quantize="int8")
    assert quantised.total("device") == nbytes(DEMO / "target", quantize="int8")
    with pytest.raises(CheckpointError, match="model axis has 7 devices"):
        plan(DEMO / "target", {"model": 7})
    with pytest.raises(CheckpointError, match="no experts"):
        plan(DEMO / "target", {"experts": 2})


def test_a_cache_that_is_refused_is_not_planned(shared: Path) -> None:
    with pytest.raises(ValueError, match=r"kv_cache=int8: no layer of kimi-k25 .*Latent alone"):
        plan(shared / "parity" / "kimi-k25", {}, kv_cache="int8")


def test_what_cannot_fit_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import specjax.checkpoint.assemble as assembling

    free = nbytes(DEMO / "target") - 1
    monkeypatch.setattr(memory, "free", lambda mesh=None: free)
    monkeypatch.setattr(assembling, "_begin", lambda *args: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match="GiB on each device") as error:
        specjax.load("demo:target")
    assert "\n" not in str(error.value)
    status, out, err = invoke(script("generate"), capsys, "generate", "--max_new_tokens=2")
    assert status == 2 and err.count("\n") == 1 and "experiments.plan" in err
    status, out, err = invoke(script("plan"), capsys, "plan")
    assert status == 1 and "do not fit" in out
    free += 1
    status, out, _ = invoke(script("plan"), capsys, "plan", "--mesh=model:2")
    assert (status or 0) == 0 and "weights fit" in out and "attention" in out
