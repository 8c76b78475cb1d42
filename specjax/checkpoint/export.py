"""A network written as a Hugging Face directory, as `transformers` and `load` read it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.laid import place_of
from specjax.core import hosts
from specjax.core.files import sync_directory, sync_files
from specjax.core.quantised import Quantised
from specjax.models.joining import by_themselves
from specjax.models.places import Piece, as_place, put_together

_UNFINISHED = ".export-"


def save_pretrained(
    net: nnx.Module,
    directory: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    tokenizer_settings: dict[str, Any] | None = None,
    token_ids: dict[str, Any] | None = None,
    dtype: Any = jnp.bfloat16,
) -> None:
    """Writes config.json, model.safetensors and generation_config.json, and the tokenizer's files.

    Every file is complete when it gets its name: a directory in use is replaced file by file.

    Args:
      net: a module of a registered family, whose ``config`` says what it is.
      directory: created where it does not exist.
      tokenizer: None: no tokenizer files are written.
      tokenizer_settings: the contents of tokenizer_config.json; ``eos_token`` names the token
        that ends a text.
      token_ids: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``; None: of the tokens that
        ``tokenizer_settings`` names.
      dtype: of the stored tensors.

    Raises:
      ValueError: if the family has no Hugging Face architecture, or a tensor is not finite.
      CheckpointError: if it cannot be written.
    """
    directory = Path(directory)
    config = net.config  # type: ignore[attr-defined]
    family = type(net)
    if not hasattr(family, "write_config"):
        raise ValueError(
            f"model_type {getattr(config, 'model_type', family.__name__)!r} has no Hugging Face "
            f"architecture: {family.__name__} lacks a static method write_config(config)."
        )
    settings = family.write_config(config)
    settings["dtype"] = settings["torch_dtype"] = str(jnp.dtype(dtype))
    tensors = hf_tensors(net, dtype)
    ids = dict(token_ids or {})
    if token_ids is None and tokenizer is not None and tokenizer_settings is not None:
        for kind in ("bos", "eos", "pad"):
            token = tokenizer_settings.get(f"{kind}_token")
            if token is not None:
                ids[f"{kind}_token_id"] = tokenizer.token_to_id(token)

    def write(whole: Path) -> None:
        _write_json(whole / "config.json", {**settings, **ids})
        _write_json(whole / "generation_config.json", {"do_sample": False, **ids})
        save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
        if tokenizer is not None:
            (whole / "tokenizer.json").write_text(tokenizer.to_str(pretty=True))
            _write_json(whole / "tokenizer_config.json", tokenizer_settings or {})

    try:
        _replace_files(directory, write)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{directory}: cannot be written: {reason}.") from error


def _replace_files(directory: Path, write: Callable[[Path], None]) -> None:
    """Puts the files that ``write`` makes in another directory into this one, each when whole."""
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"{_UNFINISHED}*"):  # by an export that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=directory, prefix=_UNFINISHED) as temporary:
        whole = Path(temporary)
        write(whole)
        sync_files(whole)
        for path in sorted(whole.iterdir()):
            path.chmod(0o644)  # safetensors makes its files private
            os.replace(path, directory / path.name)
        sync_directory(directory)


def hf_tensors(net: nnx.Module, dtype: jnp.dtype) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face checkpoint, cast to ``dtype``."""
    family, config = type(net), net.config  # type: ignore[attr-defined]

    def pieces() -> Iterator[Piece]:
        for path, value in named_tensors(nnx.state(net), dtype).items():
            yield from as_place(place_of(family, config, path)).write(value)

    return put_together(pieces())


def named_tensors(state: Any, dtype: Any = None) -> dict[str, np.ndarray]:
    """The parameters of an `nnx.State` by their paths, cast to ``dtype`` where one is given.

    Those that are marked as ``precise`` keep their type.

    Raises:
      ValueError: naming a tensor that is not finite.
    """
    tensors = {}
    for path, parameter, value in by_themselves(state):
        name = ".".join(map(str, path))
        if isinstance(value, Quantised):
            raise ValueError(
                f"{name} is kept in 4 or 8 bits; load it without quantize, and with "
                "weights=bfloat16."
            )
        kept = dtype is None or parameter.get_metadata().get("precise")
        value = hosts.fetch(value if kept else value.astype(dtype))
        if not np.isfinite(value.astype(np.float32)).all():
            raise ValueError(f"{name} has values that are not finite; nothing was written.")
        tensors[name] = np.ascontiguousarray(value)
    return tensors


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
