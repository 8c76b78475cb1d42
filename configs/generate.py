"""What `python -m experiments.generate` does beyond its flags.

Expected: text that is the target's own, tau well above 1 and a speedup over plain decoding.
Cost: under a minute on 2 CPU cores with the embedded models, a few seconds once compiled.

  python -m experiments.generate --config.top_k=50 --temperature=0.8
  python -m experiments.generate --config=my_copy_of_this_file.py

No field here is a flag as well, so the two cannot contradict each other.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = ConfigDict()

    common.add_law(config)
    common.add_ends(config)

    # With --prompt_file: whether bytes that are no text become U+FFFD instead of ending the run.
    config.replace_bad_text = False

    # How it is run.
    config.batch_size = 8  # prompts of a file that are decoded together
    config.chunk = 256  # most prompt tokens of one prefill pass
    config.cycles_per_call = 4  # with --stream: cycles between two looks at the device
    config.host_loop = False  # one device call a cycle: what the loop on the device is worth
    config.compilation_cache = "auto"  # a directory; auto: ~/.cache/specjax/xla; '': none
    config.details = False  # with --trace: probabilities of guesses, for a softmax a cycle

    # The comparison with plain decoding: on the prompt, or on the first batch of a prompt file.
    config.compare_plain = True
    config.repeats = 3  # of each, interleaved; medians are reported

    return config
