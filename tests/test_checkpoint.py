"""Loading: parity with reference outputs, round trips on tiny checkpoints, and bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import errors as hub
from safetensors.flax import save_file
from tiny_checkpoint import error_of

from specjax.checkpoint import Model, assemble, load, reading
from specjax.checkpoint import safetensors_reader as reader
from specjax.models import FAMILIES, Frozen

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

# --- tiny checkpoints ------------------------------------------------------------------------


def tiny_tensors(seed: int = 0) -> dict[str, jax.Array]:
    """The tensors of `CONFIG`, as Hugging Face names them, bfloat16."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (24, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (24, 8),
    }
    for layer in range(2):
        for name, shape in {
            "input_layernorm": (8,),
            "post_attention_layernorm": (8,),
            "self_attn.q_proj": (8, 8),
            "self_attn.k_proj": (4, 8),
            "self_attn.v_proj": (4, 8),
            "self_attn.o_proj": (8, 8),
            "mlp.gate_proj": (12, 8),
            "mlp.up_proj": (12, 8),
            "mlp.down_proj": (8, 12),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.normal(size=s), jnp.bfloat16) for n, s in shapes.items()}


def write(directory: Path, *, config: Any = CONFIG, tensors: Any = None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tiny_tensors() if tensors is None else tensors, directory / WEIGHTS)
    return directory


def write_shards(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    names, files = sorted(tiny_tensors()), ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    home = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save_file({n: t for n, t in tiny_tensors().items() if home[n] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": home}))
    return directory


def equal(a: Frozen, b: Frozen) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    same = all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)
    return same and jax.tree.structure(a) == jax.tree.structure(b)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- what is loaded --------------------------------------------------------------------------


def test_loads_every_tensor_in_its_place(tmp_path: Path) -> None:
    model = load(write(tmp_path / "tiny"), join=False)
    assert isinstance(model, Model)
    assert (model.name, model.dtype, model.mesh) == ("tiny", jnp.bfloat16, None)
    assert (model.stop_token_ids, model.bos_token_id, model.tokenizer) == ((2,), 1, None)
    module, tensors = model.net.module, tiny_tensors()
    for name, tensor in tensors.items():
        value: Any = module
        for part in name.removeprefix("model.").split("."):
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        assert value[...].dtype == jnp.bfloat16 and np.array_equal(value[...], tensor), name
    # The same structure as a network made the usual way: neither compiles the other's code anew.

    def make() -> nnx.Module:
        return FAMILIES["llama"](model.config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    assert jax.tree.structure(Frozen.of(nnx.eval_shape(make))) == jax.tree.structure(model.net)


def test_shards_equal_one_file(tmp_path: Path) -> None:
    one, two = load(write(tmp_path / "a")), load(write_shards(tmp_path / "b"))
    assert equal(one.net, two.net)


def test_dtype(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    wide = load(path, dtype=jnp.float32)
    assert wide.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(wide.net))
    edit(path / "config.json", torch_dtype="float16")
    assert "float16" in error_of(path) and "dtype=bfloat16" in error_of(path)
    assert load(path, dtype="bfloat16").dtype == jnp.bfloat16
    assert "float16" in error_of(path, dtype="float16")
    edit(path / "config.json", torch_dtype=None, dtype="float32")
    assert load(path).dtype == jnp.float32
    (path / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": None}))
    assert load(path).dtype == jnp.bfloat16  # what the tensors are stored in


def test_mesh_places_parameters_by_their_axes(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    model = load(path, mesh="data:1,model:1")
    weight = model.net.params["layers"][0]["mlp"]["gate_up_proj"]["weight"][...]
    assert weight.sharding.spec == jax.sharding.PartitionSpec("model", None)
    assert equal(model.net, load(path).net)


def test_weights_are_read_once_and_so_far_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, read = list[str](), list[int]()
    whole = load(write(tmp_path / "m"), join=False)
    begin, put, preadv = reading.Reader.begin, jax.device_put, os.preadv
    noted = lambda word, x: (events.append(word), x)[1]

    def count(file: int, buffers: list[memoryview], at: int) -> int:
        read.append(preadv(file, [buffers[0][:100]], at))  # a system may return less than is asked
        return read[-1]

    monkeypatch.setattr(reading.Reader, "begin", lambda *args: noted("begin", begin(*args)))
    monkeypatch.setattr(assemble.jax, "device_put", lambda x: noted("put", put(x)))
    monkeypatch.setattr(reader.os, "preadv", count)
    monkeypatch.setattr(reading, "_PIECE", 100)  # bytes: several of most tensors
    blank = lambda shape, dtype: np.full(shape, np.nan).astype(dtype)  # not what was read before
    monkeypatch.setattr(reading, "aligned", blank)
    found = load(tmp_path / "m", join=False)
    assert equal(found.net, whole.net)
    num, size = len(tiny_tensors()), sum(x.nbytes for x in jax.tree.leaves(found.net))
    assert events == ["begin"] * num + ["put"] * num and sum(read) == size
    monkeypatch.setattr(reading, "_AHEAD", 0)
    events.clear()
    assert equal(load(tmp_path / "m", join=False).net, found.net)
    assert events == ["begin", "put"] * num
    assert equal(load(tmp_path / "m", mesh="data:1,model:1", join=False).net, found.net)


def test_head(tmp_path: Path) -> None:
    """The tensor list decides; the flag decides only where there is no tensor."""
    tensors, tied = tiny_tensors(), {**CONFIG, "tie_word_embeddings": True}
    own = load(write(tmp_path / "own", config=tied))
    assert not own.config.tie_word_embeddings
    copy = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert load(write(tmp_path / "copy", config=tied, tensors=copy)).config.tie_word_embeddings
    del tensors["lm_head.weight"]
    assert load(write(tmp_path / "none", config=tied, tensors=tensors)).config.tie_word_embeddings
    message = error_of(write(tmp_path / "lost", tensors=tensors))
    assert "missing" in message and "lm_head.weight" in message


def test_skips_only_rotary_constants(tmp_path: Path) -> None:
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": jnp.ones(1)}
    load(write(tmp_path / "m", tensors={**tiny_tensors(), **constant}))


def test_stop_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "m", config={**CONFIG, "eos_token_id": [3, 2]})
    assert load(path).stop_token_ids == (3, 2)
    generation = path / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": 5}))
    assert load(path).stop_token_ids == (5,)
    generation.write_text(json.dumps({"do_sample": True}))
    assert load(path).stop_token_ids == (3, 2)
    for bad in (24, -1, "2", [2, 99], True, 2.0):
        generation.write_text(json.dumps({"eos_token_id": bad}))
        message = error_of(path)
        assert "generation_config.json: eos_token_id" in message and "0..23" in message


# --- bad input: directories ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, ["model_type", "mamba", "llama"]),
        ({"model_type": None}, ["model_type", "None"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["RoPE", "yarn"]),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            ["layer 1", "window of 8", "use_sliding_window=True"],
        ),
        # A value that no model can have.
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps=nan"]),
        ({"rms_norm_eps": -1}, ["rms_norm_eps=-1"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps=0"]),
        ({"rope_theta": 0}, ["rope_theta=0"]),
        ({"rope_theta": -1.0}, ["rope_theta=-1.0"]),
        ({"rope_theta": float("inf")}, ["rope_theta=inf"]),
        ({"rope_theta": "10000"}, ["rope_theta='10000'"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 0}}, ["rope_scaling.factor=0"]),
        ({"rope_parameters": {"factor": float("nan")}}, ["rope_parameters.factor=nan"]),
        ({"rope_scaling": ["yarn"]}, ["rope_scaling=['yarn']", "an object"]),
        ({"max_position_embeddings": -1}, ["max_position_embeddings=-1"]),
        ({"max_position_embeddings": 2**31}, ["max_position_embeddings=2147483648"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings='yes'", "true or false"]),
        ({"attention_bias": 1}, ["attention_bias=1", "true or false"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads=0"]),
        ({"num_attention_heads": 0}, ["num_attention_heads=0"]),
        ({"head_dim": 0}, ["head_dim=0"]),
        ({"hidden_size": 8.0}, ["hidden_size=8.0", "an integer"]),
        ({"hidden_size": True}, ["hidden_size=True"]),
        ({"intermediate_size": 10**100}, ["intermediate_size", "more than 40 digits"]),
        ({"vocab_size": 2**62}, ["vocab_size"]),
        ({"layer_types": "full"}, ["layer_types='full'"]),
        ({"model_type": ["llama"]}, ["model_type=['llama']"]),
        ({"torch_dtype": 16}, ["torch_dtype=16"]),
        ({"eos_token_id": list(range(2000))}, ["eos_token_id", "2,000"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=4"]),
        ({"num_attention_heads": 3}, ["num_attention_heads=3"]),
        ({"hidden_size": "8"}, ["hidden_size", "'8'"]),
        ({"rms_norm_eps": "tiny"}, ["config.json", "tiny"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"intermediate_size": 16}, ["wrong shape", "mlp.down_proj", "[8, 12]", "[8, 16]"]),
        ({"num_hidden_layers": 3}, ["9 missing", "model.layers.2.", "6 more"]),
        ({"num_hidden_layers": 1}, ["9 unknown", "model.layers.1."]),
        ({"num_hidden_layers": 1000}, ["1000 layers", "21"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers=1000000000", "10,000"]),
        ({"attention_bias": True}, ["missing", "k_proj.bias"]),
        ({"eos_token_id": 24}, ["eos_token_id=24", "0..23"]),
        ({"vocab_size": None}, ["lacks vocab_size"]),
    ],
)
def test_bad_config(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    message = error_of(write(tmp_path / "m", config={**CONFIG, **changes}))
    assert all(word in message for word in [str(tmp_path), *words]), message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": jnp.full((8,), jnp.nan)}, ["model.norm.weight", "NaN"]),
        ({"lm_head.weight": jnp.full((24, 8), -jnp.inf)}, ["lm_head.weight", "infinity"]),
        ({"lm_head.weight": jnp.full((24, 8), 3.4e38)}, ["lm_head.weight", "bfloat16"]),
        ({"lm_head.weight": jnp.ones((24, 8), jnp.int32)}, ["lm_head.weight", "int32"]),
        ({"lm_head.weight": jnp.ones((8, 24))}, ["lm_head.weight", "[8, 24]", "[24, 8]"]),
        ({"model.layers.0.self_attn.q_norm.weight": jnp.ones(2)}, ["1 unknown", "q_norm"]),
    ],
)
def test_bad_tensors(tmp_path: Path, change: dict[str, jax.Array], words: list[str]) -> None:
    message = error_of(write(tmp_path / "m", tensors={**tiny_tensors(), **change}))
    assert all(word in message for word in words), message


def test_missing_tensor(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    message = error_of(write(tmp_path / "m", tensors=tensors))
    assert "1 missing" in message and "model.layers.1.mlp.up_proj.weight" in message


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    whole = (path / WEIGHTS).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def message_for(content: bytes) -> str:
        (path / WEIGHTS).write_bytes(content)
        message = error_of(path)
        assert WEIGHTS in message
        return message

    def with_header(change: dict[str, Any] | bytes) -> bytes:
        text = change if isinstance(change, bytes) else json.dumps(header | change).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + length :]

    norm = header["model.norm.weight"]
    assert "truncated" in message_for(whole[:-1])
    assert "truncated" in message_for(whole[:100])
    assert "truncated" in message_for(b"")
    assert "after the last tensor" in message_for(whole + b"1")
    assert "Git LFS" in message_for(b"version https://git-lfs.github.com/spec/v1\n")
    assert "not JSON" in message_for(with_header(b"{nonsense"))
    assert "malformed" in message_for(with_header({"model.norm.weight": {"shape": [8]}}))
    odd = message_for(with_header({"model.norm.weight": {**norm, "dtype": "Q3_K"}}))
    assert "unknown dtype" in odd and "Q3_K" in odd
    assert "does not fit" in message_for(with_header({"model.norm.weight": {**norm, "shape": [9]}}))
    twice = b'{"a": 1, "a": 2}'
    assert "duplicate" in message_for(with_header(twice))
    begin, end = norm["data_offsets"]
    moved = {**norm, "data_offsets": [begin - 2, end - 2]}
    assert "do not follow" in message_for(with_header({"model.norm.weight": moved}))


def test_bad_index(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "m")
    index = path / INDEX
    said = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(said.values()))

    def message_for(weight_map: Any) -> str:
        index.write_text(json.dumps({"weight_map": weight_map}))
        return error_of(path)

    gone = message_for({**said, "lm_head.weight": "model-3-of-3.safetensors"})
    assert "model-3-of-3.safetensors" in gone and INDEX in gone
    assert "names the file" in message_for({**said, "lm_head.weight": f"../m/{first}"})
    swapped = message_for({n: second if f == first else first for n, f in said.items()})
    assert "says that tensor" in swapped and "is in" in swapped
    absent = message_for({**said, "model.extra.weight": first})
    assert "model.extra.weight" in absent and "missing" in absent
    unlisted = dict(list(said.items())[1:])
    assert "does not list" in message_for(unlisted)
    assert "weight_map" in message_for(["a"])
    assert "empty" in message_for({})

    index.write_text("{")
    assert "weight_map" in error_of(path)
    index.write_text(json.dumps({"weight_map": said}))
    save_file(tiny_tensors(), path / WEIGHTS)
    assert "both" in error_of(path)
    (path / WEIGHTS).unlink()
    save_file(tiny_tensors(), path / second)
    assert "duplicate tensor" in error_of(path)
    index.unlink()
    several = error_of(path)
    assert "2 safetensors files" in several and INDEX in several


# --- bad input: places -----------------------------------------------------------------------


def test_wrong_places(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is empty" in error_of(tmp_path / "empty")
    assert "no such file" in error_of(tmp_path / "nowhere")
    assert "no such file" in error_of(tmp_path / "model.bin")
    assert "no such file" in error_of("")
    path = write(tmp_path / "m")
    assert "give the directory" in error_of(path / WEIGHTS)
    assert "revision" in error_of(path, revision="main")
    assert "demo:target" in error_of("demo:drafter")
    assert "dtype" in error_of(path, dtype="floaty")
    with pytest.raises(ValueError, match="mesh=model:"):
        load(path, mesh="model:x")
    (path / "config.json").write_text('{"model_type": ')
    assert "config.json: not JSON" in error_of(path)
    (path / "config.json").write_text("[]")
    assert "not an object" in error_of(path)
    (path / "config.json").unlink()
    assert "has no config.json" in error_of(path)
    write(path)
    (path / WEIGHTS).rename(path / "pytorch_model.bin")
    assert "convert" in error_of(path)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def snapshot(repository: str, **kwargs: Any) -> str:
        calls.append({"repository": repository, **kwargs})
        return str(write(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load("owner/name", revision="v1").name == "owner/name"
    assert (calls[0]["repository"], calls[0]["revision"]) == ("owner/name", "v1")

    def failing(error: type[Exception]) -> str:
        def raise_(*args: Any, **kwargs: Any) -> str:
            raise error.__new__(error)  # their constructors want a live HTTP response

        monkeypatch.setattr(huggingface_hub, "snapshot_download", raise_)
        return error_of("owner/name")

    assert "gated" in failing(hub.GatedRepoError)
    assert "neither a local path" in failing(hub.RepositoryNotFoundError)
    assert "revision" in failing(hub.RevisionNotFoundError)
    assert "cannot be reached" in failing(hub.LocalEntryNotFoundError)
    assert "cannot be reached" in failing(hub.OfflineModeIsEnabled)
