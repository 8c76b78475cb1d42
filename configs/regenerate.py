"""Continuations of the training corpus, written by the demo target itself.

Expected: 2000 lines of 64 tokens of the standard library and 192 of the target's own. Cost: that of
plain decoding, which every batch reports; on a GPU raise the batch.

  python -m experiments.regenerate --config=configs/regenerate.py --output=runs/regenerated.jsonl
"""

from __future__ import annotations

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    return config_dict.create(
        target="demo:target",
        # .jsonl: conversations (their last response is written anew), lines with a "prompt", or
        # rows of tokens; .json: a corpus manifest; anything else: plain text.
        prompts="configs/stdlib_files.json",
        chat=False,  # a "prompt" is a user's message; otherwise it is text to continue
        system="",  # the system message of every conversation
        template_args=(),  # "enable_thinking=false", ...: what the template reads besides
        num_prompts=2000,
        prompt_tokens=64,  # of prompts cut out of texts
        max_new_tokens=192,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        seed=0,
        batch=16,
        dtype="",  # the checkpoint's own
        mesh="",
        allow_mismatch=False,
    )
