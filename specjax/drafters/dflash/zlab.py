"""DFlash and DFlash2 as z-lab and SpecForge publish them.

Two schemas are in use: block size and rotary base at the top of config.json (until May 2026), or in
``dflash_config`` and ``rope_parameters``. ``target_layer_ids`` names layers whose *output* is
tapped, so that id l is hidden_states[l + 1].
"""

from __future__ import annotations

import dataclasses
from typing import Any

from specjax.checkpoint.drafters import fit
from specjax.checkpoint.drafters.keys import BACKBONE, Keys
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError
from specjax.drafters.dflash.dflash2 import DFlash2
from specjax.drafters.dflash.drafter import DFlash
from specjax.drafters.dflash.dspark import DSpark
from specjax.drafters.dflash.net import DFlashConfig, DFlashNet
from specjax.models.target import Target
from specjax.models.windows import read_windows

BLOCK = "dflash_config"


def read(source: Source, target: Target) -> Plan:
    """Raises CheckpointError on what is unsupported, or does not fit ``target``."""
    return plan(source, target, read_config(source, target))


def read_config(source: Source, target: Target, *, shifted: bool = False) -> DFlashConfig:
    """The network's config; whether it keeps tables of its own is settled by `plan`.

    Args:
      source: its tensors may be left out.
      target: None: nothing is compared with it.
      shifted: slots guess the token after their own.

    Raises:
      CheckpointError: on what is unsupported, or does not fit ``target``.
    """
    where, keys = source.where, Keys(source.raw, source.where, BLOCK)
    _refuse_unsupported(keys)
    backbone = fit.read_backbone(source.raw, where, windows=True)
    ids = keys.integers("target_layer_ids")
    if ids is None:
        raise CheckpointError(
            f"{where}: config.json lacks {BLOCK}.target_layer_ids, the tapped layers."
        )
    width = keys.integer("target_hidden_size", backbone.hidden_size)
    fit.check_layers(where, target, keys.get("num_target_layers"))
    fit.check_sizes(
        source, target, vocab_size=backbone.vocab_size, hidden_size=width, num_taps=len(ids)
    )
    names = source.tensors.keys()
    windows, causal = read_attention(keys, backbone.num_layers)
    two = any("candidate_selector." in n for n in names)
    conv = any("attention_conv." in n for n in names)
    if not names:  # the config alone
        two = conv = "DFlash2DraftModel" in (source.raw.get("architectures") or ())
    markov = keys.integer("markov_rank", 0, least=0)
    confident = any("confidence_head." in n for n in names)
    rows = keys.integer("draft_vocab_size", backbone.vocab_size)
    config = DFlashConfig(
        backbone=backbone,
        taps=fit.read_taps(where, target, ids, "target_layer_ids", 1),
        target_hidden_size=width,
        block_size=keys.integer("block_size", least=1 if shifted else 2),
        mask_token_id=fit.mask_id(where, target, keys.integer("mask_token_id", least=0)),
        windows=windows,
        causal=causal,
        shifted=shifted,
        embedding_scale=keys.number("input_embedding_scale", 1.0) or 1.0,
        output_multiplier=keys.number("output_multiplier", 1.0) or 1.0,
        logit_softcap=keys.number("final_logit_softcapping", None) or None,
        conv_kernel_size=keys.integer("conv_kernel_size", 2 if conv else 0, least=0),
        conv_group_size=keys.integer("conv_group_size", 16),
        selector_rank=keys.integer("selector_rank", 256 if two else 0, least=0),
        selector_top_k=min(keys.integer("selector_top_k", 16), backbone.vocab_size),
        markov_rank=markov,
        confidence_head=bool(keys.flag("enable_confidence_head", confident)),
        confidence_with_markov=bool(keys.flag("confidence_head_with_markov", markov > 0)),
        draft_vocab_size=None if rows == backbone.vocab_size else rows,
        unused_window=None if any(windows) else keys.get("sliding_window") or None,
    )
    keys.finish(*BACKBONE)
    return config


def _refuse_unsupported(keys: Keys) -> None:
    for feature in ("attention_sink_bias", "attention_value_scale", "gating"):
        keys.only(feature, False)
    keys.only("projector_type", "dflash", "dflash2", "dspark")
    keys.only("markov_head_type", "vanilla")
    keys.only("attention_mode", "gqa")
    keys.number("confidence_head_alpha", None)  # a weight of the training loss


def read_attention(keys: Keys, layers: int) -> tuple[tuple[int | None, ...], tuple[bool, ...]]:
    """Window and causality of each layer.

    Where the config does not say, sliding layers are causal inside the block and full ones are not:
    the rule of the reference implementation.
    """
    said = keys.flag("is_causal", None)
    also = keys.flag("causal", None)
    if said is not None and also is not None and said != also:
        raise CheckpointError(
            f"{keys.where}: is_causal={said} and causal={also} contradict each other; remove one."
        )
    said = also if said is None else said
    names = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers")
    raw = {name: keys.get(name) for name in names}
    if keys.flag("use_swa"):
        raw |= {
            "sliding_window": keys.get("swa_window_size", raw["sliding_window"]),
            "use_sliding_window": True,
        }
        if raw["layer_types"] is None:  # such drafters see both ways in all layers
            raw["layer_types"], said = ["sliding_attention"] * layers, bool(said)
    try:
        windows = read_windows(raw, layers)
    except ValueError as error:
        raise CheckpointError(f"{keys.where}: {error}") from None
    return windows, tuple(w is not None if said is None else said for w in windows)


def plan(source: Source, target: Target, config: DFlashConfig) -> Plan:
    """Settles the tables of a network of the family, and says how to put it together."""
    tensors = {n.removeprefix("model."): t for n, t in source.tensors.items()}
    return finish(source, target, config, tensors)


def finish(source: Source, target: Target, config: DFlashConfig, tensors: dict[str, Any]) -> Plan:
    """As `plan`, with the ``tensors`` by their bare names."""
    vocab = config.backbone.vocab_size
    rows = config.draft_vocab_size or vocab
    own_embedding, head = fit.settle_tables(
        source, target, tensors, width=config.backbone.hidden_size, own_head=rows != vocab
    )
    if head is None and rows != vocab:
        raise CheckpointError(
            f"{source.where}: draft_vocab_size={rows}, but there is no {fit.HEAD}; fetch it again."
        )
    ids = fit.take_vocabulary(source, tensors, rows=head or vocab, vocab_size=vocab)
    config = dataclasses.replace(config, own_embedding=own_embedding, draft_vocab_size=head)
    kept = {n: t for n, t in source.tensors.items() if n.removeprefix("model.") in tensors}

    def make(net: Any, ids: Any, num_draft: int | None, kind: str | None, name: str) -> Any:
        if config.selector_rank:
            return DFlash2(net, num_draft, kind, ids, name)
        if config.markov_rank or config.shifted:
            return DSpark(net, num_draft, kind, ids, name)
        if kind not in (None, "one_hot"):
            raise CheckpointError(
                f"{source.where}: kind={kind!r}: DFlash guesses deterministically; leave kind out."
            )
        return DFlash(net, num_draft, ids, name)

    return Plan(config, DFlashNet, kept, fit.with_prefix(kept), make, ids)
