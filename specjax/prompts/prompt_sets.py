"""Prompt sets: the published ones, read from the user's own download, and a built-in one.

A set is named ``NAME`` or ``NAME:PATH``, or ``NAME:PATH#sha256=HEX`` to insist on one file. To add
one is a function from an object of its file to a `Question`, and a line in `SETS`, or no line:
``FILE.py:NAME:PATH`` reads with a function of one's own; ``FILE.py:NAME`` is a list of texts.

    spec-bench    question.jsonl of hemingkx/Spec-Bench: question_id, category, turns
    mt-bench      question.jsonl of FastChat: question_id, category, turns
    speed-bench   nvidia/SPEED-Bench as JSON lines: question_id, category, sub_category, turns, ...
    humaneval     HumanEval.jsonl[.gz]: task_id, prompt
    gsm8k         test.jsonl: question
    self-instruct user_oriented_instructions.jsonl: id, motivation_app, instruction, instances
    mbpp          mbpp.jsonl: task_id, text, test_list; tasks 11 to 510, the evaluation split
    turns         {"turns": [...]} a line, as DeepSpec's evaluation files
    jsonl         {"prompt": ...} a line, with "category" and "id" if there are such
    txt           a prompt a line
    builtin       beginnings of Python files, in the package
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.core import own
from specjax.core.by_shape import Misfit, calling
from specjax.core.files import parse_json, read_bytes
from specjax.prompts.files import whole_text

BUILTIN = Path(__file__).parent / "builtin_prompts.json"
_MOST_BYTES = 1 << 30  # of a decompressed file
BUILTIN_SHA256 = "a93bf35e02e5491480fbfce2f49a827ca74ed7d58c4439f995eb6ee9be81026a"


@dataclasses.dataclass(frozen=True)
class Question:
    """One entry of a set, before any template."""

    id: str
    category: str
    turns: tuple[str, ...]  # what the user says, in order


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """A set as it was read."""

    name: str
    questions: tuple[Question, ...]
    sha256: str  # of the file


Reader = Callable[[Mapping[str, Any]], Question | None]  # None: not of the evaluation split

# Spec-Bench counts the eight categories of MT-Bench as one of its six tasks.
_MT_BENCH = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
)
# What stands in SPEED-Bench where its licence wants the text fetched from its source.
_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"


class _Wrong(Exception):
    """What is wrong with an object, said by a reader."""


def _text(value: Mapping[str, Any], field: str) -> str:
    if field not in value:
        raise _Wrong(f'no field "{field}"')
    text = value[field]
    if not isinstance(text, str) or not text.strip():
        raise _Wrong(f'"{field}" is {text!r}, not text')
    return text


def _turns(value: Mapping[str, Any]) -> tuple[str, ...]:
    turns = value.get("turns")
    if not isinstance(turns, list) or not turns:
        raise _Wrong('no field "turns" with a list of texts')
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise _Wrong(f'"turns" holds {turn!r}, not text')
    return tuple(turns)


def _label(value: Mapping[str, Any], field: str, otherwise: str = "") -> str:
    return str(value.get(field) if value.get(field) is not None else otherwise)


def _question(value: Mapping[str, Any]) -> Question:
    return Question(_label(value, "question_id"), _label(value, "category"), _turns(value))


def _spec_bench(value: Mapping[str, Any]) -> Question:
    asked = _question(value)
    return dataclasses.replace(asked, category="mt_bench") if asked.category in _MT_BENCH else asked


def _speed_bench(value: Mapping[str, Any]) -> Question:
    asked = _question(value)
    if any(_PLACEHOLDER in turn for turn in asked.turns):
        raise _Wrong(
            "a placeholder, not the text: complete the download with the data set's own script"
        )
    return asked


def _humaneval(value: Mapping[str, Any]) -> Question:
    return Question(_text(value, "task_id"), "humaneval", (_text(value, "prompt"),))


def _gsm8k(value: Mapping[str, Any]) -> Question:
    return Question("", "gsm8k", (_text(value, "question"),))


def _mbpp(value: Mapping[str, Any]) -> Question | None:
    task, tests = value.get("task_id"), value.get("test_list")
    if not isinstance(task, int) or not isinstance(tests, list):
        raise _Wrong('no fields "task_id" and "test_list"')
    if not 11 <= task <= 510:
        return None
    asked = "\n".join(
        [_text(value, "text"), "Your code should pass these tests:", *map(str, tests)]
    )
    return Question(str(task), "mbpp", (asked + "\n",))


def _self_instruct(value: Mapping[str, Any]) -> Question:
    """The instruction, and behind it the input of its first instance, if that has one."""
    instances = value.get("instances")
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise _Wrong('no field "instances" with a list of objects')
    given = instances[0].get("input", "")
    if not isinstance(given, str):
        raise _Wrong(f'"input" is {given!r}, not text')
    asked = _text(value, "instruction") + (f"\n\n{given}" if given.strip() else "")
    return Question(_label(value, "id"), "self_instruct", (asked,))


def _plain(value: Mapping[str, Any]) -> Question:
    return Question(_label(value, "id"), _label(value, "category"), (_text(value, "prompt"),))


SETS: dict[str, Reader | None] = {
    "builtin": None,
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "jsonl": _plain,
    "mbpp": _mbpp,
    "mt-bench": _question,
    "self-instruct": _self_instruct,
    "spec-bench": _spec_bench,
    "speed-bench": _speed_bench,
    "turns": lambda value: Question(_label(value, "id"), _label(value, "category"), _turns(value)),
    "txt": None,
}


def load(named: str) -> PromptSet:
    """Reads the set that ``named`` means.

    Raises:
      ValueError: in one line, on an unknown set, and on a file that is missing, empty, another
        than the one insisted on, or not of the set's form (naming the line).
    """
    if own.is_own(named):
        return _own(named)
    name, _, rest = named.partition(":")
    if name not in SETS:
        raise ValueError(f"No prompt set {name!r}; there are {', '.join(sorted(SETS))}.")
    if name == "builtin":
        return _builtin()
    if not rest.partition("#")[0]:
        raise ValueError(f"Prompt set {name!r} is read from a file: write {name}:PATH.")
    return _of_file(name, SETS[name], rest)


def _of_file(name: str, reader: Reader | None, place: str) -> PromptSet:
    """The set that ``reader`` makes of ``PATH[#sha256=HEX]``; None: a text a line."""
    path, _, pin = place.partition("#sha256=")
    data = _read(Path(path).expanduser())
    digest = hashlib.sha256(data).hexdigest()
    if pin and digest != pin.lower():
        raise ValueError(f"{path} has the SHA-256 {digest}, not {pin}: it is another file.")
    questions = _parse(name, reader, data, path)
    if not questions:
        raise ValueError(f"{path} is empty: it holds no prompt.")
    _check_ids(questions, path)
    return PromptSet(name, questions, digest)


def register_prompt_set(name: str, reader: Reader) -> None:
    """Lists a set: what makes a `Question` of an object of its file, a line of JSON each.

    Raises:
      ValueError: if the name is taken, or ``reader`` is no function.
    """
    if not callable(reader):
        raise ValueError(f"Prompt set {name!r}: a {type(reader).__name__} is no function.")
    if name in SETS and not own.same_thing(SETS[name], reader):
        raise ValueError(f"Prompt set {name!r} is known already; choose another name.")
    SETS[name] = reader


def _own(named: str) -> PromptSet:
    """``FILE.py:NAME``: texts or `Question`s, or a function that makes them; ``FILE.py:NAME:PATH``:
    a reader and its file."""
    place, thing = own.read_place(named), own.find(named)
    if place.rest:
        if not callable(thing):
            raise ValueError(
                f"{named}: {place.name} is a {type(thing).__name__}; what reads {place.rest} must "
                "be a function of one object of that file."
            )
        return _of_file(place.name, thing, place.rest)
    found = calling(f"{named}()", thing, ValueError) if callable(thing) else thing
    if isinstance(found, str) or not isinstance(found, Sequence) or not found:
        raise ValueError(f"{named}: must be a list of texts or of Question, or a function of none.")
    questions = []
    for i, one in enumerate(found, 1):
        if not isinstance(one, str | Question):
            raise ValueError(f"{named}: entry {i} is a {type(one).__name__}, not text or Question.")
        asked = Question(str(i), "", (one,)) if isinstance(one, str) else one
        questions.append(_checked(asked, i, f"{named}: entry {i}"))
    _check_ids(questions, named)
    data = Path(place.file).expanduser().read_bytes()
    return PromptSet(place.name, tuple(questions), hashlib.sha256(data).hexdigest())


def _read(path: Path) -> bytes:
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such prompt file; check the path.") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}.") from None
    if data[:4] == b"PAR1":
        raise ValueError(
            f"{path} is a Parquet file; write its rows as JSON lines first (pandas: "
            "read_parquet(...).to_json(..., orient='records', lines=True))."
        )
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            whole = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path}: damaged gzip; download it again.") from None
    if len(whole) > _MOST_BYTES:
        raise ValueError(f"{path}: more than {_MOST_BYTES:,} bytes when decompressed.")
    return whole


def _parse(name: str, reader: Reader | None, data: bytes, path: str) -> tuple[Question, ...]:
    try:
        # Not `splitlines`: a text may hold U+2028 and the like.
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        at = f"line {data.count(bytes([10]), 0, error.start) + 1}: not UTF-8 at byte {error.start}"
        raise ValueError(f"{path}, {at} of the file; convert it.") from None
    found: list[Question] = []
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if reader is None:
            if not line.strip():
                raise ValueError(f"{where}: empty; remove the line.")
            found.append(Question(str(number), "", (line.removesuffix("\r"),)))
            continue
        value = whole_text(parse_json(line, where), where)
        try:
            if not isinstance(value, dict):
                raise _Wrong("not a JSON object")
            question = _ask(name, reader, value)
        except (_Wrong, Misfit) as wrong:
            said = str(wrong).removesuffix(".")
            raise ValueError(f"{where}: {said}, so no line of {name}.") from None
        if question is not None:
            found.append(_checked(question, number, where))
    return tuple(found)


def _ask(name: str, reader: Reader, value: Mapping[str, Any]) -> Question | None:
    return calling(f"{name}()", lambda: reader(value), _Wrong)


def _checked(question: Any, number: int, where: str) -> Question:
    """What code of a user's own made, with a number where it has no id. Raises ValueError."""
    if not isinstance(question, Question):
        raise ValueError(f"{where}: a {type(question).__name__} was made of it, not a Question.")
    turns = question.turns
    if isinstance(turns, str) or not isinstance(turns, Sequence) or not turns:
        raise ValueError(f"{where}: turns is {turns!r:.40}; must be a tuple of texts.")
    for turn in turns:
        if not isinstance(turn, str) or not turn:
            raise ValueError(f"{where}: turns holds {turn!r:.40}, not text.")
    label = "" if question.category is None else str(question.category)
    named = str(number) if question.id in ("", None) else str(question.id)
    return Question(named, label, tuple(turns))


def _check_ids(questions: Sequence[Question], where: str) -> None:
    ids = [q.id for q in questions]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"{where}: two prompts have the id {twice!r}; give each its own.")


def _builtin() -> PromptSet:
    """Beginnings of Python files, written for this purpose, in three categories."""
    data = BUILTIN.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != BUILTIN_SHA256:
        raise ValueError(f"{BUILTIN} is damaged (SHA-256 {digest}); reinstall the package.")
    questions = tuple(
        Question(f"{category}-{i}", category, (text,))
        for category, texts in json.loads(data).items()
        for i, text in enumerate(texts, 1)
    )
    return PromptSet("builtin", questions, digest)


def spread(questions: tuple[Question, ...], count: int, which: str = "") -> tuple[Question, ...]:
    """``count`` of the questions, evenly over their order and so over categories; 0: all.

    Raises:
      ValueError: if there are fewer; ``which`` says which of its prompts a set was asked for.
    """
    if count < 0:
        raise ValueError(f"num_prompts={count}: must be at least 0, which means all.")
    if not count:
        return questions
    if count > len(questions):
        raise ValueError(f"num_prompts={count}: the set has {len(questions)} prompts{which} only.")
    return tuple(questions[i * len(questions) // count] for i in range(count))
