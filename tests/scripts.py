"""Scripts side by side in one process, though their flags share names."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

from absl import flags
from absl.testing import flagsaver

from experiments import cli

_DEFINED: dict[str, dict[str, Any]] = {}  # by script
OURS = ("experiments.", "specjax.cli.")
_NAMES: set[str] = set()  # of flags that a script has defined; libraries define some, too


@contextlib.contextmanager
def script(name: str) -> Iterator[ModuleType]:
    """``experiments.NAME`` with its own flags; those of other scripts are back afterwards."""
    others = _take()
    try:
        module = importlib.import_module(f"experiments.{name}")
        for flag, value in _DEFINED.get(name, {}).items():
            flags.FLAGS[flag] = value
        yield module
    finally:
        taken = _take()
        if not hasattr(sys.modules[f"experiments.{name}"], "script"):
            _DEFINED[name] = taken
        for flag, value in others.items():
            flags.FLAGS[flag] = value


def invoke(module: ModuleType, capsys: Any, *line: str) -> tuple[int, str, str]:
    """Runs the main of a `script` in this process.

    Args:
      module: the script, with its flags.
      capsys: the fixture.
      line: its command line, the script's name first.

    Returns:
      (exit status, stdout, stderr)
    """
    capsys.readouterr()
    status = 0
    # Config flags look for their overrides in sys.argv.
    with flagsaver.flagsaver(), mock.patch.object(sys, "argv", list(line)):
        flags.FLAGS.unparse_flags()
        try:
            status = start(module, *line)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            flags.FLAGS.mark_as_parsed()
    return status, *capsys.readouterr()


def flags_of(name: str) -> set[str]:
    """The names of a script's flags."""
    with script(name) as module, mock.patch.object(sys, "argv", [name]):
        module.script.define() if hasattr(module, "script") else cli.define_flags()
        return set(flags.FLAGS)


def start(module: ModuleType, *line: str) -> int:
    """The exit status of a script with a command line, its flags not yet parsed."""
    if not hasattr(module, "script"):
        cli.parse(list(line))
        module.main([])
        return 0
    try:
        return module.script.here(list(line)) or 0
    finally:
        _take()  # they are defined anew by the next one


def _take() -> dict[str, Any]:
    """Removes the flags of scripts, and returns them."""
    for name in flags.FLAGS:
        if str(flags.FLAGS.find_module_defining_flag(name)).startswith(OURS):
            _NAMES.add(name)
    names = [name for name in flags.FLAGS if name in _NAMES]
    taken = {name: flags.FLAGS[name] for name in names}
    for name in names:
        delattr(flags.FLAGS, name)
    return taken
