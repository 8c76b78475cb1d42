"""The corpus of the demo models: the source of Python's own standard library.

A manifest pins it: the file list, the SHA-256 of every file and the split into training and
held-out files. ``python -m specjax.train.corpus MANIFEST.json`` writes the one of this Python.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from specjax.core.files import read_json

# Ordinary code of many kinds, never trained on. Whole files, so that no neighbour leaks.
HELDOUT = (
    "asyncio/queues.py",
    "bisect.py",
    "calendar.py",
    "code.py",
    "collections/abc.py",
    "concurrent/futures/thread.py",
    "email/generator.py",
    "fileinput.py",
    "fnmatch.py",
    "glob.py",
    "gzip.py",
    "heapq.py",
    "html/parser.py",
    "http/cookies.py",
    "idlelib/history.py",
    "idlelib/textview.py",
    "importlib/abc.py",
    "json/encoder.py",
    "logging/handlers.py",
    "multiprocessing/queues.py",
    "queue.py",
    "sched.py",
    "shlex.py",
    "statistics.py",
    "textwrap.py",
    "tkinter/dialog.py",
    "unittest/suite.py",
    "urllib/robotparser.py",
    "wsgiref/headers.py",
    "zipapp.py",
)

# Installed packages, tables that are generated, and what differs from machine to machine.
_SKIP_DIRS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "encodings",
        "pydoc_data",
        "__pycache__",
        "__phello__",
    }
)
_SKIP_FILES = frozenset({"sre_constants.py", "sre_compile.py", "sre_parse.py", "this.py"})
_SKIP_PREFIXES = ("_sysconfigdata", "config-", "sysconfig.py", "site.py", "lib2to3/pgen2/token")
# Of the tests: those of held-out modules, and files made to be refused by the compiler.
_SKIP_STEMS = frozenset(f"test_{name.rpartition('/')[2].removesuffix('.py')}" for name in HELDOUT)
_SKIP_WORDS = ("badsyntax", "bad_coding", "nosyntax", "encoded_modules")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts of the two splits by relative path, in the order of the paths, and their hash."""

    train: Mapping[str, str]
    heldout: Mapping[str, str]
    sha256: str


def select_files(stdlib: Path) -> list[str]:
    """The relative paths of the standard library's ordinary source files, sorted."""
    paths = []
    for path in stdlib.rglob("*.py"):
        relative = path.relative_to(stdlib)
        name = relative.as_posix()
        if _SKIP_DIRS.intersection(relative.parts[:-1]) or name in _SKIP_FILES:
            continue
        if name.startswith(_SKIP_PREFIXES) or not path.stat().st_size:
            continue
        if path.stem in _SKIP_STEMS or any(word in name for word in _SKIP_WORDS):
            continue
        if not _is_utf8(path):
            continue
        paths.append(name)
    return sorted(paths)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def make_manifest(stdlib: Path | None = None) -> dict:
    """The manifest of this Python: its version, and per split the SHA-256 of each path."""
    stdlib = stdlib or stdlib_path()
    hashes = {name: _digest((stdlib / name).read_bytes()) for name in select_files(stdlib)}
    heldout = {name: hashes.pop(name) for name in HELDOUT if name in hashes}
    return {"python": platform.python_version(), "train": hashes, "heldout": heldout}


def stdlib_path() -> Path:
    """Where this Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def corpus_hash(manifest: Mapping) -> str:
    """SHA-256 over the paths and hashes of both splits."""
    lines = [
        f"{split} {name} {digest}\n"
        for split in ("train", "heldout")
        for name, digest in sorted(manifest[split].items())
    ]
    return _digest("".join(lines).encode())


def load_corpus(
    manifest_path: str | Path, *, allow_mismatch: bool = False, stdlib: Path | None = None
) -> Corpus:
    """Reads the files that the manifest lists.

    Args:
      manifest_path: the manifest's JSON file.
      allow_mismatch: takes this Python's files as they are; those it lacks are left out, and the
        returned hash is that of what was read.
      stdlib: where the files are; by default this Python's standard library.

    Raises:
      ValueError: if the manifest is not one, or if a file differs from it or is missing.
    """
    manifest_path, stdlib = Path(manifest_path), stdlib or stdlib_path()
    manifest = _read_manifest(manifest_path)
    texts: dict[str, dict[str, str]] = {"train": {}, "heldout": {}}
    found: dict[str, dict[str, str]] = {"train": {}, "heldout": {}}
    differing = []
    for split in texts:
        for name, digest in sorted(manifest[split].items()):
            path = stdlib / name
            data = path.read_bytes() if path.is_file() else None
            if data is None or _digest(data) != digest:
                differing.append(name)
            if data is not None:
                found[split][name] = _digest(data)
                texts[split][name] = data.decode("utf-8", errors="replace")
    if differing and not allow_mismatch:
        shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        raise ValueError(
            f"{len(differing)} files of Python {platform.python_version()}'s standard library "
            f"differ from {manifest_path.name}, made with Python {manifest['python']}: {shown}. "
            "Use that version, or train on this one's text with --config.corpus.allow_mismatch."
        )
    if not texts["train"] or not texts["heldout"]:
        raise ValueError(f"{stdlib} has no training or no held-out file of {manifest_path.name}.")
    return Corpus(train=texts["train"], heldout=texts["heldout"], sha256=corpus_hash(found))


def _read_manifest(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(
            f"{path}: no such corpus manifest; make one: python -m specjax.train.corpus {path}"
        )
    manifest = read_json(path)
    splits = manifest if isinstance(manifest, dict) else {}
    if not all(isinstance(splits.get(name, {}), dict) for name in ("train", "heldout")):
        raise ValueError(f"{path}: not a corpus manifest: train and heldout are files by name.")
    missing = {"python", "train", "heldout"} - set(splits)
    if missing:
        raise ValueError(f"{path}: not a corpus manifest, it lacks {', '.join(sorted(missing))}.")
    both = set(manifest["train"]) & set(manifest["heldout"])
    if both:
        raise ValueError(f"{path}: {sorted(both)[0]} is both trained on and held out.")
    return manifest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise SystemExit("usage: python -m specjax.train.corpus MANIFEST.json")
    manifest = make_manifest()
    Path(argv[1]).parent.mkdir(parents=True, exist_ok=True)
    Path(argv[1]).write_text(json.dumps(manifest, indent=1) + "\n")
    counts = f"{len(manifest['train'])} training and {len(manifest['heldout'])} held-out files"
    print(f"{argv[1]}: {counts} of Python {manifest['python']}, hash {corpus_hash(manifest)}")


if __name__ == "__main__":
    main(sys.argv)
