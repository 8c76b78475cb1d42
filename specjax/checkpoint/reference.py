"""What Transformers computes with a Hugging Face directory, as the arrays of a golden file.

Needs torch and transformers, which are imported only when asked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from specjax.checkpoint import CheckpointError

TOKENS, PROMPT, STEPS = 48, 24, 24


def reference_outputs(directory: Path, vocab_size: int) -> dict[str, np.ndarray]:
    """The arrays that `specjax.checkpoint.parity.compare_target` takes, in float32 on the CPU.

    Args:
      directory: of the checkpoint.
      vocab_size: random ids below it are what is fed.

    Raises:
      CheckpointError: in one line, without those packages, or if they cannot read the directory.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise CheckpointError(
            f"{directory} has no golden.npz, and {error.name} is not installed to compute one: "
            "pip install torch transformers, or name a file with --golden."
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    except Exception as error:  # whatever it raises at what it cannot read
        line = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{directory}: Transformers cannot read it: {line}") from error
    ids = np.random.default_rng(0).integers(0, vocab_size, TOKENS)
    with torch.no_grad():
        out = model(torch.tensor(ids[None]), output_hidden_states=True, use_cache=False)
        text = ids[:PROMPT].tolist()
        for _ in range(STEPS):  # no cache, and nothing of generate's own options
            logits = model(torch.tensor([text]), use_cache=False).logits
            text.append(int(logits[0, -1].argmax()))
    return {
        "input_ids": ids.astype(np.int32),
        "prompt_len": np.asarray(PROMPT),
        "logits": out.logits[0].numpy(),
        "hidden_states": np.stack([x[0].numpy() for x in out.hidden_states]),
        "greedy_tokens": np.asarray(text[PROMPT:], np.int32),
    }
