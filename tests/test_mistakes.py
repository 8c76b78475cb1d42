"""Mistakes in a drafter or a rule of one's own are named when it is bound, in one line.

The same by `specjax.generate`, `stream`, `check` and the audit: nothing is compiled before.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import specjax
from specjax import decode, drafters, verify
from specjax.core.types import Array, Kept, Proposal, Verdict, pytree, static
from specjax.drafters import checking
from specjax.drafters.base import Context
from specjax.verify import Token

V, K = 31, 3


@pytree
class Repeat:
    """The pending token, K times; its state is the last token and how many were seen."""

    num_draft: int = static(default=K)

    kind = "one_hot"
    taps = (1,)

    def bind(self, target: Any, kind: str) -> Repeat:
        return self

    def init(self, rows: int, slots: int) -> Any:
        return jnp.zeros((rows,), jnp.int32), jnp.zeros((rows, 4), jnp.float32)

    def prefill(self, state: Any, tokens: Array, count: Array, features: Any) -> Any:
        last, seen = state
        return jnp.where(count > 0, tokens[:, 0], last), seen

    def guess(self, context: Context) -> Array:
        return jnp.repeat(context.pending, self.num_draft, axis=1)

    def propose(self, state: Any, context: Context) -> tuple[Proposal, Any]:
        return Proposal(self.guess(context)), state

    def update(self, held: Any, kept: Kept) -> Any:
        last, seen = held
        return jnp.where(kept.count > 0, kept.tokens[:, 0], last), seen

    def grow(self, state: Any, slots: int) -> Any:
        return state


@pytree
class WithNames(Repeat):
    names: Any = static(default=())


@pytree
class Traced(Repeat):
    num_draft: int = K


def other(num_draft: Any = K, **changes: Any) -> Any:
    """A drafter like `Repeat`, with other attributes or methods."""
    return pytree(type("Mine", (Repeat,), changes))(num_draft)


def without(*names: str, **changes: Any) -> Any:
    """One that lacks some."""
    body = {n: x for n, x in vars(Repeat).items() if n not in names and not n.startswith("__")}
    body |= changes | {"num_draft": K}
    return pytree(type("Mine", (), body))()


def proposing(change: Callable[[Any, Context, Array], Any]) -> Any:
    def propose(self: Any, state: Any, context: Context) -> Any:
        return change(state, context, self.guess(context))

    return other(propose=propose)


def kept_as(change: Callable[[Any, Kept], Any]) -> Any:
    return other(update=lambda self, held, kept: change(held, kept))


@dataclasses.dataclass(frozen=True)
class Binds:
    to: Any

    def bind(self, target: Any, kind: str) -> Any:
        return self.to() if callable(self.to) else self.to


class Undecorated(Repeat):
    """A subclass is a class of its own: it is no pytree because its base is one."""


@dataclasses.dataclass
class PlainState:
    last: Any


def old_update(self: Any, draft: Any, block: Any, count: Any, length: Any, features: Any) -> Any:
    return draft


def law(*shape: int, dtype: Any = jnp.float32) -> Array:
    return jnp.full((2, *shape), 1.0, dtype)


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    # --- what was handed over
    "a class": (lambda: Repeat, "Repeat is a class; hand over an instance"),
    "no bind": (lambda: 3, "a int is no drafter"),
    "bind without kind": (
        lambda: other(bind=lambda self, target: self),
        r"Mine: bind must take \(target, kind\), and takes \(target\)",
    ),
    "bind that fails": (
        lambda: Binds(lambda: [][0]),
        r"Binds.bind\(\) fails: IndexError: list index out of range \(test_mistakes.py, line \d+\)",
    ),
    "bind to nothing": (lambda: Binds(None), r"Binds.bind\(\) returns None; it must return a"),
    "bind to a class": (lambda: Binds(lambda: Repeat), "returns the class Repeat"),
    "bind to another thing": (lambda: Binds((1, 2)), r"binds to a tuple, which lacks init\(\), "),
    # --- fields and methods
    "a misspelt method": (
        lambda: without("propose", proposes=Repeat.propose),
        r"binds to a Mine, which lacks propose\(\) \(it has proposes\)",
    ),
    "methods missing": (lambda: without("update", "grow"), r"lacks update\(\), grow\(\)"),
    "no kind, no taps": (lambda: without("kind", "taps"), "lacks kind, taps"),
    "yesterday's update": (
        lambda: other(update=old_update),
        r"update must take \(held, kept\): held is what propose returned, kept a .*Kept with "
        r"tokens, count, features and path; it takes \(draft: .*, block: .*features: ",
    ),
    "prefill without features": (
        lambda: other(prefill=lambda self, state, tokens, count: state),
        r"prefill must take \(state, tokens, count, features\); it takes \(state, tokens, count\)",
    ),
    "not a pytree": (lambda: Binds(Undecorated()), "Undecorated that is no pytree of arrays"),
    "num_draft traced": (
        lambda: Traced(),
        r"Traced whose num_draft is a leaf of the pytree: declare it .* static\(\)",
    ),
    "an array that is static": (
        lambda: WithNames(names=np.ones(3)),
        "WithNames whose names is an array, and static",
    ),
    "half a guess": (lambda: other(num_draft=1.5), "num_draft is 1.5; must be the number"),
    "no such kind": (lambda: other(kind="beam"), "kind is 'beam'; must be one of one_hot"),
    "taps a list": (lambda: other(taps=[1]), r"taps is \[1\]; must be a tuple of ints"),
    "taps beyond": (lambda: other(taps=(7,)), r"taps hidden_states\[7\], but .* has 2 layers"),
    "taps below": (lambda: other(taps=(-2,)), r"taps hidden_states\[-2\]"),
    "a parent behind its child": (lambda: other(parents=(0, 3, 1)), r"parents\[1\]=3"),
    "a tree of another size": (
        lambda: other(parents=(0, 0)),
        "num_draft is 3, and parents names 2 guesses",
    ),
    # --- init, prefill, grow
    "init that fails": (
        lambda: other(init=lambda self, rows, slots: jnp.zeros((rows, self.width))),
        r"Mine: init\(\) fails: AttributeError: .*width.*\(test_mistakes.py, line \d+\)",
    ),
    "a state that is no pytree": (
        lambda: other(init=lambda self, rows, slots: PlainState(jnp.zeros((rows,)))),
        r"init\(\) returns a PlainState, which is no pytree of arrays: decorate its class",
    ),
    "prefill returns nothing": (
        lambda: other(prefill=lambda self, state, tokens, count, features: None),
        r"prefill\(\) returns a state of another structure, None of 0 arrays, where the state "
        r"before was a tuple of 2 arrays",
    ),
    "prefill that decides by value": (
        lambda: other(prefill=lambda self, state, tokens, count, f: count[0] and state),
        r"prefill\(\) fails: TracerBoolConversionError: .* \(test_mistakes.py, line \d+\)",
    ),
    "grow to another shape": (
        lambda: other(grow=lambda self, state, slots: (state[0], state[1][:, :2])),
        r"grow\(\) returns a state that holds float32\[2, 2\] at \[1\], where what init makes",
    ),
    "grow that does not grow": (
        lambda: other(
            init=lambda self, rows, slots: (jnp.zeros((rows,), jnp.int32), jnp.zeros((rows, slots)))
        ),
        r"grow\(\) returns a state that holds float32\[2, 256\].* 512 slots is float32\[2, 512\]",
    ),
    # --- propose
    "a proposal alone": (
        lambda: proposing(lambda state, context, guess: Proposal(guess)),
        r"propose\(\) returns a Proposal; it must return two values",
    ),
    "guesses alone": (
        lambda: proposing(lambda state, context, guess: (guess, state)),
        r"propose\(\) returns \(.*Tracer, tuple\); it must return two values, a .*Proposal",
    ),
    "three values": (
        lambda: proposing(lambda state, context, guess: (Proposal(guess), None, state)),
        r"propose\(\) returns \(Proposal, NoneType, tuple\)",
    ),
    "fractions for guesses": (
        lambda: proposing(lambda s, c, guess: (Proposal(guess.astype(jnp.float32)), s)),
        r"guesses float32\[2, 3\] for 2 rows; with num_draft=3 it must be int32\[2, 3\]",
    ),
    "one row of guesses": (
        lambda: proposing(lambda s, c, guess: (Proposal(guess[0]), s)),
        r"guesses int32\[3\] for 2 rows",
    ),
    "one guess too many": (
        lambda: proposing(lambda s, c, guess: (Proposal(jnp.pad(guess, ((0, 0), (0, 1)))), s)),
        r"guesses int32\[2, 4\] for 2 rows; with num_draft=3",
    ),
    "guesses in a list": (
        lambda: proposing(lambda s, c, guess: (Proposal([1, 2, 3]), s)),  # type: ignore[arg-type]
        "tokens of the proposal is a list; it must be an array",
    ),
    "sampled, and no law": (
        lambda: other(kind="sampled"),
        r"of kind 'sampled', and it reports no law q.*float32\[2, 3, 31\]",
    ),
    "a law of another shape": (
        lambda: proposing(lambda s, c, guess: (Proposal(guess, law(V)), s)),
        r"law q of shape \[2, 31\] for 2 rows; it must be \[2, 3, 31\]",
    ),
    "a law of another type": (
        lambda: proposing(lambda s, c, guess: (Proposal(guess, law(K, V, dtype=jnp.bfloat16)), s)),
        "law q of type bfloat16; it must be float32",
    ),
    "a tree that the drafter does not have": (
        lambda: proposing(lambda s, c, guess: (Proposal(guess, None, (0, 0, 1)), s)),
        r"the proposal's parents are \(0, 0, 1\), and the drafter's None",
    ),
    "a product that does not fit": (
        lambda: proposing(lambda s, c, guess: (Proposal(guess @ jnp.ones((7, 3), jnp.int32)), s)),
        r"propose\(\) fails: TypeError: dot_general .* \(test_mistakes.py, line \d+\)",
    ),
    "widths that do not ascend": (
        lambda: other(widths=(0, 2, 1, 3)),
        r"widths is \(0, 2, 1, 3\); must be a tuple .* ascends to num_draft, 3",
    ),
    "fractions wanted": (
        lambda: proposing(lambda s, c, guess: (Proposal(guess, wanted=jnp.ones((2,))), s)),
        r"wanted is float32\[2\] for 2 rows; it must be int32\[2\]",
    ),
    # --- update
    "update returns nothing": (
        lambda: kept_as(lambda held, kept: None),
        r"update\(\) returns a state of another structure, None of 0 arrays",
    ),
    "another type": (
        lambda: kept_as(lambda held, kept: (held[0].astype(jnp.int16), held[1])),
        r"update\(\) returns a state that holds int16\[2\] at \[0\], where .* was int32\[2\]",
    ),
    "another shape": (
        lambda: kept_as(lambda held, kept: (kept.tokens[:, :1], held[1])),
        r"update\(\) returns a state that holds int32\[2, 1\] at \[0\]",
    ),
    "a field that Kept lacks": (
        lambda: kept_as(lambda held, kept: kept.length),
        r"update\(\) fails: AttributeError: 'Kept' object has no attribute 'length'",
    ),
}


@pytree
class Far(Repeat):
    """Guesses a token that no vocabulary has, at the ``cycle``-th place."""

    at: int = static(default=0)

    def guess(self, context: Context) -> Array:
        right = context.pending >= 0
        far = (context.length[:, None] > self.at) & right
        return jnp.repeat(jnp.where(far, 9999, context.pending), self.num_draft, axis=1)


def rule_like(name: str = "mine", **changes: Any) -> Any:
    return type("MyRule", (Token,), {"name": name, **changes})


def first_token(self: Any, keys: Any, law: Any) -> Verdict:
    return Verdict(jnp.zeros((K + 1,), jnp.int32), jnp.int32(0))


RULES: dict[str, tuple[Any, str]] = {
    "a class": (Token, "Token is no rule: hand over an instance of a subclass"),
    "no rule": (3, "a int is no rule"),
    "takes nothing": (
        type("Bare", (verify.Rule,), {"name": "bare", "law": Token.law})(),
        "rule Bare lacks takes",
    ),
    "no name, no law": (
        type("Bare", (verify.Rule,), {"takes": {"one_hot"}})(),
        r"rule Bare lacks name, law\(\)",
    ),
    "takes what is no kind": (rule_like(takes={"beam"})(), r"'mine' takes \['beam'\]"),
    "takes a string": (rule_like(takes="one_hot")(), r"takes \['one_hot'\]; .* as a set"),
    "law without proposal": (
        rule_like(law=lambda self, logits: logits)(),
        r"law must take \(logits, proposal\), and takes \(logits\)",
    ),
    "a verdict that is none": (
        rule_like(sample=lambda self, keys, law: (law.guesses, 0))(),
        r"sample\(\) returns a tuple; it must be a specjax.core.types.Verdict",
    ),
    "fractions accepted": (
        rule_like(sample=lambda self, keys, law: Verdict(law.guesses, law.survival.sum()))(),
        r"num_accepted has shape float32\[\]; must be int32\[\]",
    ),
    "too few tokens": (
        rule_like(sample=lambda self, keys, law: Verdict(law.guesses[:-1], jnp.int32(0)))(),
        r"tokens of a verdict has shape int32\[3\]; must be int32\[4\]",
    ),
    "a law that lacks what only the audit reads": (
        rule_like(law=lambda self, logits, proposal: proposal.tokens, sample=first_token)(),
        r"law\(\) returns a .*, which lacks guesses, survival, emission",
    ),
    "a law that fails": (
        rule_like(law=lambda self, logits, proposal: logits + proposal.probs)(),
        r"a verdict fails: AttributeError: .*probs.* \(test_mistakes.py, line \d+\)",
    ),
}


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    return message


@pytest.fixture
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong is said before any program is asked for."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a program was asked for")

    for name in ("init_program", "prefill_program", "run_program"):
        monkeypatch.setattr(decode, name, refuse)


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_drafter(case: str) -> None:
    make, words = BROKEN[case]
    target, broken = tiny.model(), make()
    said = complaint(lambda: specjax.generate(target, broken, [[1, 2]], max_new_tokens=4))
    assert re.search(words, said), said
    for ask in (specjax.stream, specjax.check):
        assert complaint(lambda ask=ask: ask(target, broken, [[1, 2]])) == said
    # The audit's own target has another vocabulary and one layer.
    there = complaint(lambda: specjax.audit(broken))
    same = lambda text: re.sub(r"\d+|\(llama-.*", "", text)
    if not re.search("hidden_states|law q", said):
        assert same(there) == same(said)


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("case", RULES)
def test_a_broken_rule(case: str) -> None:
    rule, words = RULES[case]
    target = tiny.model()
    if "audit" not in case:
        ask = {"rule": rule, "temperature": 1.0}
        said = complaint(lambda: specjax.generate(target, Repeat(), [[1, 2]], **ask))
        assert re.search(words, said), said
    assert re.search(words, complaint(lambda: specjax.audit(Repeat(), rule)))


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_guesses_that_are_no_tokens(late: bool) -> None:
    """No shape tells: the first cycle does, or the trace."""
    target, drafter = tiny.model(), Far(at=8 if late else 0)
    said = complaint(lambda: specjax.generate(target, drafter, [[1, 2]], max_new_tokens=16))
    assert re.search(
        r"Far: guess 1 of the cycle that starts at position \d+ of row 0 is 9999", said
    )
    assert "the vocabulary has ids 0 to 30; -1 is no guess" in said
    checks = ["state" if late else "texts"]
    said = complaint(lambda: specjax.audit(drafter, texts=500, checks=checks))
    assert re.search(r"Far: guess \d .* is 9999, but the vocabulary has ids 0 to 3;", said)


def test_what_is_right_passes_and_costs_little() -> None:
    target = tiny.model()
    specjax.check(target, other(), [[1, 2]])  # what JAX itself does at first
    mine = other()
    begin = time.perf_counter()
    specjax.check(target, mine, [[1, 2]])
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    specjax.check(target, mine, [[1, 2]])
    again = time.perf_counter() - begin
    assert first < 1.0 and again < first / 2  # 0.04 s and 0.001 s, on an idle machine
    out = specjax.generate(target, mine, [[1, 2]], max_new_tokens=8)
    assert out.tokens[0] == specjax.generate(target, None, [[1, 2]], max_new_tokens=8).tokens[0]


@pytest.mark.parametrize("kind", ["one_hot", "sampled", "coupled"])
@pytest.mark.parametrize("name", drafters.DRAFTERS)
def test_the_drafters_of_this_library_pass(name: str, kind: str) -> None:
    """A session trusts them; here all of the check is run."""
    target = tiny.model()
    drafter = tiny.make(name, K, target=target).bind(target, kind)
    for counts in (False, True):
        asked = {"greedy": kind == "one_hot", "counts": counts, "all_of_it": True}
        found = checking.check_drafter(drafter, name, target, **asked)
        assert jax.tree.map(np.shape, found) == jax.tree.map(
            np.shape, checking.check_drafter(drafter, name, target)
        )
