"""Exported drafters: read back equal, refused where a format lies, whole or not there at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from scripts import invoke, script
from tiny_checkpoint import END, write_tiny

import specjax
from specjax import drafters
from specjax.checkpoint import CheckpointError, tokenizer
from specjax.checkpoint.drafters import export
from specjax.checkpoint.drafters.export import formats_for, formats_of, save_drafter
from specjax.checkpoint.drafters.pickle_writer import save_pickle
from specjax.checkpoint.export import named_tensors, save_pretrained
from specjax.checkpoint.pickle_reader import read_pickle
from specjax.models.frozen import Frozen
from specjax.models.layers.rope import LinearScaling, Rope, YarnScaling

VOCAB = 40


@pytest.fixture(scope="module")
def target() -> specjax.Model:
    return tiny.model("qwen3", vocab=VOCAB, layers=8)


def with_config(spec: Any, **fields: Any) -> Any:
    """The drafter with other fields of its config; its weights must suit them."""
    net = spec.net.module
    net.config = dataclasses.replace(net.config, **fields)
    return dataclasses.replace(spec, net=Frozen.of(net))


def with_rope(spec: Any, scaling: Any) -> Any:
    backbone = dataclasses.replace(spec.net.config.backbone, rope=Rope(5000.0, scaling))
    return with_config(spec, backbone=backbone)


Make = Callable[[specjax.Model], Any]
REDUCED = np.arange(3, 33, 2)
# name -> how it is made, and the formats that can say it.
CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "plain": (lambda t: drafters.DFlash.fresh(t, num_draft=3), ("zlab", "speculators")),
    "window": (lambda t: drafters.DFlash.fresh(t, num_draft=3, window=8), ("zlab",)),
    "window from the anchor": (
        lambda t: drafters.DFlash.fresh(t, num_draft=3, window=8, window_from_anchor=True),
        ("speculators",),
    ),
    "causal window": (
        lambda t: with_config(
            drafters.DFlash.fresh(t, num_draft=3, layers=2),
            windows=(8, None),
            causal=(True, False),
        ),
        ("zlab",),
    ),
    "yarn": (
        lambda t: with_rope(drafters.DFlash.fresh(t, num_draft=3), YarnScaling(8.0, 64)),
        ("zlab", "speculators"),
    ),
    "two": (
        lambda t: drafters.DFlash2.fresh(t, num_draft=3, window=8, window_from_anchor=True),
        ("speculators",),
    ),
    "scaled": (
        lambda t: drafters.DFlash2.fresh(
            t, num_draft=3, output_multiplier=0.5, logit_softcap=20.0, embedding_scale=2.0
        ),
        ("zlab",),
    ),
    "eagle3": (lambda t: drafters.Eagle3.fresh(t, num_draft=3), ("safeailab", "speculators")),
    "eagle3 reduced": (
        lambda t: with_rope(
            drafters.Eagle3.fresh(t, num_draft=3, target_ids=REDUCED), LinearScaling(2.0)
        ),
        ("safeailab", "speculators"),
    ),
    "eagle3.1": (
        lambda t: drafters.Eagle3.fresh(t, num_draft=3, fc_norm=True, norm_output=True, layers=2),
        ("speculators",),
    ),
    "mtp": (lambda t: drafters.MTP.fresh(t, num_draft=3, recycle="raw"), ("mtp",)),
    "medusa": (lambda t: drafters.Medusa.fresh(t, num_draft=2), ("medusa",)),
    "lm": (lambda t: drafters.LM(tiny.draft(VOCAB), 3), ("hf",)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_reads_back(target: specjax.Model, tmp_path: Path, case: str) -> None:
    make, formats = CASES[case]
    spec = make(target)
    assert set(formats) <= set(formats_of(spec)) <= set(export.FORMATS)
    fit = [f for f in formats_of(spec) if f in formats]
    assert formats_for(spec, target) == (*fit, *(["plain"] if case != "lm" else []))
    for format in formats_of(spec):
        where = tmp_path / format
        if format not in formats:
            with pytest.raises(ValueError, match=f"format='{format}' cannot express"):
                save_drafter(spec, where, format=format, target=target)
            assert not where.exists()
            continue
        save_drafter(spec, where, format=format, target=target)
        again: Any = specjax.load_drafter(where, target)
        assert type(again) is type(spec)
        ours, theirs = (x.model.net if case == "lm" else x.net for x in (spec, again))
        a, b = named_tensors(ours.params), named_tensors(theirs.params)
        assert a.keys() == b.keys()
        assert all(a[n].dtype == b[n].dtype and (a[n] == b[n]).all() for n in a)
        # Says nothing where there is no such head.
        unused = {"confidence_with_markov": False} if hasattr(ours.config, "causal") else {}
        assert dataclasses.replace(ours.config, **unused) == dataclasses.replace(
            theirs.config, **unused
        )
        ids = getattr(spec, "target_ids", None)
        assert ids is None or (np.asarray(again.target_ids) == np.asarray(ids)).all()
    assert {p.name for p in tmp_path.iterdir()} == set(formats)


def test_both_generations_of_keys_say_the_same(target: specjax.Model, tmp_path: Path) -> None:
    spec = with_rope(drafters.DFlash.fresh(target, num_draft=3), YarnScaling(4.0, 64))
    save_drafter(spec, tmp_path / "d", format="zlab", target=target, dtype="bfloat16")
    raw = json.loads((tmp_path / "d" / "config.json").read_text())
    assert raw["block_size"] == raw["dflash_config"]["block_size"] == 4
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 5000.0
    assert raw["rope_scaling"].items() <= raw["rope_parameters"].items()
    assert raw["dflash_config"]["target_layer_ids"] == [t - 1 for t in spec.net.config.taps]
    assert raw["dtype"] == "bfloat16" and raw["num_target_layers"] == 8
    stored = load_file(tmp_path / "d" / "model.safetensors")
    assert {x.dtype.name for x in stored.values()} == {"bfloat16"}
    assert not {"embed_tokens.weight", "lm_head.weight"} & stored.keys()


def test_vocabulary_maps(target: specjax.Model, tmp_path: Path) -> None:
    spec = drafters.Eagle3.fresh(target, num_draft=3, target_ids=REDUCED)
    save_drafter(spec, tmp_path / "d", format="safeailab", target=target)
    stored = load_file(tmp_path / "d" / "model.safetensors")
    assert stored["d2t"].dtype == np.int64 and stored["t2d"].dtype == np.bool_
    assert (stored["d2t"] + np.arange(15) == REDUCED).all()
    assert (np.flatnonzero(stored["t2d"]) == REDUCED).all() and stored["t2d"].shape == (VOCAB,)
    assert stored["midlayer.self_attn.q_proj.weight"].shape[1] == 2 * 32
    backwards = dataclasses.replace(spec, target_ids=jnp.asarray(REDUCED[::-1].copy()))
    with pytest.raises(ValueError, match="ascending"):
        save_drafter(backwards, tmp_path / "e", format="safeailab", target=target)


def test_bad_requests(target: specjax.Model, tmp_path: Path) -> None:
    spec = drafters.DFlash.fresh(target, num_draft=3)
    bad = lambda **k: save_drafter(
        spec, tmp_path / "d", **{"format": "zlab", "target": target, **k}
    )
    with pytest.raises(ValueError, match="dflash can be written as zlab, speculators"):
        bad(format="medusa")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        bad(dtype="float16")
    with pytest.raises(ValueError, match="belongs to another target"):
        bad(target=tiny.model("qwen3", vocab=31, layers=8))
    with pytest.raises(ValueError, match="NGram has nothing to write"):
        save_drafter(drafters.NGram(3), tmp_path / "d", format="zlab", target=target)
    state = jax.tree.map(lambda x: x, spec.net.params)
    state["norm"]["weight"][...] = state["norm"]["weight"][...].at[0].set(jnp.nan)
    broken = dataclasses.replace(spec, net=dataclasses.replace(spec.net, params=state))
    with pytest.raises(ValueError, match=r"norm\.weight has values that are not finite"):
        save_drafter(broken, tmp_path / "d", format="zlab", target=target)
    assert not list(tmp_path.iterdir())
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        bad()
    assert (tmp_path / "d" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        save_drafter(spec, tmp_path / "file", format="zlab", target=target)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["save_file", "rename"])
def test_an_export_that_dies_leaves_the_old_one(
    target: specjax.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: BaseException,
) -> None:
    first, second = (drafters.DFlash.fresh(target, num_draft=3, seed=s) for s in (0, 1))
    save_drafter(first, tmp_path / "d", format="zlab", target=target)
    before = (tmp_path / "d" / "model.safetensors").read_bytes()

    def dies(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(export if where == "save_file" else os, where, dies)
        said = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(said) as caught:
            save_drafter(second, tmp_path / "d", format="zlab", target=target)
    if said is CheckpointError:
        assert "No space left" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "model.safetensors").read_bytes() == before
    save_drafter(second, tmp_path / "d", format="zlab", target=target)
    assert (tmp_path / "d" / "model.safetensors").read_bytes() != before


def test_what_a_killed_export_left_is_cleared(target: specjax.Model, tmp_path: Path) -> None:
    """No code runs at a kill: its folder goes with the next export, and the old one is back."""
    spec = drafters.DFlash.fresh(target, num_draft=3)
    save_drafter(spec, tmp_path / "d", format="zlab", target=target)
    before = (tmp_path / "d" / "model.safetensors").read_bytes()
    for name in (".d.export-1", ".d.export-2"):
        (tmp_path / name / "new").mkdir(parents=True)
        (tmp_path / name / "new" / "model.safetensors").write_text("half")
    (tmp_path / "d").rename(tmp_path / ".d.export-2" / "old")  # between the two renames
    with pytest.raises(CheckpointError, match="not now"):
        export._write(tmp_path / "d", lambda whole: (_ for _ in ()).throw(OSError("not now")))
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "model.safetensors").read_bytes() == before


def test_pickles_are_what_torch_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "0.0.linear.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "0.0.linear.bias": rng.normal(size=(300,)).astype(jnp.bfloat16),
    }
    save_pickle(tensors, tmp_path / "x.pt")
    read = read_pickle(tmp_path / "x.pt")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype and (read[name].read() == value).all()


def test_a_draft_carries_the_tokenizers_files_along(tmp_path: Path) -> None:
    """Byte for byte, and what only other programs read: the shipped draft was made like this."""
    path = write_tiny(tmp_path / "target")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings |= {"pad_token": END, "chat_template": "{{ messages }}", "model_max_length": 99}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "special_tokens_map.json").write_text(json.dumps({"eos_token": END}))
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (path / "notes.txt").write_text("no part of it")
    target = specjax.load(path)
    for _ in range(2):  # an export replaces an earlier one
        spec = drafters.LM(target, 3)
        save_drafter(spec, tmp_path / "draft", format="hf", target=target)
    names = set(tokenizer.FILES) & {p.name for p in path.iterdir()}
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "draft" / name).read_bytes() == (path / name).read_bytes()
    raw = json.loads((tmp_path / "draft" / "config.json").read_text())
    assert raw["pad_token_id"] == raw["eos_token_id"] == 0
    weights = {"config.json", "generation_config.json", "model.safetensors"}
    assert {p.name for p in (tmp_path / "draft").iterdir()} == names | weights
    again = specjax.load(tmp_path / "draft")
    assert again.tokenizer.fingerprint() == target.tokenizer.fingerprint()
    (path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="gone"):
        save_drafter(spec, tmp_path / "draft", format="hf", target=target)
    assert (tmp_path / "draft" / "tokenizer.json").is_file()


def test_export_command(target: specjax.Model, tmp_path: Path, capsys: Any) -> None:
    save_pretrained(target.net.module, tmp_path / "target", dtype="float32")
    spec = drafters.Eagle3.fresh(target, num_draft=3)
    save_drafter(spec, tmp_path / "a", format="safeailab", target=target, dtype="bfloat16")
    line = ["export", f"--checkpoint={tmp_path}/a", f"--target={tmp_path}/target"]
    line += [f"--output={tmp_path}/b", "--format=speculators"]
    status, out, err = invoke(script("export"), capsys, *line)
    assert status == 0, err
    assert "in bfloat16" in out and "reads back equal" in out
    raw = json.loads((tmp_path / "b" / "config.json").read_text())
    assert raw["speculators_config"]["verifier"]["name_or_path"] == str(tmp_path / "target")
    a, b = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert (a["midlayer.mlp.up_proj.weight"] == b["layers.0.mlp.up_proj.weight"]).all()
