"""What `python -m experiments.compile` compiles.

Expected: for Llama-3.1-8B on v5e:2x4 no cache-sized copy in the loop, two all-reduces a layer and
one for each embedding, bytes within 1.3x of the floor. Cost: minutes of compilation for the whole
model, seconds with --config.layers=4; no memory beyond the compiler's own.

  python -m experiments.compile --topology=v5e:2x4 --mesh=data:1,model:8 --config.drafter=none
  python -m experiments.compile --topology=local --config.target=path/to/Qwen3-8B --config.layers=2
  python -m experiments.compile --topology=v5p:2x2x4 --mesh=data:1,model:16 \\
      --config.target=llama-3.1-70b --config.layers=4
"""

from ml_collections import ConfigDict

from specjax.cli.configs import config_of
from specjax.lab.records.compiled import Setup


def get_config() -> ConfigDict:
    return config_of(Setup)
