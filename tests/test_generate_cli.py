"""experiments.generate from end to end, on tiny models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripts import invoke, script
from tiny_checkpoint import write_tiny

import specjax
from specjax.core import machine
from specjax.lab.costs.speed import first_difference
from specjax.lab.view.text import MARKS, Painter
from specjax.prompts.files import read_prompts
from specjax.text import Reading
from specjax.trace import trace_file

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ["def area(", "x = 1\n", "naïve é", "return", "pass\n\n"]


class Cli:
    """Runs the script in this process."""

    def __init__(self, target: Path, draft: Path, capsys: Any):
        self.target, self.draft, self._capsys = target, draft, capsys

    def __call__(self, *arguments: str, models: bool = True) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)"""
        line = ["generate", f"--config={ROOT}/configs/generate.py", "--config.compilation_cache="]
        if models:
            line += [f"--target={self.target}", f"--draft={self.draft}", "--num_draft=3"]
        generate = script("generate")
        return invoke(generate, self._capsys, *line, *arguments)


@pytest.fixture
def run(tmp_path: Path, capsys: Any, monkeypatch: Any) -> Cli:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    target, draft = tmp_path / "target", tmp_path / "draft"
    return Cli(write_tiny(target), write_tiny(draft, noise=0.05), capsys)


def unmark(text: str) -> str:
    for begin, end in MARKS.values():
        text = text.replace(begin, "").replace(end, "") if begin else text
    return text


def shown(out: str, prompt: str) -> str:
    """The text behind the prompt, with its marks."""
    body = out.split("\n", 1)[1].removeprefix(prompt)
    return body[: body.rindex("\n\ntau ")]


def test_single_prompt(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "load", lambda: (3.25,))
    status, out, err = run("--prompt=def area(", "--max_new_tokens=24", "--config.repeats=1")
    assert (status, err) == (0, "")
    assert out.startswith("legend: accepted draft token, «correction», ⟦bonus token⟧\n")
    for name in ("tau ", "survival ", "speed ", "compiling ", "check ", "setup ", "note "):
        assert f"\n{name}" in out
    assert "equals that of plain decoding" in out and "speedup" in out
    assert "Busy machine: the machine was not idle (load 3.25 before" in out
    text = shown(out, "def area(")
    assert "«" in text and "\x1b" not in out
    target = specjax.load(run.target)
    assert unmark(text) == specjax.generate(target, None, "def area(", max_new_tokens=24).text[0]


def test_a_useless_draft_is_named(run: Cli, tmp_path: Path) -> None:
    """Where tau is near 1 over enough cycles, and nowhere else."""
    write_tiny(tmp_path / "other", seed=5)
    useless = (f"--draft={tmp_path / 'other'}", "--prompt=x = 1", "--config.compare_plain=False")
    status, out, err = run(*useless, "--max_new_tokens=48")
    assert status == 0 and "\ntau 1.0" in out.replace(" " * 8, " ")
    assert err.startswith("WARNING: tau 1.0") and "tau near 1 has a cause" in err
    assert (
        "1. A draft that was never trained like the target" in err and "on the given prompts" in err
    )
    for fine in ((*useless, "--max_new_tokens=12"), ("--prompt=x = 1", "--max_new_tokens=48")):
        assert run(*fine, "--config.compare_plain=False")[2] == ""


def test_stream_writes_the_same(run: Cli) -> None:
    arguments = ("--prompt=def area(", "--max_new_tokens=24", "--config.compare_plain=False")
    for extra in ((), ("--temperature=1.0", "--config.stop=('z',)")):
        _, whole, _ = run(*arguments, *extra)
        status, streamed, _ = run(*arguments, *extra, "--stream", "--config.cycles_per_call=1")
        assert status == 0
        assert shown(streamed, "def area(") == shown(whole, "def area(")
        # The trace is the same, too; what follows is wall-clock time.
        statistics = [
            out[out.rindex("\ntau ") : out.rindex("\nspeed ")] for out in (whole, streamed)
        ]
        assert statistics[0] == statistics[1]


def write_prompts(path: Path) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "id": 7}) + "\n" for p in PROMPTS))
    return path


def test_a_killed_run_continues(run: Cli, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    arguments = (
        f"--prompt_file={write_prompts(tmp_path / 'prompts.jsonl')}",
        f"--output={output}",
        "--max_new_tokens=12",
        "--temperature=0.9",
        "--seed=5",
        "--config.batch_size=2",
        "--config.compare_plain=False",
    )
    status, out, err = run(*arguments)
    assert (status, err) == (0, "") and "5 of 5 prompts done" in out
    whole = output.read_bytes()
    records = [json.loads(line) for line in whole.splitlines()]
    assert [r["prompt"] for r in records] == PROMPTS
    assert [r["seed"] for r in records] == [5, 6, 7, 8, 9]
    assert all({"text", "tokens", "tau", "finish", "cycles"} <= r.keys() for r in records)
    # Alone in its batch, a prompt gets the same text.
    target, draft = specjax.load(run.target), specjax.load(run.draft)
    drafter = specjax.drafters.LM(draft, 3)
    alone = specjax.generate(
        target, drafter, PROMPTS[3], seed=8, temperature=0.9, max_new_tokens=12
    )
    assert alone.tokens[0] == records[3]["tokens"] and alone.text[0] == records[3]["text"]

    lines = whole.splitlines(keepends=True)
    for done in (0, 1, 4):  # before, within and at the end of a batch; each cut mid-line
        output.write_bytes(b"".join(lines[:done]) + lines[done][:17])
        assert run(*arguments)[0] == 0
        assert output.read_bytes() == whole
    before = output.stat().st_mtime_ns
    status, out, _ = run(*arguments)
    assert status == 0 and "is complete: 5 prompts" in out and "\ntau " in out
    assert output.stat().st_mtime_ns == before

    for changed, name in (("--temperature=0.8", "temperature"), ("--seed=6", "seed")):
        status, _, err = run(*arguments, changed)
        assert status == 2 and name in err and "another --output" in err
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "other"}\n' * 5)
    status, _, err = run(*arguments)
    assert status == 2 and "line 1" in err and "another --output" in err
    assert output.read_bytes() == whole


def test_traces(run: Cli, tmp_path: Path) -> None:
    """Of a file in batches, of what a continued run did, and of a stream."""
    output, trace = tmp_path / "out.jsonl", tmp_path / "trace.jsonl"
    ngram = ("--drafter=ngram", f"--target={run.target}", "--num_draft=3", f"--trace={trace}")
    (tmp_path / "p.txt").write_text("def a(def a(\nx = \nx = x\n")
    arguments = [*ngram, "--max_new_tokens=12", "--config.compare_plain=False"]
    file = [f"--prompt_file={tmp_path / 'p.txt'}", f"--output={output}", "--config.batch_size=2"]
    status, out, err = run(*arguments, *file, models=False)
    assert (status, err) == (0, "") and "holds the traces" not in out
    records = [json.loads(line) for line in output.read_text().splitlines()]
    whole = trace_file.load(trace)
    assert [[t for c in row for t in c.emitted] for row in whole.rows] == [
        r["tokens"] for r in records
    ]
    assert [text.prompt for text in whole.texts] == ["def a(def a(", "x = ", "x = x"]
    assert whole.setup["drafter"] == "ngram" and whole.setup["batch"] == 2

    run(*arguments, *file, models=False)
    assert trace_file.load(trace) == whole  # nothing ran, nothing was written
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:2]))
    _, out, _ = run(*arguments, *file, models=False)
    assert "holds the traces of prompts 3 to 3" in out
    assert trace_file.load(trace).rows == whole.rows[2:]

    one = [*arguments, "--prompt=def a(def a(", "--config.stop=('a',)", "--config.details=True"]
    run(*one, models=False)
    generated = trace_file.load(trace)
    run(*one, "--stream", "--config.cycles_per_call=1", models=False)
    streamed = trace_file.load(trace)
    assert streamed == generated and next(iter(streamed)).detail is not None
    assert dict(streamed.setup) == dict(generated.setup)

    for bad, why in (
        ("trace.txt", "must end in .jsonl"),
        (f"{tmp_path}/no/t.jsonl", "existing directory"),
        (str(output), "another flag"),
    ):
        status, _, err = run(*arguments, *file, f"--trace={bad}", models=False)
        assert status == 2 and why in err and err.count("\n") == 1


def test_a_profile_names_the_parts_of_a_cycle(run: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    arguments = ("--prompt=x", "--max_new_tokens=4", "--config.compare_plain=False")
    status, out, _ = run(*arguments, f"--profile_dir={folder}")
    assert status == 0 and f"profile of one generation in {folder}" in out.replace("\n", "")
    (written,) = folder.rglob("*.xplane.pb")
    for scope in ("draft", "verify", "accept", "commit"):
        assert f"specjax/{scope}/".encode() in written.read_bytes(), scope


def test_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("one two \r\n tab\tend\u2028x".encode())
    assert [p.text for p in read_prompts(path)] == ["one two ", " tab\tend\u2028x"]
    assert [p.text for p in read_prompts(write_prompts(tmp_path / "p.jsonl"))] == PROMPTS
    bad, lone = tmp_path / "bad.txt", tmp_path / "lone.jsonl"
    bad.write_bytes(b"ok\na\xff\xed\xa0\x80b\n")  # the last three are how some write U+D800
    lone.write_text(json.dumps({"messages": [{"role": "user", "content": "a\ud83db"}]}))
    for file, where in ((bad, "bad.txt, line 2: not UTF-8 at byte 1"), (lone, r"line 1.*\\ud83d")):
        with pytest.raises(ValueError, match=where):
            read_prompts(file)
    assert (
        read_prompts(bad, replace_bad_text=True)[1].text.strip("\ufffd")
        == "a\ufffd\ufffd\ufffd\ufffdb"
    )
    (one,) = read_prompts(lone, replace_bad_text=True)
    assert one.messages == [{"role": "user", "content": "a\ufffdb"}]


TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ ' think' if think is not defined or think }}"
    "{% endif %}"
)


def test_conversations(run: Cli, tmp_path: Path) -> None:
    """From flags and from a file, in the target's template; a continued run knows them again."""
    (run.target / "chat_template.jinja").write_text(TEMPLATE)
    short = ("--max_new_tokens=4", "--config.compare_plain=False")
    status, out, err = run("--prompt=hi", "--chat", "--system=Be brief.", *short)
    assert (status, err) == (0, "")
    assert "system: Be brief.\nuser: hi\nassistant: think" in out
    status, out, err = run("--prompt=hi", *short)
    assert status == 0 and err.count("\n") == 1 and "--chat" in err

    file, output, trace = (tmp_path / name for name in ("p.jsonl", "out.jsonl", "t.jsonl"))
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    said += [{"role": "user", "content": "c"}]
    lines: list[dict[str, Any]] = [
        {"messages": said, "id": 1},
        {"prompt": "x"},
        {"messages": said[:1], "tools": [{"name": "clock"}]},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = (*short, f"--prompt_file={file}", f"--output={output}", f"--trace={trace}")
    args = "--template_args=think=false,more=[1,2]"
    assert run(*arguments, args)[0] == 0
    texts = [text.prompt for text in trace_file.load(trace).texts]
    assert texts == [
        "user: a\nassistant: b\nuser: c\nassistant:",
        "x",
        "[clock]user: a\nassistant:",
    ]
    records = [json.loads(line) for line in output.read_text().splitlines()]
    asked = [{k: r[k] for k in ("prompt", "messages", "tools") if k in r} for r in records]
    assert asked == [{"messages": said}, {"prompt": "x"}, lines[2]]
    assert "is complete" in run(*arguments, args)[1]
    for changed, why in (
        (("--template_args=think=true",), "template_args"),
        ((args, "--chat"), "chat=None"),
    ):
        status, _, err = run(*arguments, *changed)
        assert status == 2 and why in err and "another --output" in err
    lines[2]["tools"] = [{"name": "watch"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, _, err = run(*arguments, args)
    assert status == 2 and "line 3: is about another prompt" in err


def test_ctrl_c_ends_a_stream_with_its_figures(run: Cli, monkeypatch: Any) -> None:
    def pieces(*args: Any, **kwargs: Any) -> Any:
        for piece in stream(*args, **kwargs):
            yield piece
            os.kill(os.getpid(), signal.SIGINT)

    stream = specjax.stream
    monkeypatch.setattr(specjax, "stream", pieces)
    status, out, err = run("--prompt=def area(", "--stream", "--config.cycles_per_call=1")
    assert status == 130 and err == "interrupted\n"
    assert shown(out, "def area(") and re.search(r"\ntau .*\(\d+ tokens, 2 passes, 1 text\)", out)


def test_txt_prompts_to_the_terminal(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("def a(\nx = \nyy\n")
    arguments = (f"--prompt_file={tmp_path / 'p.txt'}", "--max_new_tokens=8", "--drafter=ngram")
    line = [*arguments, f"--target={run.target}", "--config.batch_size=2", "--config.repeats=1"]
    status, out, err = run(*line, models=False)
    assert (status, err) == (0, "")
    assert "def a(" in out and "3 texts" in out and "equals that of plain decoding" in out


def test_colour_and_no_color(monkeypatch: Any) -> None:
    """Colour where there is a terminal, marks elsewhere; nothing else differs."""
    spans = [("a b", "accepted"), ("\n    ", "correction"), (" c", "bonus"), ("[red]\x1b", "bonus")]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    colour = Painter(Console(force_terminal=True))
    assert colour.colour
    looks = {colour.paint("x", label) for label in MARKS}
    assert len(looks) == 3 and all("\x1b[" in look for look in looks)
    assert "\x1b[1;3;94m" in colour.paint("x", "bonus")  # by style as well as by colour
    assert "␛" in colour.paint("\x1b[31m", "accepted")  # generated text steers no terminal

    monkeypatch.setenv("NO_COLOR", "1")
    for console in (Console(force_terminal=True), Console(force_terminal=False)):
        plain = Painter(console)
        assert not plain.colour
        text = "".join(plain.paint(*span) for span in spans[:3])
        assert text == "a b«»\n     ⟦c⟧"
        assert unmark(text) == "a b\n     c"
    assert Painter(Console(force_terminal=False)).paint(*spans[3]) == "⟦[red]\x1b⟧"


def test_no_half_characters(run: Cli) -> None:
    tokenizer = specjax.load(run.target).tokenizer
    assert tokenizer is not None
    tokens = tokenizer.encode("é→🙂")
    labels = ["accepted", "correction", "bonus"] * len(tokens)
    reading, seen = Reading(tokenizer, []), []
    for i, token in enumerate(tokens):
        reading.read([token])
        if i + 1 == len(tokens):
            reading.end()
        seen += [(text, labels[index]) for index, text in reading.take(10)]
    assert "".join(text for text, _ in seen) == "é→🙂"
    assert "\ufffd" not in "".join(text for text, _ in seen)
    assert len(seen) == 3  # each with the label of the token that completes it


def test_first_difference() -> None:
    assert first_difference([[1, 2], [3]], [[1, 2], [3]]) is None
    assert first_difference([[1, 2], [3]], [[1, 2], [3, 4]]) == (1, 1)
    assert first_difference([[1, 5, 2]], [[1, 2]]) == (0, 1)


def test_help_and_start_as_a_module() -> None:
    """--help describes every flag; the module starts from the checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.generate", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=100,
    )
    words = "target drafter draft num_draft rule temperature top_p prompt prompt_file"
    for flag in f"{words} output max_new_tokens seed mesh dtype stream config".split():
        assert f"--{flag}:" in done.stdout or f"--[no]{flag}:" in done.stdout, flag
