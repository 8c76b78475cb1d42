"""What `experiments.benchmark` measures. `:quick` takes under a minute, `:full` a good hour.

  python -m experiments.benchmark --config=configs/benchmark.py --workdir=runs/demo
  python -m experiments.benchmark --config=configs/benchmark.py:quick --workdir=runs/quick
  python -m experiments.benchmark --config=configs/benchmark.py --workdir=runs/8b \\
      --config.target=Qwen/Qwen3-8B --config.drafters="('z-lab/Qwen3-8B-DFlash-b16','ngram:4')" \\
      --config.prompt_sets="('spec-bench:question.jsonl',)" --config.template=chat
"""

from __future__ import annotations

from ml_collections import config_dict

_DEMO = ("demo:draft:4", "demo:dflash:4", "demo:eagle3:4", "demo:medusa", "ngram:4")


def get_config(variant: str = "") -> config_dict.ConfigDict:
    config = config_dict.create(
        # measure; replay: guesses recorded once, then scored for any k; synthetic: acceptance
        # forced to `curves`; predict: from `curves` and `costs`, without a device.
        mode="measure",
        target="demo:target",
        dtype="",  # of the target; "": the checkpoint's own
        mesh="",
        # Checkpoints, or names of the registry such as ngram; :K behind one sets its guesses a
        # cycle. Plain decoding is always there.
        drafters=_DEMO,
        num_draft=(),  # for drafters without :K, each of these; (): what they were trained for
        rules=(),  # (): the best for each drafter and temperature
        temperatures=(0.0, 1.0),
        batches=(1,),
        options=(),  # "top_k=40", "top_p=0.9", ...: as of specjax.generate
        # builtin, or NAME:PATH (specjax/prompts/prompt_sets.py says which there are).
        prompt_sets=("builtin",),
        num_prompts=12,  # of each set, spread over it; 0: all
        max_prompt_tokens=0,  # num_prompts are drawn from those of at most so many; 0: any
        template="none",  # or chat: the target's own
        system="",
        template_args=(),  # "enable_thinking=false", ...: what the template reads besides
        turns=1,  # of conversations, the target's own answers in between; 0: all
        max_new_tokens=96,
        stop=True,  # whether the target's stop tokens end a text
        repeats=3,
        seed=0,
        calibrate=5,  # rounds of calibration behind the measurement; 0: no prediction
        details=False,  # also probabilities (alpha_model, the report's tooltips), untimed
        curves=(),  # for synthetic and predict: specjax/lab/bench/synthetic.py
        costs="",  # for predict (and replay): costs.json, or the directory of a run that has one
        stop_rules=(),  # for replay: confident:0.4, jointly:0.2
        compilation_cache="default",  # "": none
    )
    if variant == "quick":
        config.drafters = ("demo:dflash:4", "ngram:4")
        config.temperatures = (0.0,)
        config.num_prompts, config.max_new_tokens, config.repeats = 3, 48, 1
        config.calibrate = 2
    elif variant == "full":
        config.num_prompts, config.batches, config.details = 24, (1, 4, 16), True
    elif variant:
        raise ValueError(f"configs/benchmark.py:{variant}: there are quick and full.")
    return config
