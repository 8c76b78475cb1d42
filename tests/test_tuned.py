"""--kernels=tuned: of each shape the way that was the fastest, by a file of what was timed."""

from __future__ import annotations

import dataclasses
import functools
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scripts import invoke, script

from specjax.core import choices
from specjax.core.choices import Choice, Choices, signature, taken
from specjax.core.ops import linear
from specjax.core.ops.linear import PRODUCT, InOneKernel, product
from specjax.core.ops.op import Timed
from specjax.core.ops.stream import ADD_PRODUCT, NORM_PRODUCT
from specjax.core.platform import Platform
from specjax.drafters import NoDraft
from specjax.lab.bench.device import bench, tune
from specjax.lab.bench.device.job import benchmark_device
from specjax.lab.bench.device.options import PARTS
from specjax.models.joining import joined

GPU, CPU = Platform("gpu"), Platform("cpu")


def tuned(ways: dict[tuple[str, str], str], name: str = "gpu") -> Platform:
    return Platform(name, kernels="tuned", choices=Choices(ways))


def test_each_shape_has_its_own_way() -> None:
    """One that was not timed is written as ever, and counted once."""
    x, w = jnp.ones((2, 64), jnp.bfloat16), jnp.ones((32, 64), jnp.bfloat16)
    given = x, w, jnp.dtype(jnp.bfloat16)
    platform = tuned({("product", signature(given)): "pallas"})

    def traced(x: Any) -> str:
        return str(jax.make_jaxpr(lambda x: linear(x, w, platform=platform, dtype=x.dtype))(x))

    assert "pallas_call" in traced(x)
    assert platform.choices is not None and not platform.choices.unknown
    for _ in range(2):
        assert "pallas_call" not in traced(x[:1])
        assert len(platform.choices.unknown) == 1
    # A program is of its choices.
    same, other = tuned({("product", signature(given)): "pallas"}), tuned({})
    assert platform == same and hash(platform) == hash(same) and platform != other


def test_no_choices_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuned.json"
    monkeypatch.setenv("SPECJAX_TUNED", str(path))
    with pytest.raises(ValueError, match=r"nothing of GPU 1, jax .*; make it there with .*--tune"):
        choices.of("GPU 1")
    one = Choice("product", "float32[1, 2]", {"attention": 2.0, "pallas": 1.0}, "pallas")
    choices.add(path, choices.named("GPU 1"), [one])
    choices.add(path, choices.named("GPU 2"), [dataclasses.replace(one, way="attention")])
    choices.add(path, choices.named("GPU 1"), [dataclasses.replace(one, given="other")])
    assert choices.of("GPU 1") == taken([one, dataclasses.replace(one, given="other")])
    assert choices.of("GPU 2") == Choices({("product", "float32[1, 2]"): "attention"})
    whole = path.read_text()
    damaged = (
        '{"version": 7, "devices": {}}',
        whole[:-9],
        "[" * 100_000,
        whole.replace('"way": "pallas"', '"way": "fastest"'),
        whole.replace('"op": "product"', '"op": ["product"]'),
    )
    for text in damaged:
        path.write_text(text)
        with pytest.raises(ValueError, match="no file of choices of kernels"):
            choices.of("GPU 1")


def test_what_several_processes_time_is_all_kept(tmp_path: Path) -> None:
    """Each reads what is there and writes that with its own: one after the other."""
    path, read = tmp_path / "tuned.json", choices.read

    def slowly(path: Path) -> dict[str, list[Choice]]:
        found = read(path)
        time.sleep(0.02)
        return found

    def add(device: str) -> None:
        for i in range(3):
            choices.add(path, device, [Choice("product", str(i), {"xla": 1.0}, "xla")])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choices, "read", slowly)
        with futures.ThreadPoolExecutor(3) as pool:  # locks are of open files: threads have theirs
            list(pool.map(add, "abc"))
    assert {device: len(found) for device, found in read(path).items()} == dict.fromkeys("abc", 3)


@pytest.mark.parametrize("slow", ["attention", "pallas"])
def test_the_faster_is_taken(slow: str) -> None:
    """Of two ways of which one does its work a hundred times."""

    def way(kind: str, x: jax.Array, w: jax.Array) -> jax.Array:
        body = lambda _, y: jnp.tanh(product(y, w))
        return jax.lax.fori_loop(0, 100 if kind == slow else 1, body, x)

    ways = {f"cpu:{kind}": functools.partial(way, kind) for kind in ("attention", "pallas")}
    ways["cpu:xla"] = ways["cpu:attention"]  # the same, which is timed once
    op = Timed(product, ways, name="ours")
    shapes = tuple(jax.ShapeDtypeStruct(s, jnp.dtype(jnp.float32)) for s in ((8, 256), (256, 256)))
    tuner, call = tune.Tuner(CPU, repeats=3), tune.Call(op, shapes, 1, 8)
    told = tuner.time(call)
    (found,) = tuner.known
    assert found.seconds.keys() == {"attention", "pallas"}
    assert found.way != slow and told.endswith(f": {found.way}")
    assert found.seconds[slow] > 3 * found.seconds[found.way]
    on = dataclasses.replace(CPU, kernels="tuned", choices=taken(tuner.known))
    drawn = tuple(jnp.ones(s.shape, s.dtype) for s in shapes)
    np.testing.assert_array_equal(op(on, *drawn), way(found.way, *drawn))


@pytest.mark.parametrize("pays", [True, False])
def test_sums_are_within_products_where_that_pays_in_all(
    pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum there costs more than the product alone; the norm that it saves has to be worth it."""
    target = tiny.model()
    target = dataclasses.replace(target, net=joined(target.net))
    tuner = tune.Tuner(GPU, repeats=1)
    found = tune.calls(target, NoDraft(), rows=2, slots=32, on=GPU)
    assert {c.op.name for c in found} >= {"product", "gated product", "sum and norm", "heads"}
    ours = [c for c in found if c.op in (ADD_PRODUCT, NORM_PRODUCT)]
    layers = target.config.num_layers
    assert sum(c.count for c in ours if c.op is ADD_PRODUCT) == 2 * layers
    assert sum(c.count for c in ours if c.op is NORM_PRODUCT) == 2 * layers - 1

    def seconds(ways: Any, given: Any, *rest: Any) -> dict[str, float]:
        norms = {"attention": 2.0 if pays else 1.2, "pallas": 1.0}
        return {"attention": 3.0, "pallas": 1.5, "apart": 1.0} if "apart" in ways else norms

    monkeypatch.setattr(tune, "seconds_of", seconds)
    for call in tuner.in_order(ours):
        tuner.time(call)
    taken_ways = {one.way for one in tuner.known if one.op == ADD_PRODUCT.name}
    assert taken_ways == {"pallas" if pays else "attention"}
    platform = dataclasses.replace(GPU, kernels="tuned", choices=taken(tuner.known))
    net = target.net.on(platform)
    cache = net.init_cache(2, 32)
    run = lambda tokens: net(tokens, cache).hidden
    text = str(jax.make_jaxpr(run)(jnp.zeros((2, 1), jnp.int32)))
    assert text.count("name=multiply_and_add\n") == (2 * layers if pays else 0)


def test_a_run_keeps_what_it_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU there is one way of each, unless another is put there."""
    path = tmp_path / "tuned.json"
    monkeypatch.setenv("SPECJAX_TUNED", str(path))
    monkeypatch.setattr(bench, "DRAFTERS", {})
    skip = tuple(part for part in PARTS if part != "tune")
    small: dict[str, Any] = {"shape": "tiny", "slots": 64, "copy_mib": 1, "num_draft": (4,)}
    run = functools.partial(benchmark_device, **small, skip=skip, batches=(2,), tune=True)
    monkeypatch.setenv("SPECJAX_TUNED", str(tmp_path))
    with pytest.raises(ValueError, match="no file of choices of kernels"):
        run()
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECJAX_TUNED", str(tmp_path / "file" / "tuned.json"))
    with pytest.raises(ValueError, match=r"(?s)file.* is a file|no file of choices"):
        run()
    assert not capsys.readouterr().out  # before any work
    monkeypatch.setenv("SPECJAX_TUNED", str(path))
    run()
    assert "nothing to choose: one way of each" in capsys.readouterr().out
    assert not path.exists()
    monkeypatch.setitem(PRODUCT.variants, "cpu:pallas", InOneKernel(interpret=True))
    monkeypatch.setattr(tune, "seconds_of", lambda ways, *_: dict(zip(ways, (2.0, 1.0))))
    found = run()
    kept = choices.read(path)[choices.named(jax.devices()[0].device_kind)]
    assert kept == list(found.choices) and {one.way for one in kept} == {"pallas"}


def test_a_place_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script says so before it draws weights."""
    monkeypatch.setenv("SPECJAX_TUNED", "")
    line = ("benchmark_device", "--shape=tiny", "--tune=True", "--tuned=/proc/none/tuned.json")
    status, out, told = invoke(script("benchmark_device"), capsys, *line)
    assert status == 2 and not out
    assert "--tuned=/proc/none cannot be made" in told and "Traceback" not in told
