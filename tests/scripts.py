"""Scripts side by side in one process, though their flags share names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import grain  # noqa: F401 - its flags are there before any are saved, and stay: it reads them
from absl import flags
from absl.testing import flagsaver

from specjax.cli.script import Script


def script(name: str) -> Script:
    """What ``python -m experiments.NAME`` runs."""
    found: Script = importlib.import_module(f"experiments.{name}").script
    return found


def invoke(script: Script, capsys: Any, *line: str) -> tuple[int, str, str]:
    """Runs a `script` in this process.

    Args:
      script: it.
      capsys: the fixture.
      line: its command line, the script's name first.

    Returns:
      (exit status, stdout, stderr)
    """
    capsys.readouterr()
    try:
        status = start(script, *line)
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


def start(script: Script, *line: str) -> int:
    """The exit status of a script with a command line. Raises SystemExit as it does."""
    with _flags(*line):
        return script.here(list(line)) or 0


def flags_of(name: str) -> set[str]:
    """The names of a script's flags."""
    with _flags(name):
        script(name).define()
        return set(flags.FLAGS)


@contextmanager
def _flags(*line: str) -> Iterator[None]:
    """Flags that scripts define within it are gone behind it; ``sys.argv`` is the line."""
    before = set(flags.FLAGS)
    # Config flags look for their overrides in sys.argv.
    with flagsaver.flagsaver(), mock.patch.object(sys, "argv", list(line)):
        flags.FLAGS.unparse_flags()
        try:
            yield
        finally:
            for name in set(flags.FLAGS) - before:
                place = flags.FLAGS.find_module_defining_flag(name)
                if name.startswith("config.") or place.startswith("specjax."):  # no library's
                    delattr(flags.FLAGS, name)
            flags.FLAGS.mark_as_parsed()
