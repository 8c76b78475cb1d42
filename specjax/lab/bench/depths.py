"""Tables of compile reports on a target's first layers, carried on to all of them.

A folder holds two reports of each program, which differ in `Setup.layers`, and may hold one of the
whole target (layers 0), which what was carried on is held against.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from specjax.lab.compiler.depth import Depth, at_depth, of_report
from specjax.lab.compiler.target import depth_of
from specjax.lab.records.compiled import CompileReport, Setup, load_report

Columns = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Program:
    """Its reports."""

    fewer: CompileReport
    more: CompileReport
    whole: CompileReport | None

    @property
    def depth(self) -> Depth:
        """At all layers of the target."""
        return at_depth(self.fewer, self.more, depth_of(self.more.setup.target))

    @property
    def names(self) -> Columns:
        report = self.more
        sizes = ((axis, size) for axis, size in report.mesh.items() if size > 1)
        mesh = ", ".join(f"{axis}:{size}" for axis, size in sizes)
        drafter = report.setup.drafter
        if report.setup.draft_latent:
            drafter = f"{drafter} (latent)"
        packed = report.setup.packed
        return {
            "target": report.setup.target + (f", {packed}" if packed else ""),
            "devices": report.topology + (f", {mesh}" if mesh else ""),
            "drafter": drafter if drafter == "none" else f"{drafter}, K = {report.num_draft}",
        }

    @property
    def command(self) -> str:
        """What makes the reports: LAYERS and FILE stand for what differs."""
        report, default, given = self.more, vars(Setup()), vars(self.more.setup)
        said = {f"config.{name}": v for name, v in given.items() if v != default[name]}
        said |= {"config.num_draft": report.num_draft or 1, "config.layers": "LAYERS"}
        mesh = ",".join(f"{axis}:{size}" for axis, size in report.mesh.items())
        said = {"topology": report.topology, "mesh": mesh, **said, "output": "FILE.json"}
        return "python -m experiments.compile " + " ".join(f"--{k}={v}" for k, v in said.items())


def programs(folder: Path) -> list[Program]:
    """Those of a folder, by the names of their files.

    Raises:
      ValueError: in one line, if there is none, or not two reports of one.
    """
    found: dict[str, list[CompileReport]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        found[path.stem.rpartition("_")[0]].append(load_report(path, str(path)))
    made = []
    for name, reports in found.items():
        wholes = [r for r in reports if not r.setup.layers]
        parts = sorted((r for r in reports if r.setup.layers), key=lambda r: r.setup.layers)
        if len(parts) != 2 or len(wholes) > 1:
            raise ValueError(f"{folder / name}: {len(parts)} reports on some layers, not two.")
        made.append(Program(parts[0], parts[1], wholes[0] if wholes else None))
    if not made:
        raise ValueError(f"{folder}: no such results.")
    return made


def rows(folder: Path) -> Iterator[Columns]:
    """The figures of whole targets, of one device."""
    for program in programs(folder):
        depth, report = program.depth, program.more
        room = report.hbm_bytes
        loops = [found for found in report.cycle.loops if found.why != "context"]
        loops.sort(key=lambda found: found.trips)
        yield {
            **program.names,
            "MB a cycle": f"{depth.bytes / 1e6:,.0f}",
            "floor": f"{depth.floor / 1e6:,.0f}",
            "over it": f"{depth.over_floor:.2f}",
            "in L2": f"{depth.near / 1e6:,.0f}" if depth.near else "-",
            "experts a pass": ", ".join(f"{found.trips}" for found in loops) or "-",
            "kernels": f"{depth.kernels:,.0f}",
            "collectives": f"{depth.collectives:.0f}",
            "sent, MB": f"{depth.sent / 1e6:.1f}",
            "memory, GB": f"{depth.peak / 1e9:.1f}" + (f" of {room / 1e9:.1f}" if room else ""),
            "copies of caches": f"{depth.cache_copies:.0f}",
            "layers": f"{program.fewer.setup.layers}, {report.setup.layers} of {depth.layers}",
        }


def checked(folder: Path) -> Iterator[Columns]:
    """What was carried on over what a report on the whole target says."""
    for program in programs(folder):
        if program.whole is None:
            continue
        depth, whole = program.depth, of_report(program.whole, program.depth.layers)
        names = {
            "bytes": "bytes",
            "floor": "floor",
            "kernels": "kernels",
            "collectives": "collectives",
            "peak": "memory",
        }
        pairs = {name: (getattr(depth, f), getattr(whole, f)) for f, name in names.items()}
        told = {name: f"{a / b:.3f}" if b else "-" for name, (a, b) in pairs.items()}
        yield {**program.names, **told}
