"""The device benchmark in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console

from specjax.lab.records.device import (
    BatchTime,
    ContextTime,
    CycleTime,
    DeviceReport,
    DeviceTraining,
    PackingRow,
    Start,
    TrainingCost,
    TrainingReport,
)
from specjax.lab.view.plain import table

GOAL = 0.85  # share of the copy bandwidth that plain decoding should reach
_SHARES = ("GB", "copy", "read", "peak", "kernels")


def timed(c: CycleTime) -> str:
    """What was found of one program, in a line."""
    told = f"{1e3 * c.seconds:.3f} ms a cycle"
    if c.plain_steps is not None:
        told += f", {c.plain_steps:.2f} plain steps"
    roofs = {
        "copy": c.share_of_copy_bandwidth,
        "read": c.share_of_read_bandwidth,
        "peak": c.share_of_peak,
    }
    shares = [f"{x:.0%} of {name}" for name, x in roofs.items() if x is not None]
    if shares:
        told += f"; {c.read_bytes / 1e9:.3g} GB, {', '.join(shares)}"
    return told + ("" if c.kernels is None else f"; {c.kernels} kernels")


def started(found: Start) -> str:
    """What starts took, in a line."""
    runs = (f"{name} {run.seconds:.1f} s" for name, run in found.runs.items())
    warm = found.runs["warm"]
    return f"first token: {', '.join(runs)}; in a running process {1e3 * warm.again_seconds:.1f} ms"


def by_scope(found: Mapping[str, float]) -> str:
    """The time of each scope in a cycle, in a line."""
    total = sum(found.values())
    told = (f"{scope} {1e3 * s:.3f} ms ({s / total:.0%})" for scope, s in found.items() if s)
    return ", ".join(told)


def bandwidths(found: DeviceReport) -> str:
    """What shares are of, in a line."""
    told = []
    if found.copy_bandwidth is not None and found.read_bandwidth is not None:
        told.append(
            f"copy {found.copy_bandwidth / 1e9:.0f} GB/s (reads plus writes), read"
            f" {found.read_bandwidth / 1e9:.0f} GB/s (both of {found.buffer_bytes / 2**20:.0f} MiB"
            " of int32)"
        )
    if found.product_bandwidth is not None:
        told.append(f"one large {found.dtype} product {found.product_bandwidth / 1e9:.0f} GB/s")
    if found.peak_flops is not None:
        told.append(f"peak {found.peak_flops / 1e12:.0f} TFLOP/s (data sheet)")
    return ", ".join(told)


def show(console: Console, found: DeviceReport, *, taus: Sequence[str], minutes: float) -> None:
    """Prints everything; speeds of drafters for each assumed tau."""
    say = lambda line: console.print(line, soft_wrap=True, markup=False)
    say(
        f"\n{found.shape}, {found.dtype}, {found.slots} slots on {found.device},"
        f" jax {found.jax}; weights {found.weight_bytes / 1e9:.2f} GB, drawn in"
        f" {found.init_seconds or 0:.1f} s"
    )
    _show_setup(console, found)
    if roofs := bandwidths(found):
        say(roofs)
    if found.programs:
        _show_loops(console, found)
    if found.plain and found.plain.share_of_copy_bandwidth is not None:
        _show_step(console, found)
    if found.drafters:
        _show_drafters(console, found, taus)
    if found.batches:
        _show_batches(console, found, taus)
    if found.programs or found.drafters or found.batches:
        _explain_shares(console, found)
    if found.contexts:
        _show_contexts(console, found.contexts)
    if found.start is not None:
        _show_start(console, found.start)
    if found.training is not None:
        _show_training(console, found.training)
    if found.stopped_in:
        say(f"stopped in: {found.stopped_in}")
    for name in found.skipped:
        say(f"left out after {minutes:g} minutes: {name}")
    for way, seconds in found.transformers.items():
        ours = "" if found.plain is None else f", {seconds / found.plain.seconds:.2f} of our steps"
        say(f"Transformers, {way}: {1e3 * seconds:.2f} ms a token{ours}")
    for name, scopes in found.scopes.items():
        say(f"on the device, {name}: {by_scope(scopes)}")
    for name, why in found.cannot.items():
        say(f"not measured: {name}: {why}")
    for name in found.no_room:
        say(f"did not fit into the device's memory: {name}")


def _show_setup(console: Console, found: DeviceReport) -> None:
    """What times depend on, and how they are measured again."""
    say = lambda line: console.print(line, soft_wrap=True, markup=False)
    say(found.command)
    versions = [f"{name} {version}" for name, version in found.versions.items()]
    versions += [f"commit {commit[:12]}" for commit in found.commit]
    say(f"kernels={found.kernels}; {', '.join(versions)}; {found.platform_version}")
    if found.gpu:
        state = ", ".join(f"{name} {value}" for name, value in found.gpu.items())
        say(f"while plain steps ran: {state}")


def _shares(c: CycleTime) -> tuple[str, ...]:
    """Columns of `_SHARES`."""
    of = (c.share_of_copy_bandwidth, c.share_of_read_bandwidth, c.share_of_peak)
    percents = ("-" if x is None else f"{x:.1%}" for x in of)
    return f"{c.read_bytes / 1e9:.3g}", *percents, "-" if c.kernels is None else str(c.kernels)


def _explain_shares(console: Console, found: DeviceReport) -> None:
    told = f"ms: a cycle. GB: weights in {found.dtype}, keys and values that it must read;"
    told += " copy, read: this a second, of their bandwidths."
    if found.peak_flops is not None:
        told += " peak: its arithmetic."
    cycles = (*found.programs.values(), *found.drafters.values(), *found.batches)
    if any((c.share_of_read_bandwidth or 0) > 1 for c in cycles):
        told += " More than 100%: what is read stays in nearer memory, and the share says nothing."
    console.print(told, soft_wrap=True)


def _steps(c: CycleTime) -> str:
    return "" if c.plain_steps is None else f"{c.plain_steps:.2f}"


def _show_loops(console: Console, found: DeviceReport) -> None:
    """Plain steps and verify passes: their times, then what compiling them took."""
    loops = [((*name.split(),), p) for name, p in found.programs.items()]
    rows: Iterable[tuple[str, ...]] = (
        (*name, f"{1e3 * p.seconds:.3f}", _steps(p), *_shares(p)) for name, p in loops
    )
    console.print(table(("loop", "k", "ms", "x step", *_SHARES), rows, words=2))
    rows = (
        (
            *name,
            *(f"{s:.1f}" for s in (p.trace_seconds, p.lower_seconds, p.compile_seconds)),
            f"{p.temp_bytes / 1e6:.1f}",
            f"{p.loop_copies} of {p.all_copies}",
        )
        for name, p in loops
    )
    header = ("loop", "k", "trace s", "lower s", "compile s", "temp MB", "cache copies")
    console.print(table(header, rows, words=2))
    console.print("cache copies: in the body of the loop, of those in the whole program.")


def _show_step(console: Console, found: DeviceReport) -> None:
    """The plain step against the floor."""
    say = lambda line: console.print(line, soft_wrap=True)
    assert found.plain and found.copy_bandwidth and found.plain.share_of_copy_bandwidth
    step, needed, share = (
        found.plain.seconds,
        found.needed_bytes,
        found.plain.share_of_copy_bandwidth,
    )
    word = "[green]PASS[/green]" if share >= GOAL else "[red]FAIL[/red]"
    say(
        f"{word} plain decoding reads {needed / step / 1e9:.0f} GB/s, {share:.0%} of the copy"
        f" bandwidth (goal {GOAL:.0%}): floor {1e3 * needed / found.copy_bandwidth:.3f} ms,"
        f" step {1e3 * step:.3f} ms, {1 / step:.1f} tokens/s"
    )
    products, whole = found.products_seconds, found.pass_seconds
    if products is None or whole is None:
        return
    say(
        f"of the step: matrix products {1e3 * products:.3f} ms; attention, norms and"
        f" rotation {1e3 * (whole - products):.3f} ms; verdict, commits and the loop"
        f" {1e3 * (step - whole):.3f} ms"
    )
    unused = found.cache_bytes_all_slots - found.cache_bytes
    say(
        f"reading the unused slots too would take {1e3 * unused / found.copy_bandwidth:.3f}"
        " ms at the copy bandwidth"
    )


def _show_start(console: Console, found: Start) -> None:
    """From the start of a process to its first tokens."""
    rows = (
        (
            name,
            *(f"{s:.1f}" for s in (run.process_seconds, run.weights_seconds)),
            *(f"{s:.1f}" for s in (run.programs_seconds, run.trace_seconds, run.compile_seconds)),
            f"{run.cache_misses}",
            *(f"{s:.2f}" for s in (run.first_seconds, run.again_seconds)),
            f"{run.seconds:.1f}",
        )
        for name, run in found.runs.items()
    )
    header = ("start, s", "process", "weights", "programs", "trace", "compile", "new")
    console.print(table((*header, "first", "again", "all"), rows))
    tuned, cold = found.autotune_seconds, found.runs["cold"].weights_seconds
    told = "" if tuned is None else f" Autotuning: {tuned:.1f} s of the cold one's compiling."
    console.print(
        f"{found.weight_bytes / 1e9:.2f} GB of weights, a prompt of {found.prompt} tokens. Threads"
        f" read the files at {found.disk_bandwidth / 1e9:.2f} GB/s, again at"
        f" {found.memory_bandwidth / 1e9:.2f}; the cold start read and placed"
        f" {found.weight_bytes / cold / 1e9:.2f}. Weights and programs go on side by side; trace"
        " and compile are of all programs together. new: that no cache had; first: prefill and a"
        f" cycle; again: the time to first token from then on.{told}",
        soft_wrap=True,
    )


def _show_contexts(console: Console, contexts: Sequence[ContextTime]) -> None:
    """Passes behind texts of several lengths, over that of the shortest."""
    first = {c.num_draft: c.seconds for c in reversed(contexts) if len(set(c.lengths)) == 1}
    rows = [
        (
            f"{c.num_draft}",
            f"{len(c.lengths)} of {c.lengths[0]}"
            if len(set(c.lengths)) == 1
            else f"1 of {c.lengths[0]}, {len(c.lengths) - 1} of {c.lengths[1]}",
            f"{c.slots}",
            f"{1e3 * c.seconds:.3f}",
            f"{c.seconds / first[c.num_draft]:.2f}",
        )
        for c in contexts
    ]
    header = ("k", "tokens in the caches", "slots", "ms", "x the first")
    console.print(table(header, rows, words=2))


def _show_drafters(console: Console, found: DeviceReport, taus: Sequence[str]) -> None:
    """Cycles of the drafters, and the speedup that each tau would give."""
    rows = [
        (
            name,
            f"{1e3 * d.seconds:.3f}",
            _steps(d),
            "" if d.share is None else f"{d.share:.2f}",
            f"{d.ideal_share:.2f}",
            *_shares(d),
        )
        for name, d in found.drafters.items()
    ]
    header = ("drafter", "ms", "x step", "per tau", "ideal", *_SHARES)
    console.print(table(header, rows))
    console.print("per tau: speedup; ideal: if reading weights were all that takes time.")
    for name, d in found.drafters.items():
        gain = lambda t, d=d: "" if d.share is None else f" ({float(t) * d.share:.2f}x)"
        rates = "; ".join(f"{t}: {float(t) / d.seconds:,.0f}{gain(t)}" for t in taus)
        console.print(f"{name}, tokens/s at an assumed tau of {rates}", soft_wrap=True)


def _show_batches(console: Console, found: DeviceReport, taus: Sequence[str]) -> None:
    """Steps, verify passes and cycles of several rows; those of one row before them."""
    one: list[tuple[int, str, int, CycleTime]] = []
    if found.plain is not None:
        one.append((1, "plain", 0, found.plain))
    for b in found.batches:
        if b.name == "verify" and f"device {b.num_draft}" in found.programs and len(one) < 2:
            one.append((1, "verify", b.num_draft, found.programs[f"device {b.num_draft}"]))
    if "dflash" in found.drafters:
        k = next((b.num_draft for b in found.batches if b.name == "dflash"), 0)
        one.append((1, "dflash", k, found.drafters["dflash"]))
    several = [(b.rows, b.name, b.num_draft, b) for b in found.batches]
    rows = [
        (
            str(n),
            f"{name} {k}" if name == "verify" else name,
            f"{1e3 * c.seconds:.3f}",
            f"{n / c.seconds:,.0f}",
            _steps(c),
            *_shares(c),
        )
        for n, name, k, c in (*one, *several)
    ]
    header = ("rows", "cycle", "ms", "cycles/s", "x step", *_SHARES)
    console.print(table(header, rows, words=2))
    console.print(
        "x step: over a plain step of as many rows. A cycle pays where tau is more.\n"
        "cycles/s: of all rows together; times tau, tokens/s.",
        soft_wrap=True,
    )
    for b in found.batches:
        if b.name == "dflash" and b.plain_steps is not None:
            console.print(_pays(b, taus), soft_wrap=True)


def _pays(b: BatchTime, taus: Sequence[str]) -> str:
    """Whether a cycle of several rows is worth it, in a sentence."""
    assert b.plain_steps is not None
    paying = [f"{t} ({float(t) / b.plain_steps:.2f}x)" for t in taus if float(t) > b.plain_steps]
    told = f"of the assumed {', '.join(paying)}" if paying else "none of those that are assumed"
    return f"{b.name}, {b.rows} rows: pays above a tau of {b.plain_steps:.2f}; {told}"


def training_speed(t: TrainingCost) -> str:
    """Steps of DFlash training, in a line."""
    peak = "of a large product's rate here" if t.peak_is_measured else "of the bf16 peak"
    of_peak = "" if t.share_of_peak is None else f", {t.share_of_peak:.1%} {peak}"
    anchors = t.anchor_updates_per_s
    return (
        f"{t.samples_per_s or 0:.2f} samples/s, {t.tokens_per_s or 0:,.0f} target tokens/s,"
        + ("" if anchors is None else f" {anchors:,.0f} anchor updates/s,")
        + f" {(t.flops_per_s or 0) / 1e12:.3g} TFLOP/s{of_peak}"
    )


def _show_training(console: Console, t: DeviceTraining) -> None:
    """Steps of DFlash training: speed, arithmetic by part, memory."""
    say = lambda line: console.print(line, soft_wrap=True, markup=False)
    say(
        f"training DFlash, {t.rows} x {t.seq_len} tokens, {t.anchors} anchors x {t.block}:"
        f" {training_speed(t)}"
    )
    if t.flops is not None:
        say(_parts(t))
    peak = "" if t.peak_bytes is None else f", {t.peak_bytes / 1e9:.2f} GB in use at the peak"
    say(
        f"temporaries {t.temporary_bytes / 1e9:.2f} GB, weights and moments"
        f" {t.argument_bytes / 1e9:.2f} GB{peak}"
    )


def _parts(t: TrainingCost) -> str:
    """What the parts of a step compute, and what each adds to its share of the peak."""
    shares = t.share_of_peak_by_part or {}
    parts = [
        f"{name} {flops / 1e12:.3g} TFLOP" + (f" ({shares[name]:.1%})" if shares else "")
        for name, flops in (t.flops or {}).items()
    ]
    told = f"of a step of {1e3 * (t.seconds or 0):.1f} ms: {', '.join(parts)}"
    of = (
        "a large product's rate here, as the peak is not known,"
        if t.peak_is_measured
        else "the peak"
    )
    return told + (f"; shares of {of} over the whole step" if shares else "")


def show_training(console: Console, report: TrainingReport) -> None:
    """The training benchmark, a row a setting."""
    rows = [
        (
            *(f"{r.vocab:,}", f"{r.anchors}" if r.anchors else "-"),
            *(f"{b / 2**20:,.0f} MiB" for b in (r.temporary_bytes, r.argument_bytes)),
            "-" if r.tokens_per_s is None else f"{r.tokens_per_s:,.0f}",
            "-" if r.flops_per_s is None else f"{r.flops_per_s / 1e12:.3f} TFLOP/s",
        )
        for r in report.results
    ]
    header = ("vocabulary", "anchors", "temporaries", "weights, moments", "tokens/s", "arithmetic")
    if rows:
        console.print(table(header, rows, words=6))
    _show_packing(console, report.packing)
    say = lambda line: console.print(line, soft_wrap=True, markup=False)
    for r in report.results:
        name = f"vocabulary {r.vocab:,}" + (f", {r.anchors} anchors" if r.anchors else "")
        if r.products is not None and r.moved_bytes is not None:
            say(
                f"{name}, counted in the program: {r.products / 1e12:.2f} TFLOP of products,"
                f" {r.moved_bytes / 1e9:.0f} GB moved, {r.kernels:,} kernels"
            )
        if r.seconds is not None:
            peak = "" if r.peak_bytes is None else f"; {r.peak_bytes / 1e9:.2f} GB at the peak"
            say(f"{name}: {training_speed(r)}{peak}")
            say(f"  {_parts(r)}")


def _show_packing(console: Console, compared: Sequence[PackingRow]) -> None:
    """What rows of several texts bring, two rows a setting."""
    header = ("vocabulary", "anchors", "rows", "real", "step", "samples/s", "tokens/s", "updates/s")
    rows = [
        (
            *(f"{r.vocab:,}", str(r.anchors), name, f"{s.filled:.1%}", f"{1e3 * s.seconds:.0f} ms"),
            *(f"{s.samples_per_s:.2f}", f"{s.tokens_per_s:,.0f}", f"{s.anchor_updates_per_s:,.0f}"),
        )
        for r in compared
        for name, s in (("a text each", r.padded), ("packed", r.packed))
    ]
    if rows:
        console.print(table(header, rows, words=3))
    for r in compared:
        console.print(
            f"vocabulary {r.vocab:,}, {r.anchors} anchors, texts of {r.median} tokens (median):"
            f" {r.gain:.2f} times as many samples a second, packed",
            soft_wrap=True,
            markup=False,
        )
