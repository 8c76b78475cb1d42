"""Passages of held-out files of a corpus as prompts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from specjax.core.files import write_atomically
from specjax.core.options import keywords, option
from specjax.train.corpus import load_corpus

LEAST_CHARACTERS = 80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which passages."""

    manifest: str = option("configs/stdlib_files.json", "Where the held-out files are listed.")
    lines: int = option(12, "Of each file, at most so many.", least=1)
    prompts: int = option(0, "How many, 0: one a file.", least=0)
    output: str = option(help="The .jsonl file to write.", file=".jsonl")


@keywords(Options)
def heldout_prompts(options: Options) -> int:
    """Writes the file; returns how many prompts it has.

    Raises:
      ValueError, OSError: in one line, if there are too few, or files cannot be read or written.
    """
    found = passages(load_corpus(options.manifest).heldout, options.lines)
    if len(found) < max(options.prompts, 1):
        raise ValueError(
            f"--prompts={options.prompts}: only {len(found)} held-out files of {options.manifest}"
            f" have a passage of {LEAST_CHARACTERS} characters."
        )
    rows = list(found.items())[: options.prompts or None]
    lines = [json.dumps({"id": name, "category": "heldout", "prompt": text}) for name, text in rows]
    write_atomically(Path(options.output).expanduser(), "".join(line + "\n" for line in lines))
    return len(rows)


def passages(texts: Mapping[str, str], lines: int) -> dict[str, str]:
    """File name -> the ``lines`` lines before its middle, of files where that is long enough."""
    found = {}
    for name, text in texts.items():
        rows = text.splitlines()
        middle = len(rows) // 2
        passage = "\n".join(rows[max(middle - lines, 0) : middle]).rstrip()
        if len(passage) >= LEAST_CHARACTERS:
            found[name] = passage
    return found
