"""Whether weights fit the devices they are meant for, as far as those tell."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from specjax.checkpoint.errors import CheckpointError

GIB = 2**30


def free(mesh: Mesh | None = None) -> int | None:
    """The bytes that are free on the fullest of our devices; None where they do not tell (CPU)."""
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    stats = [device.memory_stats() or {} for device in devices]
    if not stats or not all("bytes_limit" in s for s in stats):
        return None
    return int(min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats))


def check_fits(need: int, mesh: Mesh | None, where: str) -> None:
    """Raises CheckpointError where weights of ``need`` bytes a device are more than is free."""
    have = free(mesh)
    if have is not None and need > have:
        raise CheckpointError(
            f"{where}: its weights need {need / GIB:.2f} GiB on each device, of which "
            f"{have / GIB:.2f} GiB are free; use a larger mesh, dtype=bfloat16 or quantize=int8 "
            "(experiments.plan shows the parts)."
        )
