"""Rotary embedding as configs spell it: ``rope_theta`` + ``rope_scaling``, or ``rope_parameters``.

Files hold either spelling or both. Both are read as one, and refused where they disagree.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from specjax.models import schema
from specjax.models.layers.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling

_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": tuple(f.name for f in dataclasses.fields(LinearScaling)),
    "llama3": tuple(f.name for f in dataclasses.fields(Llama3Scaling)),
    "yarn": (*(f.name for f in dataclasses.fields(YarnScaling)), "attn_factor"),
}
_ALSO_AT_THE_TOP = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


class RopeWarning(UserWarning):
    """A key of the rotary embedding that Transformers ignores and others do not."""


def read_rope(
    raw: Mapping[str, Any],
    default_theta: float = 10000.0,
    *,
    partial: float | None = None,
    skipped: tuple[str, ...] = (),
) -> Rope:
    """The rotary embedding of a config whose values are within their bounds (`schema.check`).

    ``partial``: the part of each head that the family rotates where a config does not say; None:
    always all. ``skipped`` names keys that do not concern text.

    Raises:
      ValueError: on a kind of scaling that is not implemented, on keys that it does not have or
        lacks, and where two places contradict each other.
    """
    said = {name: value for name, value in _said(raw).items() if name not in skipped}
    theta = float(said.pop("rope_theta", default_theta))
    part = float(said.pop("partial_rotary_factor", partial or 1))
    if part != 1 and partial is None:
        raise ValueError(f"config.json: partial_rotary_factor={part} is not supported, only 1.")
    return dataclasses.replace(_scaled(raw, said, theta), partial=part)


def _scaled(raw: Mapping[str, Any], said: dict[str, Any], theta: float) -> Rope:
    """With the frequency scaling that ``said`` names."""
    kind = said.pop("rope_type", "default")
    if kind not in _FIELDS:
        raise ValueError(
            f"config.json: RoPE scaling {kind!r} is not supported (supported: "
            f"{', '.join(_FIELDS)})."
        )
    if kind in ("default", "linear"):
        said.pop("original_max_position_embeddings", None)  # means nothing without the others
    if unknown := sorted(said.keys() - {*_FIELDS[kind]}):
        shown = ", ".join(f"{name}={schema.shown(said[name])}" for name in unknown[:3])
        raise ValueError(
            f"config.json: RoPE scaling of the kind {kind!r} has no {shown}: not supported, or of "
            "another kind; correct rope_type or remove it."
        )
    if kind == "yarn":
        said.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    needed = ("factor", "original_max_position_embeddings") if kind == "yarn" else _FIELDS[kind]
    if missing := [name for name in needed if said.get(name) is None]:
        raise ValueError(f"config.json: {kind} RoPE scaling lacks {', '.join(missing)}; add it.")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, LinearScaling(float(said["factor"])))
    if kind == "llama3":
        _ascending(said, "low_freq_factor", "high_freq_factor")
        original = said.pop("original_max_position_embeddings")
        numbers = {name: float(value) for name, value in said.items()}
        return Rope(theta, Llama3Scaling(original_max_position_embeddings=original, **numbers))
    return Rope(theta, _yarn(said))


def _yarn(said: dict[str, Any]) -> YarnScaling:
    factor = said.pop("attn_factor", None)
    if factor not in (None, 1):
        warnings.warn(
            f"attn_factor={factor} of YaRN is left out, as Transformers leaves it out; vLLM and "
            "llama.cpp multiply by it. To have its effect, write the product as attention_factor.",
            RopeWarning,
            stacklevel=2,
        )
    found = YarnScaling(**said)
    if found.beta_fast < found.beta_slow:  # equal they are in Kimi-K2: a ramp of one dimension
        raise ValueError(
            f"config.json: beta_fast={found.beta_fast} of the RoPE scaling must be at least "
            f"beta_slow={found.beta_slow}."
        )
    return found


def _ascending(said: Mapping[str, Any], low: str, high: str) -> None:
    if said[high] <= said[low]:
        raise ValueError(
            f"config.json: {high}={said[high]} of the RoPE scaling must exceed {low}={said[low]}."
        )


def _said(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What all places say together, the kind as ``rope_type``; null is left out."""
    top = {name: raw.get(name) for name in _ALSO_AT_THE_TOP}
    found: dict[str, tuple[Any, str]] = {}
    for place in ("rope_parameters", "rope_scaling", "the top"):
        block = top if place == "the top" else raw.get(place) or {}
        for key, value in block.items():
            name = "rope_type" if key == "type" else key
            if value is None:
                continue
            before, where = found.setdefault(name, (value, place))
            if before != value:
                raise ValueError(
                    f"config.json: {name} is {schema.shown(before)} in {where} and "
                    f"{schema.shown(value)} in {place}, which contradict each other; remove the "
                    "wrong one."
                )
    return {name: value for name, (value, _) in found.items()}


_NAMES = {Llama3Scaling: "llama3", LinearScaling: "linear", YarnScaling: "yarn"}


def write_rope_scaling(rope: Rope) -> dict[str, Any] | None:
    """What Hugging Face calls ``rope_scaling``; None: no scaling."""
    if rope.scaling is None:
        return None
    fields = {k: v for k, v in dataclasses.asdict(rope.scaling).items() if v is not None}
    return {"rope_type": _NAMES[type(rope.scaling)], **fields}
