"""Config keys of a drafter, read one by one, so that what nobody read can be looked at.

Published drafters keep a key at the top of config.json or in a block of its own, or in both. Inside
that block everything is about the method: a key there that no reader knows is refused. At the top
stands whatever Transformers wrote, and an unknown key is refused only if its name says that it
changes what is computed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from specjax.checkpoint.errors import CheckpointError, some
from specjax.models import schema

# Keys that `models.config.read_decoder_config` reads.
# fmt: off
BACKBONE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "hidden_act", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "mlp_bias", "max_position_embeddings",
    "attention_bias", "quantization_config", "layer_types", "sliding_window", "use_sliding_window",
    "max_window_layers", "original_max_position_embeddings", "partial_rotary_factor",
)
# Keys that say nothing about what is computed at inference.
_INERT = frozenset({
    "architectures", "auto_map", "model_type", "attention_dropout",
    "pretraining_tp", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
    "num_anchors", "loss_decay_gamma", "attn_implementation", "_attn_implementation",
    "attn_implementation_internal",
})
# fmt: on
_TELLING = re.compile(
    r"bias|sink|gat(e|ing)|lora|rotary|rope|scal|multiplier|softcap|norm|expert|moe|conv|quant|"
    r"markov|selector|parallel|projector|mask|layer_ids|swa|window|causal|residual|attention|"
    r"logit|fc_|mla|hidden_state|anchor|eagle|dflash|draft"
)
_ABSENT: Any = object()


class Keys:
    """``raw`` and the block ``nested`` in it; a key of the block comes first."""

    def __init__(self, raw: Mapping[str, Any], where: str, nested: str | None = None):
        """Raises CheckpointError on values that no model can have (`models.schema`)."""
        try:
            schema.check(raw, where)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        self.raw, self.where, self.nested = raw, where, nested
        self.block: Mapping[str, Any] = (raw.get(nested) if nested is not None else None) or {}
        self.read: set[str] = {nested} if nested else set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value; null counts as absent.

        Raises:
          CheckpointError: if both places have the key and contradict each other.
        """
        self.read.add(name)
        inner, outer = self.block.get(name), self.raw.get(name)
        if inner is not None and outer is not None and inner != outer:
            raise CheckpointError(
                f"{self.where}: {name} is {inner!r} in {self.nested} and {outer!r} at the top of "
                "config.json, which contradict each other; remove the wrong one."
            )
        value = outer if inner is None else inner
        return default if value is None else value

    def integer(self, name: str, default: Any = _ABSENT, *, least: int = 1) -> int:
        assert name in schema.TABLE
        value = self.get(name, default)
        if value is _ABSENT:
            raise CheckpointError(f"{self.where}: config.json lacks {self._place(name)}; add it.")
        if value < least:
            raise CheckpointError(f"{self.where}: {name}={value}: must be at least {least}.")
        return value

    def number(self, name: str, default: float | None) -> float | None:
        assert name in schema.TABLE
        value = self.get(name, default)
        return None if value is None else float(value)

    def flag(self, name: str, default: bool | None = False) -> bool | None:
        assert name in schema.TABLE
        value: bool | None = self.get(name, default)
        return value

    def integers(self, name: str) -> tuple[int, ...] | None:
        assert name in schema.TABLE
        value = self.get(name)
        return None if value is None else tuple(value)

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses any value but these; absent is fine."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise CheckpointError(
                f"{self.where}: {name}={value!r} is not supported (supported: "
                f"{', '.join(map(repr, allowed))})."
            )

    def finish(self, *more: str, strict: bool = False) -> None:
        """Refuses keys that nobody read and that may change what is computed.

        Args:
          *more: keys that were read elsewhere.
          strict: treat the top as the block: every unknown key is refused.
        """
        known = {*self.read, *_INERT}
        unknown = [
            f"{self.nested}.{k}"
            for k, v in self.block.items()
            # Keys that are read at the top do nothing in the block.
            if _counts(k, v, known) and not (k in more and self.raw.get(k) == v)
        ]
        known |= {*more}
        unknown += [
            k
            for k, v in self.raw.items()
            if _counts(k, v, known) and (strict or _TELLING.search(k))
        ]
        if unknown:
            shown = [f"{k}={schema.shown(_value(self.raw, k))}" for k in unknown]
            raise CheckpointError(
                f"{self.where}: {some(shown)}: not supported, and may change what the drafter "
                "computes; if it does not, remove it from config.json."
            )

    def _place(self, name: str) -> str:
        return f"{self.nested}.{name}" if self.nested else name


def _counts(key: str, value: Any, known: Collection[str]) -> bool:
    """Whether an unknown key may do something: it is not at a value that means "off"."""
    if key in known or value in (None, False, 0, "", [], {}):
        return False
    neutral = isinstance(value, int | float) and value == 1
    return not (neutral and re.search("scal|multipl|factor", key))


def _value(raw: Mapping[str, Any], place: str) -> Any:
    value: Any = raw
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
