"""Which rooms a command goes through: from a prompt to its text, to the first measurement.

    PYTHONPATH=CHECKOUT python tools/walk.py text CHECKOUT
    PYTHONPATH=CHECKOUT python tools/walk.py benchmark CHECKOUT

Follows every call between files of the checkout (`sys.setprofile`), and counts the files and rooms
that are entered and the moves from one to another: of `specjax.generate` with the demo's DFlash,
its programs compiled already, and of `experiments.benchmark` up to the first timed generation.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any


class Found(Exception):
    """The walk has come to where it was to end."""


class Walk:
    """Counts calls, files and rooms while it is on the stack."""

    def __init__(self, root: Path, end: str = ""):
        """``end`` names the function that ends the walk, as FILE:NAME."""
        self._root, self._end = str(root.resolve()) + "/", end
        self.calls = self.moves = self.room_moves = 0
        self.files: set[str] = set()
        self.rooms: set[str] = set()

    def __enter__(self) -> Walk:
        sys.setprofile(self._see)
        return self

    def __exit__(self, kind: Any, *_: Any) -> bool:
        sys.setprofile(None)
        return kind is Found

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(self._root):
            return
        name = frame.f_code.co_filename.removeprefix(self._root)
        if name.startswith(("tools/", "tests/")):
            return
        self.calls += 1
        self.files.add(name)
        self.rooms.add(room(name))
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(self._root):
            caller = caller.f_back
        before = None if caller is None else caller.f_code.co_filename.removeprefix(self._root)
        if before is not None and not before.startswith("tools/"):
            self.moves += before != name
            self.room_moves += room(before) != room(name)
        if f"{name}:{frame.f_code.co_name}" == self._end:
            raise Found

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, {len(self.files)} files, {self.moves} moves between files; "
            f"{len(self.rooms)} rooms, {self.room_moves} moves between rooms"
        )


def room(name: str) -> str:
    """The room of a file: a folder of specjax, of specjax/lab one below, or what lies beside."""
    parts = Path(name).with_suffix("").parts
    deep = 3 if parts[:2] == ("specjax", "lab") else 2
    return "/".join(parts[:deep] if parts[0] == "specjax" else parts[:1])


def walk_text(root: Path) -> Walk:
    """From a prompt to its text."""
    import specjax

    target = specjax.load("demo:target")
    drafter = specjax.load_drafter("demo:dflash", target)
    ask: Any = {"max_new_tokens": 32, "seed": 0}
    specjax.generate(target, drafter, "def area(", **ask)
    with Walk(root) as walk:
        specjax.generate(target, drafter, "def area(", **ask)
    return walk


def walk_benchmark(root: Path) -> Walk:
    """From the command to the first timed generation (`measure_batch` of the bench)."""
    from specjax.cli.benchmark import script

    ends = [p for p in root.glob("specjax/**/measure.py") if "bench" in str(p)]
    end = f"{ends[0].relative_to(root)}:generate"
    with tempfile.TemporaryDirectory() as workdir:
        line = ["benchmark", f"--config={root}/configs/benchmark.py:quick", f"--workdir={workdir}"]
        sys.argv = [*line, "--config.num_prompts=1", "--config.calibrate=0"]
        with Walk(root, end) as walk:
            script.here(sys.argv)
    return walk


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2]).resolve()
    print({"text": walk_text, "benchmark": walk_benchmark}[what](where))
