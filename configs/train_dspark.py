"""A DSpark drafter for the demo target: 7 slots, a Markov head and a confidence head.

What little training brings, with and without a least confidence: docs/benchmarks.md.

  python -m experiments.train_drafter --config=configs/train_dspark.py \\
      --workdir=runs/dspark --export_dir=runs/dspark/export

On text that the target wrote itself
(experiments.regenerate): --config.data.train='("runs/regenerated.jsonl",)'.
"""

from __future__ import annotations

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    return config_dict.create(
        kind="dspark",
        target="demo:target",
        init="",  # a trained drafter to start from
        num_draft=7,
        sizes={
            "layers": 2,
            "num_taps": 3,
            # 0: the target's, or that of init; fewer than init has: its largest neurons.
            "intermediate_size": 0,
            "mask_token_id": config_dict.placeholder(int),  # None: the last one
            "from_target": True,  # layers begin as the last ones of the target
            "markov_rank": 64,
        },
        objective={
            "anchors": 64,  # blocks a row, drawn anew every step
            "chunk": 16,  # blocks that are run at once
            "ce": 0.1,  # weight of the cross entropy with the text
            "l1": 0.9,  # weight of the distance between target's and draft's law
            "confidence": 1.0,  # weight of the confidence head's calibration
            # Decay of the weights over a block; 0: D-PACE (docs/demo_models.md).
            "gamma": 4.0,
        },
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
        optimizer="muon",
        peak_lr=2e-3,
        warmup_steps=40,
        weight_decay=0.0,
        clip_norm=1.0,
        final_lr=0.1,
        steps=2000,
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
