"""Does a drafter's state stay that of the text? Laws 3 to 6 of `specjax.drafters.base`.

Verification repairs whatever a drafter proposes, so no text shows a state that went wrong. Here the
real cycle runs under verdicts that are random: any number of guesses is accepted, any token comes
behind them, and in each cycle some rows commit nothing. After each, what is proposed is compared
with what a fresh state of the same text proposes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from specjax import decode
from specjax.core import trees
from specjax.core.types import KINDS, Array, Parents, Proposal, Verdict, pytree, static
from specjax.drafters.base import num_levels
from specjax.drafters.checking import check_proposed
from specjax.lab.audit.batch import Batch
from specjax.lab.audit.evidence import Evidence
from specjax.lab.audit.report import Check
from specjax.sampling import Options
from specjax.session import Row, between
from specjax.verify import Rule, VerifyKeys

ROWS, CYCLES = 24, 6
CHUNK = 5  # the tokens of a second way to feed a text: no divisor of most lengths
Q_TOLERANCE = 1e-3  # small random drafters are sharp: rounding of 1e-5 in a logit is more in q
RETRIES = 8  # other keys that must show a difference again: a tie of two scores does not


@pytree
class AnyLaw:
    guesses: Array  # [W]
    vocab: int = static()
    parents: Parents | None = static()


@dataclasses.dataclass(frozen=True)
class AnyVerdict(Rule):
    """Accepts any number of guesses, on any path; then any token. It looks at no law."""

    name: ClassVar[str] = "any"
    takes: ClassVar[frozenset[str]] = frozenset(KINDS)

    def law(self, logits: Array, proposal: Proposal) -> Any:
        return AnyLaw(proposal.tokens, logits.shape[-1], proposal.parents)

    def sample(self, keys: VerifyKeys, law: Any) -> Verdict:
        """Draws the verdict of one row; guesses of -1 are never accepted."""
        token = jax.random.randint(keys.residual, (), 0, law.vocab)
        there, path = law.guesses >= 0, None
        if law.parents is None:
            most, guesses = jnp.cumprod(there, dtype=jnp.int32).sum(), law.guesses
        else:
            line = jnp.asarray(trees.ancestors(law.parents))  # [W + 1, W + 1]
            alive = (jnp.pad(there, (1, 0), constant_values=True)[None, :] | ~line).all(-1)
            score = jax.random.uniform(jax.random.fold_in(keys.accept, 1), alive.shape)
            leaf = jnp.where(alive, score, -1.0).argmax()
            path = jnp.asarray(trees.routes(law.parents))[leaf]
            most = jnp.asarray(trees.depths(law.parents))[leaf]
            guesses = law.guesses[jnp.maximum(path[1:] - 1, 0)]
        count = jax.random.randint(keys.accept, (), 0, most + 1)
        index = jnp.arange(guesses.shape[0] + 1)
        tokens = jnp.where(index < count, jnp.pad(guesses, (0, 1)), token)
        return Verdict(tokens, count, path)


@dataclasses.dataclass(frozen=True)
class Proposed:
    """What a batch guesses at one moment."""

    tokens: np.ndarray  # [B, W]
    q: np.ndarray | None  # [B, W, V]

    def unlike(self, other: Proposed) -> np.ndarray:
        """[B] bool: the rows whose guesses or laws are others."""
        differs = (self.tokens != other.tokens).any(1)
        if self.q is not None and other.q is not None:
            # Of a guess that was left out q means nothing; NaN is unlike anything.
            near = np.abs(self.q - other.q) <= Q_TOLERANCE
            differs |= (~near & (self.tokens >= 0)[..., None]).any((1, 2))
        return differs


class Story:
    """A batch that is decoded under random verdicts, a cycle at a time."""

    def __init__(self, batch: Batch, propose: Any, seed: int):
        self.batch, self._propose = batch, propose
        self._rng = np.random.default_rng(seed)
        room = int(batch.prompt_lengths.max()) + batch.new + batch.drafter.num_draft + 1
        self.slots = room + -room % CHUNK
        tokens = self._rng.integers(
            0, batch.target.config.vocab_size, (len(batch.rows), self.slots)
        )
        for b, row in enumerate(batch.rows):
            tokens[b, : len(row.prompt)] = row.prompt
        self.state = self.fresh(tokens, batch.prompt_lengths, CHUNK)
        # To come back to from another text, where that leaves this one behind its prompt.
        self.marks = between.mark(self.state, which=between.losing(self.state, self.slots))
        self.counts: list[np.ndarray] = []  # a cycle: [B], how many tokens it committed

    def fresh(self, tokens: np.ndarray, length: np.ndarray, width: int) -> decode.DecodeState:
        """The state of texts after nothing but prefill, ``width`` tokens a pass."""
        target, drafter = self.batch.target.net, self.batch.drafter
        done = jnp.zeros((len(length),), jnp.bool_)
        given = jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32)
        state = decode.init_program(target, drafter, *given, done, None)
        for start in range(0, int(length.max()) - 1, width):
            state = decode.prefill_program(target, drafter, state, jnp.int32(start), width=width)
        return state

    def anew(self, width: int) -> decode.DecodeState:
        """A fresh state of the texts so far; what lies behind them is other than it was."""
        tokens, length = np.asarray(self.state.tokens), np.asarray(self.state.length)
        behind = np.arange(self.slots)[None, :] >= length[:, None]
        other = (tokens + 1) % self.batch.target.config.vocab_size
        return self.fresh(np.where(behind, other, tokens), length, width)

    def proposed(self, state: decode.DecodeState, keys: Array | None = None) -> Proposed:
        """What the drafter makes of a state, with other ``keys`` than the batch's if given."""
        awake = jnp.zeros((len(self.batch.rows),), jnp.bool_)
        context = self.batch.context(dataclasses.replace(state, done=awake))
        if keys is not None:
            context = dataclasses.replace(context, keys=keys)
        proposal = self._propose(self.batch.drafter, state.draft, context)
        q = None if proposal.q is None else np.asarray(proposal.q, np.float64)
        tokens = np.asarray(proposal.tokens)
        name, vocab = type(self.batch.drafter).__name__, self.batch.target.config.vocab_size
        check_proposed(tokens[:, None], vocab, name)
        return Proposed(tokens, q)

    def advance(self) -> None:
        """One cycle, in which some rows are done and commit nothing."""
        idle = self._rng.random(len(self.batch.rows)) < 0.25
        idle[int(self._rng.integers(len(idle)))] = False  # a cycle runs while a row is not done
        before = np.asarray(self.state.length)
        state = dataclasses.replace(self.state, done=jnp.asarray(idle))
        self.state = self.batch.advance(state, 1)
        self.counts.append(np.asarray(self.state.length) - before)

    def row(self, b: int) -> str:
        """How row ``b`` came to be, in words, and its text."""
        prompt = list(self.batch.rows[b].prompt)
        text = np.asarray(self.state.tokens)[b, : int(self.state.length[b])].tolist()
        counts = [int(count[b]) for count in self.counts]
        if not counts:
            return f"Prompt {prompt}, before any cycle"
        number = f"{len(counts)} cycle{'s' if len(counts) > 1 else ''}"
        return f"Prompt {prompt}, after {number} that committed {counts} tokens, text {text}"


@dataclasses.dataclass(frozen=True)
class Fault:
    """Rows that propose what they should not."""

    law: str
    rows: np.ndarray  # [B] bool
    got: Proposed
    want: Proposed
    whose: tuple[str, str]  # ``got`` and ``want``
    where: str  # of the first row

    def __str__(self) -> str:
        b = int(self.rows.argmax())
        q, other = self.got.q, self.want.q
        got, want = self.got.tokens[b].tolist(), self.want.tokens[b].tolist()
        what = "guesses"
        if got == want and q is not None and other is not None:
            i = int(np.abs(q[b] - other[b]).max(-1).argmax())
            got, want = (np.round(x[b, i], 4).tolist() for x in (q, other))
            what = f"reports for guess {i + 1} q ="
        shown = f"{self.whose[0]} {what} {got}, and {self.whose[1]} {want}"
        share = f"{int(self.rows.sum())} of {len(self.rows)} rows differ"
        return f"{self.where}: {shown} ({self.law}; {share})."


def check_state(evidence: Evidence) -> Check:
    """The drafter's state is that of its text, and of its own row's."""
    subject = evidence.subject
    side = subject.hot or subject.cold
    assert side is not None
    rows = story_rows(subject.target.config.vocab_size, side.drafter, evidence.seed)
    begin = lambda rows: Story(
        Batch.of(subject.target, side.drafter, AnyVerdict(), rows), evidence.propose, evidence.seed
    )
    story = begin(rows)
    fault = next(faults(story, begin), None)
    counts = np.array(story.counts, np.int32).reshape(-1, len(rows))
    full = int((counts == num_levels(side.drafter) + 1).sum())
    return Check.unless(
        name="state",
        tested=(
            f"what {len(rows)} rows guess after each of {len(counts)} cycles with random verdicts "
            f"({full} of {counts.size} accept all guesses, {int((counts == 0).sum())} commit "
            "nothing) against fresh states of the same texts, prefilled at once and in chunks; "
            "with other rows beside them; against their own guesses before where nothing is "
            "committed; after growing; and in another turn"
        ),
        counterexample=None if fault is None else str(fault),
    )


def story_rows(vocab: int, drafter: Any, seed: int) -> list[Row]:
    """Ragged prompts; of some texts the limit comes early and cuts a verdict."""
    rng = np.random.default_rng((seed, 1))
    longest = CYCLES * (num_levels(drafter) + 1)
    heat = 0.0 if drafter.kind == "one_hot" else 1.0
    return [
        Row(
            tuple(rng.integers(0, vocab, size=1 + b % 9).tolist()),
            Options(temperature=heat),
            b,
            int(rng.integers(2, 6)) if b % 6 == 5 else longest,
            (),
        )
        for b in range(ROWS)
    ]


def faults(story: Story, begin: Callable[[list[Row]], Story]) -> Iterator[Fault]:
    """Each way in which a proposal is not what the laws say, the first moment first."""
    rows = list(story.batch.rows)
    rng = np.random.default_rng(len(rows))
    own = rng.permutation(len(rows)) % 2 == 0  # [B] bool: these stay, and then the others
    others = []
    for stay in (own, ~own):
        swapped = [r if s else _another(r, rng, story) for r, s in zip(rows, stay)]
        others.append((stay, begin(swapped)))
    before: Proposed | None = None
    for cycle in range(CYCLES + 1):
        if cycle:
            for each in (story, *(other for _, other in others)):
                each.advance()
        now = story.proposed(story.state)
        if before is not None and (idle := story.counts[-1] == 0).any():
            whose = ("committing nothing leaves a state that", "the state before")
            yield from _fault(story, LAW_6, now, before, whose, idle)
        for stay, other in others:
            whose = ("with these rows beside it the row", "with other rows")
            yield from _fault(story, LAW_4, now, other.proposed(other.state), whose, stay)
        yield from _against_fresh(story, now)
        before = now
    yield from _grown(story, now)
    yield from _resumed(story)


LAW_3 = "law 3, path independence"
LAW_4 = "law 4, rows are independent"
LAW_5 = "law 5, growing keeps what is there"
LAW_6 = "law 6, committing nothing changes nothing"


def _another(row: Row, rng: np.random.Generator, story: Story) -> Row:
    """A row of as many tokens that is another."""
    vocab = story.batch.target.config.vocab_size
    prompt = [(t + int(rng.integers(1, vocab))) % vocab for t in row.prompt]
    return dataclasses.replace(row, prompt=tuple(prompt), seed=row.seed + 1000)


def _against_fresh(story: Story, now: Proposed) -> Iterator[Fault]:
    """Law 3: two fresh states of the same text, one of them fed in chunks."""
    whole, parts = (story.anew(width) for width in (story.slots, CHUNK))
    at_once, in_parts = story.proposed(whole), story.proposed(parts)
    after = now.unlike(at_once) & now.unlike(in_parts)
    if after.any() and _again(story, story.state, whole, after):
        whose = ("the state", "a fresh state of that text (behind it are other tokens)")
        yield from _fault(story, LAW_3, now, at_once, whose, after)
    chunks = at_once.unlike(in_parts)
    if chunks.any() and _again(story, parts, whole, chunks):
        whose = (f"a state that was prefilled {CHUNK} tokens at a time", "one prefilled at once")
        yield from _fault(story, LAW_3, in_parts, at_once, whose, chunks)


def _again(story: Story, a: decode.DecodeState, b: decode.DecodeState, rows: np.ndarray) -> bool:
    """Whether some of ``rows`` differ with other keys, too: a tie of two scores does not."""
    if story.batch.drafter.kind == "one_hot":
        return True
    for retry in range(RETRIES):
        keys = jax.vmap(lambda key, i=retry: jax.random.fold_in(key, i))(story.batch.request.keys)
        if (story.proposed(a, keys).unlike(story.proposed(b, keys)) & rows).any():
            return True
    return False


def _grown(story: Story, now: Proposed) -> Iterator[Fault]:
    """Law 5: a state with more room proposes the same."""
    slots = 2 * story.slots
    grown = between.grown_program(story.batch.drafter, story.state, slots=slots)
    whose = ("after grow() the state", "the state before")
    yield from _fault(story, LAW_5, story.proposed(grown), now, whose, np.ones(ROWS, bool))


def _resumed(story: Story) -> Iterator[Fault]:
    """Law 3 of a conversation: the state is cut where another text leaves its own, and fed on."""
    batch, drafter = story.batch, story.batch.drafter
    if not hasattr(drafter, "cut"):
        return  # then each turn begins anew
    rng, target = np.random.default_rng(len(story.counts)), batch.target.net
    tokens, length = np.asarray(story.state.tokens), np.asarray(story.state.length)
    room = story.slots - CHUNK - drafter.num_draft
    same = np.minimum(rng.integers(1, length + 1), room - 1)
    other = rng.integers(0, batch.target.config.vocab_size, tokens.shape)
    text = np.where(np.arange(story.slots)[None, :] < same[:, None], tokens, other)
    ends = np.minimum(same + rng.integers(1, 2 * CHUNK, ROWS), room)
    given = jnp.asarray(text, jnp.int32), jnp.asarray(ends, jnp.int32), jnp.zeros((ROWS,), bool)
    state = between.resume_program(
        target, drafter, story.state, *given, None, jnp.asarray(same, jnp.int32), story.marks
    )
    kept = np.asarray(state.cache.length)
    for fed in range(0, int((ends - 1 - kept).max()), CHUNK):
        start = jnp.asarray(np.minimum(kept + fed, ends - 1), jnp.int32)
        state = decode.prefill_program(target, drafter, state, start, width=CHUNK)
    fresh = story.fresh(text, ends, story.slots)
    got, want = story.proposed(state), story.proposed(fresh)
    rows = got.unlike(want)
    if rows.any() and _again(story, state, fresh, rows):
        b = int(rows.argmax())
        where = (
            f"Another turn that shares {int(same[b])} tokens with the one before, of which "
            f"{int(kept[b])} were kept, text {text[b, : ends[b]].tolist()}"
        )
        whose = ("the state that was cut and fed on", "a fresh one")
        yield Fault(LAW_3, rows, got, want, whose, where)


def _fault(
    story: Story,
    law: str,
    got: Proposed,
    want: Proposed,
    whose: tuple[str, str],
    among: np.ndarray,
) -> Iterator[Fault]:
    rows = got.unlike(want) & among
    if rows.any():
        yield Fault(law, rows, got, want, whose, story.row(int(rows.argmax())))
