"""A small language model as a draft for the demo target, distilled from it (DistillSpec).

Expected and cost: docs/demo_models.md.

  python -m experiments.train_drafter --config=configs/train_distill.py \\
      --workdir=runs/distill --export_dir=runs/distill/export

On-policy, every second micro-batch: --config.objective.on_policy=0.5.
"""

from __future__ import annotations

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    return config_dict.create(
        kind="lm",
        target="demo:target",
        init="",
        num_draft=5,
        sizes={
            "model_type": "llama",
            "vocab_size": 4096,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        objective={
            "divergence": "forward_kl",
            "cross_entropy": 0.1,
            "temperature": 1.0,
            "on_policy": 0.0,
            "on_policy_tokens": 32,
        },
        data={
            "train": ("configs/stdlib_files.json",),
            "heldout": (),  # (): a manifest's own, and a share of any other file
            "seq_len": 512,
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
        peak_lr=4e-3,
        warmup_steps=40,
        weight_decay=0.1,
        clip_norm=1.0,
        final_lr=0.1,
        steps=900,
        rows=4,
        accumulate=2,
        seed=0,
        log_every=10,
        eval_every=100,
        checkpoint_every=50,
        compute_dtype="bfloat16",
        export_format="",
        mesh="",
        tensorboard=False,
    )
