"""Ctrl-C ends a script with one line and status 130, whatever it comes in."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from specjax.cli import errors

_STORE = """
import os, signal, sys
sys.path.insert(0, {root!r})
from absl import flags
from specjax.cli import errors, script

def restore(argv):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as pressed:
        raise {kind}(f"Error reading array: {{pressed!r}}")  # as TensorStore does

def main(argv):
    with errors.one_line_errors():
        restore(argv)

script.run(main, flags.FLAGS)
"""


@pytest.mark.parametrize("kind", ["ValueError", "RuntimeError"])
def test_an_error_that_a_library_made_of_ctrl_c_is_ctrl_c(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    line = [sys.executable, "-c", _STORE.format(root=root, kind=kind)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_is_not_lost_in_a_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python ignores, as in a finaliser or the collector's callbacks, comes again."""
    monkeypatch.setattr(sys, "unraisablehook", errors.interrupt_again)

    class Pressed:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pressed()
        time.sleep(5)
