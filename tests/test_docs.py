"""The pages that show code: what they tell a reader to write and to run, runs."""

from __future__ import annotations

import functools
import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import invoke, script
from tiny_checkpoint import write_tiny

from specjax import jobs
from specjax.drafters.registry import DRAFTERS
from specjax.models import FAMILIES
from specjax.train.objectives import OBJECTIVES
from specjax.verify import RULES

ROOT = Path(__file__).resolve().parent.parent
EXTENDING = (ROOT / "docs" / "extending.md").read_text()

# What a reader waits for and a test does not: flags by script, behind those of the page.
LESS: dict[str, tuple[str, ...]] = {
    "audit": ("--checks=CHECKS",),
    "generate": (
        "--config=configs/generate.py",
        "--target=TINY",
        "--max_new_tokens=12",
        "--config.compare_plain=False",
    ),
    "benchmark": (
        *("--config.target=TINY", "--config.num_prompts=2", "--config.max_new_tokens=8"),
        *("--config.calibrate=0", "--config.compilation_cache="),
    ),
    "train_drafter": (
        *(
            "--config.target=TINY",
            "--config.data.train=('DATA',)",
            "--config.data.heldout=('DATA',)",
        ),
        *("--config.steps=4", "--config.warmup_steps=1", "--config.log_every=2"),
        *("--config.eval_every=4", "--config.checkpoint_every=4", "--config.data.seq_len=32"),
        *("--config.eval.prompts=2", "--config.eval.rows=4", "--config.eval.prompt_tokens=8"),
        *("--config.eval.max_new_tokens=8", "--config.compute_dtype=float32"),
    ),
}


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """What the pages' files register is forgotten: other tests go over the registries."""
    tables: list[dict[str, Any]] = [DRAFTERS, FAMILIES, OBJECTIVES, RULES]
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ROOMS = ("specjax", "experiments", "configs", "examples", "tools", "tests", "notebooks", "docs")


def test_files_that_are_named_exist() -> None:
    """In pages and, in backquotes, in the code: a path is the end of one of the repository."""
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    ends = {
        p.relative_to(ROOT).as_posix().split("/", n)[n] for p in sources for n in range(depth(p))
    }
    named = re.compile(r"(?<![\w./])(?:[\w-]+/)+[\w-]+\.(?:py|md|ipynb)\b")
    asked: dict[str, str] = {}
    for path in [*PAGES, *(p for p in sources if p.suffix in (".py", ".ipynb"))]:
        text = path.read_text()
        if path.suffix == ".py":
            text = "\n".join(re.findall(r"`[^`\n]+`", text))
        asked |= dict.fromkeys(named.findall(text), path.name)
    assert len(asked) > 60
    # Of others, and stand-ins: capitals are the reader's.
    given = {"path/to/file.py", "medusa/model/medusa_choices.py"}
    assert not {
        n: p for n, p in asked.items() if n not in ends | given and not re.search("[A-Z]", n)
    }


def depth(path: Path) -> int:
    return len(path.relative_to(ROOT).parts)


def test_names_of_modules_exist() -> None:
    """`specjax.a.b`, wherever a page that is not about the past has it."""
    named = re.compile(r"(?<![\w./])(?:specjax|experiments|tools|configs)(?:\.[a-z]\w*)+")
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]
    names = {name for page in pages for name in named.findall(page.read_text())}
    assert len(names) > 30
    for name in sorted(names):
        pkgutil.resolve_name(name)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the page's files, a target, a family's checkpoint and text to train on."""
    for block in re.findall(r"```python\n(.*?)```", EXTENDING, re.S):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name is not None, block
        (tmp_path / name[1]).write_text(block)
    write_tiny(tmp_path / "TINY")
    write_tiny(tmp_path / "DIR")
    config = tmp_path / "DIR" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sliding_window": 8}))
    rows = [{"tokens": [i, *range(20, 50)], "prompt_tokens": 1} for i in range(1, 9)]
    (tmp_path / "DATA.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(page: str) -> list[list[str]]:
    """The command lines of a page, each as its script's name and its arguments."""
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", page, re.S)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    found = []
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["python", "-m"] and words[2].startswith("experiments."), line
        found.append([words[2].partition(".")[2], *words[3:]])
    return found


def test_a_method_of_ones_own_from_an_empty_file(workplace: Path, capsys: Any) -> None:
    """docs/extending.md: every file is written, every command run, in their order."""
    seen = []
    for name, *arguments in commands(EXTENDING):
        checks = "rule" if "--rule" in " ".join(arguments) else "guesses"
        own_checks = any(argument.startswith("--checks") for argument in arguments)
        less = [f.replace("DATA", "DATA.jsonl") for f in LESS[name]]
        less = [f.replace("CHECKS", checks) for f in less if not (own_checks and "CHECKS" in f)]
        if "--drafter=lm" in arguments and name == "generate":
            less.append("--draft=TINY")
        if any("DIR" in argument for argument in arguments):
            less = [flag for flag in less if "=TINY" not in flag]
        line = [a.replace("configs/", f"{ROOT}/configs/") for a in [*arguments, *less]]
        module = script(name)
        status, out, err = invoke(module, capsys, name, *line)
        assert status == 0, (name, arguments, out, err)
        seen.append((name, out))
    scripts = {name for name, _ in seen}
    assert scripts == {"audit", "generate", "benchmark", "train_drafter"}
    audits = [out for name, out in seen if name == "audit"]
    assert len(audits) == 4 and all("No fault found" in out for out in audits)
    assert (workplace / "runs" / "ahead" / "export" / "config.json").is_file()


def test_a_cycle_is_driven_by_hand() -> None:
    """docs/stepping.md asserts itself what each piece gives."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "stepping.md").read_text(), re.S)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"stepping.md, block {number}", "exec"), names)
    assert names["trace"].tau > 1 and names["new"] == names["plain"].tokens


def test_scripts_are_functions(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """docs/notebooks.md, with a tiny target in the place of the demo's."""
    tiny = str(workplace / "TINY")
    for job in ("generate", "regenerate", "export"):
        asked = functools.partial(getattr(jobs, job), target=tiny)
        monkeypatch.setattr(jobs, job, asked, raising=False)
    page = (ROOT / "docs" / "notebooks.md").read_text()
    page = page.replace('kind="medusa",', f'kind="medusa", target={tiny!r},')
    names: dict[str, Any] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page, re.S), 1):
        exec(compile(block, f"notebooks.md, block {number}", "exec"), names)
    assert "reads back equal" in capsys.readouterr().out
    assert len(names["data"].read_text().splitlines()) == 12 and names["drafter"].num_draft == 2
    said = invoke(names["script"], capsys, "echo", "--text=a", "--config.loud", "--times=3")
    assert said == (0, "A A A\n", "")
    with pytest.raises(ValueError, match="--prompt and --prompt_file are both given"):
        jobs.generate(prompt="x", prompt_file="y")
    assert "top_k" in inspect.signature(jobs.generate).parameters
    assert "likeliest tokens" in (jobs.generate.func.__doc__ or "")
