"""Hugging Face Transformers as a peer: the same checkpoints, prompts and stop rule, through torch.

Needs the extra ``peer``; torch and transformers are imported only when a `TransformersPeer` is
made.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

from specjax.lab.records.peer import Generated


class TransformersPeer:
    """A target and its assistant in each type, generating greedily at batch 1.

    Ways to generate:
      plain: one token a pass.
      assisted: with the assistant guessing ``k`` tokens a round, always as many.
      assisted_default: with the assistant's settings as loaded.
      lookup: prompt lookup with ``k`` tokens a round.
    """

    def __init__(self, target: str, assistant: str, dtypes: Sequence[str], threads: int):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._torch = torch
        self._models: dict[str, tuple[Any, Any]] = {}
        self._passes = 0
        for name in dtypes:
            pair = []
            for path in (target, assistant):
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    path, dtype=getattr(torch, name)
                )
                model.eval()
                # The stop rule is a number of tokens, on both sides.
                model.generation_config.eos_token_id = None
                model.generation_config.pad_token_id = 0
                pair.append(model)
            pair[0].register_forward_pre_hook(self._count)
            self._models[name] = (pair[0], pair[1])

    def _count(self, *_: Any) -> None:
        self._passes += 1

    def describe(self) -> dict[str, str]:
        return self.versions

    def generate(
        self, dtype: str, way: str, k: int, prompt: Sequence[int], max_new_tokens: int
    ) -> Generated:
        """New tokens, wall clock from token ids to token ids, and target passes.

        Raises:
          RuntimeError: if another number of tokens was written than was asked for.
        """
        target, assistant = self._models[dtype]
        kwargs: dict[str, Any] = {}
        before = copy.deepcopy(assistant.generation_config)
        if way == "assisted":
            config = assistant.generation_config
            config.num_assistant_tokens = k
            config.num_assistant_tokens_schedule = "constant"
            config.assistant_confidence_threshold = 0.0
        if way.startswith("assisted"):
            kwargs["assistant_model"] = assistant
        elif way == "lookup":
            kwargs["prompt_lookup_num_tokens"] = k
        self._passes = 0
        begin = time.perf_counter()
        ids = self._torch.tensor([list(prompt)])
        out = target.generate(
            ids,
            attention_mask=self._torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            **kwargs,
        )
        tokens = out[0, len(prompt) :].tolist()
        seconds = time.perf_counter() - begin
        assistant.generation_config = before  # assisted generation adapts it as it goes
        if len(tokens) != max_new_tokens:
            raise RuntimeError(f"Transformers wrote {len(tokens)} tokens, not {max_new_tokens}")
        # The prefill is one of the passes: it brings a token too.
        return Generated(tuple(tokens), seconds, self._passes)
