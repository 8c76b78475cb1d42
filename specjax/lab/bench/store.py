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

import json
from collections.abc import Iterable, Mapping
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
from specjax.prompts.rendering import Prompt
from specjax.runs.results import shorten
from specjax.trace import trace_file
from specjax.trace.trace import Trace

Record = dict[str, Any]
# What a run that was killed at any moment may have written before run.json.
_BEFORE = ("answers.jsonl", "prompts.jsonl", ".lock", "prompts.jsonl.tmp", "run.json.tmp")
# Of run.json: a run goes on only where these are what they were.
FIXED = ("config", "prompts_sha256", "target", "machine", "versions")


class Store:
    """Reads and writes the directory of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()

    @property
    def run_path(self) -> Path:
        return self.path / "run.json"

    def read_run(self) -> Record:
        """run.json. Raises ValueError if there is none."""
        try:
            run = read_json(self.run_path)
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{self.path} holds no benchmark run: run.json is missing.") from None
        if not isinstance(run, dict) or any(field not in run for field in FIXED):
            raise ValueError(f"{self.run_path} is not of a benchmark run.")
        return run

    def write_run(self, run: Mapping[str, Any]) -> None:
        write_json(self.run_path, run)

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

    def begin(self, run: Record, prompts: Iterable[Prompt]) -> Record:
        """Opens the directory for the run, or continues it. Returns run.json as it is now.

        Raises:
          ValueError: if the directory holds another run.
          OSError: if it cannot be written.
        """
        run = json.loads(json.dumps(run))
        if self.run_path.exists():
            before = self.read_run()
            for field in FIXED:
                if before[field] != run[field]:
                    raise ValueError(
                        f"{self.path} holds a run with {difference(field, before, run)}; use "
                        "another --workdir, or that setting."
                    )
            commits = before.get("git", [])
            run["git"] = commits + [c for c in run.get("git", []) if c not in commits]
            run["load"] = before.get("load", []) + run.get("load", [])
            run["others"] = before.get("others", [])
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

    def results(self, name: str) -> list[Record]:
        """The lines of a case so far."""
        return read_lines(self.case(name) / "results.jsonl")

    def add_result(self, name: str, record: Mapping[str, Any], trace: Trace) -> None:
        """Keeps one measurement; the line is there only if its trace is."""
        part = self._part(name, record["batch"], record["repeat"])
        part.parent.mkdir(parents=True, exist_ok=True)
        trace_file.save(trace, part)
        append(self.case(name) / "results.jsonl", record)

    def part(self, name: str, batch: int, repeat: int) -> Trace:
        return trace_file.load(self._part(name, batch, repeat))

    def _part(self, name: str, batch: int, repeat: int) -> Path:
        return self.case(name) / "parts" / f"{batch:04d}-{repeat}.jsonl"

    def trace(self, name: str) -> Trace:
        return trace_file.load(self.case(name) / "trace.jsonl")

    def has_trace(self, name: str) -> bool:
        return (self.case(name) / "trace.jsonl").exists()

    def write_warmup(self, name: str, compiles: int, seconds: float) -> None:
        """Programs that were compiled before a case was measured, and how long that took."""
        self.case(name).mkdir(parents=True, exist_ok=True)
        write_json(self.case(name) / "warmup.json", {"programs": compiles, "compile_s": seconds})

    def read_warmup(self, name: str) -> Record:
        path = self.case(name) / "warmup.json"
        return {"compile_s": read_json(path)["compile_s"]} if path.exists() else {}

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


def difference(
    field: str, before: Mapping[str, Any], now: Mapping[str, Any], who: str = "this one"
) -> str:
    """Names what differs, and how: the field itself, or its first member that does."""
    old, new = before.get(field), now.get(field)
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                return f"{name}={shown(old.get(name))}, {who} has {shown(new.get(name))}"
    return f"{field}={shown(old)}, {who} has {shown(new)}"


def shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), 60)


def to_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises ValueError, in one line, if the file holds no JSON."""
    return parse_json(read_bytes(path), f"{path} is damaged")


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line; when this returns, it survives a crash."""
    with path.open("ab", buffering=0) as file:
        add_line(file, json.dumps(record, ensure_ascii=False))


def read_lines(path: Path) -> list[Record]:
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
