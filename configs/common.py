"""What the configs share: a copy of one says only what is its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from specjax import sampling
from specjax.cli.configs import config_of
from specjax.jobs.asking import Law


def training(**own: Any) -> ConfigDict:
    """A run of `experiments.train_drafter`; ``own`` adds to these fields or replaces them.

    ``data`` and ``eval`` are merged field by field.
    """
    data: dict[str, Any] = {
        # .json: a corpus manifest; .jsonl: conversations, or what experiments.regenerate wrote;
        # anything else: plain text.
        "train": ("configs/stdlib_files.json",),
        "heldout": (),  # (): a manifest's own, and a share of any other file
        "seq_len": 256,
        "allow_mismatch": False,
        "heldout_share": 0.05,  # of files that are no manifests, where heldout names none
        # Conversations (docs/inputs.md): "all" in one row, "each" response in a row of its own,
        # or the "last"; "": all, or each where the template rewrites earlier turns.
        "turns": "",
        "ignore": (),  # fields of lines and messages to leave out; others must be read
        "bad_lines": "stop",  # or "skip" lines that cannot be used
        "replace_bad_text": False,  # U+FFFD for what is no character
        "template_args": (),  # such as ("enable_thinking=false",)
    }
    evaluation = {
        "rows": 32,
        "prompts": 16,
        "prompt_tokens": 64,
        "max_new_tokens": 96,
        "tolerance": 0.03,  # between predicted and measured tau, relative
    }
    fields: dict[str, Any] = {
        "target": "demo:target",
        "init": "",  # a trained drafter to start from
        "optimizer": "adamw",  # or muon
        "peak_lr": 1e-3,
        "warmup_steps": 40,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "final_lr": 0.1,  # of the peak
        "rows": 4,  # of a micro-batch
        "accumulate": 1,  # micro-batches a step
        "seed": 0,
        "log_every": 10,
        "eval_every": 100,
        "checkpoint_every": 50,
        "compute_dtype": "bfloat16",
        "export_format": "",  # "": the kind's own
        "mesh": "",
        "tensorboard": False,
    }
    merged = {"data": data | own.pop("data", {}), "eval": evaluation | own.pop("eval", {})}
    return config_dict.create(**{**fields, **merged, **own})


def add_law(config: ConfigDict) -> None:
    """The law that is sampled from; on top of --temperature and --top_p."""
    _add(config, [f.name for f in dataclasses.fields(sampling.Options)])


def add_ends(config: ConfigDict) -> None:
    """Where a text ends."""
    _add(config, ["stop", "stop_token_ids"])


def _add(config: ConfigDict, names: Sequence[str]) -> None:
    """Options of every request that are fields of --config, with their defaults."""
    known = config_of(Law)
    for name in set(names) & set(known):
        config[name] = known.get_ref(name) if known[name] is None else known[name]
