"""What a script is, and how it starts and ends."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app

from specjax.cli import errors, flags, processes
from specjax.cli.errors import one_line_errors, one_line_warning
from specjax.core import hosts, launch
from specjax.core.files import Superseded
from specjax.core.options import described


@dataclasses.dataclass(frozen=True)
class Script:
    """A command line: called, it runs.

    Attributes:
      name: of its file in `specjax.cli`; `python -m experiments.NAME` and `specjax-NAME` run it.
      about: what --help says before the flags.
      options: a dataclass of `specjax.core.options`: what may be given, by flags and by --config.
        A ValueError that it raises ends the script in one line.
      main: what it does with them; it returns the exit status, None is 0.
      settings: the record that --config holds, where that needs a file; --help lists its fields.
      several: whether it can be run by several processes together.
      survives_sigterm: whether several processes stop by themselves after SIGTERM
        (`train.stopping`).
    """

    name: str
    about: str | None
    options: type
    main: Callable[[Any], int | None]
    settings: type | None = None
    several: bool = False
    survives_sigterm: bool = False

    def __call__(self) -> None:
        """Runs it with the command line of this process, and ends the process."""
        sys.modules["__main__"].__doc__ = self.help()
        self.define()

        def start(argv: Sequence[str]) -> list[str]:
            rest = flags.read(argv)
            with one_line_errors():
                processes.join(argv, several=self.several, survives_sigterm=self.survives_sigterm)
                flags.import_files()
                flags.take_kernels()
                hosts.first_writes("places", lambda: flags.take_places(self.options))
                flags.expand_places(self.options)
            return rest

        run(lambda argv: self._main(), start)

    def here(self, argv: Sequence[str]) -> int | None:
        """Runs it within this process, whose ``sys.argv`` must be ``argv``; for tests."""
        self.define()
        flags.read(argv)
        with one_line_errors():
            flags.import_files()
            flags.take_kernels()
            flags.take_places(self.options)
        return self._main()

    def define(self) -> None:
        """Defines its flags."""
        processes.define_flags()
        flags.define(self.options, self.name, self.settings)

    def _main(self) -> int | None:
        with one_line_errors():
            options = flags.taken(self.options)
        try:
            return self.main(options)
        finally:
            flags.tell_unused()

    def help(self) -> str:
        """The text before the flags: with the fields of --config, and named as it was started."""
        text = self.about or ""
        if processes.called(sys.argv[0]).startswith("specjax-"):
            text = _as_installed(text)
        if self.settings is None:
            fields = list(_told(described(self.options, config=True)))
        else:
            fields = list(_told(described(self.settings)))
        if fields:
            text += "\nFields of --config, as --config.NAME=VALUE, with their defaults"
            text += ":" if self.settings is None else "; a file says\nwhat differs from them:"
            text += "\n\n" + "\n".join(fields) + "\n"
        return text


def _as_installed(text: str) -> str:
    """The names of scripts in a text as the commands of an installation are called."""
    return re.sub(
        r"(?:python -m )?\bexperiments\.([a-z]\w*)",
        lambda found: f"specjax-{found[1].replace('_', '-')}",
        text,
    )


def _told(options: Iterable[tuple[str, Any, str]], prefix: str = "") -> Iterator[str]:
    """A line an option, and those of a group behind its name."""
    for name, value, help in options:
        if dataclasses.is_dataclass(value):
            yield from _told(described(type(value)), f"{prefix}{name}.")
        else:
            default = "" if value is dataclasses.MISSING else f"={value!r}"
            yield f"  {prefix}{name}{default}: {help}"


def run(main: Callable[[Sequence[str]], Any], start: Callable[[Sequence[str]], list[str]]) -> None:
    """`app.run`, where ``start`` reads the flags; interrupts and full disks are one line."""
    warnings.formatwarning = one_line_warning
    sys.unraisablehook = errors.interrupt_again
    try:
        signal.signal(signal.SIGINT, errors.interrupt)  # see `experiments/__init__`
        app.run(main, flags_parser=start)
    except SystemExit as end:
        if launch.joined():
            processes.end_together(end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done but taking Python down
        raise
    except KeyboardInterrupt:
        _end_interrupted()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if launch.joined():
            launch.fail("its output is not read any more", 1)
        sys.exit(1)
    except Exception as error:
        if errors.interrupted():
            _end_interrupted()
        _fail_all(error)
        raise


def _end_interrupted() -> NoReturn:
    errors.tell("interrupted")
    # JAX may crash when Python is torn down under a program of its own that still runs.
    launch.fail("interrupted", 130)


def _fail_all(error: Exception) -> None:
    """Ends this process, and those that were started with it; returns where it is alone."""
    if isinstance(error, Superseded):
        errors.tell(f"error: {error}")
        launch.fail(str(error), 1) if launch.joined() else sys.exit(1)
    if isinstance(error, OSError) and error.errno in errors.NOT_WRITTEN:
        told = (
            f"{error.filename2 or error.filename or 'a file'} could not be written: "
            f"{error.strerror}. What was done before is kept: make room, and run the same "
            "command again."
        )
        errors.tell(f"error: {told}")
        launch.fail(told, 2) if launch.joined() else sys.exit(2)
    if launch.joined():
        launch.let_others_speak()
        errors.tell(traceback.format_exc().rstrip())
        launch.fail(f"{type(error).__name__}: {hosts.message_of(error)[:500]}", 1)
