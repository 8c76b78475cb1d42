"""Compiles a whole generation for TPUs or GPUs that need not be there, and reports what it costs.

Weights are abstract: nothing is allocated. The loop of cycles is compiled as it runs, and its
optimised program is read: memory a chip, kernels, communication, bytes and operations of a cycle
against what it cannot do without, and copies of caches, of which there should be none.

  python -m experiments.compile --topology=v5e:2x4 --mesh=data:1,model:8 --output=report.json
  python -m experiments.compile --topology=local --config.target=tiny --config.dtype=float32
  python -m experiments.compile --topology=local --config.target=DIR --config.layers=2
  python -m experiments.compile --topology=h100:1 --config.drafter=eagle3 --config.num_draft=5
  python -m experiments.compile --read=after.json --compare=before.json

DIR holds a config.json; its weights are not read. Defaults that are too large for the target are
taken smaller, with a word.

Needs the TPU compiler (pip install 'specjax[tpu]') but no TPU, or the GPU compiler (pip install
--no-deps jax-cuda12-plugin jax-cuda12-pjrt, of jax's version) but no GPU; --topology=local does
without. A whole 8B model takes a few minutes on 2 cores for TPUs and one for GPUs, four layers of
it (--config.layers=4) half a minute. What is compiled is --config (configs/compile.py).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli, overrides
from specjax.checkpoint.hf import read_json
from specjax.core.files import write_atomically
from specjax.core.sharding import mesh_sizes
from specjax.lab.compiler import report as reports
from specjax.lab.compiler import topology as topologies
from specjax.lab.compiler.abstract import Setup
from specjax.lab.compiler.comparison import Figure, compare
from specjax.lab.compiler.programs import Compiled
from specjax.lab.compiler.target import shrink

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "compile.py"

_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "local",
    "A TPU slice, such as v5e:2x4 or v5p:2x2x4; GPUs, such as h100:8; local: what JAX sees here.",
)
_MESH = flags.DEFINE_string("mesh", "", "Its devices, such as data:1,model:8.")
_OUTPUT = cli.define_file("output", "A .json file for the report.")
_READ = flags.DEFINE_string("read", None, "Shows a stored report; nothing is compiled.")
_COMPARE = flags.DEFINE_string("compare", None, "A report that the figures are put beside.")
_HLO_DIR = cli.define_directory("hlo_dir", "The optimised programs go there.")
_CONFIG = cli.define_config(DEFAULT_CONFIG)


def main(argv: Sequence[str]) -> None:
    del argv
    console = Console(highlight=False)
    with cli.one_line_errors():
        before = None if _COMPARE.value is None else stored("compare", _COMPARE.value)
        report = make(console) if _READ.value is None else stored("read", _READ.value)
        if _READ.value is None and _OUTPUT.value is not None:
            write_atomically(Path(_OUTPUT.value), json.dumps(report, indent=1) + "\n")
        figures = [] if before is None else compare(before, report)
    show(console, report)
    if before is not None:
        show_comparison(console, figures)


def stored(flag: str, path: str) -> dict[str, Any]:
    """A report that --output wrote. Raises ValueError if it is none."""
    try:
        report = read_json(Path(path).expanduser())
    except FileNotFoundError:
        raise ValueError(f"--{flag}={path}: there is no such file.") from None
    if not {"setup", "programs", "cycle"} <= report.keys():
        raise ValueError(f"--{flag}={path}: is no report of experiments.compile --output.")
    return report


def make(console: Console) -> dict[str, Any]:
    """Compiles what the flags say. Raises ValueError."""
    sizes = mesh_sizes(_MESH.value)
    setup, notes = read_setup(sizes.get("model", 1))
    if _TOPOLOGY.value != "local":  # what is here is not needed, and may be in use
        jax.config.update("jax_platforms", "cpu")
    topology = topologies.find(_TOPOLOGY.value)
    mesh = topology.mesh(**sizes)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return reports.make(setup, topology, mesh, done=lambda c: progress(console, c), hlo_text=keep)


def read_setup(shards: int) -> tuple[Setup, list[str]]:
    """The fields of --config, defaults shrunk to the target, and a word on each that was.

    Raises:
      ValueError: in one line, if some are missing or unknown, or have no possible value.
    """
    given = _CONFIG.value.to_dict()
    wanted = {field.name for field in dataclasses.fields(Setup)}
    for name in sorted(given.keys() ^ wanted):
        what = "lacks the field" if name in wanted else "has the unknown field"
        raise ValueError(f"--config {what} {name!r}; start from a copy of {DEFAULT_CONFIG}.")
    Setup(**given).check()
    made, notes = shrink(given, overrides.load(str(DEFAULT_CONFIG)).to_dict(), shards=shards)
    setup = Setup(**made)
    setup.check()
    return setup, notes


def progress(console: Console, compiled: Compiled) -> None:
    took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in compiled.seconds.items())
    console.print(f"[dim]{compiled.name}: {took}[/dim]")


def keep(name: str, text: str) -> None:
    if _HLO_DIR.value is not None:
        directory = Path(_HLO_DIR.value)
        write_atomically(directory / f"{name.replace(' ', '_')}.txt", text)


def show(console: Console, report: dict[str, Any]) -> None:
    """Prints it."""
    setup = report["setup"]
    layers = f", {setup['layers']} layers" if setup["layers"] else ""
    mesh = ", ".join(f"{axis}:{size}" for axis, size in report["mesh"].items()) or "one device"
    console.print(
        f"\n{setup['target']}{layers}, {setup['dtype']}, drafter {setup['drafter']}"
        f" (K = {report['num_draft']}), rule {report['rule']}, {setup['rows']} rows of"
        f" {setup['slots']} slots; {report['topology']} ({report['device_kind']}), {mesh}",
        soft_wrap=True,
    )
    kinds = list(next(iter(report["programs"].values()))["memory"])
    table = Table("program, MB", "s", *kinds, "peak", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, program in report["programs"].items():
        sizes = [program["memory"][k] for k in kinds] + [program["peak_bytes"]]
        table.add_row(
            name, f"{sum(program['seconds'].values()):.1f}", *(f"{x / 1e6:,.0f}" for x in sizes)
        )
    console.print(table)
    of = "" if report["hbm_bytes"] is None else f" of {report['hbm_bytes'] / 1e6:,.0f} MB"
    most = max(p["peak_bytes"] for p in report["programs"].values())
    console.print(
        f"{len(report['programs_of_a_generation'])} programs a generation; at most"
        f" {most / 1e6:,.0f} MB{of} a device.\n"
    )
    show_cycle(console, report["cycle"])


def show_cycle(console: Console, cycle: dict[str, Any]) -> None:
    """Prints what a cycle costs, and what is not known of that."""
    floor = cycle["floor"]
    table = Table("a cycle, on one device", "", "floor", "over it", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for way in ("read", "written"):
        moved = cycle[f"bytes_{way}"]
        for kind in ("weights", "caches", "rest"):  # not "near"
            if moved.get(kind):
                table.add_row(f"{kind} {way}, MB", f"{moved[kind] / 1e6:,.1f}")
    table.add_row(
        "bytes, MB",
        f"{cycle['bytes'] / 1e6:,.1f}",
        f"{floor['bytes'] / 1e6:,.1f}",
        f"{cycle['bytes_over_floor']:.2f}",
    )
    if cycle["near_bytes"]:
        table.add_row("temporaries that fit into L2, MB", f"{cycle['near_bytes'] / 1e6:,.1f}")
    table.add_row(
        "GFLOP",
        f"{cycle['flops'] / 1e9:,.1f}",
        f"{floor['flops'] / 1e9:,.1f}",
        f"{cycle['flops_over_floor']:.2f}",
    )
    kernels = cycle["kernels"]
    table.add_row("kernels", f"{kernels['total']}")
    for scope, number in kernels["by_scope"].items():
        table.add_row(f"  {scope}", f"{number}")
    if kernels["a_layer"] is not None:
        table.add_row("  a layer of the target's pass", f"{kernels['a_layer']:.1f}")
    for kind, found in cycle["collectives"].items():
        table.add_row(kind, f"{found['count']}", "", f"{found['bytes'] / 1e6:,.2f} MB")
    table.add_row("copies of caches", f"{cycle['cache_copies']}")
    table.add_row("caches joined with a block", f"{cycle['cache_joins']}")
    table.add_row("prefetches of caches", f"{cycle['cache_prefetches']}")
    table.add_row("copies of weights", f"{cycle['weight_copies']}")
    console.print(table)
    show_branches(console, cycle.get("conditionals", []))
    if cycle["xla_bytes_accessed"] is not None:
        console.print(
            f"XLA's own count, which takes a buffer that is updated in place for read and written"
            f" whole, is {cycle['xla_bytes_accessed'] / 1e6:,.0f} MB for the program.",
            soft_wrap=True,
        )
    for line in cycle["unknown"]:
        console.print(f"[dim]not known: {line}[/dim]", soft_wrap=True)


def show_branches(console: Console, conditionals: Sequence[dict[str, Any]]) -> None:
    """Prints what each branch of each conditional costs, where there are any."""
    if not conditionals:
        return
    table = Table("a branch, one run", "MB", "GFLOP", "kernels", "copies", box=None)
    for number, one in enumerate(conditionals, 1):
        for index, branch in enumerate(one["branches"]):
            counted = f", counted {one['times']} times" if index == one["counted"] else ""
            copies = branch["cache_copies"] + branch["weight_copies"]
            table.add_row(
                f"{index} of conditional {number}{counted}",
                *(f"{branch['bytes'] / 1e6:,.1f}", f"{branch['flops'] / 1e9:,.1f}"),
                *(f"{branch['kernels']}", f"{copies}"),
            )
    console.print(table)


def show_comparison(console: Console, figures: Sequence[Figure]) -> None:
    """Prints them as the rows of a Markdown table, and which of them rose."""
    console.print("\n| figure | before | after | |\n| --- | --- | --- | --- |")
    for one in figures:
        change = f"{one.after / one.before - 1:+.2%}" if one.before else ""
        word = "" if one.after == one.before else f"{'WORSE' if one.worse else 'less'} {change}"
        console.print(f"| {one.name} | {one.before:.4g} | {one.after:.4g} | {word.strip()} |")


if __name__ == "__main__":
    cli.run(main)
