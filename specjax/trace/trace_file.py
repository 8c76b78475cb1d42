"""Traces as files: JSON lines, one a cycle, complete enough to rebuild every number and picture.

    {"type": "trace", "version": 2, "setup": {...}}
    {"type": "text", "request": 0, "prompt": ..., "prompt_tokens": [...], "seed": 0, "finish": ...,
     "pieces": [...], "guesses": {id: text}, "prefilled": seconds}
    {"type": "cycle", "request": 0, "step": 0, "pos": 5, "k": 4, "draft_ids": [...], "accepted": 2,
     "committed": 3, "emitted_ids": [...], "begin": seconds, "end": seconds,
     "q_draft": [...], "p_target": [...], "rank": [...], "p_emitted": [...]}
    {"type": "end", "texts": 1, "cycles": 17}

Field names are those of docs/design.md ("Traces"); the last four of a cycle are there only where
details were asked for. Where guesses form a tree, a cycle also has "parents" (of each guess the
place that it follows: 0 the pending token, w + 1 guess w) and "path" (which guesses were accepted,
from 0, in order). Version 1 had no trees, and is read. The last line says how many there were, so
that a file that was cut in half is noticed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from specjax.core.files import parse_json, read_text, write_atomically
from specjax.core.types import Parents
from specjax.trace.trace import Cycle, Detail, Text, Trace

VERSION = 2
_READ = (1, 2)
_MOST_ROWS = 1_000_000  # that are believed of a file


def save(trace: Trace, path: str | Path) -> None:
    """Writes the file at once, or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    path = Path(path).expanduser()
    lines = (json.dumps(record, ensure_ascii=False) for record in records(trace))
    write_atomically(path, "".join(line + "\n" for line in lines))


def records(trace: Trace) -> Iterator[dict[str, Any]]:
    """The lines of a trace's file."""
    yield {"type": "trace", "version": VERSION, "setup": dict(trace.setup)}
    for request, text in enumerate(trace.texts):
        yield {
            "type": "text",
            "request": request,
            "prompt": text.prompt,
            "prompt_tokens": list(text.prompt_tokens),
            "seed": text.seed,
            "finish": text.finish,
            "pieces": list(text.pieces),
            "guesses": {str(token): piece for token, piece in text.guesses.items()},
            "category": text.category,
            "prefilled": _seconds(text.prefilled),
        }
    for request, row in enumerate(trace.rows):
        for step, cycle in enumerate(row):
            yield {"type": "cycle", "request": request, "step": step, **_cycle_record(cycle)}
    yield {
        "type": "end",
        "rows": len(trace.rows),
        "texts": len(trace.texts),
        "cycles": trace.num_cycles,
    }


def _cycle_record(cycle: Cycle) -> dict[str, Any]:
    record = {
        "pos": cycle.position,
        "k": len(cycle.proposed),
        "draft_ids": list(cycle.proposed),
        "accepted": cycle.accepted,
        "committed": cycle.committed,
        "emitted_ids": list(cycle.emitted),
        "begin": _seconds(cycle.begin),
        "end": _seconds(cycle.end),
    }
    if cycle.parents is not None:
        record |= {"parents": list(cycle.parents), "path": list(cycle.path)}
    if cycle.detail is not None:
        record |= {
            "q_draft": _short(cycle.detail.q),
            "p_target": _short(cycle.detail.p),
            "rank": list(cycle.detail.rank),
            "p_emitted": _short(cycle.detail.p_emitted),
        }
    return record


def load(path: str | Path) -> Trace:
    """Reads what `save` wrote.

    Raises:
      ValueError: in one line, on a file that is missing, is no trace, or was cut.
    """
    path = Path(path).expanduser()
    try:
        data = read_text(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such trace; check the path.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a trace: {error}.") from None
    return parse(data, str(path))


def parse(data: str, where: str) -> Trace:
    """Reads the lines of a trace; ``where`` is for messages. Raises as `load` does."""
    lines = data.split("\n")
    if not data.strip():
        raise ValueError(f"{where} is empty, not a trace.")
    parsed = [_object(line, f"{where}, line {i + 1}") for i, line in enumerate(lines) if line]
    head = parsed[0]
    if head.get("type") != "trace":
        raise ValueError(f'{where} is not a trace: its first line has no "type": "trace".')
    if head.get("version") not in _READ:
        raise ValueError(
            f"{where} is a trace of version {head.get('version')!r}, this program reads "
            f"{' and '.join(map(str, _READ))}."
        )
    texts: list[Text] = []
    rows: list[list[Cycle]] = []
    end: Mapping[str, Any] | None = None
    readers: dict[str, Callable[[Mapping[str, Any]], Any]] = {"text": _text, "cycle": _cycle}
    for i, record in enumerate(parsed[1:], 2):
        kind = record.get("type")
        if kind == "end":
            end = record
            continue
        if end is not None:
            raise ValueError(f"{where}, line {i}: more behind the line that ends the trace.")
        if kind not in readers:
            raise ValueError(f"{where}, line {i}: unknown type {kind!r}.")
        try:
            value = readers[kind](record)
            request = _whole(record["request"], most=_MOST_ROWS - 1)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}, line {i}: not a {kind} of a trace ({error}).") from None
        if isinstance(value, Text):
            texts.append(value)
            continue
        while len(rows) <= request:
            rows.append([])
        if len(rows[request]) != record.get("step"):
            raise ValueError(
                f"{where}, line {i}: cycle {record.get('step')} of request {request} where "
                f"{len(rows[request])} is due."
            )
        rows[request].append(value)
    num = sum(map(len, rows))
    if end is None or (end.get("texts"), end.get("cycles")) != (len(texts), num):
        told = "its last line is missing" if end is None else f"it should hold {end}"
        raise ValueError(
            f"{where} was cut: it holds {len(texts)} texts and {num} cycles, and {told}; make it "
            "again."
        )
    try:
        announced = _whole(end.get("rows", len(rows)), most=_MOST_ROWS)
    except ValueError as error:
        raise ValueError(f"{where}, last line: rows: {error}.") from None
    rows += [[]] * (announced - len(rows))
    return Trace(tuple(map(tuple, rows)), tuple(texts), head.get("setup", {}))


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = parse_json(line, where)
    except ValueError:
        raise ValueError(f"{where}: not JSON; the file was cut or is no trace.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object; the file is no trace.")
    return value


def _text(record: Mapping[str, Any]) -> Text:
    finish = record["finish"]
    return Text(
        prompt_tokens=_tokens(record["prompt_tokens"]),
        seed=_whole(record["seed"]),
        finish=None if finish is None else _string(finish),
        prompt=_string(record["prompt"]),
        pieces=tuple(map(_string, record["pieces"])),
        guesses={int(token): _string(piece) for token, piece in record["guesses"].items()},
        category=_string(record["category"]),
        prefilled=_number(record["prefilled"]),
    )


def _cycle(record: Mapping[str, Any]) -> Cycle:
    proposed, emitted = _tokens(record["draft_ids"]), _tokens(record["emitted_ids"])
    accepted = _whole(record["accepted"], most=len(proposed))
    committed = _whole(record["committed"], most=accepted + 1)
    if len(emitted) not in (0, committed):
        raise ValueError(f"{len(emitted)} emitted_ids of {committed} committed")
    parents, path = _tree(record, len(proposed), accepted)
    detail = None
    if "p_target" in record:
        detail = Detail(
            p=_numbers(record["p_target"]),
            q=_numbers(record["q_draft"]),
            rank=tuple(map(_whole, record["rank"])),
            p_emitted=_numbers(record["p_emitted"]),
        )
    return Cycle(
        position=_whole(record["pos"]),
        proposed=proposed,
        accepted=accepted,
        committed=committed,
        emitted=emitted,
        detail=detail,
        parents=parents,
        path=path,
        begin=_number(record["begin"]),
        end=_number(record["end"]),
    )


def _tree(
    record: Mapping[str, Any], guesses: int, accepted: int
) -> tuple[Parents | None, tuple[int, ...]]:
    """The tree of a cycle's guesses and its path; None and () for a chain."""
    if "parents" not in record:
        return None, ()
    parents, path = _tokens(record["parents"]), _tokens(record["path"])
    if len(parents) != guesses or any(p > i for i, p in enumerate(parents)):
        raise ValueError(f"parents {list(parents)} are no tree of {guesses} guesses")
    ends = (0, *(i + 1 for i in path))
    if len(path) != accepted or any(
        i >= guesses or parents[i] != end for i, end in zip(path, ends)
    ):
        raise ValueError(f"path {list(path)} is no way through the tree {list(parents)}")
    return parents, path


def _whole(value: Any, most: int = 2**32 - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a whole number from 0 to {most}")
    return value


def _tokens(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is not a list of token ids")
    return tuple(map(_whole, values))


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _seconds(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(value, 7)


def _number(value: Any) -> float:
    """A finite number; null is NaN: not known."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(_number, values))


def _short(values: tuple[float, ...]) -> list[float]:
    return [float(f"{v:.6g}") for v in values]
