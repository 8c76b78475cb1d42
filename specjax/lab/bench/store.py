"""The directory of a run: what is known so far, in files that a kill leaves whole.

run.json                     what the results depend on, and whether they are valid
prompts.jsonl                the rendered prompts
answers.jsonl                what the target said between the turns of conversations
cases/NAME/results.jsonl     a line for each batch of prompts and repeat
cases/NAME/parts/            their traces, until the case is complete
cases/NAME/trace.jsonl       then: one trace of all prompts
costs.json                   the calibration
metrics.json, results.*, figures/, report.html: made of the above by `bench.summary`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.core.files import (
    add_line,
    hold,
    parse_json,
    read_bytes,
    try_directory,
    write_atomically,
)
from specjax.lab.records import codec
from specjax.lab.records.run import FIXED, VERSION, Difference, Measurement, Run, Warmup, read_run
from specjax.prompts.rendering import Prompt
from specjax.runs.results import shorten
from specjax.trace import trace_file
from specjax.trace.trace import Trace

# What a run that was killed at any moment may have written before run.json.
_BEFORE = ("answers.jsonl", "prompts.jsonl", ".lock", "prompts.jsonl.tmp", "run.json.tmp")


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
        if self.path.exists():
            return self.take()
        above = next(p for p in self.path.absolute().parents if p.exists())
        try_directory(above, "--workdir")

    def take(self) -> None:
        """Makes the directory, and keeps other processes from writing it till this one ends.

        Raises:
          ValueError: in one line, if it cannot be written, or another process does.
        """
        try_directory(self.path, "--workdir")
        hold(self.path, inside=True)

    def begin(self, run: Run, prompts: Iterable[Prompt]) -> Run:
        """Opens the directory for the run, or continues it. Returns run.json as it is now.

        Raises:
          ValueError: if the directory holds another run.
          OSError: if it cannot be written.
        """
        if self.run_path.exists():
            before = self.read_run()
            for field in FIXED:
                if getattr(before, field) != getattr(run, field):
                    raise ValueError(
                        f"{self.path} holds a run with {difference(field, before, run)}; use "
                        "another --workdir, or that setting."
                    )
            run = dataclasses.replace(
                run,
                git=tuple(dict.fromkeys(before.git + run.git)),
                load=before.load + run.load,
                others=before.others,
            )
        elif self.path.exists() and any(p.name not in _BEFORE for p in self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no benchmark run; use another.")
        self.take()
        lines = [
            {"id": p.id, "category": p.category, "text": p.text, "num_tokens": len(p.tokens)}
            for p in prompts
        ]
        write_atomically(self.path / "prompts.jsonl", "".join(map(to_line, lines)))
        self.write_run(run)
        return run

    def answers(self) -> dict[tuple[str, str], str]:
        """(prompt id, its text) -> the recorded answer."""
        records = read_lines(self.path / "answers.jsonl")
        return {(r["id"], r["prompt"]): r["answer"] for r in records}

    def add_answer(self, prompt: Prompt, answer: str) -> None:
        self.take()
        record = {"id": prompt.id, "prompt": prompt.text, "answer": answer}
        append(self.path / "answers.jsonl", record)

    def case(self, name: str) -> Path:
        return self.path / "cases" / name

    def results(self, name: str) -> list[Measurement]:
        """The lines of a case so far."""
        path = self.case(name) / "results.jsonl"
        return [codec.from_json(Measurement, line, f"{path}: a line") for line in read_lines(path)]

    def add_result(self, name: str, line: Measurement, trace: Trace) -> None:
        """Keeps one measurement; the line is there only if its trace is."""
        part = self._part(name, line.batch, line.repeat)
        part.parent.mkdir(parents=True, exist_ok=True)
        trace_file.save(trace, part)
        append(self.case(name) / "results.jsonl", codec.to_json(line))

    def differences(self, name: str) -> list[Difference] | None:
        """Where a case's texts leave plain decoding's; None: not looked for."""
        path = self.case(name) / "differences.json"
        if not path.exists():
            return None
        return [codec.from_json(Difference, d, f"{path}: one") for d in codec.read_file(path)]

    def write_differences(self, name: str, found: Sequence[Difference]) -> None:
        codec.write_file(self.case(name) / "differences.json", found)

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


def difference(field: str, before: Run, now: Run, who: str = "this one") -> str:
    """Names what differs, and how: the field itself, or its first member that does."""
    old, new = (codec.to_json(getattr(run, field)) for run in (before, now))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                return f"{name}={shown(old.get(name))}, {who} has {shown(new.get(name))}"
    return f"{field}={shown(old)}, {who} has {shown(new)}"


def shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), 60)


def to_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line; when this returns, it survives a crash."""
    with path.open("ab", buffering=0) as file:
        add_line(file, json.dumps(record, ensure_ascii=False))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that only ever grew. A last one that was cut is removed from it.

    Raises:
      ValueError: naming the line, if another is damaged.
    """
    if not path.exists():
        return []
    data = read_bytes(path)
    whole = data[: data.rfind(b"\n") + 1]
    records = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            record = parse_json(line, "line")
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: damaged; delete it and the lines behind it."
            ) from None
        records.append(record)
    if len(whole) < len(data):
        with path.open("ab") as file:
            file.truncate(len(whole))
    return records
