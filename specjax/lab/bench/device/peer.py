"""Hugging Face Transformers on the same device: a model of the same sizes, plain decoding.

    python -m specjax.lab.bench.device.peer CONFIG DTYPE TOKENS

prints a line of JSON for each way as soon as it is measured. torch and Transformers are imported in
that process alone; nobody needs them.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

WAYS = ("eager", "compiled")
_PROMPT = 16  # tokens


def measure(
    raw: Mapping[str, Any], dtype: str, *, tokens: int, seconds: float
) -> tuple[dict[str, float], str]:
    """Seconds of a token, by way; and why a way is missing, else "".

    Args:
      raw: the config.json of the model.
      dtype: of its weights.
      tokens: that are timed.
      seconds: after these the process is ended.

    Raises:
      ValueError: if torch or Transformers is not installed.
    """
    if missing := [n for n in ("torch", "transformers") if importlib.util.find_spec(n) is None]:
        raise ValueError(f"{missing[0]} is not installed")
    line = [sys.executable, "-m", __name__, json.dumps(raw), dtype, str(tokens)]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            out, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    found: dict[str, float] = {}
    for told in out.splitlines():
        if told.startswith('{"way"'):
            one = json.loads(told)
            found[one["way"]] = one["seconds"]
    if len(found) == len(WAYS):
        return found, ""
    if process.returncode < 0:
        return found, f"it took more than {seconds:.0f} s"
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return found, f"status {process.returncode}: {last}"


def _tell(way: str, generate: Callable[[int], float], tokens: int) -> None:
    """Times two lengths: what they differ by is decoding alone."""
    few = 8
    for count in (few, few + tokens):
        generate(count)
    pairs = [(generate(few), generate(few + tokens)) for _ in range(5)]
    seconds = statistics.median(long - short for short, long in pairs) / tokens
    if seconds <= 0:
        raise RuntimeError("more tokens took no longer: this machine is too busy to tell")
    print(json.dumps({"way": way, "seconds": seconds}), flush=True)


def main(raw: Mapping[str, Any], dtype: str, tokens: int) -> None:
    """Measures in this process."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {name: value for name, value in raw.items() if name != "model_type"}
    config = transformers.AutoConfig.for_model(raw["model_type"], **sizes)
    with torch.device(device):
        kind = getattr(torch, dtype)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    ids = torch.arange(1, _PROMPT + 1, device=device)[None]

    def generate(count: int, **how: Any) -> float:
        begin = time.perf_counter()
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=count, **how)
        out[0, -1].item()
        if out.shape[1] != _PROMPT + count:
            raise RuntimeError(f"{out.shape[1] - _PROMPT} tokens, not {count}")
        return time.perf_counter() - begin

    _tell("eager", generate, tokens)
    model.forward = torch.compile(model.forward, mode="reduce-overhead")
    # One cache for both lengths, so that nothing is compiled between them.
    size = _PROMPT + 8 + tokens
    cache = transformers.StaticCache(config=config, max_cache_len=size)

    def compiled(count: int) -> float:
        cache.reset()
        return generate(count, past_key_values=cache)

    generate(2, past_key_values=cache)
    _tell("compiled", compiled, tokens)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
