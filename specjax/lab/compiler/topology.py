"""The devices to compile for: TPUs or GPUs that need not be there, or what JAX sees here."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from specjax.core.platform import Platform
from specjax.core.sharding import axes_of_mesh

GIB = 2**30

# Main memory of a chip: Cloud TPU documentation, on the page of each, "HBM capacity per chip".
HBM_BYTES = {
    "v4": 32 * GIB,
    "v5e": 16 * GIB,
    "v5p": 95 * GIB,
    "v6e": 32 * GIB,
    "tpu7x": 192 * GIB,
}
_SLICE = re.compile(r"([a-z0-9]+):(\d+(?:x\d+){1,2})")
_GPUS = re.compile(r"([a-z0-9]+):(\d+)")
# What the compiler must know of a GPU; each file says where it comes from.
DESCRIPTIONS = {path.stem: path for path in (Path(__file__).parent / "gpus").glob("*.txt")}
# JAX's plugins, newest first; any of them has the compiler.
_CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for. On some chips each of two cores is a device of its own."""

    name: str
    platform: str  # "tpu", "gpu", or that of the local backend
    kind: str  # of the devices, as JAX calls it
    devices: tuple[Any, ...]
    num_chips: int
    hbm_bytes: int | None  # of one device; None: unknown
    cores: int = 1  # of one device
    cache_bytes: int | None = None  # of a GPU's second-level cache; None: none, or unknown

    @property
    def written_for(self) -> Platform:
        """What `core.ops` are chosen by."""
        return Platform(self.platform, self.cores)

    @property
    def one(self) -> AbstractMesh | None:
        """A mesh without axes that names the device, as kernels ask; None for what is here."""
        if self.name == "local":
            return None
        first = self.devices[0]
        cores = getattr(first, "num_cores", None)
        described = AbstractDevice(first.device_kind, cores, first.platform)
        return AbstractMesh((), (), abstract_device=described)

    def mesh(self, data: int, model: int, experts: int = 1, fsdp: int = 1) -> Mesh | None:
        """The mesh of these sizes; None for one local device.

        Raises:
          ValueError: if it does not have as many devices as the slice (locally: if it has more).
        """
        sizes = axes_of_mesh(data=data, model=model, experts=experts, fsdp=fsdp)
        said = ",".join(f"{name}:{size}" for name, size in sizes.items())
        need, have = math.prod(sizes.values()), len(self.devices)
        if self.name != "local" and need != have:
            raise ValueError(
                f"--mesh={said} has {need} devices, but {self.name} has {have}"
                f" ({self.num_chips} chips); choose sizes whose product is {have}."
            )
        if need > have:
            raise ValueError(
                f"--mesh={said} has {need} devices, but there are {have} here;"
                " on CPU set XLA_FLAGS=--xla_force_host_platform_device_count."
            )
        if self.name == "local" and need == 1:
            return None
        return jax.make_mesh(
            tuple(sizes.values()),
            tuple(sizes),
            axis_types=(AxisType.Auto,) * len(sizes),
            devices=self.devices[:need],
        )


def find(name: str) -> Topology:
    """The topology ``local``, a TPU slice such as ``v5e:2x4``, or GPUs of a machine, ``h100:8``.

    Raises:
      ValueError: if there is no such thing, or if the compiler that it takes is not installed.
    """
    if name == "local":
        devices = tuple(jax.devices())
        kind = devices[0].device_kind
        return Topology(name, devices[0].platform, kind, devices, len(devices), None)
    for pattern, chips, there in ((_SLICE, HBM_BYTES, _tpus), (_GPUS, DESCRIPTIONS, _gpus)):
        match = pattern.fullmatch(name)
        if match is not None and match[1] in chips:
            return there(name, match[1], match[2])
    raise ValueError(
        f"--topology={name}: not CHIP:SIZES, such as v5e:2x4 or v5p:2x2x4, of"
        f" {', '.join(HBM_BYTES)}; nor GPU:COUNT, such as h100:8, of"
        f" {', '.join(sorted(DESCRIPTIONS))}; nor local, which is what is here."
    )


def _tpus(name: str, chip: str, sizes: str) -> Topology:
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
    devices: tuple[Any, ...] = tuple(described.devices)
    chips = math.prod(map(int, sizes.split("x")))
    hbm = HBM_BYTES[chip] * chips // len(devices)
    cores = getattr(devices[0], "num_cores", 1)
    return Topology(name, "tpu", devices[0].device_kind, devices, chips, hbm, cores)


def _gpus(name: str, chip: str, count: str) -> Topology:
    """GPUs of one machine. Nothing is tuned, which takes a GPU: sizes of tiles are defaults."""
    if not 1 <= int(count) <= 8:
        raise ValueError(f"--topology={name}: a machine has 1 to 8 of them.")
    if not any(map(_installed, _CUDA_PLUGINS)):
        raise ValueError(
            f"--topology={name} needs XLA's GPU compiler, which is not installed:"
            f" pip install --no-deps jax-cuda12-plugin=={jax.__version__}"
            f" jax-cuda12-pjrt=={jax.__version__} (no GPU is needed, nor a driver)."
        )
    text = DESCRIPTIONS[chip].read_text()
    facts = {key: int(value) for key, value in re.findall(r"(\w+): (\d+)\n", text)}
    try:
        described = topologies.get_topology_desc(
            platform="cuda", topology_name=chip, target_config=text, topology=f"1x{count}x1"
        )
    except Exception as error:  # the plugin raises errors of several kinds
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--topology={name}: the compiler refuses it: {reason}.") from None
    devices: tuple[Any, ...] = tuple(described.devices)
    return Topology(
        name,
        "gpu",
        devices[0].device_kind,
        devices,
        len(devices),
        facts["device_memory_size"],
        cache_bytes=facts["l2_cache_size"],
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False
