"""Writes passages of held-out files of a corpus as prompts, for benchmarks of the demo models.

  python -m experiments.heldout_prompts --output=runs/heldout.jsonl
  python -m experiments.benchmark --config=configs/benchmark.py --workdir=runs/heldout \\
      --config.prompt_sets="('jsonl:runs/heldout.jsonl',)" --config.num_prompts=0

Of each file the lines before its middle, up to the end of a line's text: the demo models never saw
a line break token behind which indentation follows (docs/demo_models.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from specjax.core.files import write_atomically
from specjax.train.corpus import load_corpus

_MANIFEST = flags.DEFINE_string(
    "manifest", "configs/stdlib_files.json", "Where the held-out files are listed."
)
_LINES = flags.DEFINE_integer("lines", 12, "Of each file, at most so many.", lower_bound=1)
_PROMPTS = flags.DEFINE_integer("prompts", 0, "How many, 0: one a file.", lower_bound=0)
_OUTPUT = cli.define_file("output", "The .jsonl file to write.", ending=".jsonl")
flags.mark_flag_as_required("output")

LEAST_CHARACTERS = 80


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        path = Path(_OUTPUT.value or "").expanduser()
        found = passages(load_corpus(_MANIFEST.value).heldout, _LINES.value)
        if len(found) < max(_PROMPTS.value, 1):
            raise ValueError(
                f"--prompts={_PROMPTS.value}: only {len(found)} held-out files of {_MANIFEST.value}"
                f" have a passage of {LEAST_CHARACTERS} characters."
            )
        rows = list(found.items())[: _PROMPTS.value or None]
        lines = [
            json.dumps({"id": name, "category": "heldout", "prompt": text}) for name, text in rows
        ]
        write_atomically(path, "".join(line + "\n" for line in lines))
    print(f"{len(rows)} prompts in {path}")


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


if __name__ == "__main__":
    cli.run(main)
