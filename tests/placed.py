"""Says where a launcher has put this process, and ends with 42 the first time.

python tests/placed.py FOLDER [the flags that a script would get]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from specjax.cli import processes
from specjax.core.cluster import find_place

folder = Path(sys.argv.pop(1))
processes.define_flags()
flags.DEFINE_string("workdir", None, "As a script has it.")
flags.FLAGS(sys.argv)
given = [getattr(flags.FLAGS, name) for name in ("coordinator", "num_processes", "process_id")]
place = find_place(*given, os.environ)
assert place is not None
told = {
    "coordinator": place.coordinator,
    "num": place.num_processes,
    "workdir": flags.FLAGS.workdir,
}
attempts = folder / f"{place.process_id}.jsonl"
with attempts.open("a") as file:
    file.write(json.dumps(told) + "\n")
sys.exit(42 if len(attempts.read_text().splitlines()) == 1 else 0)
