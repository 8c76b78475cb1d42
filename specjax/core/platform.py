"""The platform that a program is written for: a value that travels with what is compiled.

A few operations are written differently on CPU, GPU and TPU (`core.ops`). Which way is chosen by a
static field of what they are called for: a network, a vocabulary, an entry of the cache, a rule,
the sampling options. So a program that is traced for another platform is another program, and
leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from typing import Literal, get_args

import jax
import jaxlib

from specjax.core import choices
from specjax.core.choices import Choices

# Which kernels a program for GPUs may run: "xla", what XLA makes; or beside them attention of our
# own; or, with "pallas", products with weights as well; or, of each shape, the fastest of these.
Kernels = Literal["attention", "xla", "pallas", "tuned"]
KERNELS = "SPECJAX_KERNELS"  # the environment variable that says so for a process
# Whether XLA may split a product on a GPU along what is summed, and add up the parts in a kernel
# behind it ("xla"), or not.
SplitK = Literal["off", "xla"]
SPLIT_K = "SPECJAX_SPLIT_K"


@dataclasses.dataclass(frozen=True)
class Platform:
    """Where fields say None instead, the platform of JAX's default devices is meant (`here`)."""

    name: str  # "cpu", "gpu" or "tpu"
    # That share one device: 2 on TPU v4 and v5p, else 1. Where there are two, what a matrix product
    # writes goes through main memory.
    cores: int = 1
    kernels: Kernels = "attention"  # on GPUs
    split_k: SplitK = "off"  # on GPUs
    choices: Choices | None = None  # of "tuned"


def here() -> Platform:
    """That of JAX's default devices. ValueError as of `allowed_kernels` and those below it."""
    name = jax.default_backend()
    cores = getattr(jax.devices()[0], "num_cores", 1) if name == "tpu" else 1
    if name != "gpu":
        return Platform(name, cores)
    return Platform(name, cores, allowed_kernels(), allowed_splits(), allowed_choices())


def follows_text(platform: Platform | None = None) -> bool:
    """Whether attention there costs what texts have filled of their buffers, however large those.

    None: on JAX's default devices.
    """
    platform = platform or here()
    return platform.name == "gpu" and platform.kernels != "xla"


@functools.cache  # what was traced is not traced again
def allowed_kernels() -> Kernels:
    """Those of this process, by its environment when this is first asked.

    Raises:
      ValueError: in one line, if that names none.
    """
    return _said(KERNELS, "attention", get_args(Kernels))  # type: ignore[return-value]


@functools.cache
def allowed_splits() -> SplitK:
    """The same of split products."""
    return _said(SPLIT_K, "off", get_args(SplitK))  # type: ignore[return-value]


@functools.cache
def allowed_choices() -> Choices | None:
    """Those of the first device, where its kernels are tuned. ValueError as of `choices.of`."""
    if allowed_kernels() != "tuned":
        return None
    return choices.of(jax.devices()[0].device_kind)


def tuned_here() -> Choices | None:
    """Those of this process that were looked at; None: none were."""
    return allowed_choices() if allowed_choices.cache_info().currsize else None


def check_said() -> None:
    """Raises ValueError, in one line, where the environment names what there is not."""
    if _said(KERNELS, "attention", get_args(Kernels)) == "tuned":
        choices.check_named()  # on any platform, as a name that is mistyped is
        here()
    _said(SPLIT_K, "off", get_args(SplitK))


def _said(variable: str, usual: str, known: tuple[str, ...]) -> str:
    """What a variable of the environment says, of words that are known; ValueError: another."""
    said = os.environ.get(variable) or usual
    if said not in known:
        raise ValueError(f"{variable}={said}: must be one of {', '.join(known)}.")
    return said


def warn_of_slow_updates() -> None:
    """Warns where small updates in a loop rewrite whole buffers (jax issue 40101)."""
    if here().name == "cpu" and jaxlib.__version__ == "0.11.1":
        warnings.warn(
            "jaxlib 0.11.1 copies the whole cache for each update on CPU (jax issue 40101): the "
            "text is right but slow to come; use another version.",
            stacklevel=3,
        )
