"""What DFlash, DFlash2 and DSpark say of themselves: one network, objective and set of formats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from specjax.drafters.dflash.net import DFlashConfig, DFlashNet
from specjax.drafters.misreadings import rope, taps, trial
from specjax.drafters.published import Published
from specjax.drafters.spec import Misreading
from specjax.models.target import Target


class DFlashKind(Published):
    """A spec with a `DFlashNet`."""

    folder: ClassVar[str] = "specjax.drafters.dflash"
    net_class = DFlashNet

    def misreadings(self, target: Target) -> Iterable[Misreading]:
        config: DFlashConfig = self.net.config
        yield taps(self, target)
        yield Misreading(f"Mask token: {_mask(target, config)}; a wrong id destroys every guess")
        yield rope(self, target)
        yield _scales(self, target)
        yield _masks(self)


def _scales(spec: Any, target: Target) -> Misreading:
    config: DFlashConfig = spec.net.config
    trials = []
    if config.embedding_scale == 1.0:
        scale = float(target.config.hidden_size) ** 0.5
        means = f"its embeddings are scaled: write input_embedding_scale: {scale:g}"
        trials.append(trial("embeddings times sqrt(width)", means, spec, embedding_scale=scale))
    cause = (
        f"Scales: embeddings times {config.embedding_scale:g}, logits times "
        f"{config.output_multiplier:g}, soft-cap {config.logit_softcap}"
    )
    return Misreading(cause, tuple(trials))


def _masks(spec: Any) -> Misreading:
    config: DFlashConfig = spec.net.config
    trials = []
    for causal in {True, False} if len({*config.causal}) > 1 else {not config.causal[0]}:
        means = f"its config should say is_causal: {str(causal).lower()}"
        masks = (causal,) * len(config.causal)
        trials.append(trial(f"blocks causal: {causal}", means, spec, causal=masks))
    if any(w is not None for w in config.windows):
        means = "its sliding_window is wrong, or its layers do not slide"
        trials.append(trial("no window", means, spec, windows=(None,) * len(config.windows)))
    cause = f"Masks: causal in the block {_each(config.causal)}, windows {_each(config.windows)}"
    return Misreading(cause, tuple(trials))


def _mask(target: Target, config: DFlashConfig) -> str:
    text = f"id {config.mask_token_id}"
    if target.tokenizer is None:
        return text
    word = target.tokenizer.decode([config.mask_token_id], skip_special_tokens=False)
    return f"{text}, {word!r} in the tokenizer" if word else f"{text}, unused by the tokenizer"


def _each(values: tuple[Any, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else str(list(values))
