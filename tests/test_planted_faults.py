"""`check_drafter` names what is wrong: one fault each, planted in a drafter that was trained.

Taps that are off by one are in `test_drafter_checkpoints`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_drafter_checkpoints import write

import specjax
from specjax.checkpoint.drafters.load import load_drafter

DRAFT = "dflash-swa-qwen3"


@pytest.fixture(scope="module")
def target(shared: Path) -> specjax.Model:
    return specjax.load(shared / "parity/qwen3", dtype="float32")


def no_window(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config |= {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}


def centred(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    for name in tensors:
        if "norm" in name:
            tensors[name] = tensors[name] - np.ones((), tensors[name].dtype)


FAULTS: dict[str, tuple[Callable[..., None], str, str]] = {
    "window": (no_window, "a window of 12", "sliding_window: 12"),
    "norms": (centred, "norms of 1 + w", "add 1 to the weights of its norms"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_its_files(
    shared: Path, target: specjax.Model, tmp_path: Path, fault: str
) -> None:
    plant, what, means = FAULTS[fault]
    config = json.loads((shared / "parity" / DRAFT / "config.json").read_text())
    tensors = load_file(shared / "parity" / DRAFT / "model.safetensors")
    plant(config, tensors)
    drafter = load_drafter(write(tmp_path / "d", config, tensors), target)
    prompt = np.load(shared / "parity" / DRAFT / "golden.npz")["input_ids"].tolist()
    # Without its window it still guesses a little: that is found where one looks.
    thorough = fault == "window"
    report = specjax.check_drafter(target, drafter, prompts=[prompt], cycles=16, thorough=thorough)
    assert report.passed == thorough
    assert report.found is not None and report.found.what == what, str(report)
    assert f"With {what} tau is {report.found.tau:.2f}" in report.causes[0]
    assert means in report.causes[0] and report.found.tau == 3.125  # that of the files as they were


def test_the_wrong_template(shared: Path, target: specjax.Model) -> None:
    """Of text it knows the continuation, of the same text as somebody's message it does not."""
    drafter = load_drafter(shared / "parity" / DRAFT, target)
    texts = ["and yes 11", "draft if the and by"]
    talks = [[{"role": "user", "content": text}] for text in texts]
    report = specjax.check_drafter(target, drafter, prompts=talks, cycles=16)
    assert not report.passed and report.found is not None
    assert report.found.what == "plain text, without the chat template" and report.found.tau > 3
    assert "trained on plain text" in report.causes[0] and len(report.trials) == 1

    # The other way round: a target whose template writes what was in the training data.
    class Template(type(target.chat_template)):  # type: ignore[misc]
        def render(self, messages: Any, **more: Any) -> str:
            return "and " + messages[0]["content"]

    talking = dataclasses.replace(target)
    talking.__dict__["chat_template"] = Template("{{ messages[0].content }}", {}, where="t")
    report = specjax.check_drafter(talking, drafter, prompts=["yes 11"], cycles=8)
    assert not report.passed and report.found is not None
    assert report.found.what == "the target's chat template" and report.found.tau > 3
    assert "trained on conversations" in report.causes[0]
