"""The directory of a run: what is known so far, in files that a kill leaves whole.

run.json                     what the results depend on, and whether they are valid
prompts.jsonl                the rendered prompts
answers.jsonl                what the target said between the turns of conversations
cases/NAME/results.jsonl     a line for each batch of prompts and repeat
cases/NAME/parts/            their traces, until the case is complete
cases/NAME/trace.jsonl       then: one trace of all prompts
cases/NAME/experts.json      of a mixture: how many experts a pass read
costs.json                   the calibration
metrics.json, results.*, figures/, report.html: made of the above by `bench.summary`
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from specjax.core import hosts
from specjax.core.files import read_text, write_atomically
from specjax.lab.records import codec
from specjax.lab.records.experts import Union
from specjax.lab.records.run import (
    FIXED,
    LATER,
    VERSION,
    Difference,
    Measurement,
    Run,
    Warmup,
    read_run,
)
from specjax.prompts.rendering import Prompt
from specjax.runs import lines, places
from specjax.runs.settings import Place, Settings
from specjax.trace import trace_file
from specjax.trace.trace import Trace

# What a run that was killed at any moment may have written before run.json.
_BEFORE = ("answers.jsonl", "prompts.jsonl", ".lock", "prompts.jsonl.tmp", "run.json.tmp")
_FLAG = "--workdir"


def mirror(path: str) -> str:
    """Where this process keeps a run: of several, the first one in the directory that is named.

    The others have a copy of their own that ends with them, so that all take the same decisions and
    one writes.
    """
    if hosts.alone():
        return path

    def kept() -> dict[str, str]:
        place = Path(path).expanduser()
        found = (p for p in place.rglob("*.json*") if p.is_file() and p.name != ".lock")
        return {p.relative_to(place).as_posix(): read_text(p) for p in found}

    there = hosts.from_first(f"what {path} holds", kept)
    if hosts.is_first():
        return path
    copy = Path(tempfile.mkdtemp(prefix="specjax-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for name, text in there.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text)
    return str(copy)


class Store:
    """Reads and writes the directory of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()

    @property
    def run_path(self) -> Path:
        return self.path / "run.json"

    def read_run(self) -> Run:
        """run.json. Raises ValueError if there is none."""
        try:
            found = codec.read_file(self.run_path)
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{self.path} holds no benchmark run: run.json is missing.") from None
        if not isinstance(found, dict) or any(field not in found for field in FIXED):
            raise ValueError(f"{self.run_path} is not of a benchmark run.")
        return read_run(found, str(self.run_path))

    def write_run(self, run: Run) -> None:
        codec.write_file(self.run_path, {"version": VERSION, **codec.to_json(run)})

    def look(self) -> None:
        """Sees, before any work, that the directory can be written, and that nobody else does.

        Raises:
          ValueError: in one line, if not.
        """
        places.look_at_directory(self.path, _FLAG)

    def take(self) -> None:
        """Makes the directory, and keeps other processes from writing it till this one ends.

        Raises:
          ValueError: in one line, if it cannot be written, or another process does.
        """
        places.take_directory(self.path, _FLAG)

    def begin(self, run: Run, prompts: Iterable[Prompt]) -> Run:
        """Opens the directory for the run, or continues it. Returns run.json as it is now.

        Raises:
          ValueError: if the directory holds another run.
          OSError: if it cannot be written.
        """
        if self.run_path.exists():
            before = self.read_run()
            place = Place(self.path, self.run_path, _FLAG)
            place.compare(depends_on(before), depends_on(run))
            run = dataclasses.replace(
                run,
                git=tuple(dict.fromkeys(before.git + run.git)),
                load=before.load + run.load,
                others=before.others,
            )
        elif places.strangers(self.path, _BEFORE):
            raise ValueError(f"{self.path} is not empty and holds no benchmark run; use another.")
        self.take()
        told = [
            {"id": p.id, "category": p.category, "text": p.text, "num_tokens": len(p.tokens)}
            for p in prompts
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told)
        write_atomically(self.path / "prompts.jsonl", text)
        self.write_run(run)
        return run

    def answers(self) -> dict[tuple[str, str], str]:
        """(prompt id, its text) -> the recorded answer."""
        records = lines.read(self.path / "answers.jsonl")
        return {(r["id"], r["prompt"]): r["answer"] for r in records}

    def add_answer(self, prompt: Prompt, answer: str) -> None:
        self.take()
        record = {"id": prompt.id, "prompt": prompt.text, "answer": answer}
        lines.append(self.path / "answers.jsonl", record)

    def case(self, name: str) -> Path:
        return self.path / "cases" / name

    def results(self, name: str) -> list[Measurement]:
        """The lines of a case so far."""
        path = self.case(name) / "results.jsonl"
        return [codec.from_json(Measurement, r, f"{path}: a line") for r in lines.read(path)]

    def add_result(self, name: str, line: Measurement, trace: Trace) -> None:
        """Keeps one measurement; the line is there only if its trace is."""
        part = self._part(name, line.batch, line.repeat)
        part.parent.mkdir(parents=True, exist_ok=True)
        trace_file.save(trace, part)
        lines.append(self.case(name) / "results.jsonl", codec.to_json(line))

    def differences(self, name: str) -> list[Difference] | None:
        """Where a case's texts leave plain decoding's; None: not looked for."""
        path = self.case(name) / "differences.json"
        if not path.exists():
            return None
        return [codec.from_json(Difference, d, f"{path}: one") for d in codec.read_file(path)]

    def write_differences(self, name: str, found: Sequence[Difference]) -> None:
        codec.write_file(self.case(name) / "differences.json", found)

    def experts(self, name: str) -> Union | None:
        """What a case's passes read; None: the target has no experts, or it was not counted."""
        path = self.case(name) / "experts.json"
        return codec.from_json(Union, codec.read_file(path), str(path)) if path.exists() else None

    def write_experts(self, name: str, union: Union) -> None:
        codec.write_file(self.case(name) / "experts.json", union)

    def part(self, name: str, batch: int, repeat: int) -> Trace:
        return trace_file.load(self._part(name, batch, repeat))

    def _part(self, name: str, batch: int, repeat: int) -> Path:
        return self.case(name) / "parts" / f"{batch:04d}-{repeat}.jsonl"

    def trace(self, name: str) -> Trace:
        return trace_file.load(self.case(name) / "trace.jsonl")

    def has_trace(self, name: str) -> bool:
        return (self.case(name) / "trace.jsonl").exists()

    def write_warmup(self, name: str, warmup: Warmup) -> None:
        self.case(name).mkdir(parents=True, exist_ok=True)
        codec.write_file(self.case(name) / "warmup.json", warmup)

    def warmup(self, name: str) -> Warmup | None:
        path = self.case(name) / "warmup.json"
        return codec.from_json(Warmup, codec.read_file(path), str(path)) if path.exists() else None

    def complete(self, name: str, trace: Trace) -> None:
        """Writes a case's one trace, and removes the parts that it was made of."""
        self.case(name).mkdir(parents=True, exist_ok=True)
        trace_file.save(trace, self.case(name) / "trace.jsonl")
        self.remove_parts(name)

    def remove_parts(self, name: str) -> None:
        parts = self.case(name) / "parts"
        if parts.is_dir():
            for part in parts.iterdir():
                part.unlink()
            parts.rmdir()


def settings_of(run: Run, fields: Sequence[str]) -> Settings:
    """Some of a run's fields, in JSON values."""
    return {field: codec.to_json(getattr(run, field)) for field in fields}


def depends_on(run: Run) -> Settings:
    """What a run's results depend on."""
    later = [field for field in LATER if getattr(run, field) is not None]
    return settings_of(run, (*FIXED, *later))
