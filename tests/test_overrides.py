"""--config.field=value: what is misspelt or of another type is one line with the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import invoke, script

from specjax.cli import overrides

ROOT = Path(__file__).resolve().parent.parent
OWN = f"{ROOT}/configs/train_own.py"
BENCHMARK, TRAIN = f"{ROOT}/configs/benchmark.py", f"{ROOT}/configs/train_dflash.py"


@pytest.mark.parametrize(
    ("file", "argument", "message"),
    [
        (BENCHMARK, "--config.repeets=3", r"did you mean --config.repeats\?"),
        (BENCHMARK, "-config.Repeats=3", r"did you mean --config.repeats\?"),
        (BENCHMARK, "--noconfig.stopp", r"did you mean --config.stop\?"),
        (BENCHMARK, "--config.zzz=3", "there are batches, "),
        (BENCHMARK, "--config.repeats.x=3", "has no such field"),
        (BENCHMARK, "--config.batchs[0]=3", r"did you mean --config.batches\?"),
        (BENCHMARK, "--config.repeats=many", "must be a whole number; in .* it is 3"),
        (BENCHMARK, "--config.repeats=1.5", "must be a whole number"),
        (BENCHMARK, "--config.stop=maybe", "must be true or false; in .* it is True"),
        (TRAIN, "--config.data.trian=x", r"did you mean --config.data.train\?"),
        (TRAIN, "--config.dta.train=x", r"did you mean --config.data.train\?"),
        (TRAIN, "--config.heldout=x", r"did you mean --config.data.heldout\?"),
        (TRAIN, "--config.data.zzz=x", "there are data.allow_mismatch, "),
        (TRAIN, "--config.data=x", "is a group: set one of its fields, such as --config.data."),
        (TRAIN, "--config.peak_lr=fast", "peak_lr=fast: must be a number"),
        (TRAIN, "--config.sizes.zzz=3", "has no such field"),
        (OWN, "--config.sizes=3", "write --config.sizes.NAME=VALUE"),
        (OWN, "--config.sizes.layers", "write --config.sizes.layers=VALUE"),
        (OWN, "--config.other.layers=3", "has no such field"),
        (None, "--config.repeats=3", "goes with --config"),
        ("/nowhere.py", "--config.repeats=3", "no such file"),
        (f"{BENCHMARK}:slow", "--config.repeats=3", "there are quick and full"),
        (str(ROOT / "README.md"), "--config.repeats=3", "does not end in .py"),
        (
            str(ROOT / "specjax" / "cli" / "overrides.py"),
            "--config.x=3",
            "cannot be read as a config",
        ),
    ],
)
def test_what_is_refused(file: str | None, argument: str, message: str) -> None:
    argv = ["script", *([f"--config={file}"] if file else []), argument]
    with pytest.raises(ValueError, match=message) as error:
        overrides.check(argv)
    assert "\n" not in str(error.value) and not str(error.value).endswith("?.")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").glob("train_*.py")), ids=lambda f: f.stem
)
def test_every_training_has_a_first_look_of_few_steps(file: Path) -> None:
    whole, quick = overrides.load(str(file)), overrides.load(f"{file}:quick")
    assert (quick.steps, quick.rows, quick.accumulate) == (4, 2, 1) and whole.steps >= 600
    assert quick.to_dict().keys() == whole.to_dict().keys()
    with pytest.raises(ValueError, match="there is no variant 'quik'"):
        overrides.load(f"{file}:quik")


def test_what_is_taken() -> None:
    taken = ["--config.repeats=2", "--config.repeats", "2", "--config.stop", "--noconfig.stop"]
    taken += ["--config.batches[0]=4", "--config.stop=FALSE", "--config.drafters=('a','b')"]
    overrides.check(["script", "--config", f"{BENCHMARK}:quick", *taken])
    overrides.check(["script", "--config.repeats=2"], BENCHMARK)
    overrides.check(["script", f"--config={TRAIN}", "--config.peak_lr=1e-3"])
    named = ["--config.sizes.layers=3", "--config.objective.name=mine.py:Mine"]
    overrides.check(["script", f"--config={OWN}", *named])
    overrides.check(["script", f"--config={TRAIN}", named[1]])
    overrides.check(["script"])


@pytest.mark.parametrize("name", ["benchmark", "compile", "generate", "chat", "regenerate"])
def test_scripts_end_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With and without a default config; it is read as the flag is defined."""
    line = [f"experiments.{name}", "--config.compilation_cach=x"]
    line += [f"--config={ROOT}/configs/regenerate.py", "--output=x"] * (name == "regenerate")
    status, out, err = invoke(script(name), capsys, *line)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and "has no such field" in err


def test_help_lists_every_flag_and_a_missing_one_is_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [sys.executable, "-m", "experiments.train_drafter"]
    asked = subprocess.run([*line, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    for flag in ("config", "workdir", "export_dir"):
        assert f"  --{flag}: " in asked.stdout
    for field in ("kind: Of drafters", "rows=4: ", "data.seq_len=256: ", "eval.prompts=16: "):
        assert f"\n  {field}" in asked.stdout  # of --config
    assert asked.returncode == 0
    status, _, err = invoke(script("train_drafter"), capsys, line[-1], f"--config={TRAIN}")
    assert err.startswith("error: --workdir is missing: Checkpoints, metrics.jsonl")
    assert status == 2 and err.count("\n") == 1
