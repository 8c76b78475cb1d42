"""What the compiler knows: the counts of a report, and its bad input."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from scripts import invoke, script, start

from specjax.core.platform import Platform
from specjax.core.program import Program, compiler_options, is_known
from specjax.core.sharding import mesh_sizes
from specjax.jobs import compiling
from specjax.lab.bench import depths
from specjax.lab.compiler import abstract, report, topology
from specjax.lab.compiler import cycle as account
from specjax.lab.compiler.depth import at_depth, of_report
from specjax.lab.records import codec
from specjax.lab.records.compiled import Setup, read_report
from specjax.models.shapes import SHAPES

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "compile.py"

SETUP = Setup(
    target="tiny",
    layers=2,
    drafter="dflash",
    num_draft=3,
    draft_layers=1,
    draft_taps=2,
    draft_vocab=512,
    draft_model="tiny",
    replicate_drafter=False,
    rows=2,
    slots=256,
    context=200,
    dtype="float32",
    temperature=0.0,
    top_p=1.0,
    rule="",
    trips=1,
    programs="run",
)


def test_a_report_on_what_is_here() -> None:
    """Nothing is allocated; the counts are those of the shapes; the scopes are in the program."""
    here = topology.find("local")
    texts: dict[str, str] = {}
    made = report.make(SETUP, here, None, hlo_text=texts.__setitem__)
    assert list(made.programs) == ["init", "run"] and made.num_draft == 3
    assert made.programs_of_a_generation[1:4] == ("prefill 16", "prefill 64", "prefill 256")
    cycle = made.cycle
    layer = 128 * (2 * 128 + 2 * 64) + 3 * 128 * 256 + 2 * 128
    head, fc = 2048 * 128, 2 * 128 * 128
    norms, draft_norms = 128, 2 * 32 + 2 * 128  # of each head of queries and keys; of c and the end
    assert cycle.floor.weight_bytes == 4 * (2 * layer + norms + head)
    context = 2 * 64 * 128  # keys and values, by which the block is multiplied as well
    assert cycle.floor.draft_bytes == 4 * (layer + context + draft_norms + fc)
    assert cycle.floor.borrowed_bytes == 4 * head  # the guesses' logits
    assert cycle.floor.cache_bytes == 3 * 2 * 2 * 200 * 64 * 4
    assert made.held_bytes["target weights"] == 4 * (2 * layer + norms + 2 * head)
    assert made.held_bytes["target cache"] == 2 * 2 * 2 * 256 * 64 * 4 + 2 * 4  # lengths, too
    # Products of 2 rows of 4 tokens with every weight (the head a second time for 3 guesses), with
    # 256 slots, and of what the drafter keeps of the block.
    assert 1.0 < cycle.flops_over_floor < 1.25
    assert cycle.cache_copies == 0 and cycle.collectives == {}
    assert cycle.loops_of_unknown_length == 0
    assert cycle.bytes > cycle.floor.bytes
    for scope in account.SCOPES:
        assert f"specjax/{scope}/" in texts["run"], scope
    assert read_report(json.loads(json.dumps(codec.to_json(made))), "it") == made


def test_what_requests_ask_for_is_compiled() -> None:
    """Processors of every row, and the counts that penalties look at."""
    asked = {"temperature": 0.8, "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.1}
    sampled = dataclasses.replace(SETUP, **asked, drafter="none")
    plain, penalised = (abstract.abstract(s, None) for s in (SETUP, sampled))
    assert plain.counts is None and plain.request.sampling.greedy
    assert penalised.counts.output.shape == (2, 2048)
    used = penalised.request.sampling
    assert used.top_k.shape == used.min_p.shape == used.frequency.shape == (2,)
    texts: dict[str, str] = {}
    report.make(sampled, topology.find("local"), None, hlo_text=texts.__setitem__)
    assert "s32[2,2048]" in texts["run"]  # the counts, carried through the loop


def test_the_compiler_is_told_by_platform() -> None:
    """On GPUs, not to split products: with an option that it knows, or none."""
    assert compiler_options(Platform("cpu")) == {} and compiler_options(Platform("tpu"))
    (option,) = compiler_options(Platform("gpu"))
    assert is_known(option) and not is_known(f"{option}s")
    assert compiler_options(Platform("gpu", split_k="xla")) == {}
    double = Program(lambda x: 2 * x)
    assert int(double(jnp.int32(4))) == 8
    assert double._cache_size() == 1 and "multiply" in double.lower(jnp.int32(1)).as_text()


def slice_of(num: int, hbm: int) -> topology.Topology:
    devices = tuple(jax.devices()[:1]) * num
    return topology.Topology("v5e:2x4", "tpu", "TPU v5 lite", devices, num, hbm)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"target": "gpt-5"}, "target='gpt-5': must be one of"),
    ({"target": "qwen3-9b"}, r"'qwen3-9b' \(did you mean qwen3-8b\?\): must be one of"),
    ({"drafter": "psychic"}, "drafter='psychic': must be one of none, lm, dflash, eagle3"),
    ({"context": 256}, "context=256: must be from 1 to slots - 1"),
    ({"slots": 1 << 20, "context": 5}, "ends at 131072 tokens"),
    ({"drafter": "eagle3", "draft_vocab": 4096}, "draft_vocab=4096"),
    ({"drafter": "eagle3", "draft_latent": True}, "draft_latent=True: a llama model has no"),
    ({"draft_taps": 9}, "draft_taps=9: the target has 2 layers"),
    ({"rule": "nonsense"}, "nonsense"),
    ({"min_p": 2.0}, "min_p=2.0: must be"),
]


@pytest.mark.parametrize("fields,message", BAD, ids=[str(f) for f, _ in BAD])
def test_a_setup_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        report.plan(dataclasses.replace(SETUP, **fields), topology.find("local"), None)
    assert "\n" not in str(info.value)


def test_a_model_that_does_not_fit_is_refused_before_it_is_compiled() -> None:
    big = dataclasses.replace(SETUP, target="llama-3.1-8b", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"does not fit on v5e:2x4: a device needs 3\.\d GiB"):
        report.make(big, slice_of(1, topology.GIB), None)
    with pytest.raises(ValueError, match="has 16 devices, but v5e:2x4 has 8"):
        slice_of(8, 1).mesh(**mesh_sizes("data:2,model:8"))


def settings_of(*arguments: str) -> tuple[Setup, list[str]]:
    """What the script compiles, by its flags."""
    found: list[compiling.Options] = []
    with mock.patch.object(compiling.compile_report, "of", found.append):
        assert start(script("compile"), "compile", f"--config={CONFIG}", *arguments) == 0
    return compiling.settled(found[0], 1)


def test_a_few_layers_tell_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held against a report on all of them; stored ones of another program are refused."""
    here = dataclasses.replace(topology.find("local"), hbm_bytes=None)
    one, two, four = (
        report.make(dataclasses.replace(SETUP, drafter="none", layers=layers), here, None)
        for layers in (1, 2, 4)
    )
    told, whole = at_depth(one, two, 4), of_report(four, 4)
    for name in ("floor", "held", "flops", "cache_copies", "collectives"):
        assert getattr(told, name) == getattr(whole, name), name
    assert told.bytes == pytest.approx(whole.bytes, rel=0.02)
    assert whole.bytes > 1.3 * two.cycle.bytes
    for name, made in (("a_1", one), ("a_2", two)):
        codec.write_file(tmp_path / f"{name}.json", made)
    files = (f"--read={tmp_path}/a_2.json", f"--fewer={tmp_path}/a_1.json")
    assert "all layers, on one device" in invoke(script("compile"), capsys, "compile", *files)[1]
    (row,) = depths.rows(tmp_path)
    assert row["layers"] == "1, 2 of 2" and row["floor"] == f"{two.cycle.floor.bytes / 1e6:,.0f}"
    assert "--config.layers=LAYERS" in depths.programs(tmp_path)[0].command
    with pytest.raises(ValueError, match=r"different programs: setup\.rows is 2 and 3"):
        at_depth(one, dataclasses.replace(two, setup=dataclasses.replace(two.setup, rows=3)), 4)
    with pytest.raises(ValueError, match="2 and 1 layers were compiled"):
        at_depth(two, one, 4)


@pytest.mark.parametrize("drafter", ["none", "dflash", "eagle3"])
def test_every_shape_and_every_directory_fits_the_defaults(drafter: str, tmp_path: Path) -> None:
    """Nothing is compiled: what would be is laid out."""
    config = {**SHAPES["qwen3-0.6b"], "num_hidden_layers": 2, "max_position_embeddings": 512}
    config |= {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 640}
    config["layer_types"] = ["full_attention"] * 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    here = topology.find("local")
    for name in SHAPES:  # as they are, without being laid out
        assert (
            settings_of(f"--config.target={name}", f"--config.drafter={drafter}")[0].slots == 4096
        )
    for name in ("tiny", "qwen3-32b", "demo:target", str(tmp_path / "config.json")):
        given = (f"--config.target={name}", f"--config.drafter={drafter}", "--config.layers=2")
        setup, _ = settings_of(*given)
        session, _ = report.plan(setup, dataclasses.replace(here, hbm_bytes=None), None)
        assert session.drafter.num_draft == (0 if drafter == "none" else 15)
    setup, notes = settings_of(
        f"--config.target={tmp_path}", f"--config.drafter={drafter}", "--config.layers=1"
    )
    assert (setup.slots, setup.context, setup.layers) == (512, 384, 1)
    assert notes[:2] == [
        "slots is 512 instead of 4096: the target ends at 512 tokens.",
        "context is 384 instead of 3072: three quarters of 512 slots.",
    ]
    fields = {"none": [], "dflash": ["draft_taps is 1"], "eagle3": ["draft_vocab is 640"]}[drafter]
    assert [note.partition(" instead")[0] for note in notes[2:]] == fields


def test_the_examples_of_the_script_are_right() -> None:
    module = script("compile")
    told = module.about.replace("\\\n", " ")
    examples = re.findall(r"python -m experiments\.compile(.*)", told)
    assert len(examples) == 6
    for example in examples[:2]:
        given = [a for a in example.split() if a.startswith("--config.")]
        setup, _ = settings_of(*given)
        report.plan(setup, dataclasses.replace(topology.find("local"), hbm_bytes=None), None)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--config.target=/nowhere"], "a directory with a config"),
        (["--config.target=TMP"], "model_type 'gpt2' is not supported"),
        (["--config.draft_taps=4"], "draft_taps=4: the target has 2 layers"),
        (["--topology=v9x:2x2"], "not CHIP:SIZES"),
        (["--topology=v5e"], "not CHIP:SIZES"),
        (["--topology=h100:2x4"], "nor GPU:COUNT, such as h100:8, of h100, h200"),
        (["--topology=h100:9"], "a machine has 1 to 8 of them"),
        (["--config.trips=0"], "trips=0: must be at least 1"),
        (["--config.drafter=lm", "--config.draft_model=no"], "draft_model='no': must be one of"),
        (["--mesh=pipeline:2"], "is not AXIS:SIZE"),
        (["--mesh=model:4096"], "4096 devices, but there are"),
        (["--config.rows=0"], "rows=0: must be at least 1"),
        (["--config.drafter=ngram", "--config.min_confidence=0.5"], "ngram does not take it"),
        (["--output=/nowhere/at/all.json"], "lies in no existing directory"),
    ],
)
def test_the_script_says_what_is_wrong_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    arguments = [a.replace("TMP", str(tmp_path)) for a in arguments]
    line = ["compile", f"--config={CONFIG}", "--config.target=tiny", *arguments]
    module = script("compile")
    status, _, error = invoke(module, capsys, *line)
    assert status == 2 and message in error and error.count("\n") == 1


def test_a_slice_without_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'specjax\[tpu\]'"):
        topology.find("v5e:2x4")
    with pytest.raises(ValueError, match=r"pip install --no-deps jax-cuda12-plugin==\d") as info:
        topology.find("h100:8")
    assert "\n" not in str(info.value)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_slice_that_is_not_here() -> None:
    """The TPU compiler itself: caches stay where they are, and two sums a layer."""
    slice_ = topology.find("v5e:2x4")
    assert len(slice_.devices) == slice_.num_chips == 8
    with pytest.raises(ValueError, match="no such slice"):
        topology.find("v5e:3x5")
    setup = dataclasses.replace(SETUP, dtype="bfloat16", rows=8)
    cycle = report.make(setup, slice_, slice_.mesh(**mesh_sizes("data:2,model:4"))).cycle
    assert cycle.cache_copies == 0
    assert cycle.collectives["all-reduce"].count <= 2 * 3 + 2
