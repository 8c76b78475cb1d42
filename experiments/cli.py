"""What scripts that are not in `specjax.cli` yet start and fail with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from specjax.cli import flags as ours
from specjax.cli import processes, script
from specjax.cli.errors import Refused, fail, needs_lab, one_line_errors
from specjax.cli.processes import shared_arguments
from specjax.core import hosts
from specjax.runs.places import take_directory, take_file

__all__ = ["Refused", "fail", "needs_lab", "one_line_errors", "shared_arguments"]


def define_file(name: str, help: str, *, ending: str = "", default: str | None = None) -> Any:
    """A flag for a file that is written at the end: tried and locked before anything else."""
    holder = flags.DEFINE_string(name, default, help)
    flags.FLAGS[name].place = ("file", ending)  # type: ignore[attr-defined]
    list_in_help(name, sys._getframe(1).f_globals["__name__"])
    return holder


def define_directory(name: str, help: str) -> Any:
    """The same for a directory."""
    holder = flags.DEFINE_string(name, None, help)
    flags.FLAGS[name].place = ("directory", "")  # type: ignore[attr-defined]
    list_in_help(name, sys._getframe(1).f_globals["__name__"])
    return holder


def list_in_help(name: str, script: str) -> None:
    """Makes --help of a script, given by its ``__name__``, list a flag that was defined here."""
    module = sys.argv[0] if script == "__main__" else script
    flags.FLAGS.register_key_flag_for_module(module, flags.FLAGS[name])


def take_places() -> None:
    """Raises ValueError, in one line, if what a flag names cannot be written."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        kind, ending = getattr(flag, "place", ("", ""))
        if not kind or not flag.value:
            continue
        if not flag.value.endswith(ending):
            raise ValueError(f"--{name}={flag.value}: must end in {ending}.")
        take = take_file if kind == "file" else take_directory
        flag.value = str(take(flag.value, f"--{name}"))


def run(
    main: Callable[[Sequence[str]], Any], *, several: bool = False, survives_sigterm: bool = False
) -> None:
    """`app.run` for a main without positional arguments; see `specjax.cli.script.Script`."""
    define_flags()

    def start(argv: Sequence[str]) -> list[str]:
        rest = ours.read(argv)
        with one_line_errors():
            processes.join(argv, several=several, survives_sigterm=survives_sigterm)
            ours.import_files()
            hosts.first_writes("places", take_places)
        return rest

    script.run(main, start)


def define_flags() -> None:
    """The flags that every script has. Repeated calls change nothing."""
    processes.define_flags()
    if "import" not in flags.FLAGS:
        ours.define_import()


def define_config(default: Path | None = None) -> flags.FlagHolder[Any]:
    """The flag --config; its value is the config, None where there is no file."""
    ours.define_config(default)
    return flags.FlagHolder(flags.FLAGS, flags.FLAGS["config"])


def parse(argv: Sequence[str]) -> list[str]:
    """Sets the flags from a command line and takes the places they name, or exits with one line."""
    rest = ours.read(argv)
    with one_line_errors():
        ours.import_files()
        take_places()
    return rest
