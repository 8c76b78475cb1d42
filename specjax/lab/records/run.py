"""A run of the benchmark: run.json, the lines of its cases, and metrics.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.core.machine import Machine
from specjax.lab.records import codec
from specjax.lab.records.case import Case, Planned, read_case, write_case
from specjax.lab.records.codec import absent

VERSION = 1  # of run.json and metrics.json
# Of run.json: a run goes on only where these are what they were.
FIXED = ("config", "prompts_sha256", "target", "machine", "versions")
# The same, where a run says it: weights that were replaced are others under the same name.
LATER = ("checkpoints",)


@dataclasses.dataclass(frozen=True)
class Target:
    """Name and sizes."""

    name: str
    dtype: str | None = None
    layers: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    mesh: Mapping[str, int] | None = None

    @classmethod
    def of(cls, model: Any) -> Target:
        """Describes a loaded model."""
        c = model.config
        return cls(
            model.name,
            model.stored,
            c.num_layers,
            c.hidden_size,
            c.vocab_size,
            None if model.mesh is None else dict(model.mesh.shape),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What results depend on, and whether they are valid; of traces alone, what they tell."""

    config: Mapping[str, Any] = absent({})  # of experiments.benchmark
    mode: str = absent("")
    device: str = absent("")
    machine: Machine | None = absent()
    versions: Mapping[str, str] = absent({})
    checkpoints: Mapping[str, Mapping[str, str]] | None = absent()  # their files' fingerprints
    git: tuple[str, ...] = ()  # commits, a "+" behind those with changes
    load: tuple[float, ...] = ()  # processes that wanted a core before each start; of others
    others: tuple[float, ...] = absent(())  # cores that others kept busy meanwhile
    target: Target | None = absent()
    dtype: str = absent("")
    prompts_sha256: str | None = absent()
    prompt_sets: Mapping[str, str] = absent({})  # name -> SHA-256
    num_prompts: int | None = absent()
    left_out: int | None = absent()  # prompts that were too long
    template: str | None = absent()
    system: str | None = absent()
    thinking: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # template variables
    turns: int | None = absent()
    cases: tuple[Planned, ...] = ()
    runs: tuple[str, ...] = absent(())  # of a comparison: the names of its runs
    stored: Mapping[str, str] = absent({})  # and of each how its target is kept
    valid: bool | None = None
    invalid_because: tuple[str, ...] = ()
    peak_bytes: int | None = absent()
    unpredicted: tuple[str, ...] = absent(())  # drafters whose cycles have no one cost

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the numbers may not be used; empty: they may."""
        if not self.invalid_because and self.valid is False:
            return ("the run is marked invalid, without a reason.",)
        return self.invalid_because


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A line of results.jsonl: one generation of one batch of prompts by one case."""

    batch: int  # its place
    prompts: tuple[str, ...]  # their ids
    seconds: float
    prefill_seconds: float
    tokens: tuple[int, ...]  # new ones, of each prompt
    compiles: int  # programs compiled meanwhile
    tokens_sha256: str
    repeat: int = 0
    order: int = 0  # of the case, among those that took turns


@dataclasses.dataclass(frozen=True)
class Warmup:
    """warmup.json: what was compiled before a case was measured."""

    programs: int
    compile_s: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where a request's text leaves plain decoding's; a line of differences.json."""

    request: int
    token: int
    margin: float | None  # logit of plain decoding's token less that of ours


@dataclasses.dataclass(frozen=True)
class Summary:
    """metrics.json."""

    run: Run
    cases: tuple[Case, ...]
    pooled: tuple[Case, ...] = ()

    @property
    def rows(self) -> tuple[Case, ...]:
        """The pooled rows, and then the cases."""
        return self.pooled + self.cases

    def save(self, path: Path) -> None:
        """Writes the file. Raises OSError."""
        several = {"pooled": self.pooled, "cases": self.cases}
        lists = {name: list(map(write_case, cases)) for name, cases in several.items()}
        codec.write_file(path, {"version": VERSION, "run": self.run, **lists})


def read_run(value: Any, where: str) -> Run:
    """Reads run.json. Raises ValueError, in one line, if it holds no run."""
    codec.check_version(value, VERSION, where)
    return codec.from_json(Run, value, where)


def read_cases(values: Sequence[Any]) -> tuple[Case, ...]:
    """Those of metrics.json. Raises ValueError, in one line."""
    return tuple(read_case(value, str(i)) for i, value in enumerate(values))


def load_summary(path: Path) -> Summary:
    """Reads metrics.json. Files of older versions may lack pooled rows.

    Raises:
      ValueError: in one line, on a file that is missing, damaged, or of something else.
    """
    try:
        found = codec.read_file(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; name the directory of a complete benchmark."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no summary of a benchmark ({error}).") from None
    if not isinstance(found, dict) or not isinstance(found.get("cases"), list):
        raise ValueError(f'{path} lacks "run" or "cases": not of a benchmark.')
    codec.check_version(found, VERSION, str(path))
    try:
        run = read_run(found.get("run"), "run")
        return Summary(run, read_cases(found["cases"]), read_cases(found.get("pooled") or ()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
