"""Flags made of a record of options, and read from a command line."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from absl import flags, logging
from ml_collections import config_flags

from specjax.cli import overrides
from specjax.cli.configs import plain, take_fields
from specjax.cli.errors import one_line_errors
from specjax.core import own
from specjax.core.choices import COMMAND, TUNED
from specjax.core.options import default_of
from specjax.core.platform import KERNELS, SPLIT_K, Kernels, SplitK, check_said, here, tuned_here
from specjax.core.program import tries_all_tilings
from specjax.runs.places import take_directory, take_file

DEFAULTS = Path(__file__).with_name("defaults.py")
RECORDS: dict[str, type] = {}  # of scripts whose --config has defaults


def define(kind: type, script: str, settings: type | None = None) -> None:
    """Defines what a command line may give of a record of options.

    ``settings`` is the record of a --config that is a file. Where that has a default for everything
    no file is needed.

    A config that has defaults is read as the flag is defined, with what the command line overrides
    of it: the script ends here, in one line, where that is wrong.
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name == "config":
            default = None
            if settings is not None and _complete(settings) and any(overrides.overrides(sys.argv)):
                default = _defaults(script, settings)
            needed = default_of(field) is dataclasses.MISSING
            define_config(default, told=field.metadata["help"], needed=needed)
        elif not field.metadata["config"]:
            _define(field, hints[field.name])
    if any(field.metadata["config"] for field in dataclasses.fields(kind)):
        define_config(_defaults(script, kind))
    define_import()
    if not hasattr(kind, "kernels"):
        define_kernels()


def _complete(kind: type) -> bool:
    """Whether all options of a record have defaults."""
    return all(default_of(field) is not dataclasses.MISSING for field in dataclasses.fields(kind))


def _defaults(script: str, kind: type) -> Path:
    """The config of a script's defaults, as --config names it."""
    RECORDS[script] = kind
    return DEFAULTS.with_name(f"{DEFAULTS.name}:{script}")


def define_import() -> None:
    """The flag --import, which every script has. Repeated calls change nothing."""
    if "import" not in flags.FLAGS:
        told = "A file of your own, FILE.py, that registers what is named (specjax.extend)."
        flags.DEFINE_multi_string("import", [], told)
        list_in_help("import")


def define_kernels() -> None:
    """The flags --kernels and --split_k of scripts without such options, once."""
    if "kernels" not in flags.FLAGS:
        told = (
            "On GPUs: attention of our own; pallas: products with weights as well; or xla: XLA's "
            "kernels alone; or tuned: of each shape the fastest (benchmark_device --tune). "
            f"Default: {KERNELS}."
        )
        flags.DEFINE_enum("kernels", None, get_args(Kernels), told)
        told = f"On GPUs: no product is split along its sum, or as XLA does it. Default: {SPLIT_K}."
        flags.DEFINE_enum("split_k", None, get_args(SplitK), told)
        told = f"The file for --kernels=tuned. Default: {TUNED}, or one in the compile cache."
        flags.DEFINE_string("tuned", None, told)


def _define(field: dataclasses.Field[Any], hint: Any) -> None:
    kind = plain(hint)
    default, about = default_of(field), field.metadata
    needed = default is dataclasses.MISSING
    given: dict[str, Any] = {"default": None if needed else default, "help": about["help"]}
    if kind in (int, float):
        define = flags.DEFINE_integer if kind is int else flags.DEFINE_float
        define(field.name, **given, lower_bound=about["least"])
    elif kind is bool:
        flags.DEFINE_boolean(field.name, **given)
    elif typing.get_origin(kind) is typing.Literal:
        flags.DEFINE_enum(field.name, **given, enum_values=list(typing.get_args(kind)))
    elif typing.get_origin(kind) is tuple:
        given["default"] = None if given["default"] is None else list(map(str, given["default"]))
        (flags.DEFINE_multi_string if about["many"] else flags.DEFINE_list)(field.name, **given)
    else:
        flags.DEFINE_string(field.name, **given)
    list_in_help(field.name)
    if needed:
        flags.mark_flag_as_required(field.name)


def define_config(
    default: Path | None = None,
    *,
    told: str = "A copy of the one in configs/, changed.",
    needed: bool = False,
) -> None:
    """The flag --config, a file or, with a ``default``, changes to that."""
    with one_line_errors():
        overrides.check(sys.argv, default)
    config_flags.DEFINE_config_file(
        "config",
        None if default is None else str(default),
        f"{told} Override its fields with --config.field=value.",
        lock_config=False,
        accept_new_attributes=True,  # `overrides.check` says where
    )
    # What `read` checks overrides against.
    flags.FLAGS["config"].file = default  # type: ignore[attr-defined]
    list_in_help("config")
    if needed:
        flags.mark_flag_as_required("config")


def list_in_help(name: str) -> None:
    """Makes --help of the running script list a flag that was defined here."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def read(argv: Sequence[str]) -> list[str]:
    """Sets the flags from a command line, or exits with one line."""
    logging.set_verbosity(logging.WARNING)  # JAX informs about every backend it does not find
    with one_line_errors():
        if "config" in flags.FLAGS:
            overrides.check(argv, getattr(flags.FLAGS["config"], "file", None))
        try:
            rest: list[str] = flags.FLAGS(argv)
        except flags.Error as error:
            raise ValueError(told(error, argv)) from None
        except SystemExit:
            if not any(re.match(r"--?(help|\?)", word) for word in argv[1:]):
                raise
            raise SystemExit(0) from None  # absl ends with 1 behind --help
        if rest[1:]:
            raise ValueError(f"unexpected argument {rest[1]!r}; flags are written --name=value.")
    return rest


def told(error: flags.Error, argv: Sequence[str]) -> str:
    """What absl says of a command line; of a flag that is missing, what the flag is.

    Of one that is a field of the config, how that is written.
    """
    if isinstance(error, flags.UnrecognizedFlagError) and "config" in flags.FLAGS:
        default = getattr(flags.FLAGS["config"], "file", None)
        field = overrides.field_called(error.flagname, argv, default)
        if field is not None:
            return f"--{error.flagname} is a field of --config: write --config.{field}."
    missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
    if missing is None:
        return str(error)
    return f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}"


def import_files() -> None:
    """Runs what --import names. Raises ValueError, in one line."""
    for file in getattr(flags.FLAGS, "import") if "import" in flags.FLAGS else ():
        try:
            own.import_file(file)
        except ValueError as error:
            raise ValueError(f"--import={file}: {error}") from None


def take_kernels() -> None:
    """Tells this process, and those that it starts, what --kernels and --split_k say.

    Raises:
      ValueError: in one line, where the environment says what there is not.
    """
    for name, variable in (("kernels", KERNELS), ("split_k", SPLIT_K), ("tuned", TUNED)):
        if name in flags.FLAGS and (said := getattr(flags.FLAGS, name)) is not None:
            os.environ[variable] = str(said)
    # Programs are traced much later, and only where there is a GPU.
    check_said()
    tries_all_tilings()


def tell_unused() -> None:
    """Says once what flags of kernels did not change, and what --kernels=tuned did not know."""
    said = [n for n in ("kernels", "split_k", "tuned") if getattr(flags.FLAGS, n, None) is not None]
    if said and (name := here().name) != "gpu":
        words = ", ".join(f"--{n}={getattr(flags.FLAGS, n)}" for n in said)
        print(
            f"{words}: changes programs for GPUs alone, and these were for {name}", file=sys.stderr
        )
    if (found := tuned_here()) is not None and found.unknown:
        told = (
            f"--kernels=tuned: {len(found.unknown)} shapes of operations were not timed, and took "
        )
        print(f"{told}the usual kernels; time them with {COMMAND}", file=sys.stderr)


def take_places(kind: type) -> None:
    """Raises ValueError, in one line, if what a flag names cannot be written."""
    for field in dataclasses.fields(kind):
        place, ending = field.metadata["place"], field.metadata["ending"]
        name = getattr(flags.FLAGS, field.name) if place else None
        if not name:
            continue
        if not name.endswith(ending):
            raise ValueError(f"--{field.name}={name}: must end in {ending}.")
        take = take_file if place == "file" else take_directory
        setattr(flags.FLAGS, field.name, str(take(name, f"--{field.name}")))


def expand_places(kind: type) -> None:
    """What `take_places` makes of the flags where it is not called."""
    for field in dataclasses.fields(kind):
        if field.metadata["place"] and (name := getattr(flags.FLAGS, field.name)):
            setattr(flags.FLAGS, field.name, str(Path(name).expanduser()))


def taken(kind: type) -> Any:
    """The record that flags and config give. Raises ValueError, in one line."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.metadata["config"]:
            continue
        value = getattr(flags.FLAGS, field.name)
        if field.name == "config" and value is not None:
            value = value.to_dict()
        given[field.name] = tuple(value) if isinstance(value, list) else value
    if any(field.metadata["config"] for field in dataclasses.fields(kind)):
        given |= take_fields(kind, flags.FLAGS.config)
    return kind(**given)
