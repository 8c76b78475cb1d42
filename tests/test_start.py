"""What a start does side by side, and what it compiles."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from scripts import invoke, script

import specjax
from specjax.checkpoint.assemble import outlined
from specjax.core.compile_cache import drop_damaged
from specjax.core.platform import Platform
from specjax.jobs import starting, texts
from specjax.session.slots import Passes


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """The names of programs that are compiled, or found in the cache on disk."""
    names = list[str]()

    def listen(event: str, seconds: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(about["fun_name"]))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    names.append("closed")  # JAX keeps its listeners


LARGE = {f"jit({name})" for name in ("init_state", "prefill", "run", "grow_entry", "grow_rest")}


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_text_begins_with_programs_that_were_compiled_beside_its_weights(
    in_turn: bool, tmp_path: Path, compiled: list[str]
) -> None:
    how: dict[str, Any] = {"prompt": "def area("}
    if in_turn:
        lines = [json.dumps({"prompt": "def area(" + "x, " * n}) for n in range(3)]
        (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
        how = {"prompt_file": str(tmp_path / "prompts.jsonl"), "batch_size": 2}
    # Three guesses, and 21 tokens in all: shapes that no other test compiles.
    options = texts.Options(
        drafter="lm:3", max_new_tokens=21, compilation_cache="", temperature=0.7, **how
    )
    job = texts.read_job(options)
    run = starting.load_models(job)
    assert run.started is not None and run.started.compiled is not None
    before = list(compiled)
    assert "jit(run)" in before and 2 <= sum(name in LARGE for name in before) <= 6
    batch = starting.plan(job)[0]
    arguments = run.arguments(batch.rows)
    if batch.at_once:
        turns = specjax.generate_each(run.target, run.spec, batch_size=batch.at_once, **arguments)
        assert len(list(turns)) == 3
    else:
        specjax.generate(run.target, run.spec, **arguments)
    assert compiled == before


@pytest.mark.parametrize("name", ["lm", "dflash", "eagle3", "medusa"])
def test_an_outline_is_what_will_be_loaded(name: str) -> None:
    def load() -> Any:
        target = specjax.load("demo:target", quantize="int8")
        options = texts.Options(drafter=name, quantize_draft="int8")
        return target.net, options.load_drafter(options.chosen(), target).bind(target, "one_hot")

    with outlined():
        shapes = load()
    real = load()
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(real), strict=True)
    assert all((x.shape, x.dtype) == (y.shape, y.dtype) for x, y in pairs)
    assert isinstance(jax.tree.leaves(shapes)[0], jax.ShapeDtypeStruct)


@pytest.mark.parametrize(
    ("tokens", "rows", "want"),
    [
        (20, 1, [64]),
        (200, 1, [256]),
        (300, 1, [256, 64]),
        (1000, 1, [1024]),
        (1500, 1, [1024, 256, 256]),
        (2100, 1, [2048, 64]),
        (5000, 1, [2048, 2048, 1024]),
        (20, 8, [64]),
        (300, 8, [256, 64]),
        (70, 32, [64, 64]),
    ],
)
def test_passes_on_accelerators_are_wide_and_padded_little(
    tokens: int, rows: int, want: list[int]
) -> None:
    passes = Passes.of(tokens + 1, rows=rows, platform=Platform("gpu"))
    plan = passes.plan(tokens)
    assert [width for _, width in plan] == want
    starts = [sum(want[:i]) for i in range(len(want))]
    assert [start for start, _ in plan] == starts and sum(want) >= tokens
    assert all(start < tokens for start in starts)  # none is all padding
    narrow = Passes.of(tokens + 1, rows=rows, platform=Platform("cpu"))
    assert set(narrow.widths) <= {16, 64, 256}


def test_programs_that_were_not_written_to_their_end_are_compiled_anew(tmp_path: Path) -> None:
    whole = zlib.compress(bytes(range(256)) * 50)
    files = {"a-cache": whole, "b-cache": whole[:-9], "c-cache": b"", "other": b"1"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / "0-cache").mkdir()  # what nobody here made is left alone
    (tmp_path / "1-cache").symlink_to(tmp_path / "nowhere")
    drop_damaged(tmp_path)
    left = {"0-cache", "1-cache", "a-cache", "other", ".looked-at"}
    assert {p.name for p in tmp_path.iterdir()} == left
    (tmp_path / "d-cache").write_bytes(whole[:9])  # behind the last look
    (tmp_path / "e-cache").write_bytes(whole[:9])  # before it
    os.utime(tmp_path / "e-cache", (1e9, 1e9))
    drop_damaged(tmp_path)
    left = {"0-cache", "1-cache", "a-cache", "e-cache"}
    assert {p.name for p in tmp_path.glob("*-cache")} == left


@pytest.mark.parametrize("name", ["SPECJAX_KERNELS", "SPECJAX_SPLIT_K", "SPECJAX_TILING"])
def test_what_the_environment_names_is_looked_at_first(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "none of them")
    status, _, error = invoke(script("generate"), capsys, "generate", "--max_new_tokens=2")
    assert status == 2 and error.startswith(f"error: {name}=") and error.count("\n") == 1
