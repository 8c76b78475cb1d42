"""Runs exported drafters with the code that others wrote for their formats: PyTorch, on CPU.

Run by the tests beside it, in a process of its own and with another Python where they are told so.
Needs NumPy, PyTorch, Transformers and the package of each task; nothing of specjax.

  python tests/parity/reference_drafters.py JOB.json OUTPUT.npz

JOB.json is a list of ``{"task": name, "name": prefix, ...arguments}``. Each task's arrays are saved
as ``prefix/array``. A task whose package is missing saves its name as ``prefix/missing``.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

LEARNING_RATE, BETAS = 1e-3, (0.9, 0.95)


def hide_misfits() -> None:
    """Packages that cannot be imported count as not installed.

    A torchvision that was built for another torch (its wheels are for GPUs where torch is for CPUs)
    would end the import of Transformers, and nothing here needs it.
    """
    for name in ("torchvision", "torchaudio"):
        try:
            importlib.import_module(name)
        except ImportError:
            pass
        except Exception:  # whatever its own start raises
            sys.modules[name] = None  # type: ignore[assignment]


def load_target(directory: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def target_pass(target: Any, tokens: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """hidden_states [B, T, D] of rows of tokens, and the last one before the final norm."""
    kept = []
    hook = target.model.norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        states = target(torch.tensor(tokens), output_hidden_states=True).hidden_states
    hook.remove()
    return list(states), kept[0]


def dflash(
    directory: str, target: str, tokens: list[int], anchors: list[int], prompt: int, new: int
) -> dict[str, Any]:
    """Package ``dflash``: the block behind each anchor of a text, and its own decoding loop."""
    import dflash.model as reference

    with open(f"{directory}/config.json") as file:
        name = json.load(file)["architectures"][0]
    model = getattr(reference, name).from_pretrained(directory, dtype=torch.float32).eval()
    lm = load_target(target)
    states, _ = target_pass(lm, [tokens])
    features = reference.extract_context_feature(states, model.target_layer_ids)
    out: dict[str, list[Any]] = {"hidden": [], "logits": [], "guesses": []}
    scale = float(reference._draft_value(model.config, "input_embedding_scale", 1.0))
    for anchor in anchors:
        block = torch.tensor([[tokens[anchor]] + [model.mask_token_id] * (model.block_size - 1)])
        with torch.no_grad():
            hidden = model(
                target_hidden=features[:, :anchor],
                noise_embedding=reference._raw_input_embeddings(lm, block, scale),
                position_ids=torch.arange(anchor + model.block_size)[None],
            )[:, 1:]
            logits = model.compute_logits(hidden, lm.lm_head)
            guesses = logits.argmax(-1)
            if hasattr(model, "propose"):
                guesses = model.propose(hidden, block[:, 0], lm.lm_head, 0.0)[0]
        for key, value in {"hidden": hidden, "logits": logits, "guesses": guesses}.items():
            out[key].append(value[0].numpy())
    # Its statistics want a CUDA clock.
    reference._cuda_time = time.perf_counter
    loop = reference.dflash_generate(
        model, lm, torch.tensor([tokens[:prompt]]), new, None, return_stats=True
    )
    text = loop.output_ids[0, prompt:].numpy()
    return {
        **{key: np.stack(value) for key, value in out.items()},
        "text": text,
        "produced": np.array(loop.acceptance_lengths),
    }


def specforge_dflash(
    directory: str,
    target: str,
    tokens: list[list[int]],
    supervised: list[list[int]],
    anchors: list[list[int]],
    keep: list[list[bool]],
    gamma: float,
    steps: int,
) -> dict[str, Any]:
    """SpecForge's DFlash trainer: the losses of its first steps, at given anchors.

    ``gamma`` 0 is D-PACE. AdamW without decay, at `LEARNING_RATE`.
    """
    from specforge.algorithms.common.dflash_family_model import OnlineDFlashModel
    from specforge.modeling.draft.dflash import DFlashDraftModel

    model = DFlashDraftModel.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    )
    lm = load_target(target).requires_grad_(False)
    states, _ = target_pass(lm, tokens)
    features = torch.cat([states[i + 1] for i in model.target_layer_ids], dim=-1)
    trainer = OnlineDFlashModel(
        model,
        lm.lm_head,
        lm.model.embed_tokens,
        model.mask_token_id,
        block_size=model.block_size,
        attention_backend="sdpa",
        num_anchors=len(anchors[0]),
        loss_decay_gamma=gamma or None,
        loss_type="dflash" if gamma else "dpace",
    )
    given = torch.tensor(anchors), torch.tensor(keep)
    trainer._sample_anchor_positions = lambda *_, **__: given

    def loss() -> tuple[torch.Tensor, Any]:
        mean, _, metrics = trainer(
            torch.tensor(tokens), features, torch.tensor(supervised, dtype=torch.float32)
        )
        return mean, metrics["loss_terms"]

    losses, terms = train(model.parameters(), loss, steps)
    return {"losses": losses, "totals": [t[0].item() for t in terms]}


def speculators_dflash(
    directory: str,
    target: str,
    tokens: list[int],
    supervised: list[int],
    anchors: list[int],
    losses: list[tuple[str, float]],
    steps: int,
) -> dict[str, Any]:
    """Package ``speculators``, DFlash and DFlash2: states, logits, and losses of its training pass.

    ``losses`` are pairs of a loss and the decay over the block; decay 0 is D-PACE. The first of
    them is also trained on.
    """
    from speculators.losses import resolve_loss_config
    from speculators.models.dflash import core

    model, inputs = speculators_model(directory, target, tokens, shift=0)
    picked = torch.tensor(anchors), torch.ones(len(anchors), dtype=torch.bool)
    core.select_anchors = lambda *_, **__: picked
    inputs["loss_mask"] = torch.tensor([supervised])
    with torch.no_grad():
        hidden, logits, _, mask, _ = model._backbone_forward(**inputs, max_anchors=len(anchors))

    two: dict[str, Any] = {}
    if hasattr(model, "candidate_selector"):  # DFlash2: without the selector's loss
        tv = resolve_loss_config("tv", "eager")["tv"][0]
        two = {"selector_loss_alpha": 0.0, "tv_loss_fn": tv}

    def loss(name: str, gamma: float) -> torch.Tensor:
        return model(
            **inputs,
            max_anchors=len(anchors),
            loss_config=resolve_loss_config(name, "eager"),
            gamma=gamma,
            per_position_loss_weight="fixed-exp-decay" if gamma else "dpace",
            **two,
        )[1]

    values = [loss(*setting).item() for setting in losses]
    trained = [p for p in model.parameters() if p.requires_grad]
    curve, _ = train(trained, lambda: (loss(*losses[0]), None), steps)
    size = model.block_size
    per_block = lambda x: x[0].reshape(len(anchors), size, *x.shape[2:]).numpy()
    return {
        "hidden": per_block(hidden),
        "logits": per_block(logits),
        "counted": mask.sum().item(),
        "losses": values,
        "curve": curve,
    }


def speculators_eagle3(
    directory: str,
    target: str,
    tokens: list[int],
    supervised: list[int],
    ttt: int,
    decay: float,
    losses: list[str],
    steps: int,
) -> dict[str, Any]:
    """Package ``speculators``, EAGLE-3: states, logits and losses of its training-time test."""
    from speculators.losses import resolve_loss_config

    model, inputs = speculators_model(directory, target, tokens, shift=1)
    inputs["loss_mask"] = torch.tensor([supervised[1:]])
    states: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    hooks = [
        model.norm.register_forward_hook(lambda _, __, y: states.append(y)),
        model.lm_head.register_forward_hook(lambda _, __, y: logits.append(y)),
    ]

    def loss(name: str) -> tuple[torch.Tensor, Any]:
        config = resolve_loss_config(name, "eager")
        return model(**inputs, ttt_steps=ttt, ttt_step_loss_decay=decay, loss_config=config)[1:]

    with torch.no_grad():
        loss(losses[0])
    for hook in hooks:
        hook.remove()
    values = [loss(name)[0].item() for name in losses]
    model.lm_head.requires_grad_(True)  # here the head is trained too
    trained = [p for p in model.parameters() if p.requires_grad]
    curve, _ = train(trained, lambda: loss(losses[0]), steps)
    return {
        "hidden": torch.cat(states).numpy(),
        "logits": torch.cat(logits).numpy(),
        "losses": values,
        "curve": curve,
    }


def speculators_model(
    directory: str, target: str, tokens: list[int], *, shift: int
) -> tuple[Any, dict[str, Any]]:
    """The drafter by its config, and the inputs of its forward pass for one text."""
    from speculators import SpeculatorModel, SpeculatorModelConfig

    config = SpeculatorModelConfig.from_pretrained(directory)
    config.transformer_layer_config._attn_implementation = "eager"  # the default is for GPUs
    model = SpeculatorModel.from_pretrained(directory, config=config, dtype=torch.float32)
    states, last = target_pass(load_target(target), [tokens])
    size = len(tokens) - shift
    return model, {
        "hidden_states": torch.cat([states[i] for i in model.target_layer_ids], -1)[:, :size],
        "input_ids": torch.tensor([tokens[shift:]]),
        "verifier_last_hidden_states": last[:, shift:],
        "document_ids": torch.zeros(1, size, dtype=torch.long),
        "position_ids": torch.arange(shift, len(tokens))[None],
    }


def specforge_eagle3(
    directory: str,
    target: str,
    tokens: list[list[int]],
    supervised: list[list[int]],
    taps: list[int],
    ttt: int,
    decay: float,
    steps: int,
) -> dict[str, Any]:
    """SpecForge's EAGLE-3: states, logits and losses of its training-time test.

    Its loss is a Triton kernel, for GPUs only; in its place stands the formula that the same file
    gives as its reference. ``taps`` are indices into hidden_states: its trainer is handed features.
    """
    replace_triton_loss()
    torch._dynamo.config.disable = True
    from specforge.algorithms.eagle3 import model as trainer_file
    from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3

    model = LlamaForCausalLMEagle3.from_pretrained(directory, dtype=torch.float32)
    model.midlayer.self_attn._init_rope()  # Transformers 5 leaves buffers that no file holds empty
    model.load_embedding(target)
    model.freeze_embedding()
    lm = load_target(target).requires_grad_(False)
    states, _ = target_pass(lm, tokens)
    ids, mask = torch.tensor(tokens), torch.tensor(supervised)
    ahead = trainer_file.padding
    inputs = {
        "input_ids": ahead(ids, left=False),
        "attention_mask": torch.ones_like(ids),
        "target": ahead(lm.lm_head(states[-1]), left=False),
        # Position t teaches the token t + 2, which the draft is to guess from t + 1.
        "loss_mask": ahead(ahead(mask, left=False), left=False)[..., None],
        "hidden_states": torch.cat([states[i] for i in taps], dim=-1),
    }
    trainer = trainer_file.OnlineEagle3Model(model, length=ttt, attention_backend="sdpa")
    hidden: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    hooks = [
        model.norm.register_forward_hook(lambda _, __, y: hidden.append(y)),
        model.lm_head.register_forward_hook(lambda _, __, y: logits.append(y)),
    ]
    LAWS.clear()
    with torch.no_grad():
        trainer(**inputs)
    for hook in hooks:
        hook.remove()
    entropy = [-(mask * law * law.clamp_min(1e-30).log()).sum(-1).mean() for law, mask in LAWS]

    def loss() -> tuple[torch.Tensor, Any]:
        losses = trainer(**inputs)[0]
        return sum(decay**j * x for j, x in enumerate(losses)), None

    trained = [p for p in model.parameters() if p.requires_grad]
    curve, _ = train(trained, loss, steps)
    return {
        "hidden": torch.stack(hidden).numpy(),
        "logits": torch.stack(logits).numpy(),
        "entropy": [x.item() for x in entropy],
        "curve": curve,
    }


# What the loss below was asked for: one list, as the file that imports it is imported once.
LAWS: list[tuple[torch.Tensor, torch.Tensor]] = []


def replace_triton_loss() -> None:
    """Puts the formula of SpecForge's loss in the place of its kernel, which needs Triton."""

    def masked_mean(logits: torch.Tensor, law: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean over all positions, those without a label included."""
        LAWS.append((law, mask))
        return -(mask * law * logits.float().log_softmax(-1)).sum(-1).mean()

    loss_file = types.ModuleType("specforge.core.loss")
    loss_file.LogSoftmaxLoss = types.SimpleNamespace(apply=masked_mean)  # type: ignore[attr-defined]
    sys.modules[loss_file.__name__] = loss_file


def train(
    parameters: Any, loss: Callable[[], tuple[torch.Tensor, Any]], steps: int
) -> tuple[list[float], list[Any]]:
    """The losses before each of ``steps`` updates, and what came with them."""
    optimizer = torch.optim.AdamW(list(parameters), LEARNING_RATE, BETAS, 1e-8, 0.0)
    losses, extras = [], []
    for _ in range(steps):
        value, extra = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
        extras.append(extra)
    return losses, extras


TASKS = {
    f.__name__: f
    for f in (dflash, specforge_dflash, speculators_dflash, speculators_eagle3, specforge_eagle3)
}


def main(job: str, output: str) -> None:
    torch.set_num_threads(1)
    hide_misfits()
    arrays: dict[str, Any] = {}
    with open(job) as file:
        tasks = json.load(file)
    for arguments in tasks:
        task, prefix = arguments.pop("task"), arguments.pop("name")
        torch.manual_seed(0)
        try:
            results = TASKS[task](**arguments)
        except ModuleNotFoundError as error:
            results = {"missing": error.name or str(error)}
        arrays |= {f"{prefix}/{key}": np.asarray(value) for key, value in results.items()}
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
