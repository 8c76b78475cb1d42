"""What DFlash, DFlash2 and DSpark say of themselves: one network, objective and set of formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

from specjax.drafters.dflash.net import DFlashConfig, DFlashNet
from specjax.drafters.misreadings import norms, reread, rope, taps, trial
from specjax.drafters.published import Published
from specjax.drafters.spec import Misreading, Trial
from specjax.models.target import Target

_PUBLISHED_WINDOWS = (4096, 2048, 1024, 512, 128)


class DFlashKind(Published):
    """A spec with a `DFlashNet`."""

    folder: ClassVar[str] = "specjax.drafters.dflash"
    takes_window: ClassVar[bool] = True
    net_class = DFlashNet

    def windowed(self, window: int) -> Any:
        config: DFlashConfig = self.net.config
        if window < config.block_size:
            raise ValueError(f"window={window}: must hold a block, {config.block_size} tokens.")
        windows = tuple(window if w is None else min(w, window) for w in config.windows)
        return self.windowed_by(reread(self.net, windows=windows), window)

    def misreadings(self, target: Target) -> Iterable[Misreading]:
        config: DFlashConfig = self.net.config
        yield taps(self, target)
        yield Misreading(f"Mask token: {_mask(target, config)}; a wrong id destroys every guess")
        yield norms(self)
        yield rope(self, target)
        yield _scales(self, target)
        yield _masks(self)
        yield _windows(self, target)


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
    return Misreading(f"Masks: causal in the block {_each(config.causal)}", tuple(trials))


def _windows(spec: Any, target: Target) -> Misreading:
    """None, or else those of its target and of published drafts, in the layers where they lie."""
    config: DFlashConfig = spec.net.config
    layers, unused = len(config.windows), config.unused_window
    if any(w is not None for w in config.windows):
        means = "its sliding_window is wrong, or its layers do not slide"
        without = trial("no window", means, spec, windows=(None,) * layers)
        return Misreading(f"Windows: {_each(config.windows)}", (without,))
    theirs = {target.config.window_of(i) for i in range(target.config.num_layers)} - {None}
    known = [*([unused] if unused else []), *sorted(theirs), *_PUBLISHED_WINDOWS]
    said = f"none, though its config has a sliding_window of {unused}" if unused else "none"
    # DFlash2 slides in all layers and sees both ways; others leave the last one full.
    full = 0 if config.selector_rank or layers == 1 else 1
    trials = []
    for window in dict.fromkeys(known):
        windows = (window,) * (layers - full) + (None,) * full
        causal = tuple(w is not None and not config.selector_rank for w in windows)
        means = (
            f"its layers slide: write layer_types, sliding_window: {window} and "
            "use_sliding_window: true into its config.json"
        )
        read = dataclasses.replace(spec, net=reread(spec.net, windows=windows, causal=causal))
        trials.append(Trial(f"a window of {window}", means, read, beyond=window))
    return Misreading(f"Windows: {said}", tuple(trials), likely=unused is not None)


def _mask(target: Target, config: DFlashConfig) -> str:
    text = f"id {config.mask_token_id}"
    if target.tokenizer is None:
        return text
    word = target.tokenizer.decode([config.mask_token_id], skip_special_tokens=False)
    return f"{text}, {word!r} in the tokenizer" if word else f"{text}, unused by the tokenizer"


def _each(values: tuple[Any, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else str(list(values))
