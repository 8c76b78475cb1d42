"""Times a decoding step of a random-weight model on an accelerator, against the memory's speed.

How much of the measured copy bandwidth plain decoding reaches at batch 1; what a cycle that
verifies k guesses costs over a plain step; what cycles of DFlash (blocks of 16, 5 layers) and
EAGLE-3 (5 steps) with random weights cost over it, for the speedup at any assumed tau, beside what
reading the weights alone would take; what the loop on the device is worth; how long compilation
takes; where a step's time goes; and, on a GPU, how fast a DFlash drafter trains for this target.
Weights are drawn on the device. Expected: under 8 minutes on a data-centre GPU for the 8B shape;
--shape=tiny runs on a CPU within a minute or two.

  python -m experiments.benchmark_device --shape=llama-3.1-8b --output=device.json
  python -m experiments.benchmark_device --shape=tiny --cycles=16 --slots=256

Later parts are left out once --minutes have passed, and the output is written after every part.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

import specjax
from experiments import cli
from experiments.benchmarking import draft_cost, floor, training_cost
from experiments.benchmarking.cycle_cost import CycleProgram, Silent, pass_seconds, products_seconds
from specjax.core.files import write_atomically
from specjax.drafters import NoDraft
from specjax.models import Frozen
from specjax.models import family as registered
from specjax.models.shapes import SHAPES

GOAL = 0.85  # share of the copy bandwidth that plain decoding should reach
PROMPT_TOKENS = 16

_SHAPE = flags.DEFINE_enum("shape", "llama-3.1-8b", list(SHAPES), "Of the random model.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of weights and cache.")
_NUM_DRAFT = flags.DEFINE_list("num_draft", ["4", "8", "15"], "Guesses a cycle, each a program.")
_TAU = flags.DEFINE_list("tau", ["2", "3", "4", "5", "6.5"], "Assumed of the trained drafters.")
_ANCHORS = flags.DEFINE_integer("anchors", 256, "Blocks a text in training (GPU only).", 1)
_SEQ_LEN = flags.DEFINE_integer("seq_len", 3072, "Tokens of a text in training.", 64)
_SLOTS = flags.DEFINE_integer("slots", 2048, "Length of the cache.", lower_bound=256)
_CYCLES = flags.DEFINE_integer("cycles", 100, "In one device call.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Calls; medians are reported.", lower_bound=1)
_COPY_MIB = flags.DEFINE_integer(
    "copy_mib", None, "Size of the buffer copied. Default: 4096, on a CPU 128.", lower_bound=1
)
_MINUTES = flags.DEFINE_float("minutes", 7.0, "After these, no further part is begun.", 0.0)
_PROFILE_DIR = cli.define_directory("profile_dir", "A trace of one plain call goes there.")
_HLO_DIR = cli.define_directory("hlo_dir", "The optimised programs go there.")
_OUTPUT = cli.define_file("output", "A .json file for everything that was measured.")


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        if not _NUM_DRAFT.value or not all(v.isdecimal() and int(v) for v in _NUM_DRAFT.value):
            raise ValueError("--num_draft: must be positive integers, such as 4,8,15.")
        if not _TAU.value or not all(is_tau(v) for v in _TAU.value):
            raise ValueError("--tau: must be numbers of at least 1, such as 3,6.5.")
        if _ANCHORS.value > _SEQ_LEN.value:
            raise ValueError(f"--anchors={_ANCHORS.value}: more than --seq_len={_SEQ_LEN.value}.")
        widest = max(15, *map(int, _NUM_DRAFT.value))
        if PROMPT_TOKENS + 2 * (widest + 1) > _SLOTS.value:
            raise ValueError(f"--slots={_SLOTS.value}: too few for {widest} guesses a cycle.")
        if _SHAPE.value.startswith("llama-3.1-") and jax.default_backend() == "cpu":
            raise ValueError(f"--shape={_SHAPE.value} on a CPU: try the script with --shape=tiny.")
    bench = Bench()
    for name, part in bench.parts():
        bench.run(name, part)
    bench.show()


class Bench:
    """The parts of the benchmark, and what they found."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.console = Console(highlight=False)
        device = jax.devices()[0]
        self.report: dict[str, Any] = {
            "shape": _SHAPE.value,
            "dtype": _DTYPE.value,
            "slots": _SLOTS.value,
            "cycles": _CYCLES.value,
            "repeats": _REPEATS.value,
            "device": f"{device.platform} {device.device_kind}",
            "jax": jax.__version__,
            "skipped": [],
            "programs": {},
            "drafters": {},
        }
        self.prompt = np.arange(1, PROMPT_TOKENS + 1).tolist()
        self.target: Any = None

    def parts(self) -> list[tuple[str, Callable[[], None]]]:
        """In order of importance: time may run out."""
        ks = [int(k) for k in _NUM_DRAFT.value]
        loops = [(f"device loop, k = {k}", lambda k=k: self.time_cycles(k, False)) for k in ks]
        hosts = [(f"host loop, k = {k}", lambda k=k: self.time_cycles(k, True)) for k in ks]
        return [
            ("weights", self.make_weights),
            ("bandwidth", self.measure_bandwidth),
            ("device loop, plain", lambda: self.time_cycles(0, False)),
            *loops,
            *[(name, lambda name=name: self.time_drafter(name)) for name in draft_cost.DRAFTERS],
            ("parts of a plain step", self.split_step),
            ("host loop, plain", lambda: self.time_cycles(0, True)),
            *hosts,
            *([("training", self.time_training)] if jax.default_backend() == "gpu" else []),
        ]

    def run(self, name: str, part: Callable[[], None]) -> None:
        spent = time.perf_counter() - self.begin
        if spent > 60 * _MINUTES.value and self.target is not None:
            self.report["skipped"].append(name)
            return
        self.console.print(f"[dim]{spent:6.1f} s  {name}[/dim]")
        part()
        if _OUTPUT.value is not None:
            write_atomically(Path(_OUTPUT.value), json.dumps(self.report, indent=1) + "\n")

    def make_weights(self) -> None:
        begin = time.perf_counter()
        net = random_net(SHAPES[_SHAPE.value], jnp.dtype(_DTYPE.value))
        jax.block_until_ready(net.params)
        self.report["init_seconds"] = time.perf_counter() - begin
        self.target = specjax.Model(
            net=net,
            tokenizer=None,
            stop_token_ids=(),
            bos_token_id=None,
            mesh=None,
            name=_SHAPE.value,
            dtype=np.dtype(jnp.dtype(_DTYPE.value)),
        )
        text = PROMPT_TOKENS + _CYCLES.value / 2
        self.report["weight_bytes"] = floor.weight_bytes(net)
        self.report["cache_bytes"] = floor.cache_bytes(net, text)
        self.report["cache_bytes_all_slots"] = floor.cache_bytes(net, _SLOTS.value)

    def measure_bandwidth(self) -> None:
        on_cpu = jax.default_backend() == "cpu"
        size = (_COPY_MIB.value or (128 if on_cpu else 4096)) * 2**20
        self.report["copy_bandwidth"] = floor.copy_bandwidth(size)
        self.report["product_bandwidth"] = floor.product_bandwidth(
            size // 4, _DTYPE.value, width=self.target.config.hidden_size
        )

    def time_cycles(self, k: int, host_loop: bool) -> None:
        drafter = Silent(num_draft=k) if k else NoDraft()
        begin = time.perf_counter()
        program = CycleProgram(
            self.target, drafter, self.prompt, slots=_SLOTS.value, host_loop=host_loop
        )
        ready = time.perf_counter() - begin
        name = f"{'host' if host_loop else 'device'} {k}"
        compilation = program.compilation
        self.report["programs"][name] = {
            "seconds": program.seconds(cycles=_CYCLES.value, repeats=_REPEATS.value),
            "prefill_and_init_seconds": ready
            - compilation.trace_seconds
            - compilation.lower_seconds
            - compilation.compile_seconds,
            **dataclasses.asdict(compilation),
        }
        if _HLO_DIR.value is not None:
            directory = Path(_HLO_DIR.value)
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{name.replace(' ', '_')}.txt").write_text(program.text)
        if name == "device 0" and _PROFILE_DIR.value is not None:
            with jax.profiler.trace(_PROFILE_DIR.value):
                program.seconds(cycles=min(_CYCLES.value, 16))

    def time_drafter(self, name: str) -> None:
        """The cycle of a trained kind of drafter; whatever it accepts, its time is the same."""
        spec = draft_cost.DRAFTERS[name](self.target)
        program = CycleProgram(self.target, spec, self.prompt, slots=_SLOTS.value)
        seconds = program.seconds(cycles=_CYCLES.value, repeats=_REPEATS.value)
        reads = draft_cost.draft_bytes(spec, self.target)
        needed = self.report["weight_bytes"] + self.report["cache_bytes"]
        plain = self.report["programs"]["device 0"]["seconds"]
        self.report["drafters"][name] = {
            "seconds": seconds,
            "plain_steps": seconds / plain,
            "draft_bytes": reads,
            "share": plain / seconds,  # speedup over tau
            "ideal_share": draft_cost.ideal_share(needed, reads),
            **dataclasses.asdict(program.compilation),
        }

    def time_training(self) -> None:
        """Steps of DFlash training for this target, AdamW included."""
        setup = training_cost.Setup(
            SHAPES[_SHAPE.value], layers=5, anchors=_ANCHORS.value, seq_len=_SEQ_LEN.value
        )
        self.report["training"] = {
            **dataclasses.asdict(setup),
            **training_cost.measure(setup, steps=_REPEATS.value, target=self.target.net),
        }

    def split_step(self) -> None:
        """The step taken apart: its products alone, then the whole pass, then the whole cycle."""
        net, steps, repeats = self.target.net, _CYCLES.value, _REPEATS.value
        self.report["products_seconds"] = products_seconds(net, steps=steps, repeats=repeats)
        self.report["pass_seconds"] = pass_seconds(
            net, slots=_SLOTS.value, length=PROMPT_TOKENS, steps=steps, repeats=repeats
        )

    def show(self) -> None:
        """Prints everything."""
        r, console = self.report, self.console
        console.print(
            f"\n{r['shape']}, {r['dtype']}, batch 1, {r['slots']} slots on {r['device']},"
            f" jax {r['jax']}; weights {r['weight_bytes'] / 1e9:.2f} GB, drawn in"
            f" {r['init_seconds']:.1f} s",
            soft_wrap=True,
        )
        if "copy_bandwidth" in r:
            console.print(
                f"copy {r['copy_bandwidth'] / 1e9:.0f} GB/s (reads plus writes), one large"
                f" product {r['product_bandwidth'] / 1e9:.0f} GB/s",
                soft_wrap=True,
            )
        programs = r["programs"]
        plain = programs.get("device 0")
        table = Table("loop", "k", box=None)
        for column in ("ms/cycle", "x step", "trace s", "lower s", "compile s", "temp MB"):
            table.add_column(column, justify="right")
        table.add_column("cache copies", justify="right")
        for name, p in programs.items():
            loop, k = name.split()
            table.add_row(
                loop,
                k,
                f"{1e3 * p['seconds']:.3f}",
                f"{p['seconds'] / plain['seconds']:.2f}" if plain else "",
                *(f"{p[f'{stage}_seconds']:.1f}" for stage in ("trace", "lower", "compile")),
                f"{p['temp_bytes'] / 1e6:.1f}",
                f"{p['loop_copies']} of {p['all_copies']}",
            )
        console.print(table)
        console.print("cache copies: in the body of the loop, of those in the whole program.")
        if plain is not None and "copy_bandwidth" in r:
            self.show_step(plain["seconds"])
        if r["drafters"]:
            self.show_drafters()
        if "training" in r:
            self.show_training(r["training"])
        for name in r["skipped"]:
            console.print(f"left out after {_MINUTES.value:g} minutes: {name}")

    def show_drafters(self) -> None:
        """Cycles of the drafters, and the speedup that each tau would give."""
        table = Table("drafter", "ms/cycle", "x step", "speedup/tau", "ideal", box=None)
        for name, d in self.report["drafters"].items():
            figures = (d["plain_steps"], d["share"], d["ideal_share"])
            table.add_row(name, f"{1e3 * d['seconds']:.3f}", *(f"{x:.2f}" for x in figures))
        self.console.print(table)
        self.console.print("ideal: if reading weights were all that takes time.")
        for name, d in self.report["drafters"].items():
            taus = [(t, float(t) / d["seconds"], float(t) * d["share"]) for t in _TAU.value]
            rates = "; ".join(f"{t}: {rate:,.0f} ({gain:.2f}x)" for t, rate, gain in taus)
            self.console.print(f"{name}, tokens/s at an assumed tau of {rates}", soft_wrap=True)

    def show_training(self, t: dict[str, Any]) -> None:
        share = f", {t['share_of_peak']:.0%} of the bf16 peak" if "share_of_peak" in t else ""
        peak = f", {t['peak_bytes'] / 1e9:.1f} GB at the peak" if "peak_bytes" in t else ""
        self.console.print(
            f"training DFlash, {t['rows']} x {t['seq_len']} tokens, {t['anchors']} anchors:"
            f" {t['tokens_per_s']:,.0f} tokens/s, {t['flops_per_s'] / 1e12:.0f} TFLOP/s{share};"
            f" temporaries {t['temporary_bytes'] / 1e9:.1f} GB, weights and moments"
            f" {t['argument_bytes'] / 1e9:.1f} GB{peak}",
            soft_wrap=True,
        )

    def show_step(self, step: float) -> None:
        """The plain step against the floor."""
        r, console = self.report, self.console
        needed = r["weight_bytes"] + r["cache_bytes"]
        share = needed / step / r["copy_bandwidth"]
        r["share_of_copy_bandwidth"] = share
        word = "[green]PASS[/green]" if share >= GOAL else "[red]FAIL[/red]"
        console.print(
            f"{word} plain decoding reads {needed / step / 1e9:.0f} GB/s, {share:.0%} of the copy"
            f" bandwidth (goal {GOAL:.0%}): floor {1e3 * needed / r['copy_bandwidth']:.3f} ms,"
            f" step {1e3 * step:.3f} ms, {1 / step:.1f} tokens/s",
            soft_wrap=True,
        )
        if "pass_seconds" in r:
            products, whole = r["products_seconds"], r["pass_seconds"]
            console.print(
                f"of the step: matrix products {1e3 * products:.3f} ms; attention, norms and"
                f" rotation {1e3 * (whole - products):.3f} ms; verdict, commits and the loop"
                f" {1e3 * (step - whole):.3f} ms",
                soft_wrap=True,
            )
            unused = r["cache_bytes_all_slots"] - r["cache_bytes"]
            console.print(
                f"reading the unused slots too would take {1e3 * unused / r['copy_bandwidth']:.3f}"
                " ms at the copy bandwidth",
                soft_wrap=True,
            )
        if _OUTPUT.value is not None:
            write_atomically(Path(_OUTPUT.value), json.dumps(r, indent=1) + "\n")


def is_tau(text: str) -> bool:
    try:
        return 1 <= float(text) < math.inf
    except ValueError:
        return False


def random_net(raw: dict[str, Any], dtype: Any) -> Frozen:
    """A model with random weights that never were on the host; one small program a shape."""
    family = registered(raw["model_type"])
    config = family.read_config(raw)
    abstract = nnx.eval_shape(lambda: family(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    leaves, treedef = jax.tree.flatten(state)
    key = jax.random.key(0)
    drawn = [
        draw(jax.random.fold_in(key, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)
    ]
    return Frozen(params=jax.tree.unflatten(treedef, drawn), graphdef=graphdef, config=config)


def draw(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Gains around 1, matrices that keep the size of what they are applied to."""
    mean, scale = (1.0, 0.1) if len(shape) == 1 else (0.0, math.prod(shape[1:]) ** -0.5)
    return _normal(key, mean, scale, shape=shape, dtype=jnp.dtype(dtype))


def _draw_normal(key: Any, mean: Any, scale: Any, *, shape: tuple[int, ...], dtype: Any) -> Any:
    return (mean + scale * jax.random.normal(key, shape)).astype(dtype)


_normal = jax.jit(_draw_normal, static_argnames=("shape", "dtype"))


if __name__ == "__main__":
    cli.run(main)
