"""What a file of one's own defines, by its name: in every script and in the API."""

from __future__ import annotations

import dataclasses
import pydoc
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from scripts import invoke, script
from test_bad_input import complain
from tiny_checkpoint import write_tiny

import specjax
from specjax import extend
from specjax.checkpoint.drafters.named import parse
from specjax.core import own
from specjax.drafters.registry import DRAFTERS
from specjax.drafters.spec import ask
from specjax.lab.costs import calibration
from specjax.models import FAMILIES
from specjax.prompts import prompt_sets
from specjax.verify import RULES

ROOT = Path(__file__).resolve().parent.parent

OBJECTS = """
import jax.numpy as jnp
from specjax.extend import Question, Rule, Spec, Stateless, pytree, register_drafter, static
from specjax.verify import Token

@pytree
class Last(Stateless):
    num_draft: int = static(default=3)

    def guess(self, tokens, length):
        return jnp.full((self.num_draft,), tokens[length - 1])

class Alone:  # bind is all there is
    def bind(self, target, kind):
        return Last(2)

class MyToken(Token):
    name = "my_token"

rule = MyToken()
last = Last(4)
made = lambda target: Last(5)
three = 3
texts = ["a b a b", "c d"]

def question(value):
    return Question(value["n"], "mine", (value["t"],))
"""

FAILING = """
from specjax.extend import Question, Spec

class Last:
    pass

def fails(target):
    raise KeyError("here")

class Abstract(Spec):
    pass

class Wants(Spec):
    def __init__(self, net):
        pass

    def bind(self, target, kind):
        return None

text = [Question("a", "", "hello")]
twice = [Question("a", "", ("x",)), Question("a", "", ("y",))]
empty = ["x", ""]
reads = lambda value: value["text"]
other = lambda value: 3
"""


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    (tmp_path / "objects.py").write_text(OBJECTS)
    return tmp_path / "objects.py"


def test_every_form_of_a_name(objects: Path, tmp_path: Path) -> None:
    target = tiny.model()
    forms = {"Last": 3, "Last:2": 2, "last": 4, "last:2": 2, "made": 5, "made:1": 1, "Alone": 2}
    for form, k in forms.items():
        spec = parse(f"{objects}:{form}").load(target)
        assert spec.bind(target, "one_hot").num_draft == k, form
    hot = specjax.generate(
        target,
        f"{objects}:Last",
        [[1, 2]],
        max_new_tokens=4,
        temperature=1.0,
        rule=f"{objects}:MyToken",
    )
    assert hot.rule == "my_token" and hot.trace.setup["family"] == "own"
    found = prompt_sets.load(f"{objects}:texts")
    assert [q.turns for q in found.questions] == [("a b a b",), ("c d",)]
    (tmp_path / "lines.jsonl").write_text('{"n": "7", "t": "hello"}\n')
    (asked,) = prompt_sets.load(f"{objects}:question:{tmp_path / 'lines.jsonl'}").questions
    assert asked == extend.Question("7", "mine", ("hello",))


def test_what_names_nothing(objects: Path) -> None:
    target = tiny.model()
    draft = lambda form: lambda: specjax.generate(target, f"{objects}:{form}", [[1]])
    complain(draft("lost"), "has no 'lost'", "Last")
    complain(draft("three"), "is a int, not a drafter")
    complain(draft("rule"), "is a MyToken, not a drafter")
    complain(draft("Alone:7"), "num_draft=7", "no field num_draft")
    complain(draft("Last:some/where"), "takes no checkpoint")
    complain(lambda: specjax.generate(target, str(objects), [[1]]), "write it FILE.py:NAME")
    complain(lambda: specjax.generate(target, "no.py:X", [[1]]), "there is no file no.py")
    complain(
        lambda: specjax.generate(target, None, [[1]], rule=f"{objects}:three"), "an? int is no rule"
    )
    objects.write_text("x = 1\nfor\n")
    complain(draft("Last"), "objects.py, line 2: SyntaxError")
    objects.write_text("x = 1\nimport sys\nsys.exit(3)\n")
    complain(draft("Last"), "objects.py, line 3: it ends with sys.exit.3.")
    objects.write_text("from specjax.extend import Statless\n")
    complain(draft("Last"), "line 1: ImportError: specjax.extend has no 'Statless'; did you mean S")
    objects.write_text(FAILING)
    complain(draft("Lasst"), "has no 'Lasst'; it has Last, fails, .*; did you mean Last")
    complain(draft("Last:"), "ends in a colon")
    complain(draft("fails"), r"fails.target. fails: KeyError: 'here' .objects.py, line")
    complain(draft("Abstract"), "Abstract.. fails: TypeError: .*abstract")
    complain(draft("Wants"), "Wants wants net, so it cannot be made from nothing")
    sets = lambda form: lambda: prompt_sets.load(f"{objects}:{form}")
    complain(sets("fails"), "fails.. fails: TypeError")
    complain(sets("text"), "entry 1: turns is 'hello'; must be a tuple")
    complain(sets("twice"), "two prompts have the id 'a'")
    complain(sets("empty"), "entry 2: turns holds '', not text")
    lines = objects.parent / "lines.jsonl"
    lines.write_text('{"n": "7"}\n')
    complain(sets(f"reads:{lines}"), "line 1: reads.. fails: KeyError: 'text' .objects.py, line")
    complain(sets(f"other:{lines}"), "line 1: a int was made of it, not a Question")
    complain(sets(f"text:{lines}"), "text is a list; what reads .* must be a function")


def test_names_that_are_registered(objects: Path, capsys: Any) -> None:
    """By --import in every script; a name that is taken is refused, the same file again is not."""
    objects.write_text(OBJECTS + '\nregister_drafter("last-one", Last)\n')
    try:
        line = ("generate", f"--import={objects}", "--prompt=x", "--prompt_file=y")
        assert invoke(script("generate"), capsys, *line)[0] == 2
        assert parse("last-one:2").load(tiny.model()).num_draft == 2
        objects.write_text(objects.read_text() + "# changed\n")
        assert own.run(objects)  # the same definitions, anew
        complain(lambda: extend.register_drafter("last-one", specjax.drafters.NGram), "registered")
    finally:
        DRAFTERS.pop("last-one", None)
    complain(lambda: extend.register_drafter("a/b", specjax.drafters.NGram), "letters")
    complain(lambda: extend.register_drafter("x", 3), "no bind")
    llama = FAMILIES["llama"]
    complain(lambda: extend.register_family("qwen3", llama), "registered already")
    complain(lambda: extend.register_family("x", dict), "read_config")
    extend.register_family("llama", llama)

    @dataclasses.dataclass(frozen=True)
    class Block(specjax.verify.Token):
        name = "block"

    complain(lambda: extend.register_rule(Block()), "registered already")
    complain(lambda: extend.register_objective("x", 3), "must be a class")
    assert RULES["block"].name == "block" and type(RULES["block"]) is not Block


def test_what_a_bare_object_is_answered_for() -> None:
    class Bare:
        def bind(self, target: Any, kind: str) -> Any:
            raise ValueError

    bare = Bare()
    assert ask(bare, "passes")(5) == 1 and ask(bare, "tokens_fed")(5) == 6
    assert ask(bare, "nested") is False and list(ask(bare, "misreadings")(None)) == []
    assert ask(bare, "own_net")() is None and ask(Bare, "needs_model") is False
    complain(lambda: calibration.with_num_draft(bare, 3), "no field num_draft")
    assert ask(Bare, "formats")().write == {} and ask(bare, "weight_reads")("x", 5) == 1
    with pytest.raises(ValueError, match="Bare has no classmethod objective"):
        ask(Bare, "objective")()


def test_help_of_extend_is_a_page() -> None:
    """It names all that there is, and does not print the help of each."""
    text = pydoc.plain(pydoc.render_doc(extend))
    assert len(text.splitlines()) < 90
    names = {n for n in vars(extend) if not n.startswith("_")} - {"annotations"}
    assert names <= set(re.findall(r"\w+", str(extend.__doc__))) and len(names) > 90


def test_a_run_does_not_go_on_with_another_method(
    objects: Path, tmp_path: Path, capsys: Any
) -> None:
    """The name is the same and the file another: results are compared with what made them."""
    write_tiny(tmp_path / "target")
    (tmp_path / "asked.txt").write_text("def area(\ndef f(\n")
    line = [
        *("generate", f"--config={ROOT}/configs/generate.py", "--config.compare_plain=False"),
        *("--config.compilation_cache=", f"--target={tmp_path}/target", "--max_new_tokens=4"),
        *(f"--drafter={objects}:Last", f"--prompt_file={tmp_path}/asked.txt"),
        f"--output={tmp_path}/out.jsonl",
    ]
    generate = script("generate")
    assert invoke(generate, capsys, *line)[0] == 0
    assert invoke(generate, capsys, *line)[0] == 0
    objects.write_text(objects.read_text() + "\n# another method\n")
    status, _, err = invoke(generate, capsys, *line)
    assert status == 2 and "was written with files={" in err and str(objects) in err
    one, other = own.contents([f"{objects}:Last"]), own.contents([f"{objects}:Last:4", "ngram:4"])
    assert one == other and len(one[str(objects)]) == 64
