"""A network of your own, by the name of its file (specjax.extend says what it needs).

  python -m experiments.train_drafter --config=configs/train_own.py --workdir=runs/pard \\
      --config.kind=examples/pard.py:Pard --config.num_draft=4 --export_dir=runs/pard/export

Copy this file to set ``sizes`` (arguments of its ``fresh``) and ``objective`` (fields of its
objective); what is not there has the default of the class.
"""

from __future__ import annotations

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    return config_dict.create(
        kind="",  # FILE.py:NAME, or a name that --import registers
        target="demo:target",
        init="",  # a trained drafter to start from
        num_draft=4,
        sizes={},
        objective={},
        data={
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
        },
        eval={
            "rows": 32,
            "prompts": 16,
            "prompt_tokens": 64,
            "max_new_tokens": 96,
            "tolerance": 0.03,
        },
        optimizer="adamw",
        peak_lr=1e-3,
        warmup_steps=40,
        weight_decay=0.0,
        clip_norm=1.0,
        final_lr=0.1,
        steps=1000,
        rows=4,
        accumulate=1,
        seed=0,
        log_every=10,
        eval_every=100,
        checkpoint_every=50,
        compute_dtype="bfloat16",
        export_format="plain",
        mesh="",
        tensorboard=False,
    )
