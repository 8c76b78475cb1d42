"""A drafter written as a directory that other engines read, in the layout that they expect."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from specjax.checkpoint import tokenizer
from specjax.checkpoint.assemble import DTYPES
from specjax.checkpoint.drafters import plain
from specjax.checkpoint.drafters.layouts import Layout
from specjax.checkpoint.drafters.pickle_writer import save_pickle
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.export import named_tensors, save_pretrained
from specjax.core import hosts
from specjax.core.files import sync_directory, sync_files
from specjax.core.types import KINDS
from specjax.drafters import DRAFTERS
from specjax.drafters.spec import Spec, ask
from specjax.models.target import Target
from specjax.runs import places

# Of the kinds of the package.
FORMATS = (*dict.fromkeys(n for e in DRAFTERS.values() for n in e.formats.write), "plain", "hf")
# What an export consists of, and may replace.
_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
    *tokenizer.FILES,
}


def formats_of(spec: Spec) -> tuple[str, ...]:
    """The formats that a drafter can be written in, its own first; empty: it has no weights."""
    if ask(spec, "own_model")() is not None:
        return ("hf",)
    if ask(spec, "own_net")() is None:
        return ()
    return tuple(ask(spec, "formats")().write) or ("plain",)


def formats_for(spec: Spec, target: Target) -> tuple[str, ...]:
    """`formats_of` that have room for all that this one holds, and ``plain`` for any network.

    Asked before training, so that nobody learns behind it that there is nothing to write.

    Raises:
      ValueError: if not even ``plain`` can express it.
    """
    published = formats_of(spec)
    if not published or published == ("hf",):
        return published
    tensors = named_tensors(ask(spec, "own_net")().params, None)
    fit = []
    for name, write in ask(spec, "formats")().write.items():
        with contextlib.suppress(ValueError):
            write(spec, tensors, target, target.name)
            fit.append(name)
    try:
        plain.write(spec, tensors, target, target.name)
    except ValueError:
        if not fit:
            raise
        return tuple(fit)
    return (*fit, "plain")


def save_drafter(
    spec: Spec,
    directory: str | Path,
    *,
    format: str,
    target: Target,
    dtype: Any = None,
    verifier: str | None = None,
) -> None:
    """Writes a drafter as a checkpoint directory.

    Everything is written beside ``directory`` and moved there in one step: nothing half-written is
    ever seen under that name, and an earlier export stays until the new one is whole. The target's
    tables are not written where the drafter borrows them.

    Args:
      spec: what `load_drafter` or training returns.
      directory: created; what stands there already must be an earlier export and is replaced.
      format: ``zlab`` (DFlash, DFlash2), ``safeailab`` (EAGLE-3), ``speculators`` (both),
        ``medusa``, ``hf`` for a draft that is a language model, or ``plain`` for any network.
      target: the `specjax.Model` that it drafts for.
      dtype: of the stored weights, float32 or bfloat16; None: their own.
      verifier: how the target is called in the config, a hub repository or a path: engines load
        it by that name. None: the name it was loaded by.

    Raises:
      ValueError: if the format cannot express this drafter, the two do not fit, a weight is not
        finite, or the directory holds something else.
      CheckpointError: if it cannot be written. Nothing is left behind.
    """
    formats = (*dict.fromkeys((*formats_of(spec), "plain")),) if formats_of(spec) else ()
    name = getattr(spec, "name", type(spec).__name__)
    if format not in formats:
        known = f"can be written as {', '.join(formats)}" if formats else "has nothing to write"
        raise ValueError(f"format={format!r}: {name} {known}.")
    spec.bind(target, KINDS[0])
    directory = Path(directory)
    hosts.first_writes("export", lambda: places.check_replaceable(directory, _FILES))
    stored = None if dtype is None else _read_dtype(dtype)
    if (drafts := ask(spec, "own_model")()) is not None:
        stored = stored or drafts.dtype
        model = dataclasses.replace(drafts, net=hosts.fetch(drafts.net))
        put: Callable[[Path], None] = lambda whole: _write_model(model, whole, stored)
        hosts.first_writes("export", lambda: _write(directory, put))
        return
    tensors = named_tensors(ask(spec, "own_net")().params, stored)
    write = {"plain": plain.write, **ask(spec, "formats")().write}[format]
    layout = write(spec, tensors, target, verifier or target.name)
    name = next(iter(tensors.values())).dtype.name
    layout.config["dtype"] = name
    if "transformer_layer_config" in layout.config:
        layout.config["transformer_layer_config"]["dtype"] = name
    hosts.first_writes("export", lambda: _write(directory, lambda w: _write_layout(layout, w)))


def _read_dtype(dtype: Any) -> np.dtype:
    known = {x.name: x for x in DTYPES}
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in known:
        raise ValueError(f"dtype={name!r}: must be {' or '.join(known)}.")
    return known[name]


def _write_layout(layout: Layout, whole: Path) -> None:
    (whole / "config.json").write_text(json.dumps(layout.config, indent=2) + "\n")
    save_file(layout.tensors, whole / layout.file, metadata={"format": "pt"})
    if layout.pickle is not None:
        save_pickle(layout.tensors, whole / layout.pickle)


def _write_model(model: Any, whole: Path, dtype: np.dtype) -> None:
    stop, texts = list(model.stop_token_ids), model.tokenizer
    if texts is not None and not isinstance(texts, tokenizer.FromFiles):
        raise ValueError(f"format='hf' cannot express the tokenizer of {model.name}.")
    ids: dict[str, Any] = {}
    if model.bos_token_id is not None:
        ids["bos_token_id"] = model.bos_token_id
    if stop:
        ids["eos_token_id"] = stop[0] if len(stop) == 1 else stop
    if texts is not None and texts.pad_id is not None:
        ids["pad_token_id"] = texts.pad_id
    save_pretrained(model.net.module, whole, token_ids=ids, dtype=dtype)
    if texts is not None:
        texts.save(whole)


def _write(directory: Path, write: Callable[[Path], None]) -> None:
    """Has ``write`` fill a directory beside, and gives it its name once it is whole."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: is a file; name a directory to write the drafter to.")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{directory.name}.export-"
        for left in directory.parent.glob(f"{prefix}*"):  # by an export that was killed
            if (left / "old").is_dir() and not directory.exists():
                os.rename(left / "old", directory)
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=prefix) as temporary:
            whole = Path(temporary) / "new"
            whole.mkdir()
            write(whole)
            for path in whole.iterdir():
                path.chmod(0o644)  # safetensors makes its files private
            sync_files(whole)
            if directory.exists():
                # A directory cannot be exchanged in one step. Killed in between, the old one is
                # put back by the next export.
                os.rename(directory, Path(temporary) / "old")
            os.rename(whole, directory)
            sync_directory(directory.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{directory}: cannot be written: {reason}.") from error


def take_export(path: str | Path, flag: str) -> Path:
    """A directory that a flag names and `save_drafter` will replace (`runs.places`)."""
    return places.take_replaced(path, flag, _FILES)
