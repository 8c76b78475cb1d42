"""experiments.chat from end to end, on a tiny model with a chat template that rewrites."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import invoke, script
from test_generate_cli import unmark
from tiny_checkpoint import write_tiny

import specjax

ROOT = Path(__file__).resolve().parent.parent
# As Qwen3's, it drops the reasoning of earlier turns.
TEMPLATE = (
    "{{ style }}{% for m in messages %}{% if loop.last or m.role != 'assistant' %}"
    "{{ m.role }}: {{ m.content }}\n{% else %}-: {{ m.content.split('</think>')[-1] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
Run = Callable[..., tuple[int, str, str]]  # (lines, *flags) -> exit status, stdout, stderr


@pytest.fixture(scope="module")
def target(tmp_path_factory: Any) -> Path:
    path = write_tiny(tmp_path_factory.mktemp("chat") / "target")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def run(target: Path, capsys: Any, monkeypatch: Any) -> Iterator[Run]:
    chat = script("chat")

    def call(lines: list[str], *arguments: str) -> tuple[int, str, str]:
        line = ["chat", f"--target={target}", "--drafter=ngram:3", "--max_new_tokens=8"]
        line += [f"--config={ROOT}/configs/chat.py", "--config.compilation_cache=", *arguments]
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{x}\n" for x in lines)))
        return invoke(chat, capsys, *line)

    yield call


def answers(out: str) -> list[str]:
    """What was answered to each message, without marks."""
    return [
        unmark(a) for a in re.findall(r"^> (?!/[a-z]).*\n((?:.|\n)*?)\ntau ", out, re.MULTILINE)
    ]


def test_two_turns_are_those_of_generate(run: Run, target: Path, tmp_path: Path) -> None:
    """Every turn is a prompt of its own: the whole conversation, rendered anew."""
    saved = tmp_path / "said.jsonl"
    lines = ["hi", "/k 2", "", "//ok", f"/save {saved}", f"/save {saved}", "/reset", "hi"]
    status, out, err = run(lines, "--system=s", "--template_args=style=brief", "--seed=3")
    assert (status, err) == (0, "")
    model = specjax.load(target)
    messages = [{"role": "system", "content": "s"}]
    for text in ("hi", "/ok"):
        messages.append({"role": "user", "content": text})
        made = specjax.generate(
            model, None, messages, max_new_tokens=8, template_args={"style": "brief"}
        )
        messages.append({"role": "assistant", "content": made.text[0]})
    (line,) = saved.read_text().splitlines()
    assert json.loads(line) == {"messages": messages}
    first, second = messages[2]["content"], messages[4]["content"]
    assert answers(out) == [first, second, first]
    assert out.count("\ntau ") == 3 and out.count("tokens/s") == 3
    assert "ngram with 2 guesses a cycle" in out and out.count("5 messages in") == 2
    assert "of 256 tokens; cut at --max_new_tokens=8" in out
    # Another K begins anew; behind /reset a first turn like the last conversation's.
    assert known(out) == [0, 0, len("briefsystem: s\nuser: hi\n") - 1]
    _, out, _ = run(["hi", "ok"])
    assert known(out) == [0, len("user: hi\n") - 1]  # of the answer the template makes another text


def known(out: str) -> list[int]:
    """How many tokens each turn knew from the one before."""
    turns = re.findall(r"prefill [\d.]+ s(?: \((\d+) tokens known\))?", out)
    return [int(n or 0) for n in turns]


def test_what_cannot_be_is_one_line_and_the_chat_goes_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    wrong = {
        "/magic": "No command /magic",
        "/k many": "/k many: a number",
        "/k 0": "num_draft=0",
        "/drafter magic": "No drafter 'magic'; there are",
        "/drafter lm": "write lm:CHECKPOINT",
        f"/drafter lm:{tmp_path}": "has no config.json",
        "/save": "which file?",
        f"/save {tmp_path}/x.jsonl": "Nothing was said yet",
        "x" * 300: "the model reads 256 at most: /reset begins a new one",
        "a\udcffb": "half of a surrogate pair",
    }
    after = {
        f"/save {tmp_path}/mine.txt": "exists; name another file",
        f"/save {tmp_path}/no/x.jsonl": "No such file",
        "/drafter none": "",
        "/k 3": "guesses nothing",
    }
    status, out, err = run([*wrong, "hi", *after, "/help"])
    assert (status, err) == (0, "")
    told = [line for line in out.splitlines() if line.startswith("error: ")]
    words = [word for word in [*wrong.values(), *after.values()] if word]
    assert len(told) == len(words)
    for line, word in zip(told, words):
        assert word in line
    assert (
        len(answers(out)) == 1 and "/reset " in out and (tmp_path / "mine.txt").stat().st_size == 4
    )


def test_ctrl_c_keeps_what_was_said(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    def pieces(*args: Any, **kwargs: Any) -> Any:
        for piece in stream(*args, **{**kwargs, "cycles_per_call": 1}):
            os.kill(os.getpid(), signal.SIGINT)
            yield piece

    stream = specjax.stream
    monkeypatch.setattr(specjax, "stream", pieces)
    status, out, _ = run(["hi", f"/save {tmp_path}/x.jsonl"])
    assert status == 0 and "; stopped by Ctrl-C" in out and re.search(r"tau .*, 1 passes\)", out)
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    kept = json.loads(line)["messages"][-1]
    assert kept == {"role": "assistant", "content": answers(out)[0]}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_chat_that_cannot_begin(run: Run, target: Path) -> None:
    for arguments, word in (
        (["--target=demo:target"], "has no chat template"),
        (["--template_args=a"], "NAME=VALUE"),
        (["--temperature=-1"], "temperature=-1.0"),
        (["--config.top_k=-1"], "top_k=-1"),
        (["--config.batch_size=3"], "batch_size"),
    ):
        status, out, err = run(["hi"], *arguments)
        assert status == 2 and out == "" and word in err
        assert err.startswith("error: ") and err.count("\n") == 1
