"""A script as one of several processes: they start together and end together."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

from specjax.cli import errors
from specjax.cli.flags import list_in_help
from specjax.core import alike, hosts, launch, pulse
from specjax.core.cluster import find_place

_PLACE = ("coordinator", "num_processes", "process_id")  # flags that say which process this is


def define_flags() -> None:
    """Those that say which of several processes this is. Repeated calls change nothing."""
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
    flags.DEFINE_float(
        "patience",
        pulse.PATIENCE,
        "Of several processes: seconds after which one that does not get on, as in a collective "
        "whose partner is stuck, is named and all end. Compiling is not counted. 0: never.",
        lower_bound=0.0,
    )
    for name in (*_PLACE, "patience"):
        list_in_help(name)


def join(argv: Sequence[str], *, several: bool, survives_sigterm: bool) -> None:
    """Makes this process one of several where it was started so; 0 is the one that prints.

    Raises:
      ValueError: in one line, if the processes do not come together, or the script is for one.
    """
    coordinator, num_processes, process_id = (getattr(flags.FLAGS, name) for name in _PLACE)
    if not several:
        if num_processes != 1 and {coordinator, num_processes, process_id} != {None}:
            raise ValueError(
                f"{called(argv[0])} runs as one process: leave --coordinator, --num_processes and "
                "--process_id out."
            )
        return
    place = find_place(coordinator, num_processes, process_id, os.environ)
    if place is None:
        return
    told = shared(argv)
    if place.process_id:
        errors.keep_stderr()
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 until the end
        os.dup2(sys.stdout.fileno(), 1)  # what libraries print, too
    patience = flags.FLAGS.patience
    launch.join(place, told, survives_sigterm=survives_sigterm, patience=patience)
    hosts.check_alike("The devices", launch.devices())


def shared(argv: Sequence[str]) -> dict[str, Any]:
    """What has to be the same on all processes, by what it is called."""
    told = {"command line": shared_arguments(argv), **alike.program()}
    texts: list[object] = list(told["command line"])
    config = flags.FLAGS.config if "config" in flags.FLAGS else None
    if config is not None:
        fields = alike.flat(config.to_dict())
        texts += fields.values()
        told |= {f"--config.{name}": value for name, value in fields.items()}
    return {**told, **alike.own_files(texts)}


def called(program: str) -> str:
    """What a user calls the script that is started as ``program``."""
    name = Path(program).stem
    return name if name.startswith("specjax-") else f"experiments.{name}"


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
