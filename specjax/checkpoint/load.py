"""`load`: a path or the name of a repository -> everything that generation needs."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from specjax.checkpoint.assemble import DTYPES
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.hf import load_network, read_config, token_ids
from specjax.checkpoint.llama2c import load_llama2c
from specjax.checkpoint.llama2c_tokenizer import BOS, EOS, find_llama2c_tokenizer
from specjax.checkpoint.located import download, locate, unchanged
from specjax.checkpoint.tokenizer import Tokenizer, load_tokenizer
from specjax.core import own
from specjax.core.files import is_there
from specjax.core.platform import here
from specjax.core.quantised import Quantisation, Quantised, check_quantisation
from specjax.core.sharding import parse_mesh
from specjax.models import DecoderConfig, Frozen
from specjax.models.joint import is_copy, joint_of

if TYPE_CHECKING:
    from specjax.checkpoint.chat import ChatTemplate

Weights = Literal["packed", "unpacked", "bfloat16", "float32"]
WEIGHTS = get_args(Weights)


class EndTokenWarning(UserWarning):
    """A checkpoint does not say what ends a text, but its tokenizer does."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A loaded checkpoint. A host object: only ``net`` is handed to compiled functions."""

    net: Frozen
    tokenizer: Tokenizer | None  # None: the checkpoint has none that can be read
    stop_token_ids: tuple[int, ...]  # any of them ends a text
    bos_token_id: int | None
    mesh: Mesh | None
    name: str
    dtype: np.dtype  # of the weights, float32 or bfloat16
    directory: Path | None = None  # where its files are, those of the chat template among them
    quantized: str | None = None  # "int8" or "fp8": how the matrices of its layers are kept

    def __repr__(self) -> str:
        return f"Model({self.name}: {self.net!r})"

    @property
    def config(self) -> DecoderConfig:
        return self.net.config

    @property
    def stored(self) -> str:
        """How its weights are kept, in words: "bfloat16", "bfloat16, layers in int8"."""
        told = f"{self.dtype}"
        if self.quantized is not None:
            told += f", layers in {self.quantized}"
        elif packed := num_packed(self.net):
            told += f", {packed} matrices as they are packed"
        return told + ("" if self.net.memory is None else f", cache in {self.net.memory}")

    def remembering(self, kind: Quantisation | None) -> Model:
        """The same weights, keys and values remembered in 8 bits; None: whole.

        Raises:
          ValueError: if no layer remembers the keys and values of every token.
        """
        return dataclasses.replace(self, net=self.net.remembering(kind, self.name))

    @functools.cached_property
    def chat_template(self) -> ChatTemplate:
        """How it writes conversations. Raises ValueError if it has no template, or a broken one."""
        if self.directory is None:
            raise ValueError(f"{self.name} has no chat template: use plain text or token ids.")
        from specjax.checkpoint.chat import ChatTemplate  # only here: it brings jinja2

        return ChatTemplate.load(self.directory)


def load(
    path_or_repo: str | Path,
    *,
    mesh: Mesh | str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    replicate: bool = False,
    quantize: Quantisation | None = None,
    weights: Weights | None = None,
    kv_cache: Quantisation | None = None,
    join: bool = True,
) -> Model:
    """Loads a model and its tokenizer.

    Args:
      path_or_repo: a Hugging Face directory; a llama2.c ``.bin`` file (version 0); the embedded
        pair, ``demo:target`` and ``demo:draft``; or a repository on the Hugging Face hub,
        ``owner/name``. What exists locally is never looked for on the hub. Behind
        ``FILE.py:NAME:``, a checkpoint of the family of that class.
      mesh: where the weights go: a mesh with axes ``data`` and ``model``, or its description
        such as ``data:2,model:4``. None: the default device.
      dtype: float32 or bfloat16, by name or as a dtype. None: the checkpoint's own.
      revision: branch, tag or commit, of a hub repository only.
      replicate: on a mesh, put the whole model on every device instead of splitting it over the
        axis ``model``: for a draft, which is small, and whose heads need not divide the axis.
      quantize: "int8" or "fp8": the matrices of layers are rounded to 8 bits as they are loaded,
        a factor a row. The result is another model than the checkpoint's: what is lossless is so
        for it.
      weights: of a checkpoint in 4 or 8 bits. "packed": matrices stay as they are stored, and are
        unpacked inside the products; "bfloat16" or "float32": they are written out in it as they
        are read, "unpacked": in ``dtype``. None: packed on GPUs, where less is read, unpacked
        elsewhere.
      kv_cache: "int8" or "fp8": keys and values are remembered in 8 bits, a factor a head and token
        (windows, latent and recurrent memory stay whole). This, too, is another model.
      join: matrices that multiply one input (queries, keys and values; gate and up) are kept as
        one, which is read faster. Training and exports take them apart; False: so does this, for
        code that looks for them by the names of the checkpoint.

    Raises:
      CheckpointError: if there is no such checkpoint, or it is damaged or not supported.
      ValueError: on an impossible mesh, or a way to quantise that there is not.
    """
    name, dtype = str(path_or_repo), read_dtype(dtype)
    check_quantisation("quantize", quantize)
    check_quantisation("kv_cache", kv_cache)
    if isinstance(mesh, str):
        mesh = parse_mesh(mesh)
    dtype, packed = settle_weights(weights, dtype, quantize, platform_of(mesh))
    how: dict[str, Any] = {"replicate": replicate, "quantize": quantize, "join": join}
    try:
        model = _find(name, revision, weights, packed, mesh=mesh, dtype=dtype, **how)
    except OSError as error:
        raise CheckpointError(f"{error.filename or name}: {error.strerror or error}.") from error
    except CheckpointError:
        raise
    except ValueError as error:  # of reading files
        raise CheckpointError(str(error)) from None
    return model.remembering(kv_cache)


def _find(
    name: str, revision: str | None, weights: Weights | None, packed: bool, **how: Any
) -> Model:
    """The model of that name, from wherever it lies; ``how`` is for who reads it."""
    family, name = own_family(name)
    path, is_repository = locate(name)
    if is_repository:
        path = download(name, revision)
    elif revision is not None:
        raise CheckpointError(f"revision={revision!r} needs a hub repository; {name} is local.")
    if path.is_file():
        if family is not None:
            raise CheckpointError(f"{path} is a llama2.c file, which has a family of its own.")
        if weights == "packed":
            raise CheckpointError(f"{path}: weights=packed, but llama2.c packs none.")
        with unchanged(path):
            return _load_file(path, **how)
    local = not is_repository and not name.startswith("demo:")
    label = path.resolve().name if local else name
    with unchanged(path):
        model = _load_directory(path, name=label, family=family, packed=packed, **how)
    if weights == "packed" and not num_packed(model.net):
        raise CheckpointError(
            f"{name}: weights=packed, but no matrix there is packed in a way that can be kept; "
            "leave it out."
        )
    return model


def settle_weights(
    weights: str | None, dtype: np.dtype | None, quantize: str | None, platform: str
) -> tuple[np.dtype | None, bool]:
    """The dtype, and whether packed matrices stay packed. Raises ValueError."""
    if weights is None:
        return dtype, quantize is None and platform == "gpu"
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: must be one of {', '.join(WEIGHTS)}.")
    if weights == "packed":
        if quantize is not None:
            raise ValueError(f"weights=packed and quantize={quantize} exclude each other.")
        return dtype, True
    if weights == "unpacked":
        return dtype, False
    if dtype not in (None, jnp.dtype(weights)):
        raise ValueError(f"weights={weights} and dtype={dtype} differ; leave one out.")
    return jnp.dtype(weights), False


def platform_of(mesh: Mesh | None) -> str:
    """Of the devices of ``mesh``; None: of the default device."""
    return here().name if mesh is None else str(mesh.devices.flat[0].platform)


def num_packed(net: Frozen) -> int:
    """How many matrices are kept in 4 or 8 bits, those of a joined one by themselves."""
    flat = [p for _, p in nnx.to_flat_state(net.params) if not is_copy(p)]
    found = [p for p in flat if isinstance(p.get_value(), Quantised)]
    return sum(1 if (joint := joint_of(p)) is None else len(joint.names) for p in found)


def own_family(name: str) -> tuple[str | None, str]:
    """``FILE.py:NAME:CHECKPOINT`` as the family ``FILE.py:NAME`` and the checkpoint."""
    if not own.is_own(name):
        return None, name
    place = own.read_place(name)
    if not place.rest:
        raise CheckpointError(f"{name}: names no checkpoint; write {place}:CHECKPOINT.")
    return str(place), place.rest


def _load_directory(
    directory: Path,
    *,
    name: str,
    mesh: Mesh | None,
    dtype: np.dtype | None,
    replicate: bool,
    family: str | None = None,
    quantize: Quantisation | None = None,
    packed: bool = False,
    join: bool = True,
) -> Model:
    config_path = directory / "config.json"
    if not is_there(config_path):
        what = "is empty" if not any(directory.iterdir()) else "has no config.json"
        raise CheckpointError(
            f"{directory}: {what}; give a Hugging Face checkpoint directory (config.json and "
            "*.safetensors)."
        )
    raw = read_config(config_path)
    stop_ids, said = special_ids(directory, raw, "eos_token_id")
    bos_ids, _ = special_ids(directory, raw, "bos_token_id")
    tokenizer = load_tokenizer(directory)
    how: dict[str, Any] = {"replicate": replicate, "quantize": quantize, "packed": packed}
    how["join"] = join
    net, dtype = load_network(directory, raw, mesh=mesh, dtype=dtype, family_name=family, **how)
    bos_id = bos_ids[0] if bos_ids else tokenizer.bos_id if tokenizer else None
    if tokenizer:
        stop_ids = tuple(dict.fromkeys((*stop_ids, *tokenizer.ends)))
    if tokenizer and not said:
        stop_ids = _with_end_token(directory, stop_ids, tokenizer.eos_id, net.config.vocab_size)
    return Model(net, tokenizer, stop_ids, bos_id, mesh, name, dtype, directory, quantize)


def special_ids(directory: Path, raw: Mapping[str, Any], key: str) -> tuple[tuple[int, ...], bool]:
    """The tokens that generation_config.json gives under ``key``, else ``raw``, the config.json.

    Returns:
      Them, and whether generation_config.json names any.

    Raises:
      CheckpointError: if they are no tokens of the model.
    """
    path, vocab_size = directory / "generation_config.json", raw.get("vocab_size")
    generation = read_config(path) if is_there(path) else {}
    source: Mapping[str, Any] = generation
    if generation.get(key) is None:
        source, path = raw, directory / "config.json"
    # A missing vocab_size is reported with the rest of the config, later.
    bound = vocab_size if isinstance(vocab_size, int) else 2**31
    found = token_ids(source.get(key), f"{path}: {key}", bound)
    return found, generation.get(key) not in (None, [])


def _with_end_token(
    directory: Path, stop_ids: tuple[int, ...], eos_id: int | None, vocab_size: int
) -> tuple[int, ...]:
    """With the tokenizer's own end token, where generation_config.json names none."""
    if eos_id is None or eos_id in stop_ids or eos_id >= vocab_size:
        return stop_ids
    warnings.warn(
        f"{directory}: generation_config.json names no end token, so the tokenizer's own, "
        f"id {eos_id}, ends a text" + (" as well." if stop_ids else "."),
        EndTokenWarning,
        stacklevel=4,
    )
    return (*stop_ids, eos_id)


def _load_file(
    path: Path,
    *,
    mesh: Mesh | None,
    dtype: np.dtype | None,
    replicate: bool,
    quantize: Quantisation | None,
    join: bool,
) -> Model:
    if quantize is not None:
        raise CheckpointError(f"{path}: quantize is for Hugging Face directories; leave it out.")
    dtype = dtype or np.dtype(np.float32)  # what llama2.c stores
    net = load_llama2c(path, mesh=mesh, dtype=dtype, replicate=replicate, join=join)
    tokenizer = find_llama2c_tokenizer(path, net.config.vocab_size)
    # These models end a story by beginning the next one.
    stop_ids = tuple(i for i in (BOS, EOS) if i < net.config.vocab_size)
    return Model(net, tokenizer, stop_ids, BOS, mesh, path.stem, dtype)


def read_dtype(dtype: Any) -> np.dtype | None:
    """A dtype that networks compute in; None stays None. Raises CheckpointError."""
    if dtype is None:
        return None
    try:
        value = jnp.dtype(dtype)
    except (TypeError, ValueError):
        value = None
    if value not in DTYPES:
        raise CheckpointError(f"dtype={dtype!r} is not supported; use float32 or bfloat16.")
    return value
