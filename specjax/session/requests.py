"""What is asked is checked before anything runs, and who serves it is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from specjax import verify
from specjax.checkpoint.load import Model
from specjax.core.options import is_integer
from specjax.core.seeds import check_seed
from specjax.drafters import checking
from specjax.drafters.base import Drafter, parents_of
from specjax.drafters.spec import Spec
from specjax.sampling import GREEDY_BELOW
from specjax.session.layout import Row
from specjax.session.limits import check_guesses


def choose(
    target: Model, spec: Spec, rows: Sequence[Row], rule_name: str | verify.Rule | None
) -> tuple[Drafter, verify.Rule]:
    """Binds the drafter to the target and finds the rule for both.

    Raises:
      ValueError: in one line, if the rule is unknown or not lossless for this drafter and these
        temperatures, or if one of the two is not what it is taken for (`drafters.checking`).
    """
    if not rows:
        raise ValueError("No prompts: give at least one.")
    greedy = all(r.options.temperature < GREEDY_BELOW for r in rows)
    counts = any(r.options.uses_counts for r in rows)
    rule = None if rule_name is None else verify.get(rule_name)
    if greedy:
        kind = "one_hot"
    elif rule is not None and "sampled" not in rule.takes:
        kind = "coupled"
    else:
        kind = "sampled"
    drafter, proposal = checking.bind(spec, target, kind, greedy=greedy, counts=counts)
    parents = parents_of(drafter)
    rule = rule or verify.default_rule(drafter.kind, greedy, parents)
    verify.check(rule, drafter.kind, greedy, parents)
    if target.net.platform is not None:
        rule = dataclasses.replace(rule, platform=target.net.platform)
    verify.check_verdict(rule, proposal, target.config.vocab_size)
    return drafter, rule


def check_requests(
    target: Model, spec: Spec, rows: Sequence[Row], rule: str | verify.Rule | None
) -> tuple[Drafter, verify.Rule]:
    """Checks every request, and returns what serves them.

    Raises:
      ValueError: in one line, on a request that cannot be served exactly or at all.
    """
    for i, row in enumerate(rows):
        check_row(target, row, i)
    drafter, found = choose(target, spec, rows, rule)
    check_guesses(target, drafter.num_draft)
    return drafter, found


def check_row(target: Model, row: Row, index: int) -> None:
    """Raises ValueError, in one line, on a request that cannot be served."""
    vocab, longest = target.config.vocab_size, target.config.max_position_embeddings
    where = f"Prompt {index}"
    if len(row.prompt) == 0:
        raise ValueError(
            f"{where} is empty, and no BOS token stands in for it: give at least one token."
        )
    bad = [t for t in row.prompt if not 0 <= t < vocab]
    if bad:
        raise ValueError(
            f"{where} holds token id {bad[0]}, but the vocabulary has ids 0 to {vocab - 1}; "
            "encode it with this model's tokenizer."
        )
    if not is_integer(row.max_new_tokens) or row.max_new_tokens < 1:
        raise ValueError(
            f"max_new_tokens={row.max_new_tokens!r}: must be a whole number, at least 1."
        )
    room = longest - len(row.prompt)
    if row.max_new_tokens > room:
        raise ValueError(
            f"{where} has {len(row.prompt)} tokens, and with max_new_tokens={row.max_new_tokens} "
            f"the text would exceed the model's limit of {longest}; shorten one of the two"
            + (f": at most {room} new tokens fit." if room > 0 else ".")
        )
    for token in row.stop_token_ids:
        if not is_integer(token) or not 0 <= token < vocab:
            raise ValueError(
                f"stop_token_ids holds {token!r}, but the vocabulary has ids 0 to {vocab - 1}; "
                "remove it."
            )
    check_seed(row.seed)
    row.options.check(vocab, row.max_new_tokens)
