"""What makers say of their chips, and what is assumed where they say nothing."""

from __future__ import annotations

import dataclasses
import math
import re

from specjax.core.platform import Platform

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. Bytes and operations are those of a second, dense, in bfloat16."""

    name: str
    platform: Platform
    memory: int  # bytes
    bandwidth: float  # of main memory
    flops: float
    link: float  # bytes that a device sends to others of its slice or machine, one way
    hop: float  # seconds of a step of an exchange within them; assumed
    machine: int  # devices that such links connect
    between: float = 0.0  # bytes that a device sends to other machines, one way; 0: there are none
    hop_between: float = 0.0  # seconds; assumed

    def sum_seconds(self, devices: int, num_bytes: float, count: float) -> float:
        """Of ``count`` sums over so many devices, ``num_bytes`` of each in all.

        A ring sends every byte twice but for one part in ``devices`` (Patarasuk and Yuan 2009);
        that it waits for a step a doubling, there and back, is assumed.
        """
        if devices == 1:
            return 0.0
        far = devices > self.machine
        link, hop = (self.between, self.hop_between) if far else (self.link, self.hop)
        sent = 2 * (devices - 1) / devices * num_bytes
        return sent / link + count * 2 * math.ceil(math.log2(devices)) * hop


_TPU, _TPU2, _GPU = Platform("tpu"), Platform("tpu", 2), Platform("gpu")
# TPUs: Cloud TPU documentation, the page of each (memory, its bandwidth, peak, and half of the
# bidirectional bandwidth of inter-chip links). GPUs: NVIDIA's data sheets of H100 SXM and H200
# (NVLink 900 GB/s both ways), memory as their descriptions for the compiler have it; one 400 Gb/s
# adapter a GPU between machines.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", _TPU, 16 * GIB, 819e9, 197e12, 200e9, 1e-6, 256),
        Chip("v5p", _TPU2, 95 * GIB, 2765e9, 459e12, 600e9, 1e-6, 8960),
        Chip("v6e", _TPU, 32 * GIB, 1640e9, 918e12, 400e9, 1e-6, 256),
        Chip("h100", _GPU, 84_929_347_584, 3350e9, 989e12, 450e9, 3e-6, 8, 50e9, 10e-6),
        Chip("h200", _GPU, 150_000_000_000, 4800e9, 989e12, 450e9, 3e-6, 8, 50e9, 10e-6),
    )
}
# Of a memory's bandwidth in the data sheet, what a plain step of an 8B model read on one H100: 15.0
# GB in 6.77 ms. Assumed of every chip.
REACHED = 0.66
# Of a chip's peak, in passes of many tokens. Assumed.
PRODUCTS = 0.5
# Of a chip's peak, what a step of DFlash training reached on one H100. Assumed of every chip.
TRAINING = 0.2


def parse(topology: str) -> tuple[Chip, int]:
    """The chip and the number of devices of ``v5p:2x2x4``, ``v6e:16``, ``h100:8``, ``h200:64``.

    Raises:
      ValueError: in one line, if there is no such thing.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+){0,2})", topology)
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f"--topology={topology}: not CHIP:COUNT or CHIP:SIZES, such as v5p:2x2x4 or h100:8, of "
            f"{', '.join(CHIPS)}."
        )
    chip, count = CHIPS[match[1]], math.prod(map(int, match[2].split("x")))
    if count < 1 or (not chip.between and count > chip.machine):
        raise ValueError(
            f"--topology={topology}: a slice of {chip.name} has 1 to {chip.machine} chips."
        )
    return chip, count
