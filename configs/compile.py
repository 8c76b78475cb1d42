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


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.target = "llama-3.1-8b"  # a directory with a config.json, or a name of models/shapes.py
    config.layers = 0  # of the target; 0: all of them
    config.dtype = "bfloat16"  # of weights, activations and caches

    # The drafter: none, lm, dflash, eagle3 or medusa, of the target's own width. The published
    # DFlash checkpoints have 5 layers, 5 taps and blocks of 16 (15 guesses); EAGLE-3 has one layer.
    config.drafter = "dflash"
    config.num_draft = 15
    config.draft_layers = 0  # of dflash, eagle3 and the heads of medusa; 0: as many as published
    config.draft_taps = 5  # of dflash
    config.draft_vocab = 32000  # of eagle3
    config.draft_model = "llama-3.2-1b"  # of lm: a directory or name, as the target's
    config.replicate_drafter = False  # True: all of it on every device, as load_drafter places it

    config.rows = 8
    config.slots = 4096  # length of the buffers
    config.context = 3072  # tokens that are valid in the floor; buffers are 3/4 full on average
    config.temperature = 0.0  # 0 is greedy
    config.top_p = 1.0
    config.rule = ""  # '': the best lossless one

    config.trips = 1  # taken for loops in the cycle that end when the program says so
    config.programs = "all"  # run: the loop of cycles alone, not what feeds prompts and grows

    return config
