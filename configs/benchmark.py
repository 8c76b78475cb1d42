"""What `experiments.benchmark` measures. `:quick` takes under a minute, `:full` a good hour.

  python -m experiments.benchmark --config=configs/benchmark.py --workdir=runs/demo
  python -m experiments.benchmark --config=configs/benchmark.py:quick --workdir=runs/quick
  python -m experiments.benchmark --config=configs/benchmark.py --workdir=runs/8b \\
      --config.target=Qwen/Qwen3-8B --config.drafters="('z-lab/Qwen3-8B-DFlash-b16','ngram:4')" \\
      --config.prompt_sets="('spec-bench:question.jsonl',)" --config.template=chat
"""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of
from specjax.lab.bench.job import Config


def get_config(variant: str = "") -> ConfigDict:
    config = config_of(Config)  # which says what the fields are
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
