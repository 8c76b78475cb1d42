"""What `python -m experiments.chat` does beyond its flags: --help lists the fields.

  python -m experiments.chat --target=Qwen/Qwen3-4B --drafter=ngram --temperature=0.6 \\
      --config.top_k=20 --config.min_p=0.05

No field here is a flag as well, so the two cannot contradict each other.
"""

from ml_collections import ConfigDict

from specjax.cli.configs import config_of
from specjax.jobs.chatting import Options


def get_config() -> ConfigDict:
    return config_of(Options)
