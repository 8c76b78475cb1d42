"""How every script here starts and fails: bad input is one line on stderr and exit status 2."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
from absl import app, flags, logging

from specjax.checkpoint.load import DEMO


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """`app.run` for a main without positional arguments."""
    warnings.formatwarning = one_line_warning
    try:
        app.run(main, flags_parser=parse)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        # JAX may crash when Python is torn down under a program of its own that still runs.
        os._exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def parse(argv: Sequence[str]) -> list[str]:
    """Sets the flags from a command line, or exits with one line."""
    logging.set_verbosity(logging.WARNING)  # JAX informs about every backend it does not find
    with one_line_errors():
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            raise ValueError(str(error)) from None
        except AttributeError as error:  # how config flags say it
            raise ValueError(f"--config has no field {str(error).strip(chr(34))}.") from None
        except OSError as error:  # no such config file
            raise ValueError(f"--config cannot be read: {error}") from None
        if rest[1:]:
            raise ValueError(f"unexpected argument {rest[1]!r}; flags are written --name=value.")
    return rest


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


def fail(message: str) -> NoReturn:
    """Says what was wrong and exits."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def model_directory(name: str) -> Path:
    """The local directory of a model by the name that `specjax.load` takes.

    Of a hub repository it fetches the files of the chat template, which `load` has no use for.
    """
    if name.startswith("demo:"):
        return DEMO / name.removeprefix("demo:")
    path = Path(name).expanduser()
    if path.exists():
        return path if path.is_dir() else path.parent
    patterns = ["chat_template.*", "tokenizer_config.json", "special_tokens_map.json"]
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
