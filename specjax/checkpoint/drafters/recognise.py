"""Which format a drafter's directory is in: by the keys of its config and the names of its tensors.

What is known and not supported is refused here, by the name of the method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specjax.checkpoint.drafters import plain
from specjax.checkpoint.drafters.format import Format
from specjax.checkpoint.drafters.source import Source
from specjax.checkpoint.errors import CheckpointError
from specjax.drafters import DRAFTERS
from specjax.models import schema
from specjax.models.registry import FAMILIES, family
from specjax.models.target import Target

_REFUSED_ARCHITECTURES = {
    "DominoDraftModel": "a Domino drafter (a recurrent network over the block)",
    "EagleLlamaForCausalLM": "an EAGLE-1/2 drafter",
    "LlamaForCausalLMEagle": "an EAGLE-1/2 drafter",
    "PEagleDraftModel": "a P-EAGLE drafter",
    **dict.fromkeys(
        ("GptOssForCausalLMEagle3", "Qwen3MoEForCausalLMEagle3", "Qwen3MoeForCausalLMEagle3"),
        "an EAGLE-3 drafter with a mixture of experts",
    ),
    **dict.fromkeys(
        ("K3DSparkModel", "KimiK3DSpark5MLADraftModel"),
        "a DSpark drafter with multi-head latent attention (MLA)",
    ),
}
# Tensors, by how their names begin, that only an unsupported method has.
_REFUSED_TENSORS = {
    "mask_hidden": "a P-EAGLE drafter",
    "prefix_gru.": "a Domino drafter (a recurrent network over the block)",
}
# Parts of a drafter's own layers.
_REFUSED_PARTS = {
    "self_attn.sinks": "attention sinks",
    "self_attn.attention_sink_bias": "attention sinks",
    "self_attn.g_proj": "gated attention (Laguna)",
    "mlp.experts.": "a mixture of experts",
}


def known_formats() -> tuple[Format, ...]:
    """Those of all registered kinds; what kinds share, once."""
    return tuple(dict.fromkeys(f for entry in DRAFTERS.values() for f in entry.formats.read))


def recognise(source: Source, more: tuple[Format, ...] = ()) -> Format | None:
    """The format; None for an ordinary language model.

    ``more`` are looked for first.

    Raises:
      CheckpointError: if it is a drafter that is not supported, or nothing that is known.
    """
    raw, formats = source.raw, (*more, *known_formats())
    if plain.KEY in raw:
        return plain.FORMAT
    _refuse(source)
    found = _found(source, formats)
    if found is not None:
        _refuse_parts(source, found)
        return found
    if "fc.weight" in source.tensors:
        raise CheckpointError(
            f"{source.where}: an EAGLE-1/2 drafter by its tensors (fc and no midlayer), which is "
            "not supported; use an EAGLE-3 drafter."
        )
    if raw.get("model_type") in FAMILIES:
        return None
    known = ", ".join(f.name for f in formats)
    raise CheckpointError(
        f"{source.where}: neither a drafter in a known format ({known}) nor a language model of a "
        f"supported family: architectures={raw.get('architectures')!r}, "
        f"model_type={raw.get('model_type')!r}."
    )


def _found(source: Source, formats: tuple[Format, ...]) -> Format | None:
    """The first format that it is in."""
    raw = source.raw
    if "speculators_model_type" in raw:
        kind = raw["speculators_model_type"]
        found = next((f for f in formats if kind in f.speculators), None)
        if found is None:
            known = ", ".join(kind for f in formats for kind in f.speculators)
            raise CheckpointError(
                f"{source.where}: speculators_model_type={kind!r} is not supported (supported: "
                f"{known})."
            )
        return found
    named = raw.get("architectures") or ()
    # Where no architecture belongs to a format, what the config says of one is its target's.
    tests = (
        lambda f: not f.architectures and f.looks(source),
        lambda f: any(name in f.architectures for name in named),
        lambda f: f.looks(source),
    )
    return next((f for test in tests for f in formats if test(f)), None)


def read_config(
    raw: Mapping[str, Any], where: str, target: Target | None = None
) -> tuple[str, Any]:
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
        return "language model", family(raw["model_type"]).read_config(raw)
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
    if found is not None:
        raise CheckpointError(f"{source.where}: {found}, which is not supported.")


def _refuse_parts(source: Source, form: Format) -> None:
    """What a format might hold and none of its networks has; a language model may have it."""
    raw, found = source.raw, None
    if form.of_target:
        return
    for part, what in _REFUSED_PARTS.items():
        hit = next((n for n in source.tensors if part in n), None)
        if hit is not None:
            found = found or f"a model with {what} (tensor {hit})"
    block = raw.get("dflash_config") or raw
    latent = next((n for n in source.tensors if "self_attn.kv_b_proj" in n), None)
    if block.get("attention_mode") == "mla" or (
        (latent or raw.get("kv_lora_rank")) and not form.latent
    ):
        said = f" (tensor {latent})" if latent else ""
        found = found or f"a {form.name} drafter with multi-head latent attention (MLA){said}"
    if found is not None:
        raise CheckpointError(f"{source.where}: {found}, which is not supported.")
