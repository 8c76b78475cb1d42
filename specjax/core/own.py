"""What a file of one's own defines: ``path/to/file.py:NAME``, wherever something is named.

The file is run, once: it is code that whoever writes its name trusts, as in ``python file.py``.
What a checkpoint or a trace says of a file is never run.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from specjax.core.by_shape import shortened


@dataclasses.dataclass(frozen=True)
class Place:
    """A text ``FILE.py:NAME[:REST]`` taken apart."""

    file: str
    name: str
    rest: str = ""  # what stands behind a second colon

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"


def is_own(text: object) -> bool:
    """Whether a name is that of a file's object, and not of something registered."""
    return isinstance(text, str) and (".py:" in text or text.endswith(".py"))


def read_place(text: str) -> Place:
    """Takes a name apart, without a look at the file.

    Raises:
      ValueError: in one line, if no name follows the file.
    """
    file, _, behind = text.partition(".py:")
    name, _, rest = behind.partition(":")
    if not file or not name.isidentifier():
        raise ValueError(f"{text}: write it FILE.py:NAME, NAME being what the file calls it.")
    return Place(f"{file}.py", name, rest)


def find(text: str) -> Any:
    """The object that ``FILE.py:NAME`` names; what stands behind it is the caller's.

    Raises:
      ValueError: in one line, if there is no such file or object, or the file cannot be run.
    """
    place = read_place(text)
    try:
        module = run(place.file)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error
    if not hasattr(module, place.name):
        there = [n for n, x in vars(module).items() if not n.startswith("_") and _own(x, module)]
        raise ValueError(
            f"{text}: {place.file} has no {place.name!r}; it has {', '.join(there) or 'nothing'}"
            f"{_meant(place.name, there)}"
        )
    return getattr(module, place.name)


def run(file: str | Path) -> ModuleType:
    """The module that a file makes. It is run once, and again when it was changed.

    Raises:
      ValueError: in one line, with the line of the file that raised.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {file}.")
    path = path.resolve()
    name = "own_" + "_".join(path.with_suffix("").parts[1:])
    state = path.stat()
    stamp = (state.st_mtime_ns, state.st_size)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__stamp__", None) == stamp:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module)["__stamp__"] = stamp
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # what lies beside it, as in a script
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        sys.modules.pop(name)
        if known is not None:
            sys.modules[name] = known
        raise ValueError(f"{path.name}{_line(error, path)}: {_said(error)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


_imported: dict[str, Path] = {}  # files whose registered names may be meant by any other name


def import_file(file: str) -> ModuleType:
    """`run`, for what the file registers."""
    module = run(file)
    _imported[file] = Path(file).expanduser()
    return module


def contents(names: Iterable[object]) -> dict[str, str]:
    """The SHA-256 of each file that ``names`` are of, and of those that were imported.

    Results depend on them: a run that goes on compares them with those that it began with.
    """
    given = [read_place(name).file for name in names if isinstance(name, str) and ".py:" in name]
    files = {**_imported, **{file: Path(file).expanduser() for file in given}}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if path.is_file()
    }


def same_thing(one: Any, other: Any) -> bool:
    """Whether two objects are one, or the same definition of a file that was run again."""
    if one is other:
        return True
    kinds = [x if inspect.isclass(x) or inspect.isfunction(x) else type(x) for x in (one, other)]
    names = [(x.__module__, x.__qualname__) for x in kinds]
    return names[0] == names[1] and names[0][0] not in ("builtins", "__main__")


def _line(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _said(error: BaseException) -> str:
    said = str(error.msg if isinstance(error, SyntaxError) else error)
    lacking = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", said)
    if lacking is not None and lacking[2] in sys.modules:
        there = vars(sys.modules[lacking[2]])
        return f"ImportError: {lacking[2]} has no {lacking[1]!r}{_meant(lacking[1], there)}"
    if isinstance(error, SystemExit):
        said = f'({said}): what only a script does goes below `if __name__ == "__main__":`.'
        return f"it ends with sys.exit{said}"
    return f"{type(error).__name__}: {shortened(said)}"


def _meant(name: str, there: Iterable[str]) -> str:
    """The end of a sentence that says what there is instead of ``name``."""
    near = difflib.get_close_matches(name, there, 1)
    return f"; did you mean {near[0]}?" if near else "."


def _own(value: Any, module: ModuleType) -> bool:
    """Whether a name of the file is its own, or a value: not what it imported."""
    if inspect.ismodule(value):
        return False
    return getattr(value, "__module__", module.__name__) == module.__name__
