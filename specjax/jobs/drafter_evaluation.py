"""What is measured while a drafter is trained: held-out loss, tau predicted and tau measured."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import specjax
from specjax.core import hosts
from specjax.core.files import read_json, write_atomically
from specjax.trace import trace_file
from specjax.train import loop
from specjax.train.checkpoints import SaveFailed
from specjax.train.config import DrafterConfig, EvalConfig
from specjax.train.drafter import GreedyText, HeldoutLoss, PredictedTau, Trainee
from specjax.train.state import TrainState


def greedy_texts(
    target: specjax.Model, prompts: list[list[int]], asked: EvalConfig, path: Path
) -> list[GreedyText]:
    """What the target writes behind the prompts, by plain decoding; kept in ``path``."""
    known = {"prompts": prompts, "max_new_tokens": asked.max_new_tokens}

    def kept() -> Any:
        if path.is_file():
            with contextlib.suppress(ValueError):  # damaged: written again
                found = read_json(path)
                if all(found.get(name) == value for name, value in known.items()):
                    return found["texts"]
        return None

    texts = hosts.from_first("greedy.json", kept)
    if texts is None:
        texts = specjax.generate(target, None, prompts, **decoding(asked, len(prompts))).tokens
        data = json.dumps({**known, "texts": texts}) + "\n"
        hosts.first_writes("greedy.json", lambda: write_atomically(path, data))
    return [GreedyText(p, t) for p, t in zip(prompts, texts, strict=True)]


def decoding(asked: EvalConfig, num: int) -> dict[str, Any]:
    """How ``num`` prompts are decoded: no more of them together than are asked for."""
    together = asked.batch if asked.batch < num else None
    return {"max_new_tokens": asked.max_new_tokens, "batch_size": together}


class Evaluation:
    """The held-out loss, tau predicted and tau measured, of a state of training."""

    def __init__(
        self,
        config: DrafterConfig,
        target: specjax.Model,
        trainee: Trainee,
        texts: list[GreedyText],
        batches: list[Any],
        trace: Path,
    ):
        """``trace`` is the file that the newest measurement's cycles are written to."""
        self._config, self._target, self._trainee, self._texts = config, target, trainee, texts
        self._trace = trace
        self._loss = HeldoutLoss(trainee.objective, batches)
        rows = min(config.rows, len(texts))
        self._predicted = PredictedTau(trainee.objective, texts, rows=rows)

    def __call__(self, state: TrainState) -> loop.Record:
        net = self._target.net
        predicted = self._predicted(state.params, net).tau
        spoken = specjax.generate(
            self._target,
            self._trainee.specialise(state.params),
            [t.prompt for t in self._texts],
            **decoding(self._config.eval, len(self._texts)),
        )
        self._save(spoken.trace, int(state.step))
        record: loop.Record = {
            "heldout_loss": round(self._loss(state.params, net), 6),
            "predicted_tau": round(predicted, 4),
            "measured_tau": round(spoken.tau, 4),
        }
        others = sum(a != b.tokens for a, b in zip(spoken.tokens, self._texts, strict=True))
        if others:  # the arithmetic of another width broke a tie the other way
            record["texts_that_differ"] = others
        if abs(predicted - spoken.tau) > self._config.eval.tolerance * spoken.tau:
            record["tau_differs"] = True
            print(
                f"WARNING: step {int(state.step)}: predicted tau {predicted:.3f} and measured tau "
                f"{spoken.tau:.3f} differ by more than {self._config.eval.tolerance:.0%}: training "
                "does not see what inference does (positions, taps, masks or the shift of labels)",
                file=sys.stderr,
                flush=True,
            )
        return record

    def _save(self, trace: specjax.Trace, step: int) -> None:
        try:
            whole = dataclasses.replace(trace, setup={**trace.setup, "step": step})
            hosts.first_writes("trace", lambda: trace_file.save(whole, self._trace))
        except OSError as error:
            raise SaveFailed(
                f"The trace of step {step} could not be written to {self._trace}: {error}. "
                "Checkpoints before it are whole: make room and run the same command again."
            ) from error
