"""Prompt sets: each published form, the built-in one, and files that are none."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import write_tiny

import specjax
from specjax.core.assignments import assign, read_assignments
from specjax.jobs import regenerating
from specjax.jobs.passages import passages
from specjax.prompts import prompt_sets
from specjax.prompts.prompt_sets import PromptSet, Question, load, spread
from specjax.prompts.rendering import Rendering, draw

PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
SPEED = {
    "question_id": "q1",
    "category": "coding",
    "sub_category": "python",
    "turns": ["write", "now test"],
    "source": "x",
    "src_id": "1",
    "difficulty": "low",
    "multiturn": True,
}
# Set, a line of its file, the question.
LINES: list[tuple[str, Any, Question]] = [
    (
        "spec-bench",
        {"question_id": 7, "category": "writing", "turns": ["a", "b"]},
        Question("7", "mt_bench", ("a", "b")),
    ),
    (
        "spec-bench",
        {"question_id": 8, "category": "rag", "turns": ["a"]},
        Question("8", "rag", ("a",)),
    ),
    (
        "mt-bench",
        {"question_id": 7, "category": "writing", "turns": ["a", "b"], "reference": []},
        Question("7", "writing", ("a", "b")),
    ),
    ("speed-bench", SPEED, Question("q1", "coding", ("write", "now test"))),
    (
        "humaneval",
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "x"},
        Question("HumanEval/0", "humaneval", ("def f():\n",)),
    ),
    ("gsm8k", {"question": "1 + 1?", "answer": "#### 2"}, Question("1", "gsm8k", ("1 + 1?",))),
    (
        "mbpp",
        {"task_id": 11, "text": "Add.", "code": "", "test_list": ["assert add(1, 1) == 2"]},
        Question(
            "11", "mbpp", ("Add.\nYour code should pass these tests:\nassert add(1, 1) == 2\n",)
        ),
    ),
    (
        "self-instruct",
        {"id": "t0", "instruction": "Rewrite.", "instances": [{"input": "a b", "output": "b"}]},
        Question("t0", "self_instruct", ("Rewrite.\n\na b",)),
    ),
    (
        "self-instruct",
        {"id": "t1", "instruction": "Invent.", "instances": [{"input": "", "output": "b"}]},
        Question("t1", "self_instruct", ("Invent.",)),
    ),
    ("turns", {"turns": ["a"]}, Question("1", "", ("a",))),
    ("jsonl", {"prompt": "a", "category": "c", "id": 3}, Question("3", "c", ("a",))),
]


@pytest.mark.parametrize(("name", "line", "question"), LINES)
def test_published_forms(tmp_path: Path, name: str, line: Any, question: Question) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(line) + "\n")
    found = load(f"{name}:{path}")
    assert found.questions == (question,) and found.name == name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.sha256 == digest
    assert load(f"{name}:{path}#sha256={digest}") == found
    with pytest.raises(ValueError, match=f"has the SHA-256 {digest}, not 00: it is another file"):
        load(f"{name}:{path}#sha256=00")
    zipped = tmp_path / "set.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert load(f"{name}:{zipped}") == found


def test_mbpp_is_its_evaluation_split(tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    tasks = (10, 11, 510, 511)
    lines = [json.dumps({"task_id": t, "text": "x", "test_list": []}) for t in tasks]
    path.write_text("\n".join(lines))
    assert [q.id for q in load(f"mbpp:{path}").questions] == ["11", "510"]


def test_text_keeps_what_is_in_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa\u2028b\r\n  c\n".encode())
    assert [q.turns[0] for q in load(f"txt:{path}").questions] == ["a\u2028b", "  c"]


def test_built_in() -> None:
    found = load("builtin")
    assert [q.category for q in found.questions] == sorted(
        ["class"] * 8 + ["def"] * 8 + ["docstring"] * 8, key=["class", "def", "docstring"].index
    )
    texts = [q.turns[0] for q in found.questions]
    assert len(set(texts)) == 24 and all(len(t.split("\n")) < 30 for t in texts)
    assert all(t == t.rstrip() for t in texts)  # a line break is a token with what follows it
    assert {q.category for q in spread(found.questions, 3)} == {"class", "def", "docstring"}
    assert spread(found.questions, 0) == found.questions == spread(found.questions, 24)


def test_a_damaged_built_in_set_is_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "builtin.json"
    path.write_bytes(prompt_sets.BUILTIN.read_bytes().replace(b"Stack", b"Stick"))
    monkeypatch.setattr(prompt_sets, "BUILTIN", path)
    with pytest.raises(ValueError, match="is damaged"):
        load("builtin")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("jsonl", "", "is empty"),
        ("jsonl", "\n \n", "is empty"),
        ("mbpp", json.dumps({"task_id": 1, "text": "x", "test_list": []}), "is empty"),
        ("jsonl", '{"prompt": "a"}\n{"prompt"', "line 2: not JSON"),
        ("jsonl", "[1]", "line 1: not a JSON object"),
        ("jsonl", '{"text": "a"}', 'line 1: no field "prompt"'),
        ("gsm8k", '{"question": ""}', "line 1: \"question\" is '', not text"),
        ("mt-bench", '{"question_id": 1, "turns": "a"}', 'no field "turns" with a list'),
        ("turns", '{"turns": ["a", 3]}', 'line 1: "turns" holds 3'),
        ("mbpp", '{"text": "a"}', 'no fields "task_id" and "test_list"'),
        ("speed-bench", json.dumps({**SPEED, "turns": [PLACEHOLDER]}), "line 1: a placeholder"),
        ("txt", "a\n\nb\n", "line 2: empty"),
        ("jsonl", '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}', "two prompts .* id '1'"),
        ("jsonl", b"\xff\xfe", "line 1: not UTF-8 at byte 0"),
        ("txt", b"a\nb\xff", "line 2: not UTF-8 at byte 3"),
        ("turns", r'{"turns": ["a", "\ud83d"]}', r"line 1: \\ud83d is half of a surrogate pair"),
        ("jsonl", "[" * 100_000, "line 1: JSON nested too deeply"),
        ("speed-bench", b"PAR1....", "Parquet"),
        ("humaneval", b"\x1f\x8bzzz", "damaged gzip"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / "set"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message) as caught:
        load(f"{name}:{path}")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("spec_bench:x", "No prompt set 'spec_bench'; there are builtin, gsm8k"),
        ("gsm8k", "read from a file: write gsm8k:PATH"),
        ("gsm8k:/no/such", "/no/such: no such prompt file"),
    ],
)
def test_names_that_are_none(named: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(named)
    with pytest.raises(ValueError, match="num_prompts=25: the set has 24"):
        spread(load("builtin").questions, 25)


def test_the_published_files(shared: Path) -> None:
    data = shared / "data"
    for named, num in (
        ("spec-bench:spec_bench/question.jsonl", 480),
        ("mt-bench:mt_bench/question.jsonl", 80),
        ("humaneval:humaneval/HumanEval.jsonl.gz", 164),
        ("gsm8k:gsm8k/test.jsonl", 1319),
        ("mbpp:mbpp/mbpp.jsonl", 500),
        ("turns:deepspec_turns/humaneval.jsonl", 164),
        ("mt-bench:mt_bench/vicuna_bench_question.jsonl", 80),
        ("self-instruct:self_instruct/user_oriented_instructions.jsonl", 252),
    ):
        name, _, path = named.partition(":")
        questions = load(f"{name}:{data / path}").questions
        assert len(questions) == num
    spec = load(f"spec-bench:{data}/spec_bench/question.jsonl").questions
    assert {c: sum(q.category == c for q in spec) for c in {q.category for q in spec}} == {
        c: 80 for c in ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
    }


class Characters:
    """A tokenizer with a character a token."""

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        return [ord(c) for c in text]


def test_the_limit_comes_before_the_draw(shared: Path) -> None:
    gsm8k = load(f"gsm8k:{shared / 'data' / 'gsm8k' / 'test.jsonl'}")
    short = [q for q in gsm8k.questions if len(q.turns[0]) <= 200]

    def drawn(count: int, most: int) -> tuple[list[PromptSet], int]:
        return draw([gsm8k], Rendering(), Characters(), None, count=count, most=most)

    (found,), left_out = drawn(3, 200)
    assert found.questions == spread(tuple(short), 3) and len(found.questions) == 3
    assert all(len(q.turns[0]) <= 200 for q in found.questions)
    assert left_out == 1319 - len(short) > 0
    assert drawn(3, 0) == ([PromptSet("gsm8k", spread(gsm8k.questions, 3), gsm8k.sha256)], 0)
    few = f"has {len(short)} prompts of at most max_prompt_tokens=200 tokens only"
    with pytest.raises(ValueError, match=f"num_prompts=1300: the set {few}"):
        drawn(1300, 200)
    shortest = min(len(q.turns[0]) for q in gsm8k.questions)
    with pytest.raises(ValueError, match=f"shortest of the 1319 prompts of gsm8k has {shortest}"):
        drawn(3, 10)


def test_assignments() -> None:
    text = 'a=false,b=[1,"x,y=2"],c=high effort,d="q,r",e=,f=False,g=x=y'
    found = read_assignments(text, "--template_args")
    assert found == {
        **{"a": False, "b": [1, "x,y=2"], "c": "high effort"},
        **{"d": "q,r", "e": "", "f": False, "g": "x=y"},
    }
    assert read_assignments("", "x") == {} and assign(("top_k=40",), "x") == {"top_k": 40}
    for bad in ("a", "=1", "a b=1", "a=1,b"):
        with pytest.raises(ValueError, match=r"--template_args holds '.*': write NAME=VALUE"):
            read_assignments(bad, "--template_args")


def test_prompts_of_regenerate(tmp_path: Path) -> None:
    """Conversations get system message, template arguments and tools; what is long is no prompt."""
    target_dir = write_tiny(tmp_path / "target")  # of 256 positions
    (target_dir / "chat_template.jinja").write_text(
        "{{ think }}{% for t in tools or [] %}[{{ t.name }}]{% endfor %}"
        "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    )
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [
        {"prompt": "x" * 250},
        {"messages": said},
        {"prompt": "y" * 250},
        {"messages": said, "tools": [{"name": "clock"}]},
        {"messages": said[:1]},
        {"prompt": "z"},
        {"prompt": "never read"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = specjax.load(target_dir)
    assert target.tokenizer is not None
    options = regenerating.Options(
        output="",
        prompts=str(path),
        chat=True,
        num_prompts=4,
        system="s",
        max_new_tokens=16,
        template_args=("think=false",),
    )
    prompts = regenerating.read_prompts(options, target)
    path.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[2])))
    with pytest.raises(ValueError, match="no prompt of at most 240 tokens"):
        regenerating.read_prompts(options, target)
    texts = [target.tokenizer.decode(p) for p in prompts]
    assert texts == ["False<s><a>", "False[clock]<s><a>", "False<s><a>", "False<s><z>"]


def test_passages_end_with_text_before_the_middle() -> None:
    long = "\n".join(f"    line number {i} of the file" for i in range(20)) + "\n\n\n\n"
    found = passages({"a.py": long, "short.py": "x = 1\n"}, 5)
    assert list(found) == ["a.py"]
    assert found["a.py"].splitlines() == [f"    line number {i} of the file" for i in range(6, 11)]
