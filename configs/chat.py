"""What `python -m experiments.chat` does beyond its flags.

  python -m experiments.chat --target=Qwen/Qwen3-4B --drafter=ngram --temperature=0.6 \\
      --config.top_k=20 --config.min_p=0.05

No field here is a flag as well, so the two cannot contradict each other.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = ConfigDict()

    common.add_law(config)
    common.add_ends(config)

    # How it is run.
    config.chunk = 256  # most prompt tokens of one prefill pass
    config.cycles_per_call = 4  # between two looks at the device
    config.compilation_cache = "auto"  # a directory; auto: ~/.cache/specjax/xla; '': none

    return config
