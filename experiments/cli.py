"""How every script here starts and fails: bad input is one line on stderr and exit status 2."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import overrides
from specjax import lab
from specjax.core import hosts, launch, own
from specjax.core.cluster import find_place
from specjax.core.files import take_directory, take_file

_stderr: IO[str] | None = None  # where errors go when nothing else is printed
_PLACE = ("coordinator", "num_processes", "process_id")  # flags that say which process this is
# What a file system says when it takes no more.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


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


class Refused(SystemExit):
    """The end of a script that was given what it cannot use."""

    def __init__(self, message: str):
        super().__init__(2)
        self.message = message


def run(
    main: Callable[[Sequence[str]], Any], *, several: bool = False, survives_sigterm: bool = False
) -> None:
    """`app.run` for a main without positional arguments.

    Args:
      main: what the script does.
      several: whether it can be run by several processes together.
      survives_sigterm: whether several processes stop by themselves after SIGTERM
        (`train.stopping`).
    """
    warnings.formatwarning = one_line_warning
    define_flags()

    def start(argv: Sequence[str]) -> list[str]:
        rest = read_flags(argv)
        with one_line_errors():
            join(argv, several=several, survives_sigterm=survives_sigterm)
            import_files()
            hosts.first_writes("places", take_places)
        return rest

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # see `experiments/__init__`
        app.run(main, flags_parser=start)
    except SystemExit as end:
        if launch.joined():
            end_together(end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done but taking Python down
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        # JAX may crash when Python is torn down under a program of its own that still runs.
        launch.fail("interrupted", 130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if launch.joined():
            launch.fail("its output is not read any more", 1)
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
            told = (
                f"{error.filename2 or error.filename or 'a file'} could not be written: "
                f"{error.strerror}. What was done before is kept: make room, and run the same "
                "command again."
            )
            print(f"error: {told}", file=_stderr or sys.stderr, flush=True)
            launch.fail(told, 2) if launch.joined() else sys.exit(2)
        if not launch.joined():
            raise
        launch.let_others_speak()
        traceback.print_exc(file=_stderr)
        launch.fail(f"{type(error).__name__}: {hosts.message_of(error)[:500]}", 1)


def define_flags() -> None:
    """The flags that every script has. Repeated calls change nothing."""
    if "coordinator" in flags.FLAGS:
        return
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT where process 0 of several listens, or auto: ask the cluster that JAX "
        "recognises. Not needed under Slurm's srun, Open MPI 4 and on Cloud TPU in Kubernetes.",
    )
    flags.DEFINE_integer("num_processes", None, "How many processes run this together; 1: alone.")
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
    flags.DEFINE_multi_string(
        "import", [], "A file of your own, FILE.py, that registers what is named (specjax.extend)."
    )


def import_files() -> None:
    """Runs what --import names. Raises ValueError, in one line."""
    files = flags.FLAGS["import"].value if "import" in flags.FLAGS else None
    for file in files or ():
        try:
            own.import_file(file)
        except ValueError as error:
            raise ValueError(f"--import={file}: {error}") from None


def join(argv: Sequence[str], *, several: bool, survives_sigterm: bool) -> None:
    """Makes this process one of several where it was started so; 0 is the one that prints.

    Raises:
      ValueError: in one line, if the processes do not come together, or the script is for one.
    """
    global _stderr
    coordinator, num_processes, process_id = (flags.FLAGS[name].value for name in _PLACE)
    if not several:
        if num_processes != 1 and {coordinator, num_processes, process_id} != {None}:
            raise ValueError(
                f"experiments.{Path(argv[0]).stem} runs as one process: leave --coordinator, "
                "--num_processes and --process_id out."
            )
        return
    place = find_place(coordinator, num_processes, process_id, os.environ)
    if place is None:
        return
    told = {"command line": shared_arguments(argv), "version of JAX": jax.__version__}
    if place.process_id:
        _stderr = sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 until the end
        os.dup2(sys.stdout.fileno(), 1)  # what libraries print, too
    launch.join(place, told, survives_sigterm=survives_sigterm)


def shared_arguments(argv: Sequence[str]) -> list[str]:
    """What all processes are given alike, in an order of its own."""
    kept, own = [], False
    for before, argument in itertools.pairwise(argv):
        follows = own and "=" not in before  # the value of --process_id 1
        name = argument.split("=")[0].lstrip("-")
        own = argument.startswith("-") and name in _PLACE
        if not own and not follows:
            kept.append(argument)
    return sorted(kept)


def end_together(end: SystemExit) -> NoReturn:
    """The end of one of several processes: with the others if all went well, else at once."""
    if not end.code:
        launch.leave()
        raise end
    message = getattr(end, "message", f"ended with status {end.code}")
    launch.fail(message, end.code if isinstance(end.code, int) else 1)


def define_config(default: Path | None = None) -> flags.FlagHolder[Any]:
    """The flag --config; its value is the config, None where there is no file.

    A default is read as the flag is defined, with what the command line overrides of it: a script
    with such ends here, in one line, where that is wrong.
    """
    told = "A file of configs/." if default is None else f"Default: {default.name} of configs/."
    with one_line_errors():
        overrides.check(sys.argv, default)
    holder = config_flags.DEFINE_config_file(
        "config",
        None if default is None else str(default),
        f"{told} Override its fields with --config.field=value.",
        lock_config=False,
        accept_new_attributes=True,  # `overrides.check` says where
    )
    list_in_help("config", sys._getframe(1).f_globals["__name__"])
    # What `parse` checks overrides against.
    flags.FLAGS["config"].file = default  # type: ignore[attr-defined]
    return holder


def parse(argv: Sequence[str]) -> list[str]:
    """Sets the flags from a command line and takes the places they name, or exits with one line."""
    rest = read_flags(argv)
    with one_line_errors():
        import_files()
        take_places()
    return rest


def read_flags(argv: Sequence[str]) -> list[str]:
    """Sets the flags from a command line, or exits with one line."""
    logging.set_verbosity(logging.WARNING)  # JAX informs about every backend it does not find
    with one_line_errors():
        if "config" in flags.FLAGS:
            overrides.check(argv, getattr(flags.FLAGS["config"], "file", None))
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            raise ValueError(told(error)) from None
        if rest[1:]:
            raise ValueError(f"unexpected argument {rest[1]!r}; flags are written --name=value.")
    return rest


def told(error: flags.Error) -> str:
    """What absl says of a command line; of a flag that is missing, what the flag is."""
    missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
    if missing is None:
        return str(error)
    return f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}"


def one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """What is meant for users without the place in the code; other warnings as Python has them."""
    if not issubclass(category, UserWarning):
        return f"{filename}:{lineno}: {category.__name__}: {message}\n"
    return f"note: {' '.join(str(message).split())}\n"


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around the reading of input only: elsewhere an exception is a bug and keeps its traceback."""
    try:
        yield
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}." if error.filename else str(error))
    except ValueError as error:
        fail(str(error))


@contextlib.contextmanager
def needs_lab() -> Iterator[None]:
    """Around imports of what `specjax[lab]` brings: without it the script ends in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(lab.told(error))


def fail(message: str) -> NoReturn:
    """Says what was wrong and exits."""
    message = " ".join(message.split())
    print(f"error: {message}\n", end="", file=_stderr or sys.stderr, flush=True)  # in one piece
    raise Refused(message)
