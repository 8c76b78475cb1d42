"""Plans for devices that are not here: what shapes say, carried on right, and held to a device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from scripts import invoke, script

from specjax.lab.bench import training_plan
from specjax.lab.bench.training_cost import Step
from specjax.lab.compiler import chips, pods
from specjax.lab.compiler.abstract import abstract
from specjax.lab.costs import account
from specjax.lab.records import codec
from specjax.lab.records.compiled import Setup
from specjax.lab.records.device import TrainingSetup
from specjax.lab.records.planned import PodPlan, TrainingPlan
from specjax.models.shapes import SHAPES

H100 = chips.CHIPS["h100"]
EIGHT_B = Setup(target="llama-3.1-8b", rows=1, slots=2048, context=1024)


@pytest.mark.parametrize(
    "drafter,num_draft,milliseconds",
    [("dflash", 15, 9.05), ("eagle3", 5, 8.38)],  # of a cycle; a plain step took 6.77
)
def test_what_was_measured_on_one_h100(drafter: str, num_draft: int, milliseconds: float) -> None:
    setup = dataclasses.replace(EIGHT_B, drafter=drafter, num_draft=num_draft)
    (found,) = pods.plan(setup, H100, 1, 1)
    assert found.plain.seconds * 1e3 == pytest.approx(6.77, rel=0.02)
    assert found.cycle.seconds * 1e3 == pytest.approx(milliseconds, rel=0.08)
    assert found.cycle.sums == found.cycle.sent == 0 and found.fits


def test_two_depths_tell_of_all_layers(tmp_path: Path) -> None:
    """Layers in periods of three kinds, behind none that is unlike them."""
    setup = dataclasses.replace(EIGHT_B, target="gpt-oss-20b", drafter="eagle3", num_draft=5)
    low, high = pods.depths(setup)
    assert (low, high) == (6, 8)  # a window in every other layer
    made = pods.whole_share(setup, H100, 1, 1, 1)
    session = abstract(setup, None, H100.platform)
    whole = account.cycle(
        session.target, session.spec, session.drafter, rows=1, slots=2048, context=1024
    )
    assert made.cycle == pytest.approx((whole.bytes, whole.flops), rel=1e-6)
    held = account.held_bytes(session.target, session.drafter, rows=1, slots=2048)
    assert made.held == pytest.approx(held)


def test_nothing_grows_along_the_data_axis() -> None:
    """What a device must do depends on its rows; sums cross those that share a model alone."""
    v5p, setup = chips.CHIPS["v5p"], dataclasses.replace(EIGHT_B, drafter="eagle3", num_draft=3)
    one, many = (
        pods.predict(setup, v5p, {"data": n, "model": 4, "experts": 1}, 2 * n) for n in (1, 16)
    )
    assert (one.held, one.plain, one.cycle) == (many.held, many.plain, many.cycle)
    assert many.rows == 32 and many.plain_rate == pytest.approx(16 * one.plain_rate)
    alone = pods.predict(setup, v5p, {"data": 1, "model": 1, "experts": 1}, 2)
    assert alone.plain.bytes > 3.5 * one.plain.bytes and one.plain.sums == 2 * 32 + 1
    assert one.plain.sent == 65 * 2 * 4096 * 2


def test_what_drafts_send_is_their_own() -> None:
    """As many sums as a pass of theirs has, of the tokens that it is fed, as wide as they are."""
    v5p, mesh = chips.CHIPS["v5p"], {"data": 1, "model": 4, "experts": 1}
    eagle = dataclasses.replace(EIGHT_B, drafter="eagle3", num_draft=3)
    found = pods.predict(eagle, v5p, mesh, 2)
    cycle, wide = found.cycle, 4096 * 2
    assert cycle.sums == 65 + 3 * 3  # one layer, three passes: K + 1 tokens, and then one each
    assert cycle.sent == (65 * 2 * 4 + 3 * 2 * (4 + 2)) * wide
    full = dataclasses.replace(eagle, dtype="float32")
    assert pods.predict(full, v5p, mesh, 2).cycle.sent == 2 * cycle.sent
    assert pods.predict(eagle, H100, mesh, 2).cycle.sent == 2 * cycle.sent  # sums of float32
    heads = dataclasses.replace(
        EIGHT_B, target="qwen3.5-35b-a3b", drafter="mtp", num_draft=3, slots=4096, context=3072
    )
    assert pods.predict(heads, v5p, {**mesh, "model": 2}, 1).cycle.sums == 2 * 40 + 1 + 3 * 3
    draft = dataclasses.replace(EIGHT_B, target="qwen3-8b", drafter="lm", num_draft=3)
    draft = dataclasses.replace(draft, draft_model="qwen3-0.6b")  # 16 heads for 32
    assert {one.mesh["model"] for one in pods.plan(draft, v5p, 32, 2)} == {16}  # and not 32


def test_latents_lie_whole_on_every_device() -> None:
    kimi = dataclasses.replace(EIGHT_B, target="kimi-k2.5", drafter="none", num_draft=1)
    one, eight = (
        pods.predict(kimi, H100, {"data": 1, "model": n, "experts": 1}, 1).held for n in (1, 8)
    )
    assert one["target cache"] == eight["target cache"]
    split = [
        pods.predict(EIGHT_B, H100, {"data": 1, "model": n, "experts": 1}, 8).held for n in (1, 8)
    ]
    assert split[0]["target cache"] == pytest.approx(8 * split[1]["target cache"], rel=1e-4)
    assert eight["target weights"] < one["target weights"] / 6


def test_meshes_divide_the_target_and_the_rows() -> None:
    sizes = lambda target, devices, rows: [
        tuple(mesh.values())
        for mesh in pods.meshes(dataclasses.replace(EIGHT_B, target=target), devices, rows)
    ]
    assert sizes("llama-3.1-8b", 4, 1) == [(1, 4, 1)]
    assert sizes("llama-3.1-8b", 4, 2) == [(2, 2, 1), (1, 4, 1)]
    assert sizes("qwen3.5-27b", 4, 1) == [(1, 4, 1)]  # whose family has experts, and it none
    assert (1, 1, 4) in sizes("qwen3-30b-a3b", 4, 1) and (1, 2, 2) in sizes("qwen3-30b-a3b", 4, 1)
    assert pods.plan(EIGHT_B, H100, 3, 1) == []


def test_sums_over_devices() -> None:
    """Every byte twice but for one part; machines are further away than what links connect."""
    assert H100.sum_seconds(1, 1e9, 9) == 0
    assert H100.sum_seconds(8, 450e9, 0) == pytest.approx(2 * 7 / 8)
    assert H100.sum_seconds(16, 50e9, 0) == pytest.approx(2 * 15 / 16)
    assert H100.sum_seconds(8, 0, 10) == pytest.approx(10 * 2 * 3 * H100.hop)


def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--target=tiny",
        "--drafter=none",
        "--topology=v6e:4,h100:3,h100:2",
        "--rows=1,4",
        "--slots=256",
    ]
    output = tmp_path / "plans.json"
    status, shown, _ = invoke(
        script("plan"), capsys, "plan", *flags, "--context=200", f"--output={output}"
    )
    assert status == 0
    assert shown.count("v6e:4") == shown.count("h100:2") == 2  # the best mesh for each
    assert "tau to beat" in shown and "Nothing of it was measured" in shown
    assert shown.count("none divides") == 2
    made = [codec.from_json(PodPlan, x, "plans") for x in codec.read_file(output)]
    assert [plan.devices for plan in made] == [4, 3, 2] and len(made[0].found) == 2


TRAINED = TrainingSetup(
    raw={**SHAPES["qwen3-8b"]}, layers=5, anchors=256, block=16, rows=8, seq_len=3072
)


def test_what_training_took_on_one_h100() -> None:
    """7,843 tokens a second, of one text a step."""
    one = dataclasses.replace(TRAINED, rows=1)
    (found,) = training_plan.plan(one, H100, 1)
    assert one.seq_len / found.seconds == pytest.approx(7843, rel=0.03)
    assert not found.exchanges and found.fits


def test_what_devices_hold_and_exchange_in_training() -> None:
    """The target comes together once, the draft for both passes, and gradients are summed."""
    whole = {"data": 1, "fsdp": 1, "model": 1}
    step = Step(TRAINED, None)
    of = lambda **sizes: training_plan.predict(TRAINED, H100, {**whole, **sizes}, step)
    one, four = of(), of(fsdp=4)
    for name, size in one.held.items():
        assert four.held[name] == pytest.approx(size / 4, rel=1e-3), name
    masters = one.held["gradients"]
    assert one.held["masters and moments"] == pytest.approx(3 * masters, rel=1e-6)
    moved = 3 / 4 * (one.held["target"] + 3 * masters)
    assert four.sent == pytest.approx(moved, rel=1e-3)
    products = sum(four.flops.values()) / (chips.TRAINING * H100.flops)
    assert four.seconds == pytest.approx(products + moved / H100.link, rel=1e-3)
    twice = of(data=2)
    assert twice.sent == pytest.approx(masters) and twice.held == one.held
    halves = of(model=2)
    numbers = 8 * ((2 * 36 + 1) * 3072 + 6 * 5 * (3072 + 256 * 16))
    assert halves.sent == numbers * 2 * 4096


def test_of_meshes_that_are_as_fast_the_smallest_share() -> None:
    small = dataclasses.replace(TRAINED, raw=dict(SHAPES["qwen3-0.6b"]), rows=64)
    every = training_plan.plan(small, chips.CHIPS["v5e"], 8)
    best, able = every[0], [one for one in every if one.fits]
    shortest = min(one.seconds for one in able)
    assert len({one.need for one in able}) > 2 and best.seconds > shortest
    assert best.need == min(one.need for one in able if one.seconds <= 1.03 * shortest)
    assert not training_plan.plan(dataclasses.replace(small, rows=3), H100, 5)


def test_the_script_plans_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plans.json"
    flags = ["--target=tiny", "--training", "--topology=v6e:4,h100:8", "--rows=3,8"]
    status, shown, _ = invoke(script("plan"), capsys, "plan", *flags, f"--output={output}")
    assert status == 0 and shown.count("none divides") == 1  # three texts over four or eight
    assert "texts/s" in shown and "Nothing of it was measured" in shown
    made = [codec.from_json(TrainingPlan, x, "plans") for x in codec.read_file(output)]
    assert [len(plan.found) for plan in made] == [2, 1]


@pytest.mark.parametrize(
    "flags,said",
    [
        (["--topology=v9:3"], "--topology=v9:3: not CHIP:COUNT"),
        (["--topology=v6e:4x4x32"], "a slice of v6e has 1 to 256 chips"),
        (["--topology=h100:8", "--mesh=model:2"], "leave it out with --topology"),
        (["--topology=h100:8", "--drafter=nothing"], "No drafter 'nothing'"),
        (["--topology=h100:8", "--rows=0"], "rows"),
        (["--topology=h100:8", "--target=nowhere"], "nowhere"),
        (["--training"], "name them with --topology"),
        ([], "a shape, which has no files to plan"),
        (["--topology=h100:8", "--training", "--drafter=eagle3"], "planned for dflash alone"),
        (["--topology=h100:8", "--training", "--slots=8192"], "is about decoding"),
        (["--topology=h100:8", "--seq_len=512"], "is about training"),
        (["--topology=h100:8", "--training", "--anchors=4000"], "more than the 3072 tokens"),
        (["--topology=h100:8", "--training", "--dtype=float32"], "in bfloat16"),
        (["--topology=h100:8", "--training", "--num_draft=3072"], "blocks are longer"),
    ],
)
def test_bad_input(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = invoke(script("plan"), capsys, "plan", "--target=tiny", *flags)
    assert status == 2 and said in error and error.count("\n") == 1
