"""What `python -m experiments.chat` does beyond its flags.

  python -m experiments.chat --target=Qwen/Qwen3-4B --drafter=ngram --temperature=0.6 \\
      --config.top_k=20 --config.min_p=0.05

No field here is a flag as well, so the two cannot contradict each other.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()

    # The law that is sampled from; these come on top of --temperature and --top_p.
    config.top_k = 0  # 0: off
    config.min_p = 0.0  # 0: off
    config.repetition_penalty = 1.0  # 1: off
    config.presence_penalty = 0.0
    config.frequency_penalty = 0.0
    config.logit_bias = ""  # ID:BIAS,ID:BIAS; -inf forbids a token

    # Where an answer ends.
    config.stop = ()  # strings, cut off: --config.stop="('class ',)"
    config.stop_token_ids = config_dict.placeholder(tuple)  # None: the checkpoint's own

    # How it is run.
    config.chunk = 256  # most prompt tokens of one prefill pass
    config.cycles_per_call = 4  # between two looks at the device
    config.compilation_cache = "auto"  # a directory; auto: ~/.cache/specjax/xla; '': none

    return config
