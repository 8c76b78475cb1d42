"""The devices to compile for: a TPU slice that need not be there, or what JAX sees here."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

GIB = 2**30

# Main memory of a chip: Cloud TPU documentation, on the page of each, "HBM capacity per chip".
HBM_BYTES = {
    "v4": 32 * GIB,
    "v5e": 16 * GIB,
    "v5p": 95 * GIB,
    "v6e": 32 * GIB,
    "tpu7x": 192 * GIB,
}
_NAME = re.compile(r"([a-z0-9]+):(\d+(?:x\d+){1,2})")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for. On some chips each of two cores is a device of its own."""

    name: str
    platform: str  # "tpu", or that of the local backend
    kind: str  # of the devices, as JAX calls it
    devices: tuple[Any, ...]
    num_chips: int
    hbm_bytes: int | None  # of one device; None: unknown
    cores: int = 1  # of one device

    def mesh(self, data: int, model: int) -> Mesh | None:
        """The mesh of these sizes; None for one local device.

        Raises:
          ValueError: if it does not have as many devices as the slice (locally: if it has more).
        """
        need, have = data * model, len(self.devices)
        if self.platform == "tpu" and self.name != "local" and need != have:
            raise ValueError(
                f"--mesh=data:{data},model:{model} has {need} devices, but {self.name} has {have}"
                f" ({self.num_chips} chips); choose sizes whose product is {have}."
            )
        if need > have:
            raise ValueError(
                f"--mesh=data:{data},model:{model} has {need} devices, but there are {have} here;"
                " on CPU set XLA_FLAGS=--xla_force_host_platform_device_count."
            )
        if self.name == "local" and need == 1:
            return None
        return jax.make_mesh(
            (data, model),
            ("data", "model"),
            axis_types=(AxisType.Auto, AxisType.Auto),
            devices=self.devices[:need],
        )


def find(name: str) -> Topology:
    """The topology ``local``, or a TPU slice such as ``v5e:2x4`` or ``v5p:2x2x4``.

    Raises:
      ValueError: if there is no such slice, or if libtpu, whose compiler it takes, is missing.
    """
    if name == "local":
        devices = tuple(jax.devices())
        kind = devices[0].device_kind
        return Topology(name, devices[0].platform, kind, devices, len(devices), None)
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in HBM_BYTES:
        raise ValueError(
            f"--topology={name}: not CHIP:SIZES, such as v5e:2x4 or v5p:2x2x4; chips are"
            f" {', '.join(HBM_BYTES)}, and local is what is here."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={name} needs the TPU compiler, which is not installed:"
            " pip install 'specjax[tpu]' (no TPU is needed)."
        )
    # No TPU is asked for anything, and several processes may compile side by side.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # or it complains on stderr
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # libtpu raises errors of several kinds
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--topology={name}: there is no such slice: {reason}.") from None
    devices = tuple(described.devices)
    chips = math.prod(map(int, match[2].split("x")))
    hbm = HBM_BYTES[match[1]] * chips // len(devices)
    cores = getattr(devices[0], "num_cores", 1)
    return Topology(name, "tpu", devices[0].device_kind, devices, chips, hbm, cores)
