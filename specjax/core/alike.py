"""What has to be the same on all processes of a run, told so that it can be compared.

Another seed, another version or another line of code on one process does not raise: all would
compute wrong numbers together.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from specjax.core import choices
from specjax.core.platform import KERNELS, SPLIT_K
from specjax.core.program import TILING

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "optax", "orbax-checkpoint", "grain", "specjax")
_FULL = 1 << 22  # bytes; of larger files a sample is read
_PIECE, _PIECES = 1 << 16, 64  # of which so many bytes, so many times
# Of JAX's options those that no number depends on: where things are, and what is told.
_TOLD = re.compile(
    "address|backend|cache|cross_host|debug|default_device|device|distributed|dump|explain|guard|log|"
    "mock|platform|pprint|preemption|process|source|timeout|traceback|verbose"
)
# Options of XLA's that are about a place, or how many devices a process pretends to have.
_PLACES = ("--xla_dump", "--xla_force_host_platform_device_count")


def program() -> dict[str, Any]:
    """Code, versions and settings that numbers depend on, by what they are called."""
    told: dict[str, Any] = {f"version of {name}": _version(name) for name in PACKAGES}
    told["code of specjax"] = digest_of(sorted(Path(__file__).parents[1].rglob("*.py")))
    options = {name: v for name, v in jax.config.values.items() if not _TOLD.search(name)}
    told |= {f"value of {name}": str(value) for name, value in options.items()}
    variables = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", KERNELS, SPLIT_K, TILING)
    for name in variables:
        flags = os.environ.get(name, "").split()
        told[name] = sorted(f for f in flags if not f.startswith(_PLACES))
    if os.environ.get(KERNELS) == "tuned" and (path := choices.file()).is_file():
        told["choices of kernels"] = digest_of([path])
    return told


def own_files(texts: Iterable[object]) -> dict[str, str]:
    """The digest of each FILE.py that is named in a text, where there is such a file."""
    names = {name for text in texts for name in re.findall(r"[^\s=:,'\"()\[\]]+\.py\b", str(text))}
    paths = {name: Path(name).expanduser() for name in sorted(names)}
    return {
        f"content of {name}": digest_of([path]) for name, path in paths.items() if path.is_file()
    }


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text, by their dotted names."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = repr(value)
    return found


def digest_of(paths: Iterable[Path]) -> str:
    """Of the names and contents of files."""
    whole = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        whole.update(f"{path.name} {len(content)}\n".encode())
        whole.update(content)
    return whole.hexdigest()[:16]


def fingerprints(paths: Iterable[Path]) -> dict[str, str]:
    """Size and digest of each file, by name; of a large one that of its head and a sample.

    The head of a file of weights says where each tensor lies; of the rest 64 pieces are read. That
    tells two checkpoints apart, or a file that was cut, but not one flipped bit.

    Raises:
      OSError: if one cannot be read.
    """
    found = {}
    for path in sorted(paths):
        size, whole = path.stat().st_size, hashlib.sha256()
        with path.open("rb") as file:
            if size <= _FULL:
                whole.update(file.read())
            else:
                whole.update(file.read(1 << 20))
                for i in range(_PIECES):
                    file.seek(i * (size - _PIECE) // (_PIECES - 1))
                    whole.update(file.read(_PIECE))
        found[path.name] = f"{size:,} bytes, {whole.hexdigest()[:16]}"
    return found


def stamps(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """What changes when a file is written or replaced."""
    stats = {path.name: path.stat() for path in sorted(paths)}
    return {name: (s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats.items()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
