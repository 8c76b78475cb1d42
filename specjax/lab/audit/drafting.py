"""Do the guesses follow the law that is reported for them, and the verdicts the rule's law?"""

from __future__ import annotations

import numpy as np

from specjax.drafters.base import num_levels, parents_of
from specjax.lab.audit.evidence import Evidence, Guesses
from specjax.lab.audit.laws import GROUPS, NEW, VOCAB, block_laws, tree_laws
from specjax.lab.audit.report import Check
from specjax.lab.audit.statistics import MIN_ROWS, SURE, Fit, fit, furthest
from specjax.lab.audit.tables import law_of

MAX_BLOCKS = 512  # distinct proposals whose verdicts are looked at, the most frequent
NEVER = 1e-12  # a probability that is rounding


def check_guesses(evidence: Evidence) -> Check:
    """Truth: given the committed text and the guesses before it, each guess follows q."""
    drafter = evidence.subject.hot.drafter  # type: ignore[union-attr]
    observed, expected, words = [], [], []
    for cycle, guesses in enumerate(evidence.hot.guesses):
        wrong = _no_law(evidence, guesses, drafter.kind)
        if wrong is not None:
            return Check("guesses", False, "whether the reported q are laws", counterexample=wrong)
        for i in range(drafter.num_draft):
            counts = _guess_counts(evidence, guesses, i, cycle)
            observed += counts[0]
            expected += counts[1]
            words += counts[2]
    got, want = np.asarray(observed), np.asarray(expected)
    result = fit(got, want)
    sure = all(guesses.q is None for guesses in evidence.hot.guesses)
    against = "the first one in that situation, there being no q" if sure else "the reported q"
    tested = (
        f"{result.samples} guesses of {drafter.kind} kind in {len(words)} situations (text and "
        f"guesses before), in the first two cycles, against {against}"
    )
    return statistical(
        "guesses", evidence.alpha, result, tested, _guess_words(evidence, got, want, words)
    )


def _no_law(evidence: Evidence, guesses: Guesses, kind: str) -> str | None:
    """What is wrong with q as such."""
    if guesses.q is None:
        if kind != "sampled":
            return None
        return (
            "The drafter says that its guesses are sampled, and reports no q: they would be taken "
            "for deterministic ones."
        )
    total = guesses.q.sum(-1)
    odd = (guesses.tokens >= 0) & guesses.active[:, None]
    odd &= ~((np.abs(total - 1) < 1e-4) & (guesses.q >= 0).all(-1))
    if not odd.any():
        return None
    row, i = (int(x) for x in np.argwhere(odd)[0])
    law = np.round(guesses.q[row, i], 6).tolist()
    where = f"{evidence.group(row)}: guess {i + 1}"
    return f"{where} reports q = {law}, which sums to {total[row, i]:.6g}."


def _guess_counts(
    evidence: Evidence, guesses: Guesses, i: int, cycle: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Counts, expected counts, words of each situation before guess ``i``; column V: none."""
    rows = np.flatnonzero(guesses.active)
    if guesses.q is not None:  # of a guess that was left out q means nothing
        rows = rows[guesses.tokens[rows, i] >= 0]
    key = np.concatenate(
        [evidence.groups[rows, None], guesses.committed[rows], guesses.tokens[rows, :i]], axis=1
    )
    situations, first, which, sizes = np.unique(
        key, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    which = which.reshape(-1)
    token = np.where(guesses.tokens[rows, i] < 0, VOCAB, guesses.tokens[rows, i])
    if guesses.q is None:  # a deterministic guess is the same whenever the text is
        law = np.eye(VOCAB + 1)[token[first]][which]
    else:
        law = np.pad(guesses.q[rows, i], ((0, 0), (0, 1)))
    got = np.zeros((len(situations), VOCAB + 1))
    want = np.zeros_like(got)
    np.add.at(got, (which, token), 1)
    np.add.at(want, which, law)
    want[want < NEVER * len(rows)] = 0.0
    kept = np.flatnonzero(sizes >= MIN_ROWS) if guesses.q is not None else range(len(situations))
    words = []
    for s in kept:
        text = situations[s, 1 : 1 + NEW]
        before = situations[s, 1 + NEW :].tolist()
        line = f"{GROUPS[situations[s, 0]]}, cycle {cycle + 1}"
        line += f" after {text[text < VOCAB].tolist()}" if cycle else ""
        line += f", guess {i + 1}"
        words.append(line + (f" behind the guesses {before}" if before else ""))
    return [got[s] for s in kept], [want[s] for s in kept], words


def _guess_words(evidence: Evidence, got: np.ndarray, want: np.ndarray, words: list[str]) -> str:
    found = furthest(got, want, evidence.alpha) if len(got) else None
    if found is None:
        return ""
    where, token = found
    name = "no guess" if token == VOCAB else f"token {token}"
    return f"{words[where]}: {name} {rates(got[where], want[where], token, 'q says')}."


def check_verdicts(evidence: Evidence) -> Check:
    """Given its guesses, the first cycle's verdict follows the rule's law.

    This is where noise that draft and verdict share shows: each of the two is right by itself.
    """
    subject, seen = evidence.subject, evidence.hot
    assert subject.hot is not None
    rule, drafter, guesses = subject.hot.rule, subject.hot.drafter, seen.guesses[0]
    K, parents = num_levels(drafter), parents_of(drafter)
    # A stop token would hide the end of a verdict.
    rows = np.flatnonzero([not GROUPS[g].stop_token_ids for g in evidence.groups])
    key = np.concatenate([evidence.groups[rows, None], guesses.tokens[rows]], axis=1)
    blocks, first, which, sizes = np.unique(
        key, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    often = np.argsort(-sizes, kind="stable")[:MAX_BLOCKS]
    groups = [GROUPS[g] for g in blocks[often, 0]]
    tokens = blocks[often, 1:].astype(np.int32)
    if parents is None:
        p = block_laws(subject.target, groups, tokens)
    else:
        p = tree_laws(subject.target, groups, tokens, parents)
    q = None if guesses.q is None else guesses.q[rows[first[often]]]
    survival, emission = law_of(rule, p, tokens, q, parents)
    ends = np.pad(np.pad(survival, ((0, 0), (1, 0)), constant_values=1), ((0, 0), (0, 1)))
    joint = -np.diff(ends, axis=1)[..., None] * emission  # [D, K + 1, V]

    place = np.full(len(blocks), -1)
    place[often] = np.arange(len(often))
    which = place[which.reshape(-1)]
    rows, which = rows[which >= 0], which[which >= 0]
    start = np.asarray([len(GROUPS[g].prompt) for g in evidence.groups[rows]])
    accepted = seen.accepted[rows, start]
    # The limit may hide the last token: then only the number of accepted guesses is compared.
    hidden = np.arange(K + 1) >= NEW
    joint[:, hidden, 0] = joint[:, hidden].sum(-1)
    joint[:, hidden, 1:] = 0
    last = np.where(accepted < NEW, seen.texts[rows, np.minimum(accepted, NEW - 1)], 0)
    # One condition for each first guess: those of whole blocks may be met too seldom.
    condition = np.unique(blocks[often][:, :2], axis=0, return_inverse=True)
    kinds, of = condition[0], condition[1].reshape(-1)
    got = np.zeros((len(kinds), K + 1, VOCAB))
    want = np.zeros_like(got)
    np.add.at(got, (of[which], accepted, last), 1)
    np.add.at(want, of[which], joint[which])
    want[want < NEVER * len(rows)] = 0.0
    counts, means = got.reshape(len(kinds), -1), want.reshape(len(kinds), -1)
    result = fit(counts, means)
    found = furthest(counts, means, evidence.alpha)
    words = ""
    if found is not None:
        where, cell = found
        says = rates(counts[where], means[where], cell, "the rule says")
        words = f"{_met(kinds[where], cell, hidden)} {says}."
    tested = (
        f"{result.samples} verdicts on {len(often)} different proposals of the first cycle against "
        f"the law of {rule.name} given the guesses"
    )
    return statistical("verdicts", evidence.alpha, result, tested, words)


def _met(kind: np.ndarray, cell: int, hidden: np.ndarray) -> str:
    """A verdict in words: of a group and its first guess, ``cell`` = accepted guesses and token."""
    number, token = divmod(cell, VOCAB)
    guess = kind[1:].tolist()
    guessed = f" where the first guess is {guess[0]}" if guess else ""
    ending = "" if hidden[number] else f" and then token {token}"
    return f"{GROUPS[kind[0]]}{guessed}: {number} accepted{ending}"


def rates(got: np.ndarray, want: np.ndarray, cell: int, says: str) -> str:
    """Expected and observed probability of one outcome, in words."""
    total = got.sum()
    return (
        f"came {int(got[cell])} times in {int(total)}, with probability {got[cell] / total:.4f}, "
        f"where {says} {want[cell] / want.sum():.4f}"
    )


def statistical(name: str, alpha: float, result: Fit, tested: str, words: str) -> Check:
    """A check that fails where the right law reaches the statistic with less than ``alpha``."""
    passed = result.p_value >= alpha
    if not passed and not words:
        words = (
            "No single outcome stands out; together they are off: chi-square "
            f"{result.statistic:.1f} at {result.df} degrees of freedom."
        )
    known = result.df > 0
    return Check(
        name=name,
        passed=passed,
        tested=tested,
        statistic=result.statistic,
        p_value=result.p_value,
        power=SURE if known else None,
        detects=result.detects(alpha) if known else None,
        counterexample=None if passed else words,
    )
