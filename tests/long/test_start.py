"""A second start compiles nothing: with other prompts, lengths within a bucket, seeds and paths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import sys
import jax
found = {"cache_hits": 0, "cache_misses": 0}

def count(event, **_):
    name = event.rpartition("/")[2]
    if name in found:
        found[name] += 1

jax.monitoring.register_event_listener(count)
from specjax.jobs.generating import generate
cache, drafter, prompt, seed, most, output = sys.argv[1:]
generate(compilation_cache=cache, compare_plain=False, drafter=drafter, seed=int(seed),
         prompt=prompt, max_new_tokens=int(most), temperature=0.5, output=output)
print("found", found["cache_hits"], found["cache_misses"])
"""


@pytest.mark.parametrize("drafter", ["ngram:4", "lm", "dflash"])
def test_a_second_start_compiles_nothing(drafter: str, tmp_path: Path) -> None:
    def start(prompt: str, *others: str) -> tuple[int, int]:
        line = [sys.executable, "-c", COUNT, str(tmp_path / "cache"), drafter, prompt, *others]
        ended = subprocess.run(line, check=True, capture_output=True, text=True, env=os.environ)
        hits, misses = ended.stdout.splitlines()[-1].split()[1:]
        return int(hits), int(misses)

    hits, misses = start("def area(", "0", "24", str(tmp_path / "one.jsonl"))
    assert not hits and misses >= 3
    (tmp_path / "elsewhere").mkdir()
    again = start("class Stack:", "7", "40", str(tmp_path / "elsewhere" / "two.jsonl"))
    assert again == (misses, 0)
