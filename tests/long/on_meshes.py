"""The texts of every drafter under every rule, on a mesh of all devices; process 0 writes them.

python tests/long/on_meshes.py --mesh=data:2,model:4 --output=FILE.json [flags of several processes]
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from specjax.cli.script import Script
from specjax.core.options import option

VOCAB, STEPS, ROWS = 32, 16, 8
# Rows of temperature 0 ride along where others are hot; "greedy" takes none of them.
TEMPERATURES = {"greedy": [0.0] * ROWS, "coupled": [0.7, 1.1] * 4}
HOT = [0.0, 0.8, 1.3, 0.9] * 2


@dataclasses.dataclass(frozen=True)
class Options:
    mesh: str = option("", "Of all devices; none: one device.")
    output: str = option("", "The file to write.", file=".json")


def texts(mesh: str) -> dict[str, Any]:
    """Drafter and rule -> the tokens of each row, or why there are none."""
    import tiny

    import specjax
    from specjax import drafters, verify
    from specjax.core.sharding import use_mesh

    devices = specjax.parse_mesh(mesh)
    found: dict[str, Any] = {}
    target = tiny.model(vocab=VOCAB, heads=8, kv_heads=4)
    near = tiny.near(target)
    asked = [p[:12] for p in tiny.prompts(ROWS, VOCAB)]
    specs = {n: tiny.make(n, target=target, model=near) for n in drafters.DRAFTERS}
    if devices is not None:
        target, near = (tiny.placed(m, devices, replicate=m is near) for m in (target, near))
        specs["lm"] = tiny.make("lm", target=target, model=near)
    with use_mesh(devices):
        for name, spec in specs.items():
            for rule in verify.RULES:
                how = {"rule": rule, "temperature": TEMPERATURES.get(rule, HOT)}
                try:
                    out = specjax.generate(
                        target, spec, asked, max_new_tokens=STEPS, seed=5, batch_size=4, **how
                    )
                except ValueError as error:
                    found[f"{name}, {rule}"] = str(error)
                else:
                    found[f"{name}, {rule}"] = out.tokens
    return found


def main(options: Options) -> None:
    from specjax.core import hosts

    found = texts(options.mesh)
    if hosts.is_first():
        Path(options.output).write_text(json.dumps(found))


if __name__ == "__main__":
    Script("on_meshes", None, Options, main, several=True)()
