"""Options that are declared once: dataclasses whose fields carry a help text, bounds and a place.

Of one such record are made the flags of a script, the fields of its --config, their defaults and
their checks (`specjax.cli`), and the keywords of a function (`keywords`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, cast

_NEEDED: Any = object()
P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")
S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
LARGEST = 2**31 - 1  # the device counts in int32


def option(
    default: Any = _NEEDED,
    help: str = "",
    *,
    config: bool = False,
    least: float | None = None,
    file: str | None = None,
    directory: bool = False,
    many: bool = False,
) -> Any:
    """A field of a record of options.

    Args:
      default: without one the option must be given.
      help: what it is, for who has not seen the code.
      config: a script takes it as a field of --config, and not as a flag.
      least: the smallest that is taken; an integer: of whole numbers.
      file: it names a file that is written at the end, whose name ends so; "": with any ending.
      directory: it names a directory that is written to.
      many: the flag may be given several times, and not with commas.
    """
    place = "directory" if directory else "" if file is None else "file"
    about = {"help": help, "config": config, "least": least, "place": place, "ending": file or ""}
    about["many"] = many
    if default is _NEEDED:
        return dataclasses.field(metadata=about)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=about)
    return dataclasses.field(default=default, metadata=about)


def again(kind: type, name: str, **changes: Any) -> Any:
    """The option ``name`` of another record, which alone says what it is.

    ``changes`` are arguments of `option`.
    """
    (field,) = (f for f in dataclasses.fields(kind) if f.name == name)
    about = {n: field.metadata[n] for n in ("help", "config", "least", "many")}
    default = {} if field.default is dataclasses.MISSING else {"default": field.default}
    return option(**{**default, **about, **changes})


def check(record: Any) -> None:
    """Raises ValueError, in one line, on a count of the record that is below its least."""
    fields = dataclasses.fields(record)
    check_counts(fields, {field.name: getattr(record, field.name) for field in fields})


def check_counts(
    fields: Iterable[dataclasses.Field[Any]], values: Mapping[str, Any], prefix: str = ""
) -> None:
    """Raises ValueError, in one line, on a value below its field's least.

    ``prefix`` is what stands before the names, where a script asks.
    """
    for field in fields:
        least, count = field.metadata.get("least"), values[field.name]
        if isinstance(least, int) and count is not None:
            check_count(prefix + field.name, count, least)


def check_count(name: str, count: Any, least: int = 1) -> None:
    """Raises ValueError, in one line, unless it is a whole number from ``least`` to `LARGEST`."""
    if not is_integer(count) or not least <= count <= LARGEST:
        raise ValueError(
            f"{name}={count!r}: must be a whole number, at least {least}, at most {LARGEST}."
        )


def is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole_numbers(name: str, values: Sequence[int | str]) -> tuple[int, ...]:
    """The numbers of an option that lists some.

    Raises:
      ValueError: if one is no positive integer, or there is none.
    """
    if not values or not all(str(v).isdecimal() and int(v) > 0 for v in values):
        told = ",".join(map(str, values))
        raise ValueError(f"--{name}={told}: must be positive integers, such as 2,4,8.")
    return tuple(map(int, values))


class Keyworded(Protocol[P, S_contra, R_co]):
    """What `keywords` makes."""

    def __call__(self, *args: P.args, **options: P.kwargs) -> R_co: ...

    def of(self, record: S_contra, /) -> R_co:
        """The same, of a record."""
        ...


def keywords(record: Callable[P, S]) -> Callable[[Callable[[S], R]], Keyworded[P, S, R]]:
    """Makes of a function of a record one that takes the record's fields as keywords.

    Its signature and docstring list them, with their defaults and help texts. As ``of`` it has the
    function that takes a record. It raises ValueError, in one line, on a keyword that is none, on a
    value of another type, and where the directory of a file that it would write is missing.
    """

    def wrap(function: Callable[[S], R]) -> Keyworded[P, S, R]:
        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            return function(cast(Any, record)(**typed(cast(type, record), args, options)))

        takes = inspect.signature(record)
        returned = inspect.signature(function).return_annotation
        made: Any = call
        made.__signature__ = takes.replace(return_annotation=returned)
        made.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nArgs:\n" + "".join(
            f"  {name}: {help}\n" for name, _, help in described(record)
        )
        made.of = function
        return cast(Keyworded[P, S, R], made)

    return wrap


def typed(record: type, args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that keywords give, as a command line would. Raises ValueError, in one line."""
    fields = {field.name: field for field in dataclasses.fields(record)}
    try:
        options = {**inspect.signature(record).bind_partial(*args).arguments, **options}
    except TypeError:
        raise ValueError(f"Options are given by name, such as {next(iter(fields))}=..") from None
    for name in options.keys() - fields.keys():
        near = difflib.get_close_matches(name, fields, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(fields)}."
        raise ValueError(f"{name}: no such option{hint}")
    none = dataclasses.MISSING
    missing = [n for n, f in fields.items() if n not in options and default_of(f) is none]
    if missing:
        raise ValueError(f"{missing[0]} is missing: {fields[missing[0]].metadata.get('help', '')}")
    hints, found = typing.get_type_hints(record), dict[str, Any]()
    for name, value in options.items():
        value = _as_given(value, hints[name])
        if not fits(value, hints[name]):
            told = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise ValueError(f"{name}={value!r}: must be {str(told).replace('typing.', '')}.")
        file = fields[name].metadata.get("place") == "file"
        if (
            file
            and isinstance(value, str)
            and value
            and not Path(value).expanduser().parent.is_dir()
        ):
            raise ValueError(
                f"--{name}={value} lies in no existing directory; name a file in an existing "
                "directory."
            )
        found[name] = value
    return found


def _as_given(value: Any, hint: Any) -> Any:
    """A path as a text, a list as a tuple; a text where several may be given, as the only one."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    several = any(typing.get_origin(kind) is tuple for kind in (hint, *typing.get_args(hint)))
    if several and isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def fits(value: Any, hint: Any) -> bool:
    """Whether an option of that type may have the value; a whole number is a float as well."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, kind) for kind in inner)
    if origin is typing.Literal:
        return type(value) is str and value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(v, inner[0]) for v in value)
    if hint is int:
        return is_integer(value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def described(record: Any, *, config: bool | None = None) -> Iterator[tuple[str, Any, str]]:
    """(name, default, help) of each option; ``config``: of --config, or the others, alone."""
    for field in dataclasses.fields(record):
        if config is None or field.metadata.get("config", False) == config:
            yield field.name, default_of(field), field.metadata.get("help", "")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Its default; MISSING where it must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
