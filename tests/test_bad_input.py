"""Bad input ends in one line that says what was wrong and what to do, before any work starts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_generate_cli import Cli
from tiny_checkpoint import TEXT, write_tiny

import specjax
from specjax import verify
from specjax.drafters import LM, NGram
from specjax.session import limits

NAN = float("nan")


class Models:
    """Two tiny models that fit, and some that do not."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = {
            "target": write_tiny(folder / "target"),
            "draft": write_tiny(folder / "draft", noise=0.2),
            "other_size": write_tiny(folder / "other_size", vocab_size=270),
            "other_tokenizer": write_tiny(folder / "other_tokenizer", text=TEXT[::-1]),
        }
        self._loaded: dict[str, specjax.Model] = {}

    def __getitem__(self, name: str) -> specjax.Model:
        if name not in self._loaded:
            self._loaded[name] = specjax.load(self.paths[name])
        return self._loaded[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def complain(call: Callable[[], Any], *words: str) -> None:
    """``call`` raises ValueError in one line, with each of the words (regular expressions)."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 400, message
    for word in words:
        assert re.search(word, message), f"{word!r} is not in {message!r}"


# --- requests: options of generate, and what the message must say --------------------------------

REQUESTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "negative temperature": ({"temperature": -0.5}, ("temperature=-0.5", ">= 0")),
    "NaN temperature": ({"temperature": NAN}, ("temperature=nan", "finite")),
    "infinite temperature": ({"temperature": np.inf}, ("temperature=inf", "finite")),
    "temperature in words": ({"temperature": "hot"}, ("temperature='hot'", "number")),
    "top_p 0": ({"top_p": 0.0}, ("top_p=0.0", "1 switches it off")),
    "top_p above 1": ({"top_p": 1.5}, ("top_p=1.5", "1 switches it off")),
    "min_p above 1": ({"min_p": 1.1}, ("min_p=1.1", "0 switches it off")),
    "negative top_k": ({"top_k": -1}, ("top_k=-1", "0 switches it off")),
    "fractional top_k": ({"top_k": 1.5}, ("top_k=1.5", "integer")),
    "NaN top_k": ({"top_k": NAN}, ("top_k=nan", "integer")),
    "repetition_penalty 0": ({"repetition_penalty": 0.0}, ("repetition_penalty=0.0", "1 switches")),
    "NaN presence_penalty": ({"presence_penalty": NAN}, ("presence_penalty=nan", "0: off")),
    "logit_bias out of range": ({"logit_bias": {272: 1.0}}, ("logit_bias", "272", "0 to 271")),
    "NaN logit_bias": ({"logit_bias": {3: NAN}}, ("logit_bias", "nan", "-inf forbids")),
    "logit_bias as a list": ({"logit_bias": [(3, 1.0)]}, ("logit_bias", "mapping")),
    "logit_bias of all": ({"logit_bias": dict.fromkeys(range(272), -np.inf)}, ("leave at least",)),
    "stop id out of range": ({"stop_token_ids": [999]}, ("stop_token_ids", "999", "0 to 271")),
    "empty stop string": ({"stop": ["x", ""]}, ("stop string is empty", "leave it out")),
    "max_new_tokens 0": ({"max_new_tokens": 0}, ("max_new_tokens=0", "at least 1")),
    "max_new_tokens 1.5": ({"max_new_tokens": 1.5}, ("max_new_tokens=1.5", "whole number")),
    "over the limit": ({"max_new_tokens": 256}, ("max_new_tokens=256", "limit of 256", "shorten")),
    "negative seed": ({"seed": -1}, ("seed=-1", "from 0 to")),
    "huge seed": ({"seed": [2**32]}, ("seed=4294967296", "from 0 to")),
    "huge first seed": ({"seed": 2**32}, ("seed=4294967296", "from 0 to")),
    "fractional seed": ({"seed": 0.5}, ("seed=0.5", "integer")),
    "list of the wrong length": (
        {"top_p": [0.5, 0.6]},
        ("top_p has 2 values for 1 prompts", "one"),
    ),
    "unknown option": ({"temprature": 1.0}, ("temprature", "there are", "temperature")),
    "unknown rule": ({"rule": "magic"}, ("magic", "there are", "block")),
    "greedy rule at T>0": ({"rule": "greedy", "temperature": 1.0}, ("greedy", "temperature=0")),
    "host_loop with stop": ({"host_loop": True, "stop": "x"}, ("host_loop", "leave one")),
    "chunk 0": ({"chunk": 0}, ("chunk=0", "at least 1")),
    "huge chunk": ({"chunk": 2**31}, ("chunk=2147483648", "at most 2147483647")),
    "huge top_k": ({"top_k": 2**31}, ("top_k=2147483648", "at most 2147483647")),
    "very huge top_k": ({"top_k": 10**400}, ("top_k=1000", "at most 2147483647")),
    "huge temperature": ({"temperature": 1e39}, (r"temperature=1e\+39", r"at most 3\.4")),
    "huge bias": ({"logit_bias": {5: 1e39}}, ("token 5", r"1e\+39", r"at most 3\.4")),
    "huge negative bias": ({"logit_bias": {5: -1e39}}, ("token 5", "-inf forbids")),
    "infinite bias": ({"logit_bias": {5: np.inf}}, ("token 5", "inf")),
    "very huge bias": ({"logit_bias": {5: 10**400}}, ("token 5", r"at most 3\.4")),
    "huge frequency_penalty": ({"frequency_penalty": 1e39}, ("frequency_penalty=1e", r"3\.4")),
    "huge presence_penalty": ({"presence_penalty": -(10**400)}, ("presence_penalty=-1000", "3.4")),
    "huge repetition_penalty": ({"repetition_penalty": 1e39}, ("repetition_penalty=1e", "3.4")),
    "tiny repetition_penalty": ({"repetition_penalty": 1e-46}, ("repetition_penalty=1e-46",)),
    "huge together": (
        {"logit_bias": {5: 3e38}, "temperature": 0.5},
        ("logit_bias, penalties and temperature", r"6e\+38", "smaller"),
    ),
    "huge in many tokens": (
        {"frequency_penalty": -1e37, "max_new_tokens": 128},
        ("penalties", "128 tokens", r"3\.8 times smaller"),
    ),
    "a boolean": ({"temperature": True}, ("temperature=True", "a number")),
    "huge max_new_tokens": ({"max_new_tokens": 2**40}, ("at most 252 new tokens",)),
    "huge stop id": ({"stop_token_ids": [2**31]}, ("stop_token_ids holds 2147483648",)),
    "stop ids in words": ({"stop_token_ids": "ab"}, ("stop_token_ids is a str", "a list")),
    "an option of two dimensions": ({"top_p": np.ones((1, 1))}, ("top_p", "2 dimensions")),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(models: Models, case: str) -> None:
    options, words = REQUESTS[case]
    drafter = LM(models["draft"], 3)
    complain(lambda: specjax.generate(models["target"], drafter, "def a(", **options), *words)


PROMPTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no prompts": ([], ("No prompts", "at least one")),
    "empty prompt": ([[3], []], ("Prompt 1 is empty", "at least one token")),
    "token out of range": ([[3, 272]], ("Prompt 0", "272", "0 to 271")),
    "negative token": ([[-1]], ("Prompt 0", "-1", "tokenizer")),
    "fractional token": ([[1.5]], ("Prompt 0", "1.5", "list of token ids")),
    "too long": (["x\n" * 300], ("Prompt 0", "limit of 256", "shorten")),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts(models: Models, case: str) -> None:
    prompts, words = PROMPTS[case]
    complain(lambda: specjax.generate(models["target"], None, prompts), *words)
    complain(lambda: specjax.check(models["target"], None, prompts), *words)


def test_stream(models: Models) -> None:
    """Bad input is reported by the call, not by the first look at the iterator."""
    complain(lambda: specjax.stream(models["target"], None, "x", top_p=0.0), "top_p=0.0")
    complain(
        lambda: specjax.stream(models["target"], None, "x", cycles_per_call=0),
        *("cycles_per_call=0", "at least 1"),
    )
    for bad in (2**31, 1.5):
        complain(
            lambda bad=bad: specjax.stream(models["target"], None, "x", cycles_per_call=bad),
            *(f"cycles_per_call={bad}", "at most 2147483647"),
        )


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_num_draft(models: Models, k: Any) -> None:
    words = (f"num_draft={k!r}", "at least 1", "'none'")
    complain(lambda: specjax.generate(models["target"], LM(models["draft"], k), "x"), *words)
    complain(lambda: NGram(k), *words)


@pytest.mark.parametrize("k", [256, 100000])
def test_more_guesses_than_any_text_has_tokens(models: Models, k: int) -> None:
    words = (f"num_draft={k}", "limited to 256 tokens", "at most 255")
    for drafter in (NGram(k), LM(models["draft"], k), f"ngram:{k}"):
        complain(lambda drafter=drafter: specjax.generate(models["target"], drafter, "x"), *words)
        complain(lambda drafter=drafter: specjax.check(models["target"], drafter, "x"), *words)


def test_more_rows_than_fit(models: Models, monkeypatch: Any) -> None:
    """Refused before they are laid out, with how many would fit."""
    target = models["target"]
    prompts = [[1]] * 50_000
    words = ("50000 rows of up to 256 tokens", "GiB are free", r"at most \d+ together")
    monkeypatch.setattr(limits, "free_memory", lambda mesh: 2**29)
    complain(lambda: specjax.check(target, None, prompts, max_new_tokens=8), *words)
    specjax.check(target, None, prompts, max_new_tokens=8, batch_size=4)
    with pytest.raises(ValueError) as caught:
        specjax.generate(target, NGram(3), prompts, max_new_tokens=100)
    most = int(re.search(r"at most (\d+)", str(caught.value)).group(1))  # type: ignore[union-attr]
    bound, lengths = NGram(3).bind(target, "one_hot"), [200] * 50_000
    limits.check_memory(target, bound, lengths, most)
    complain(lambda: limits.check_memory(target, bound, lengths, most + 1), "at most")
    monkeypatch.setattr(limits, "free_memory", lambda mesh: 1000)
    complain(lambda: specjax.generate(target, None, [1]), "1 rows", "shorter texts")
    monkeypatch.setattr(limits, "free_memory", lambda mesh: 2**19)
    complain(
        lambda: specjax.generate(target, NGram(200), [1], max_new_tokens=8),
        *("num_draft=200", r"guess about \d\d a cycle at most"),
    )
    monkeypatch.undo()
    assert 2**20 < (limits.free_memory(None) or 0) < 2**50


def test_drafts_that_do_not_fit(models: Models) -> None:
    target = models["target"]
    for name, words in {
        "other_size": ("other_size", "270", "272", "target's tokenizer"),
        "other_tokenizer": ("other_tokenizer", "different tokenizers", "target's tokenizer"),
    }.items():
        complain(lambda name=name: specjax.generate(target, LM(models[name], 3), "x"), *words)
    sampled = LM(models["draft"], 3, kind="sampled")
    complain(
        lambda: specjax.generate(target, sampled, "x", rule="coupled", temperature=1.0),
        *("coupled", "sampled", "use rule 'block'"),
    )
    odd = LM(models["draft"], 3, kind="odd")
    complain(lambda: specjax.generate(target, odd, "x"), "kind='odd'", "one_hot")
    complain(lambda: specjax.drafters.make("odd"), "'odd'", "there are", "ngram")
    complain(lambda: specjax.drafters.make("lm"), "'lm'", "needs a draft", "--draft")
    complain(lambda: verify.default_rule("odd", True), "'odd'", "one_hot")


# --- checkpoints and meshes ----------------------------------------------------------------------


def test_damaged_checkpoints(models: Models, tmp_path: Path) -> None:
    source = models.paths["target"]
    complain(lambda: specjax.load("nowhere"), "'nowhere'", "no such file", "demo:target")
    complain(lambda: specjax.load("demo:other"), "demo:other", "demo:draft")

    truncated = shutil.copytree(source, tmp_path / "truncated")
    data = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(data[:-100])
    complain(lambda: specjax.load(truncated), "truncated/model.safetensors")

    damaged = shutil.copytree(source, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.norm.weight"][3] = NAN
    save_file(tensors, damaged / "model.safetensors")
    complain(lambda: specjax.load(damaged), "model.norm.weight", "NaN", "damaged")
    complain(lambda: specjax.load(source, dtype="int8"), "int8", "float32 or bfloat16")


@pytest.mark.parametrize(
    ("mesh", "words"),
    {
        "rows:2": ("rows:2", "data, model, experts or", "--mesh=data:2"),
        "data:0": ("data:0", "at least 1"),
        "model": ("'model'", "AXIS:SIZE"),
        "data:64,model:64": ("4096 devices", "smaller mesh"),
    }.items(),
)
def test_meshes(models: Models, mesh: str, words: tuple[str, ...]) -> None:
    complain(lambda: specjax.load(models.paths["target"], mesh=mesh), *words)


def test_a_mesh_that_does_not_divide(models: Models) -> None:
    config = models["target"].config
    complain(lambda: config.for_model_axis(3), "3 devices", "num_heads=2", "choose a divisor")


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def run(models: Models, capsys: Any) -> Cli:
    return Cli(models.paths["target"], models.paths["draft"], capsys)


FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown drafter": (("--drafter=magic",), ("drafter", "magic", "ngram")),
    "unknown rule": (("--rule=magic",), ("rule", "magic", "block")),
    "unknown dtype": (("--dtype=int8",), ("dtype", "int8", "bfloat16")),
    "unknown flag": (("--temprature=1",), ("temprature",)),
    "unknown config field": (("--config.top_q=1",), ("config", "top_q")),
    "config field of another type": (("--config.top_k=x",), ("top_k", "x")),
    "config of nothing": (("--config=/nowhere.py",), ("--config", "nowhere.py")),
    "positional": (("hello",), ("hello", "--name=value")),
    "both prompts": (("--prompt=a", "--prompt_file=b.txt"), ("--prompt_file", "leave one out")),
    "no draft": (("--draft=x", "--drafter=ngram"), ("'x'", "leave it out")),
    "k without a drafter": (("--num_draft=0",), ("num_draft=0", "'none'")),
    "temperature": (("--temperature=-1",), ("temperature=-1.0", "0 is greedy")),
    "greedy rule": (("--temperature=1", "--rule=greedy"), ("greedy", "temperature=0")),
    "bias": (("--config.logit_bias=3",), ("logit_bias='3'", "ID:BIAS")),
    "huge top_k": (("--config.top_k=2147483648",), ("top_k=2147483648", "at most")),
    "huge bias": (("--config.logit_bias=5:1e39",), ("token 5", "1e+39")),
    "huge cycles_per_call": (
        ("--stream", "--config.cycles_per_call=2147483648"),
        ("cycles_per_call=2147483648", "at most 2147483647"),
    ),
    "huge k": (("--num_draft=100000",), ("num_draft=100000", "at most 255")),
    "batch size": (("--config.batch_size=0",), ("batch_size=0", "at least 1")),
    "mesh": (("--mesh=rows:2",), ("--mesh=rows:2", "data:2,model:4")),
    "stream to a file": (("--stream", "--output=x.jsonl"), ("--stream and --output", "leave one")),
    "output folder": (("--output=/nowhere/x.jsonl",), ("/nowhere/x.jsonl", "existing directory")),
    "output kind": (("--output=x.csv",), ("--output=x.csv", ".jsonl")),
    "profile into a file": ((f"--profile_dir={__file__}",), ("--profile_dir", "is a file")),
    "unknown kind of drafter": (("--drafter=magic:3",), ("magic", "ngram")),
    "a draft said twice": (("--drafter=lm:x/y",), ("--draft", "leave one out")),
    "K said twice": (("--drafter=lm:3",), ("--num_draft=3", "leave one out")),
    "template args of no conversation": (("--template_args=a=1",), ("--template_args", "--chat")),
    "system of no conversation": (("--system=a",), ("--system", "--chat")),
    "template args": (("--chat", "--template_args=a"), ("--template_args", "'a'", "NAME=VALUE")),
    "template args twice": (("--chat", "--template_args=a=1,a=2"), ("sets a twice",)),
    "no template": (("--chat",), ("no chat template",)),
    "prompt too long": (("--prompt=" + "x\n" * 300,), ("Prompt 0", "limit of 256", "shorten")),
}


def complain_at(
    run: Cli, arguments: tuple[str, ...], words: tuple[str, ...], **kwargs: Any
) -> None:
    status, out, err = run("--max_new_tokens=8", *arguments, **kwargs)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


@pytest.mark.parametrize("case", FLAGS)
def test_flags(run: Cli, case: str) -> None:
    complain_at(run, *FLAGS[case])


def test_target_without_draft(run: Cli) -> None:
    target = f"--target={run.target}"
    arguments = (target, "--drafter=lm")
    complain_at(run, arguments, ("needs a checkpoint", "lm:CHECKPOINT", "ngram"), models=False)
    arguments = (target, "--drafter=none", "--num_draft=2")
    complain_at(run, arguments, ("num_draft=2", "guesses nothing"), models=False)
    complain_at(run, ("--target=nowhere", "--drafter=none"), ("'nowhere'",), models=False)


PROMPT_FILES: dict[str, tuple[str, bytes | None, tuple[str, ...]]] = {
    "missing": ("p.txt", None, ("p.txt", "no such prompt file")),
    "empty": ("p.txt", b"", ("p.txt is empty", "at least one prompt")),
    "an empty line": ("p.txt", b"a\n\nb\n", ("p.txt, line 2", "remove the line")),
    "another kind": ("p.csv", b"a\n", ("p.csv", ".jsonl")),
    "no UTF-8": ("p.txt", b"abc\xff\n", ("p.txt", "UTF-8", "byte 3")),
    "no prompt": ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', ("line 2", '"prompt"')),
    "malformed": ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt', ("line 2", "not JSON")),
    "no text": ("p.jsonl", b'{"prompt": 3}\n', ("line 1", "3", "text in quotes")),
    "no object": ("p.jsonl", b"[1]\n", ("line 1", "object")),
    "both": ("p.jsonl", b'{"prompt": "a", "messages": []}\n', ("line 1", "both")),
    "no messages": ("p.jsonl", b'{"messages": []}\n', ("line 1", "messages is empty")),
    "messages of text": ("p.jsonl", b'{"messages": ["a"]}\n', ("line 1", "list of objects")),
    "no role": ("p.jsonl", b'{"messages": [{"content": "a"}]}\n', ("line 1, message 1", "role")),
    "answered already": (
        *("p.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}\n'),
        ("line 1", "nothing to answer"),
    ),
    "tools of text": ("p.jsonl", b'{"prompt": "a", "tools": [{}]}\n', ("line 1", "tools")),
    "nested": ("p.jsonl", b"[" * 100_000, ("line 1", "nested too deeply")),
    "half a pair": ("p.jsonl", b'{"prompt": "\\ud800"}\n', ("line 1", "ud800", "replace_bad_text")),
}


@pytest.mark.parametrize("case", PROMPT_FILES)
def test_prompt_files(run: Cli, tmp_path: Path, case: str) -> None:
    name, content, words = PROMPT_FILES[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    complain_at(run, (f"--prompt_file={tmp_path / name}",), words)


def test_output_of_something_else(run: Cli, tmp_path: Path) -> None:
    """A file that is not the beginning of this run's results is refused and left alone."""
    output, sidecar = tmp_path / "o.jsonl", tmp_path / "o.jsonl.settings.json"
    arguments = ("--prompt=x", f"--output={output}")
    output.write_text("notes")
    complain_at(run, arguments, ("did not write", "another --output"))
    sidecar.write_text("{}")
    complain_at(run, arguments, ("was written with", "another --output"))
    assert output.read_text() == "notes"

    output.unlink()  # begins anew, and fails later on, for another reason
    complain_at(run, (*arguments, "--max_new_tokens=999"), ("limit of 256",))
    assert json.loads(sidecar.read_text())["max_new_tokens"] == 999
    output.write_text('{"prompt": "x"}\nnotes\n')
    complain_at(run, (*arguments, "--max_new_tokens=999"), ("line 2", "not a result"))
    output.write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    complain_at(
        run, (*arguments, "--max_new_tokens=999"), ("line 2", "1 prompts only", "another --output")
    )
