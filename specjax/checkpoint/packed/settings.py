"""What a ``quantization_config`` says that the tensors do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

METHODS = ("fp8", "mxfp4", "compressed-tensors", "gptq", "awq")
# Of each method that has several: the formats that are read, as its own key calls them.
_FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "compressed-tensors": (
        ("format",),
        (
            "pack-quantized",
            "int-quantized",
            "float-quantized",
            "naive-quantized",
            "mixed-precision",
            "dense",
        ),
    ),
    "gptq": (("checkpoint_format", "format"), ("gptq", "gptq_v2")),
    "awq": (("version", "format", "checkpoint_format"), ("gemm",)),
}


def settings(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config's block on quantisation; empty where there is none.

    Raises:
      ValueError: on a method or a format that is not read.
    """
    said = raw.get("quantization_config") or raw.get("compression_config") or {}
    if not said:
        return {}
    if not isinstance(said, Mapping):
        raise ValueError(f"quantization_config={said!r:.60} is not an object.")
    method = said.get("quant_method")
    if method not in METHODS:
        raise ValueError(
            f"quantization_config.quant_method={method!r} is not supported (supported: "
            f"{', '.join(METHODS)}); use full weights."
        )
    keys, known = _FORMATS.get(method, ((), ()))
    for key, value in _said(said, keys):
        if str(value).lower() not in known:
            raise ValueError(
                f"quantization_config.{key}={value!r} of {method} is not supported (supported: "
                f"{', '.join(known)}); use full weights."
            )
    sparse = (said.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense":
        raise ValueError(f"sparsity_config.format={sparse!r} is not supported; use full weights.")
    return dict(said)


def _said(said: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key in keys:
        if said.get(key) is not None:
            yield key, said[key]
    for name, group in _groups(said):
        if "format" in keys and group.get("format") is not None:
            yield f"config_groups.{name}.format", group["format"]


def _groups(said: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The groups of a compressed-tensors config."""
    groups = said.get("config_groups")
    if isinstance(groups, Mapping):
        yield from ((str(n), group) for n, group in groups.items() if isinstance(group, Mapping))


def _of_weights(said: Mapping[str, Any], key: str) -> list[Any]:
    """What the groups say of their weights, each value once."""
    found = [(group.get("weights") or {}).get(key) for _, group in _groups(said)]
    return [value for n, value in enumerate(found) if value is not None and value not in found[:n]]


def blocks(said: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a factor; None: nothing is said. Raises ValueError."""
    given = said.get("weight_block_size")
    structures = [given] if given is not None else _of_weights(said, "block_structure")
    if not structures:
        return None
    block = structures[0]
    if isinstance(block, str):  # "128x128", of older compressed-tensors
        block = [int(n) if n.isdecimal() else 0 for n in block.split("x")]
    whole = isinstance(block, list) and len(block) == 2 and len(structures) == 1
    if not whole or not all(type(n) is int and n > 0 for n in block):
        raise ValueError(
            f"quantization_config says blocks of {structures}, which are not two sizes, such as "
            "[128, 128], the same everywhere."
        )
    return block[0], block[1]


def bits_of(said: Mapping[str, Any], size: int, words: int) -> int:
    """Bits of a number, of which ``size`` fill ``words``, as some group says. Raises ValueError."""
    given = _of_weights(said, "num_bits")
    if given and not set(given) & {4, 8}:
        raise ValueError(f"num_bits={given} of config_groups is not supported (supported: 4, 8).")
    fits = [b for b in (4, 8) if (b in given or not given) and -(-size * b // 32) == words]
    if len(fits) != 1:
        raise ValueError(
            f"{words} words a row for {size} numbers fit none of num_bits={given} that "
            "config_groups say (supported: 4, 8)."
        )
    return fits[0]
