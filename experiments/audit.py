"""Audits a drafter and a verification rule: is the text distributed as the target's own?

With --target a target instead: is every layer's memory right, whatever is fed and kept of it?

  python -m experiments.audit --drafter=dflash                       # a registered drafter
  python -m experiments.audit --drafter=lm --rule=token
  python -m experiments.audit --drafter=my_method.py:drafter --rule=my_method.py:rule
  python -m experiments.audit --target=qwen3                         # with small random weights
  python -m experiments.audit --target=CHECKPOINT --drafter=ngram    # who guesses its text, too

A drafter of your own is a spec, or a function that makes one for a target; a rule is an instance of
a subclass of specjax.verify.Rule. Neither needs to be registered, and the file is run to get them.

Prints each check as it is done, with the first counterexample of those that fail, and ends with a
verdict. Exit status 0: no fault found; 1: a fault; 2: bad input. About a minute on 2 CPU cores.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli
from specjax.auditing import CHECKS, TARGET_CHECKS, Check, prepare
from specjax.core.files import write_atomically
from specjax.drafters import DRAFTERS
from specjax.models import FAMILIES
from specjax.verify import RULES

_DRAFTER = flags.DEFINE_string(
    "drafter", "lm", f"One of {', '.join(DRAFTERS)}; or path/to/file.py:NAME for your own."
)
_RULE = flags.DEFINE_string(
    "rule",
    None,
    f"One of {', '.join(RULES)}; or path/to/file.py:NAME. Default: the best for the drafter at "
    "each temperature.",
)
_TARGET = flags.DEFINE_string(
    "target",
    None,
    f"Audits a target: a checkpoint, one of {', '.join(sorted(FAMILIES))} with small random "
    "weights, or path/to/file.py:NAME, the class of a family. A --drafter guesses its text.",
)
_NUM_DRAFT = flags.DEFINE_integer(
    "num_draft",
    None,
    "Guesses a cycle. Default: what a drafter of your own says, else 2; with --target 4.",
)
_TEXTS = flags.DEFINE_integer(
    "texts", 8000, "Texts with each set of options; more find smaller deviations."
)
_ALPHA = flags.DEFINE_float(
    "alpha", 1e-5, "How often each statistical check may fail without a fault."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the texts; the verdict is the same in every run.")
_CHECKS = flags.DEFINE_list(
    "checks",
    None,
    f"Some of {', '.join(CHECKS)}; with --target of {', '.join(TARGET_CHECKS)}. Default: all.",
)
_OUTPUT = cli.define_file("output", "A .json file for the report.", ending=".json")


def main(argv: Sequence[str]) -> None:
    del argv

    def show(check: Check) -> None:
        print(check, flush=True)

    said = _TARGET.value is None or flags.FLAGS["drafter"].present
    with cli.one_line_errors():
        plan = prepare(
            _named(_DRAFTER.value, "drafter") if said else None,
            _named(_RULE.value, "rule"),
            target=_named(_TARGET.value, "target"),
            num_draft=_NUM_DRAFT.value,
            texts=_TEXTS.value,
            alpha=_ALPHA.value,
            seed=_SEED.value,
            checks=_CHECKS.value,
        )
        report = plan.run(show)
    print(report.ending)
    if _OUTPUT.value:
        write_atomically(Path(_OUTPUT.value), json.dumps(report.to_json(), indent=2) + "\n")
    sys.exit(0 if report.passed else 1)


def _named(text: str | None, flag: str) -> Any:
    """A registered name as it is; of FILE.py:NAME the object."""
    if text is None or ".py" not in text:
        return text
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ValueError(f"--{flag}={text}: write it FILE.py:NAME.")
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"--{flag}={text}: there is no file {file}.")
    module = _module(path, flag, text)
    if not hasattr(module, name):
        public = {n: x for n, x in vars(module).items() if not n.startswith("_")}
        there = [n for n, x in public.items() if _defined(x, module)]
        raise ValueError(
            f"--{flag}={text}: {file} has no {name!r}; it has {', '.join(there) or 'nothing'}."
        )
    return getattr(module, name)


def _module(path: Path, flag: str, text: str) -> Any:
    """Runs the file, once for drafter and rule together."""
    name = "audited_" + "_".join(path.resolve().with_suffix("").parts[1:])
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))  # what lies beside it, as in a script
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"--{flag}={text}: {path.name}{where}: {what}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _defined(value: Any, module: Any) -> bool:
    """Whether a name of the file is its own, or a value: not what it imported."""
    return getattr(value, "__module__", module.__name__) == module.__name__


if __name__ == "__main__":
    cli.run(main)
