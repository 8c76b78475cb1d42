"""What all tests share: JAX in its strictest mode, on CPU, and the data that lies beside."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

# Most of the time goes into compiling programs that run for a moment. A single piece of code a
# program and XLA's older emitters of fusions, which jaxlib 0.11 no longer has (an unknown flag ends
# the process), compile in less than half of it. Processes that tests start inherit the flags.
QUICK: dict[str, int | str] = {"xla_cpu_parallel_codegen_split_count": 1}
# For tests of optimised programs: `lowered.compile(compiler_options=AS_USERS_DO)`. XLA's text of a
# program does not depend on what LLVM does with its pieces (tests/test_decode.py).
AS_USERS_DO: dict[str, int | str] = {"xla_cpu_parallel_codegen_split_count": 32}
if metadata.version("jaxlib").startswith("0.10."):
    QUICK["xla_cpu_use_fusion_emitters"] = False
    AS_USERS_DO["xla_cpu_use_fusion_emitters"] = True
_FLAGS = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")])
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # nor are they optimised: half of what is left

import jax  # noqa: E402
import pytest  # noqa: E402

# What JAX keeps of each program is much, and hardly any of it ever becomes garbage.
gc.set_threshold(20_000, 20, 20)

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # `experiments` is run from the checkout, never installed

# Matrices are run whole by tests/long: see `thinned`.
WHOLE = bool(os.environ.get("SPECJAX_WHOLE_MATRICES"))

_MOST = 4 << 30  # bytes of a worker, about

# multidevice: run by test_multidevice in a process of its own; the others by pytest -n 0 tests/NAME
collect_ignore = ["multidevice", "notebooks", "long", "parity"]

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def thinned(names: Iterable[str], *siblings: str) -> list[str]:
    """The names without those that differ little from others that stay; in tests/long all of them.

    What is registered anew is always there.
    """
    return [name for name in names if WHOLE or name not in siblings]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs and weights; tests that need it are skipped without it."""
    path = Path(os.environ.get("SPECJAX_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; set SPECJAX_SHARED to the folder that holds it")
    return path


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops compiled programs behind a module where they fill the memory; all would take 10 GB."""
    yield
    if _resident_bytes() > _MOST:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # what only glibc has to be asked for
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
