"""The device benchmark: what it prints and writes, also when stopped, and what shares are of."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import jax
import pytest

import specjax
from specjax.core import machine
from specjax.lab.bench import roofs
from specjax.lab.bench.device import files, profile, starts
from specjax.lab.bench.device.bench import Bench
from specjax.lab.bench.device.job import benchmark_device
from specjax.lab.bench.device.options import Options
from specjax.lab.compiler.cycle import kernels_of
from specjax.lab.records import codec
from specjax.lab.records.device import DeviceReport
from specjax.models.shapes import SHAPES

SMALL: dict[str, Any] = {"shape": "tiny", "slots": 256, "cycles": 4, "repeats": 1, "copy_mib": 1}


def test_a_stopped_run_has_told_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bench, "split_step", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    before, file = signal.getsignal(signal.SIGTERM), tmp_path / "device.json"
    with pytest.raises(SystemExit) as end:
        benchmark_device(**SMALL, output=file)
    assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    found = codec.from_json(DeviceReport, codec.read_file(file), str(file))
    assert list(found.programs) == ["device 0"] and found.stopped_in == "parts of a plain step"
    plain = found.plain
    assert plain is not None and plain.kernels and found.read_bandwidth
    # Every weight but the embeddings, in bfloat16; keys and values of 18 tokens, which a CPU keeps
    # in float32.
    raw = SHAPES["tiny"]
    wide, inner, layers = raw["hidden_size"], raw["intermediate_size"], raw["num_hidden_layers"]
    layer = wide * (wide + 2 * wide // 2 + wide) + 3 * wide * inner + 2 * wide
    weights = layers * layer + raw["vocab_size"] * wide + wide
    assert plain.read_bytes == 2 * weights + 4 * layers * 2 * (wide // 2) * 18
    reached = plain.read_bytes / plain.seconds / found.read_bandwidth
    assert plain.share_of_read_bandwidth == pytest.approx(reached)
    assert plain.share_of_peak is None and found.peak_flops is None  # of this processor
    printed = capsys.readouterr().out
    told = ("stopped in: parts of a plain step", found.command, "of read", "GB/s (reads plus")
    assert all(x in printed for x in told)


def test_parts_are_skipped_and_come_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    bench = Bench.__new__(Bench)
    bench.plan = Options(**SMALL, batches=("8",), skip=("verify", "contexts"))
    assert [name for name, _ in bench.steps()] == [
        "bandwidth",
        *("device loop, plain", "parts of a plain step", "host loop, plain"),
        *("dflash", "eagle3", "8 rows, plain", "8 rows, verify", "8 rows, dflash"),
        *("starts of a process", "training", "transformers"),
        *(f"profile, {name}" for name in ("plain", "dflash", "eagle3")),
    ]
    assert bench.plan.command == (
        "XLA_FLAGS=--xla_gpu_autotune_level=4 "
        "python -m experiments.benchmark_device --shape=tiny --skip=verify,contexts --batches=8"
        " --slots=256 --cycles=4 --repeats=1 --copy_mib=1"
    )


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("TPU v5 lite", 197e12),
        ("TPU v5", None),
    ],
)
def test_a_peak_is_that_of_the_very_device_or_none(kind: str, peak: float | None) -> None:
    assert roofs.peak_flops(kind) == peak


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        (
            "echo 'driver_version, clocks.current.sm [MHz], power [W]'; echo '1.2, 900, [N/A]'",
            {"driver_version": "1.2", "clocks.current.sm [MHz]": "900"},
        ),
        ("echo 'No devices were found'", {}),
        ("echo a; echo b; exit 6", {}),
    ],
)
def test_what_nvidia_smi_tells_is_told_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, want: dict[str, str]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_state() == want


def test_without_nvidia_smi_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_state() == {}


LOOP = """HloModule jit_run, is_scheduled=true

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4]{0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[4]{0} sine(%x), metadata={op_name="jit(run)/while/body/specjax/verify/sin"}
  ROOT %t = (s32[], f32[4]{0}) tuple(%next, %y)
}

%condition (s.1: (s32[], f32[4])) -> pred[] {
  %s.1 = (s32[], f32[4]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i.1, %three), direction=LT
}

ENTRY %main (x.1: f32[4]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0), metadata={op_name="state.tokens"}
  %zero = s32[] constant(0)
  %z = f32[4]{0} cosine(%x.1)
  %t.1 = (s32[], f32[4]{0}) tuple(%zero, %z)
  %w = (s32[], f32[4]{0}) while(%t.1), condition=%condition, body=%body
  ROOT %r = f32[4]{0} get-tuple-element(%w), index=1
}
"""


def test_each_operation_belongs_to_the_scope_that_it_was_traced_in() -> None:
    scopes = profile.scopes_of(LOOP)
    assert scopes["y"] == "verify" and scopes["z"] == "other" and scopes["next"] != "draft"
    assert not {"w", "t", "i", "x.1"} & scopes.keys()  # what holds others, and what costs nothing


def test_random_weights_on_disk_are_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SHARD", 1 << 20)
    monkeypatch.setattr(files, "_BLOCK", 1 << 16)
    size = files.write_random(SHAPES["tiny"], tmp_path / "m")
    model = specjax.load(tmp_path / "m")
    assert size == sum(x.nbytes for x in jax.tree.leaves(model.net)) and model.dtype == "bfloat16"
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == 2
    files.forget(tmp_path / "m")
    assert files.disk_bandwidth(tmp_path / "m") > 0


def test_what_cannot_be_measured_is_said_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip = ("plain", "verify", "cycles", "batches", "training", "profile")
    with pytest.raises(ValueError, match=r"--start_dir=.*missing: is no directory"):
        benchmark_device(**SMALL, start_dir=str(tmp_path / "missing"))
    find = importlib.util.find_spec
    lacking = lambda name, *more: None if name == "torch" else find(name, *more)
    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    monkeypatch.setattr(starts, "tensors_of", lambda raw: {"a": (1 << 50,)})
    found = benchmark_device(**SMALL, skip=skip, start_dir=str(tmp_path))
    assert found.cannot["transformers"] == "torch is not installed" and found.start is None
    assert "name another --start_dir" in found.cannot["start"]
    assert found.cannot["start"] in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_kernels_of_a_cycle_are_those_of_the_loop_body_or_of_the_whole() -> None:
    cycle = kernels_of(LOOP)
    assert cycle.total == 2 and cycle.by_scope["verify"] >= 1
    whole = kernels_of(
        LOOP.replace("while(%t.1), condition=%condition, body=%body", "copy(%t.1)"), loop=False
    )
    assert whole.total == 2  # the cosine and the copy
    with pytest.raises(RuntimeError, match="no loop of cycles"):
        kernels_of(LOOP.replace("while(%t.1), condition=%condition, body=%body", "copy(%t.1)"))
