"""What `python -m experiments.generate` does beyond its flags: --help lists the fields.

Expected: text that is the target's own, tau well above 1 and a speedup over plain decoding.
Cost: under a minute on 2 CPU cores with the embedded models, a few seconds once compiled.

  python -m experiments.generate --config.top_k=50 --temperature=0.8
  python -m experiments.generate --config=my_copy_of_this_file.py

No field here is a flag as well, so the two cannot contradict each other.
"""

from ml_collections import ConfigDict

from specjax.cli.configs import config_of
from specjax.jobs.texts import Options


def get_config() -> ConfigDict:
    return config_of(Options)  # such as config_of(Options, top_k=50)
