"""EAGLE-3 as SafeAILab and SpecForge publish it: ``midlayer``, a reduced head, d2t and t2d.

The original code takes no layer ids from the config: it taps hidden_states[2], [L / 2] and
[L - 3]. SpecForge and others list *outputs* of layers in ``eagle_config``, so that id l is
hidden_states[l + 1]; speculators' list at the top counts hidden_states itself, and so does the
nested one that TorchSpec writes for vLLM. The rotary base is 10000 unless the file says otherwise,
whatever the target's is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from specjax.checkpoint.drafters import fit, speculators
from specjax.checkpoint.drafters.format import Format, Formats
from specjax.checkpoint.drafters.keys import BACKBONE, Keys
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError
from specjax.drafters.eagle3 import latent, layouts
from specjax.drafters.eagle3.drafter import Eagle3
from specjax.drafters.eagle3.net import Eagle3Config, Eagle3Net
from specjax.models.config import UNNORMED
from specjax.models.target import Target

_IDS = "eagle_aux_hidden_state_layer_ids"
# What ModelOpt and others write about the wiring, and how it is wired here.
_ONLY: dict[str, Any] = {
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "next_layer_regular": True,
    "parallel_draft_step": 1,
    "attention_sink_bias": False,
}


def default_taps(num_layers: int) -> tuple[int, ...]:
    """Those of the original implementation."""
    return (2, num_layers // 2, num_layers - 3)


def read(source: Source, target: Target) -> Plan:
    """Raises CheckpointError on what is unsupported, or does not fit ``target``."""
    return plan(source, target, read_config(source, target), dict(source.tensors), num_draft=None)


def read_config(source: Source, target: Target) -> Eagle3Config:
    """The network's config; whether it has an embedding of its own is settled by `plan`.

    Args:
      source: its tensors may be left out.
      target: None: nothing is compared with it, and taps that depend on it are left empty.

    Raises:
      CheckpointError: on what is unsupported, or does not fit ``target``.
    """
    keys, where = Keys(source.raw, source.where, "eagle_config"), source.where
    for name, value in _ONLY.items():
        keys.only(name, value)
    keys.integer("parallel_draft_heads_num_layers", 1, least=0)  # of the heads that there are not
    is_latent = latent.has_latent(source)
    raw = latent.said(source) if is_latent else source.raw
    backbone = fit.read_backbone({**raw, "model_type": "llama"}, where)
    nested, top = keys.block.get(_IDS), source.raw.get(_IDS)
    keys.read.add(_IDS)  # the two places count differently, and are compared here
    if nested is not None and top is not None and [i + 1 for i in nested] != list(top):
        raise CheckpointError(
            f"{where}: {_IDS} is {nested!r} in eagle_config (outputs of layers, that is "
            f"hidden_states {[i + 1 for i in nested]}) and {top!r} at the top of config.json "
            "(hidden_states), which contradict each other; remove the wrong one."
        )
    ids = Keys({_IDS: nested if nested is not None else top}, where).integers(_IDS)
    if ids is None and target is None:
        ids, shift = (), 0
    elif ids is None:
        ids, shift = default_taps(target.config.num_layers), 0
    else:
        shift = 1 if nested is not None and not _counts_states(source) else 0
    said = keys.integer("num_aux_hidden_states", len(ids) or 3)
    if said != (len(ids) or 3):
        raise CheckpointError(
            f"{where}: num_aux_hidden_states={said}, but {len(ids) or 3} layers are tapped; "
            "correct one of them."
        )
    rows = keys.integer("draft_vocab_size", backbone.vocab_size)
    width = keys.integer("target_hidden_size", _width(target, backbone.hidden_size))
    fit.check_layers(where, target, keys.get("num_target_layers"))
    config = Eagle3Config(
        backbone=backbone,
        taps=_taps(source, target, ids, shift),
        target_hidden_size=width,
        draft_vocab_size=rows,
        latent=latent.read(keys, backbone) if is_latent else None,
        **_norms(keys),
    )
    keys.finish(*BACKBONE, *(latent.KEYS if is_latent else ()))
    return config


def _norms(keys: Keys) -> dict[str, Any]:
    """Where the draft has norms that the original has not.

    Raises:
      CheckpointError: if it norms the taps twice.
    """
    found = {
        "norm_before_residual": bool(keys.flag("norm_before_residual")),
        "norm_before_fc": bool(keys.flag("norm_before_fc")),
        "fc_norm": bool(keys.flag("fc_norm") or keys.flag("use_aux_norm")),  # its older name
        "norm_output": bool(keys.flag("norm_output")),
    }
    if found["norm_before_fc"] and found["fc_norm"]:
        raise CheckpointError(
            f"{keys.where}: norm_before_fc (one norm of all taps) and fc_norm (one of each) "
            "exclude each other; remove the one whose weights it has not."
        )
    return found


def _counts_states(source: Source) -> bool:
    """Whether the nested ids are hidden_states: TorchSpec's export for vLLM adds 1 to them."""
    for_vllm = any(name.startswith("layers.0.") for name in source.tensors)
    kimi = source.raw.get("model_type") == "kimi_k2"
    return bool(for_vllm and kimi and "_torchspec_version" in source.raw)


def _taps(source: Source, target: Target, ids: tuple[int, ...], shift: int) -> tuple[int, ...]:
    """`fit.read_taps`, and the last layer's output before the final norm where an id means that.

    An id that is the number of layers is no output of one. With it all of them count how many
    layers a state has gone through (nvidia/gpt-oss-120b-Eagle3-v3: 24, 30 and 36 of 36), as vLLM,
    SGLang (sgl-project/sglang#32334) and llama.cpp read them.
    """
    if not ids:
        return ()
    last = None if target is None else target.config.num_layers
    if not shift or last is None or max(ids) != last:
        return fit.read_taps(source.where, target, ids, _IDS, shift)
    inner = fit.read_taps(source.where, target, tuple(i for i in ids if i != last), _IDS, 0)
    found = iter(inner)
    return tuple(UNNORMED if i == last else next(found) for i in ids)


def _width(target: Target, otherwise: int) -> int:
    count: int = otherwise if target is None else target.config.hidden_size
    return count


def read_speculators(source: Source, target: Target) -> Plan:
    """Raises CheckpointError on what is unsupported, or does not fit ``target``."""
    config, tensors = (
        read_speculators_config(source, target),
        speculators.without_targets(source, target),
    )
    return plan(source, target, config, tensors, speculators.speculative_tokens(source))


def read_speculators_config(source: Source, target: Target) -> Eagle3Config:
    """As `read_config`."""
    where, keys = source.where, Keys(source.raw, source.where)
    layers = speculators.read_layers(source)
    Keys(layers, f"{where}, {speculators.LAYERS}").finish(*BACKBONE)
    if layers["model_type"] != "llama":
        raise CheckpointError(
            f"{where}: {speculators.LAYERS}.model_type={layers['model_type']!r} is not supported "
            "for EAGLE-3 (supported: llama)."
        )
    backbone = fit.read_backbone(layers, where)
    ids = keys.integers(_IDS)
    if ids is None:
        ids = () if target is None else default_taps(target.config.num_layers)
    width = backbone.hidden_size if target is None else target.config.hidden_size
    config = Eagle3Config(
        backbone=backbone,
        taps=fit.read_taps(where, target, ids, _IDS, 0) if ids else (),
        target_hidden_size=keys.integer("target_hidden_size", width),
        draft_vocab_size=keys.integer("draft_vocab_size", 32000),
        **_norms(keys),
    )
    keys.flag("embed_requires_grad")
    keys.finish(*speculators.INERT, strict=True)
    speculators.speculative_tokens(source)
    return config


def plan(
    source: Source,
    target: Target,
    config: Eagle3Config,
    tensors: dict[str, Any],
    num_draft: int | None,
) -> Plan:
    """Checks sizes, settles the tables and says how to put it together."""
    backbone, head = config.backbone, tensors.get(fit.HEAD)
    if head is None:
        config = _with_targets_head(source, config, tensors)
    elif source.raw.get("draft_vocab_size") is None and "speculators_config" not in source.raw:
        config = dataclasses.replace(config, draft_vocab_size=head.shape[0])
    fit.check_sizes(
        source,
        target,
        vocab_size=backbone.vocab_size,
        hidden_size=config.target_hidden_size,
        num_taps=len(config.taps),
    )
    ids = fit.take_vocabulary(
        source, tensors, rows=config.draft_vocab_size, vocab_size=target.config.vocab_size
    )
    own_embedding, _ = fit.settle_tables(
        source, target, tensors, width=backbone.hidden_size, own_head=config.own_head
    )
    config = dataclasses.replace(config, own_embedding=own_embedding)
    middle = any(name.startswith("midlayer.") for name in tensors)

    def called(name: str) -> str:
        return name.replace("layers.0.", "midlayer.", 1) if middle else name

    def make(net: Any, ids: Any, num_draft: int | None, kind: str | None, name: str) -> Any:
        return Eagle3(net, 5 if num_draft is None else num_draft, kind, ids, name)

    return Plan(config, Eagle3Net, tensors, called, make, ids, num_draft)


def _with_targets_head(
    source: Source, config: Eagle3Config, tensors: dict[str, Any]
) -> Eagle3Config:
    """Without a head of its own it guesses with the target's, whatever its config says of one.

    Raises:
      CheckpointError: if it names tokens that such a head's rows would be of.
    """
    if "d2t" in tensors:
        raise CheckpointError(
            f"{source.where}: d2t names {tensors['d2t'].shape[0]} tokens, but there is no "
            f"{fit.HEAD} with a row for each; fetch it again."
        )
    return dataclasses.replace(config, own_head=False, draft_vocab_size=config.backbone.vocab_size)


# One layer that fuses an embedding and a state, whatever the architecture is called.
_FUSING = (
    "midlayer.hidden_norm.weight",
    "layers.0.hidden_norm.weight",
    "midlayer.self_attn.q_proj.weight",
    "midlayer.self_attn.kv_b_proj.weight",
)
FORMATS = Formats(
    read=(
        Format(
            "EAGLE-3",
            read,
            read_config,
            architectures=(
                *("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM"),
                *latent.ARCHITECTURES,
            ),
            looks=lambda source: any(name in source.tensors for name in _FUSING),
            latent=True,
        ),
        Format(
            "speculators EAGLE-3",
            read_speculators,
            read_speculators_config,
            speculators=("eagle3",),
        ),
    ),
    write={"safeailab": layouts.safeailab, "speculators": layouts.speculators},
)
