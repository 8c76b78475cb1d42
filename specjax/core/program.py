"""`jax.jit` with what the platform's compiler should be told."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

from specjax.core import ahead, hosts
from specjax.core.platform import Platform, here

# A TPU's compiler fetches buffers into VMEM before they are read. Left alone, it also updates a
# cache there and writes all of it back, once a cycle. With this it does so only where more than
# this share of the bytes that were moved is used: a block of new tokens never is.
_TPU_OPTIONS = {"xla_tpu_msa_inefficient_use_to_copy_ratio": "0.6"}

# A GPU's compiler decides by the shape of a product into how many it splits it, before any of them
# is timed. One that is split, as all of a few rows but the largest are, takes another kernel to add
# up the parts.
_WHOLE_PRODUCTS = {"xla_gpu_experimental_force_split_k": "1"}

# Where this environment variable is "exhaustive", XLA tries every tiling of a GPU's products that
# it knows of. Programs take several times as long to compile.
TILING = "SPECJAX_TILING"
_ALL_TILINGS = {"xla_gpu_exhaustive_tiling_search": "True"}


def tries_all_tilings() -> bool:
    """Whether this process asks for it. Raises ValueError, in one line, if it asks for else."""
    said = os.environ.get(TILING, "")
    if said not in ("", "exhaustive"):
        raise ValueError(f"{TILING}={said}: must be exhaustive, or not be there.")
    return bool(said)


def compiler_options(platform: Platform) -> dict[str, str]:
    """Options for programs with caches."""
    if platform.name == "gpu":
        whole = platform.split_k == "off" and is_known(*_WHOLE_PRODUCTS)
        return {
            **(_WHOLE_PRODUCTS if whole else {}),
            **(_ALL_TILINGS if tries_all_tilings() else {}),
        }
    return dict(_TPU_OPTIONS) if platform.name == "tpu" else {}


@functools.cache
def is_known(option: str) -> bool:
    """Whether the compiler here has an option, a whole number, that may go in another version."""
    try:
        nothing = jax.jit(lambda: (), compiler_options={option: "1"})
        nothing.lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def platform_of(*args: Any) -> Platform:
    """That of the first argument which has one, such as a network; else that of this process."""
    for x in args:
        found = getattr(x, "platform", None)
        if isinstance(found, Platform):
            return found
    return here()


class Program:
    """A jitted function whose compiler is told what suits the platform of its arguments."""

    def __init__(self, function: Callable[..., Any], **kwargs: Any):
        """Takes what `jax.jit` takes."""
        self.function, self._kwargs = function, kwargs
        self._met: set[Any] = set()  # structures and shapes of arguments
        self._jitted: dict[tuple[Platform, bool], Any] = {}  # also by `tries_all_tilings`

    def _on(self, platform: Platform) -> Any:
        key = platform, tries_all_tilings()
        if key not in self._jitted:
            options = compiler_options(platform) or None
            jitted = jax.jit(self.function, compiler_options=options, **self._kwargs)
            self._jitted[key] = jitted
        return self._jitted[key]

    def _for(self, args: Any, kwargs: Any) -> Any:
        return self._on(platform_of(*args, *kwargs.values()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (compiles := ahead.current()) is not None:
            return compiles.outline(self._for(args, kwargs), args, kwargs)
        if hosts.alone():
            return self._for(args, kwargs)(*args, **kwargs)
        with hosts.computing(f"running {self.function.__name__}"):
            return self._for(args, kwargs)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """Does what the method of `jax.jit` does."""
        return self._for(args, kwargs).lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Does what the method of `jax.jit` does."""
        return self._for(args, kwargs).trace(*args, **kwargs)

    def is_new(self, *args: Any) -> bool:
        """Whether this is the first time that it meets arguments of such structure and shapes.

        The first run is slow, even once it is compiled: XLA prepares parts of a program when they
        are first reached. Arguments that are no trees of arrays must be hashable.
        """
        leaves, structure = jax.tree.flatten(args)
        shapes = [(x.shape, x.dtype) if hasattr(x, "dtype") else x for x in leaves]
        key = structure, tuple(shapes)
        new = key not in self._met
        self._met.add(key)
        return new

    def __getattr__(self, name: str) -> Any:
        """The rest of what a jitted function has, of the one that runs here."""
        return getattr(self._on(here()), name)
