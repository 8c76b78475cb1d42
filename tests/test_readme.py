"""What the README tells a newcomer to run, runs: in its order, as it is written."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from scripts import flags_of, script

import specjax

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


# What a reader waits for and a test does not.
LESS = {"max_new_tokens=128": "max_new_tokens=24", "texts=2000": "texts=500"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def test_the_blocks_of_python_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("python"), 1):
        for what, less in LESS.items():
            block = block.replace(what, less)
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert names["out"].tau >= 1 and names["report"].passed and names["costs"].costs
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_the_commands_name_what_there_is() -> None:
    """Scripts, flags and files; capitals are only in the block that says so."""
    as_they_are, yours = [b for b in blocks("bash") if "experiments.parity" in b or "quick" in b]
    bare = re.sub(r"#.*", "", as_they_are)
    assert not re.search(r"\b[A-Z]{3,}\b", bare) and "path/to" not in TEXT
    commands = [line for b in blocks("bash") for line in b.replace("\\\n", " ").splitlines()]
    seen = 0
    for command in commands:
        words = shlex.split(command, comments=True)
        for module in re.findall(r"experiments\.(\w+)", command.partition("#")[0]):
            known = flags_of(module)
            for word in words:
                flag = re.match(r"--(\w+)", word)
                if flag and flag[1] != "help":
                    assert flag[1] in known, command
                    seen += 1
        for file in re.findall(r"configs/\w+\.py", command):
            assert (ROOT / file).is_file(), file
    assert seen > 20 and "experiments.parity" in yours


def test_every_script_is_installed_and_short() -> None:
    """`specjax-NAME` and `python -m experiments.NAME` are one file of specjax/cli."""
    made = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    files = {p.stem: p for p in (ROOT / "specjax" / "cli").glob("*.py")}
    scripts = {name: text for name, p in files.items() if "\nscript = " in (text := p.read_text())}
    assert {f"specjax-{name.replace('_', '-')}" for name in scripts} >= made.keys()
    for installed, place in made.items():
        name = installed.removeprefix("specjax-").replace("-", "_")
        assert place == f"specjax.cli.{name}:script" and script(name).name == name
    for name, text in scripts.items():
        assert text.count("\n") <= 80 and script(name).about
        assert (
            f"from specjax.cli.{name} import script"
            in (ROOT / "experiments" / f"{name}.py").read_text()
        )
    assert len(made) >= 16


def test_the_package_lists_its_public_names_and_nothing_else() -> None:
    assert dir(specjax) == sorted(specjax.__all__) and len(set(specjax.__all__)) == len(
        dir(specjax)
    )
    names: dict[str, Any] = {}
    exec("from specjax import *", names)
    assert set(specjax.__all__) == names.keys() - {"__builtins__"}
    assert names["measure"].calibrate and names["plot_heat"] is specjax.plot_heat
    with pytest.raises(AttributeError, match="no attribute 'importlib_'"):
        specjax.importlib_  # noqa: B018
