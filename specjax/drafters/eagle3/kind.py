"""What an EAGLE-3 drafter says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

from specjax.drafters.eagle3.net import Eagle3Config, Eagle3Net
from specjax.drafters.misreadings import norms, rope, taps, trial
from specjax.drafters.published import Published
from specjax.drafters.spec import Misreading
from specjax.models.target import Target


class Eagle3Kind(Published):
    """A spec with an `Eagle3Net`."""

    folder: ClassVar[str] = "specjax.drafters.eagle3"
    nested: ClassVar[bool] = True
    summary: ClassVar[str] = "one layer over fused states of the target, step by step"
    demo: ClassVar[str | None] = "demo:eagle3"
    outline_sizes: ClassVar[tuple[str, ...]] = ("vocab",)
    takes_window: ClassVar[bool] = True
    net_class = Eagle3Net

    def passes(self, num_draft: int) -> int:
        return num_draft

    def tokens_fed(self, num_draft: int) -> int:
        return 2 * num_draft  # the pairs of a whole cycle, and then one after the other

    def weight_reads(self, weight: str, num_draft: int) -> int:
        return 1 if weight.startswith("fc") else num_draft  # what fuses the target's states

    def windowed(self, window: int) -> Any:
        if self.net.config.latent is not None:
            raise ValueError(f"window={window}: its attention is latent, without windows.")
        window = min(window, self.net.config.window or window)
        module = self.net.module
        for layer in module.layers:
            layer.self_attn.window = window
        module.config = dataclasses.replace(module.config, window=window)
        return self.windowed_by(self.net.with_module(module), window)

    def misreadings(self, target: Target) -> Iterable[Misreading]:
        config: Eagle3Config = self.net.config
        yield taps(self, target)
        yield norms(self)
        yield rope(self, target)
        flipped = not config.norm_before_residual
        means = f"its config should say norm_before_residual: {str(flipped).lower()}"
        yield Misreading(
            f"Norms: norm_before_residual={config.norm_before_residual}, norm_before_fc="
            f"{config.norm_before_fc}, fc_norm={config.fc_norm}",
            (trial(f"norm_before_residual={flipped}", means, self, norm_before_residual=flipped),),
        )
