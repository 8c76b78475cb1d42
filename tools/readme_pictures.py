"""Makes the README's pictures, docs/generate.svg and docs/race.gif, from the demo pair:

  python -m tools.readme_pictures

Both are drawn from traces that are recorded meanwhile, on an idle machine if the times of the race
are to mean something. Needs `pip install -e '.[lab]'`; writes to --output, docs/ by itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import specjax
from specjax.cli.errors import needs_lab
from specjax.core.files import write_atomically
from specjax.jobs.texts import DEFAULT_PROMPT
from tools.text_svg import text_svg

with needs_lab():
    from tools.race_still import race_gif

RACE = '''def open_connection(host, port, timeout=None):
    """Open a connection to the server.

    Raises an exception if'''
NEW_TOKENS = 64
RUNS = 5  # of the race; the first ones are slow, the fastest is drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs")
    output = parser.parse_args().output
    if not output.is_dir():
        parser.error(f"--output={output}: no such directory.")
    target = specjax.load("demo:target")
    write_atomically(
        output / "generate.svg", text_svg(record(target, "demo:dflash", DEFAULT_PROMPT))
    )
    race_gif(
        record(target, "ngram:7", RACE, runs=RUNS),
        record(target, None, RACE, runs=RUNS),
        output / "race.gif",
        seconds=12,
        fps=6,
    )


def record(
    target: specjax.Model, drafter: str | None, prompt: str, *, runs: int = 1
) -> specjax.Trace:
    """The trace of the fastest of several runs."""
    traces = [
        specjax.generate(target, drafter, prompt, max_new_tokens=NEW_TOKENS).trace
        for _ in range(runs)
    ]
    return min(traces, key=lambda trace: trace.rows[0][-1].end)


if __name__ == "__main__":
    main()
