"""A compilation from its options to its report, as experiments.compile runs it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
from rich.console import Console

from specjax.core.files import write_atomically
from specjax.core.options import keywords, option
from specjax.core.sharding import mesh_sizes
from specjax.lab.compiler import report as reports
from specjax.lab.compiler import topology as topologies
from specjax.lab.compiler.abstract import check
from specjax.lab.compiler.comparison import compare
from specjax.lab.compiler.depth import at_depth
from specjax.lab.compiler.programs import Compiled
from specjax.lab.compiler.target import depth_of, shrink
from specjax.lab.records import codec
from specjax.lab.records.compiled import CompileReport, Setup, load_report
from specjax.lab.view.compiled import show, show_comparison, show_depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Setup):
    """What is compiled, for which devices, and where the report goes."""

    topology: str = option(
        "local",
        "A TPU slice, such as v5e:2x4 or v5p:2x2x4; GPUs, such as h100:8; local: what JAX sees "
        "here.",
    )
    mesh: str = option("", "Its devices, such as data:1,model:8.")
    output: str | None = option(None, "A .json file for the report.", file="")
    read: str | None = option(None, "Shows a stored report; nothing is compiled.")
    fewer: str | None = option(
        None, "A report of the same on fewer layers: what all layers of the target cost is told."
    )
    compare: str | None = option(None, "A report that the figures are put beside.")
    hlo_dir: str | None = option(None, "The optimised programs go there.", directory=True)


@keywords(Options)
def compile_report(options: Options) -> CompileReport:
    """Compiles, or reads what was; prints the report, and a comparison where one is asked for.

    Where devices are compiled for that are not here, JAX is kept to the CPU from then on.

    Raises:
      ValueError: in one line, on what does not fit together, or into a device's memory.
    """
    console = Console(highlight=False)
    before = _stored(options, "compare")
    found = _stored(options, "read")
    if found is None:
        found = _make(options, console)
        if options.output is not None:
            codec.write_file(Path(options.output), found)
    figures = None if before is None else compare(before, found)
    fewer = _stored(options, "fewer")
    whole = None if fewer is None else at_depth(fewer, found, depth_of(found.setup.target))
    show(console, found)
    if whole is not None:
        show_depth(console, {**vars(whole), "bytes / floor": whole.over_floor})
    if figures is not None:
        show_comparison(console, [(f.name, f.before, f.after) for f in figures])
    return found


def _stored(options: Options, flag: str) -> CompileReport | None:
    path = getattr(options, flag)
    return None if path is None else load_report(Path(path), f"--{flag}={path}")


def _make(options: Options, console: Console) -> CompileReport:
    sizes = mesh_sizes(options.mesh)
    setup, notes = settled(options, sizes.get("model", 1))
    if options.topology != "local":  # what is here is not needed, and may be in use
        jax.config.update("jax_platforms", "cpu")
    topology = topologies.find(options.topology)
    mesh = topology.mesh(**sizes)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)

    def done(compiled: Compiled) -> None:
        took = vars(compiled.cost.seconds).items()
        told = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in took)
        console.print(f"[dim]{compiled.name}: {told}[/dim]")

    def keep(name: str, text: str) -> None:
        if options.hlo_dir is not None:
            write_atomically(Path(options.hlo_dir) / f"{name.replace(' ', '_')}.txt", text)

    return reports.make(setup, topology, mesh, done=done, hlo_text=keep)


def settled(options: Options, shards: int) -> tuple[Setup, list[str]]:
    """What is compiled, defaults shrunk to the target, and a word on each that was.

    Raises:
      ValueError: in one line, if some have no possible value.
    """
    given = Setup(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Setup)})
    check(given)
    made, notes = shrink(given, shards=shards)
    check(made)
    return made, notes
