"""What a checkpoint will need in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from specjax.checkpoint import memory
from specjax.checkpoint.load import (
    download,
    locate,
    own_family,
    read_dtype,
    settle_weights,
)
from specjax.checkpoint.plan import Plan
from specjax.checkpoint.plan import plan as make_plan
from specjax.core.options import again, keywords, option
from specjax.core.platform import here
from specjax.core.sharding import mesh_sizes
from specjax.jobs.models import Models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of which checkpoint, and where it would lie."""

    target: str = option("demo:target", "Checkpoint directory, demo:target, or owner/name.")
    mesh: str = option("", "Devices to shard over, such as model:4; they need not be there.")
    dtype: Literal["float32", "bfloat16"] | None = again(Models, "dtype")
    quantize: Literal["int8", "fp8"] | None = again(Models, "quantize")
    weights: Literal["packed", "unpacked", "bfloat16", "float32"] | None = again(Models, "weights")
    kv_cache: Literal["int8", "fp8"] | None = again(Models, "kv_cache")


@keywords(Options)
def plan(options: Options) -> Plan:
    """The bytes of a checkpoint by part, in its files and on each device of a mesh.

    Raises:
      ValueError: in one line, on a checkpoint or a mesh that cannot be used.
    """
    dtype, packed = settle_weights(
        options.weights, read_dtype(options.dtype), options.quantize, here().name
    )
    family, name = own_family(options.target)
    path, is_repository = locate(name)
    if is_repository:
        path = download(name, None)
    return make_plan(
        Path(path),
        mesh_sizes(options.mesh),
        dtype=dtype,
        quantize=options.quantize,
        packed=packed,
        kv_cache=options.kv_cache,
        family_name=family,
    )


def table(made: Plan) -> list[str]:
    """Its lines."""
    columns = ("stored", "packed", "whole", "device")
    rows: list[tuple[str, ...]] = [("part", "in files", "packed there", "in memory", "a device")]
    for part in made.parts:
        rows.append((part.name, *(shown(getattr(part, what)) for what in columns)))
    rows.append(("weights", *(shown(made.total(what)) for what in columns)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(cells))
        for cells in (list(zip(row, widths)) for row in rows)
    ]


def verdict(made: Plan) -> tuple[bool, str]:
    """Whether the weights fit a device of this machine, and that in a line."""
    need, free = made.total("device"), memory.free()
    caches = f"caches come on top, {shown(made.cache)} a token of a text on all devices together"
    if free is None:
        return True, f"The devices here do not say how much memory is free; {caches}."
    fits = need <= free
    said = f"fit: {shown(free - need)} a device are left" if fits else "do not fit"
    return fits, f"The weights {said} ({shown(free)} are free); {caches}."


def shown(size: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.2f} {unit}"
    return f"{size} B"
