"""Which format a drafter's directory is in: by the keys of its config and the names of its tensors.

What is known and not supported is refused here, by the name of the method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specjax.checkpoint.drafters import speculators
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError
from specjax.drafters.dflash import deepspec
from specjax.drafters.dflash import formats as zlab
from specjax.drafters.eagle3 import formats as eagle3
from specjax.drafters.medusa import formats as medusa
from specjax.models import schema
from specjax.models.registry import FAMILIES


@dataclasses.dataclass(frozen=True)
class Format:
    """A format and its readers ``(source, target)``."""

    name: str
    read: Callable[[Source, Any], Plan]
    config: Callable[[Source, Any], Any]  # of the network, as far as the config alone says it


ZLAB = Format("z-lab DFlash", zlab.read, zlab.read_config)
ZLAB2 = Format("z-lab DFlash2", zlab.read, zlab.read_config)
DEEPSPEC = Format("DeepSpec DSpark", deepspec.read, deepspec.read_config)
EAGLE3 = Format("EAGLE-3", eagle3.read, eagle3.read_config)
SPECULATORS = Format("speculators DFlash", speculators.read_dflash, speculators.read_dflash_config)
SPECULATORS3 = Format(
    "speculators EAGLE-3", speculators.read_eagle3, speculators.read_eagle3_config
)
MEDUSA = Format("Medusa", medusa.read, medusa.read_config)
FORMATS = (ZLAB, ZLAB2, DEEPSPEC, EAGLE3, SPECULATORS, SPECULATORS3, MEDUSA)

_ARCHITECTURES = {
    "DFlashDraftModel": ZLAB,
    "DFlash2DraftModel": ZLAB2,
    "DSparkDraftModel": DEEPSPEC,
    "Qwen3DSparkModel": DEEPSPEC,
    "Gemma4DSparkModel": DEEPSPEC,
    "LlamaForCausalLMEagle3": EAGLE3,
    "Eagle3LlamaForCausalLM": EAGLE3,
}
_FUSING = (
    "midlayer.hidden_norm.weight",
    "layers.0.hidden_norm.weight",
    "midlayer.self_attn.q_proj.weight",
)
_REFUSED_ARCHITECTURES = {
    "DominoDraftModel": "a Domino drafter (a recurrent network over the block)",
    "Eagle3DeepseekV2ForCausalLM": "an EAGLE-3 drafter with multi-head latent attention (MLA)",
    "Eagle3DeepseekV3ForCausalLM": "an EAGLE-3 drafter with multi-head latent attention (MLA)",
    "EagleLlamaForCausalLM": "an EAGLE-1/2 drafter",
    "LlamaForCausalLMEagle": "an EAGLE-1/2 drafter",
    "PEagleDraftModel": "a P-EAGLE drafter",
}
# Tensors, by how their names begin, that only an unsupported method has.
_REFUSED_TENSORS = {
    "mask_hidden": "a P-EAGLE drafter",
    "prefix_gru.": "a Domino drafter (a recurrent network over the block)",
}
_REFUSED_PARTS = {
    "self_attn.kv_a_proj_with_mqa": "multi-head latent attention (MLA)",
    "self_attn.kv_b_proj": "multi-head latent attention (MLA)",
    "self_attn.sinks": "attention sinks",
    "self_attn.attention_sink_bias": "attention sinks",
    "self_attn.g_proj": "gated attention (Laguna)",
    "weight_packed": "quantised weights",
    "weight_scale": "quantised weights",
    "qweight": "quantised weights",
}


def recognise(source: Source) -> Format | None:
    """The format; None for an ordinary language model.

    Raises:
      CheckpointError: if it is a drafter that is not supported, or nothing that is known.
    """
    raw, names = source.raw, source.tensors.keys()
    _refuse(source)
    if "speculators_model_type" in raw:
        kind = raw["speculators_model_type"]
        formats = {"dflash": SPECULATORS, "dflash2": SPECULATORS, "eagle3": SPECULATORS3}
        if kind not in formats:
            raise CheckpointError(
                f"{source.where}: speculators_model_type={kind!r} is not supported (supported: "
                f"{', '.join(formats)})."
            )
        return formats[kind]
    heads = not names or any(name.split(".")[0].isdigit() for name in names)
    if heads and ("medusa_num_heads" in raw or "medusa_num_layers" in raw):
        return MEDUSA
    for architecture in raw.get("architectures") or ():
        if architecture in _ARCHITECTURES:
            return _ARCHITECTURES[architecture]
    # One layer that fuses an embedding and a state, whatever the architecture is called.
    if any(name in names for name in _FUSING):
        return EAGLE3
    if {"fc.weight", "hidden_norm.weight"} <= names and "dflash_config" in raw:
        return ZLAB2 if any(n.startswith("candidate_selector.") for n in names) else ZLAB
    if "fc.weight" in names:
        raise CheckpointError(
            f"{source.where}: an EAGLE-1/2 drafter by its tensors (fc and no midlayer), which is "
            "not supported; use an EAGLE-3 drafter."
        )
    if raw.get("model_type") in FAMILIES:
        return None
    known = ", ".join(f.name for f in FORMATS)
    raise CheckpointError(
        f"{source.where}: neither a drafter in a known format ({known}) nor a language model of a "
        f"supported family: architectures={raw.get('architectures')!r}, "
        f"model_type={raw.get('model_type')!r}."
    )


def read_config(raw: Mapping[str, Any], where: str, target: Any = None) -> tuple[str, Any]:
    """The format that a drafter's config names, and what it says: no weights are looked at.

    Args:
      raw: the parsed config.json.
      where: begins the messages.
      target: what it will draft for; None: nothing is compared with it.

    Returns:
      The format's name and the config of the network (None: only the weights say it); "language
      model" and its `DecoderConfig`, if it is no drafter.

    Raises:
      CheckpointError: if the config is impossible, unknown or not supported, by name.
    """
    try:
        schema.check(raw, where)
        source = Source(Path(), raw, {}, where)
        form = recognise(source)
        if form is not None:
            named = dataclasses.replace(source, where=f"{where} ({form.name})")
            return form.name, form.config(named, target)
        return "language model", FAMILIES[raw["model_type"]].read_config(raw)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error).replace("config.json", where, 1)) from None


def _refuse(source: Source) -> None:
    raw, names = source.raw, source.tensors.keys()
    found = None
    for architecture in raw.get("architectures") or ():
        found = found or _REFUSED_ARCHITECTURES.get(architecture)
    if (raw.get("dflash_config") or {}).get("projector_type") == "domino":
        found = found or _REFUSED_ARCHITECTURES["DominoDraftModel"]
    for start, what in _REFUSED_TENSORS.items():
        if any(name.startswith(start) for name in names):
            found = found or what
    for part, what in _REFUSED_PARTS.items():
        hit = next((n for n in names if part in n), None)
        if hit is not None:
            found = found or f"a model with {what} (tensor {hit})"
    if raw.get("quantization_config") or raw.get("compression_config"):
        found = found or "quantised (quantization_config); use full weights"
    mode = (raw.get("dflash_config") or raw).get("attention_mode")
    if mode == "mla" or raw.get("kv_lora_rank"):
        found = found or "a drafter with multi-head latent attention (MLA)"
    if found is not None:
        raise CheckpointError(f"{source.where}: {found}, which is not supported.")
