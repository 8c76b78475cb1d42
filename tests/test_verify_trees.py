"""The walk over trees of guesses emits exactly the target's law, whatever the tree.

Every tree of up to six guesses, laws in float64: for all guesses of a small vocabulary, empty
places included, the law that ``Rule.law`` returns is compared with the target's over whole texts;
and the walk itself, given every choice of the target's own tokens, with that law.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import verify
from specjax.core import trees
from specjax.core.types import Parents, Proposal
from specjax.lab.audit.tables import all_blocks, random_tables
from specjax.verify.base import VerifyKeys
from specjax.verify.walk import walk

TOLERANCE = 1e-12
MOST = 6


def all_trees(size: int) -> Iterator[Parents]:
    """Every way to number a tree of ``size`` guesses, parents first: ``size`` factorial."""
    return itertools.product(*(range(i + 1) for i in range(size)))


def shape_of(parents: Parents, place: int = 0) -> tuple:
    """The tree without numbers and without an order of siblings."""
    return tuple(sorted(shape_of(parents, i + 1) for i, p in enumerate(parents) if p == place))


def shapes() -> list[Parents]:
    """Every shape of a tree of 1 to `MOST` guesses, each in a random numbering."""
    rng, found = np.random.default_rng(0), []
    for size in range(1, MOST + 1):
        same: dict[tuple, list[Parents]] = {}
        for parents in all_trees(size):
            same.setdefault(shape_of(parents), []).append(parents)
        found += [numbered[rng.integers(len(numbered))] for numbered in same.values()]
    return found


SHAPES = shapes()


def some_blocks(rng: np.random.Generator, vocab: int, number: int) -> Iterator[tuple]:
    """Each shape and guesses [number, `MOST`] for it, -1 for none.

    A smaller tree has all of the last guesses empty: all shapes then share what is compiled.
    """
    for parents in SHAPES:
        blocks = rng.integers(-1, vocab, (number, MOST)).astype(np.int32)
        blocks[:, len(parents) :] = -1
        blocks[0, : len(parents)] = 0  # the same token everywhere
        yield (*parents, *[0] * (MOST - len(parents))), blocks


def texts_of(parents: Parents, guesses: np.ndarray) -> list[tuple[int, ...]]:
    """The guesses from the pending token to each place."""
    depth, routes = trees.depths(parents), trees.routes(parents)
    return [tuple(guesses[routes[w, 1 : depth[w] + 1] - 1]) for w in range(len(depth))]


def laws_behind(p: list[np.ndarray], parents: Parents, blocks: np.ndarray) -> np.ndarray:
    """[D, W + 1, V]: the target's law behind each place; empty places (-1) read as token 0."""
    V, depth = p[0].shape[1], trees.depths(parents)
    number = np.zeros((len(blocks), len(depth)), int)
    for w, parent in enumerate(parents, 1):
        number[:, w] = number[:, parent] * V + np.maximum(blocks[:, w - 1], 0)
    return np.stack([p[d][number[:, w]] for w, d in enumerate(depth)], 1)


def evaluate(rule: verify.Rule, chances: np.ndarray, blocks: np.ndarray, parents: Parents):
    """stops [D, W + 1], after [D, W + 1, V], survival [D, M], emission [D, W + 1, V]."""

    def one(logits, tokens):
        law = rule.law(logits, Proposal(tokens, parents=parents))
        places = np.arange(len(parents) + 1, dtype=np.int32)  # more of them than of levels
        after, emission = jax.vmap(law.after)(places), jax.vmap(law.emission)(places)
        return law.stops, after, law.survival, emission

    with jax.enable_x64(True), np.errstate(divide="ignore"):
        return jax.tree.map(np.asarray, jax.vmap(one)(np.log(chances), blocks))


def emitted(p, parents, guesses, stops, after) -> np.ndarray:
    """The law of the next M + 1 tokens: [V] * (M + 1)."""
    V, levels = p[0].shape[1], trees.num_levels(parents)
    law = np.zeros((V,) * (levels + 1))
    for w, text in enumerate(texts_of(parents, guesses)):
        if -1 in text:
            assert stops[w] == 0
            continue
        tail = stops[w] * after[w]
        number = np.ravel_multi_index(text, (V,) * len(text)) if text else 0
        numbers = number * V + np.arange(V)
        for level in range(len(text) + 1, levels + 1):  # what stopped goes on with the target
            tail = (tail.reshape(-1)[:, None] * p[level][numbers]).reshape(-1)
            numbers = (numbers[:, None] * V + np.arange(V)).reshape(-1)
        law[text] += tail.reshape((V,) * (levels + 1 - len(text)))
    return law


def whole(p: list[np.ndarray], levels: int) -> np.ndarray:
    """The target's own law of the next ``levels`` tokens."""
    law = np.ones(1)
    for table in p[:levels]:
        law = (law[:, None] * table).reshape(-1)
    return law.reshape((p[0].shape[1],) * levels)


def test_every_shape_is_there():
    rooted = {1: 1, 2: 2, 3: 4, 4: 9, 5: 20, 6: 48}  # of that many nodes below the root
    assert {n: sum(len(s) == n for s in SHAPES) for n in rooted} == rooted


@pytest.mark.parametrize("name", ["coupled", "greedy"])
def test_emits_the_target_law_whatever_the_tree(name):
    """Tokens guessed twice and empty places included; law by level as the mean over places."""
    rule, rng = verify.get(name), np.random.default_rng(1)
    for parents, blocks in some_blocks(rng, 2, 12):
        M, depth = trees.num_levels(parents), trees.depths(parents)
        p = random_tables(rng, 2, M)
        if name == "greedy":
            p = [(level == level.max(-1, keepdims=True)) * 1.0 for level in p]
        stops, after, survival, emission = evaluate(
            rule, laws_behind(p, parents, blocks), blocks, parents
        )
        want = whole(p, M + 1)
        for d, guesses in enumerate(blocks):
            got = emitted(p, parents, guesses, stops[d], after[d])
            assert np.abs(got - want).max() < TOLERANCE, (parents, guesses)
        ends = np.concatenate([np.ones((len(blocks), 1)), survival, np.zeros((len(blocks), 1))], 1)
        for level in range(M + 1):
            here = depth == level
            stop = ends[:, level] - ends[:, level + 1]
            np.testing.assert_allclose(stop, stops[:, here].sum(1), atol=TOLERANCE)
            mean = (stops[:, here, None] * after[:, here]).sum(1)
            np.testing.assert_allclose(stop[:, None] * emission[:, level], mean, atol=TOLERANCE)


def test_the_walk_follows_its_law():
    """Every choice of the target's own tokens, weighted by its chance; equal texts agree."""
    V, W, rule, rng = 2, MOST, verify.get("coupled"), np.random.default_rng(2)
    own, places = all_blocks(V, W + 1), np.arange(W + 1)
    for parents, blocks in some_blocks(rng, V, 12):
        p = random_tables(rng, V, trees.num_levels(parents))
        chances = laws_behind(p, parents, blocks)
        stops, after, *_ = evaluate(rule, chances, blocks, parents)
        for d, guesses in enumerate(blocks[:2]):
            law = rule.law(np.zeros((W + 1, V)), Proposal(jnp.asarray(guesses), parents=parents))
            verdicts = jax.vmap(lambda own, law=law: walk(own, law.guesses, law.parents))(own)
            texts = texts_of(parents, guesses)
            first = np.array([texts.index(text) for text in texts])
            agree = (own == own[:, first]).all(1)
            chance = np.where(first == places, chances[d][places, own], 1.0).prod(1) * agree
            n, path = np.asarray(verdicts.num_accepted), np.asarray(verdicts.path)
            rows, got = np.arange(len(own)), np.zeros((W + 1, V))
            place = path[rows, n]
            np.testing.assert_array_equal(path, trees.routes(parents)[place])
            tokens = np.asarray(verdicts.tokens)
            for row in rows[agree]:
                assert tuple(tokens[row, : n[row]]) == texts[place[row]]
            np.add.at(got, (place, tokens[rows, n]), chance)
            np.testing.assert_allclose(got, stops[d][:, None] * after[d], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["coupled", "greedy"])
def test_a_chain_as_a_tree_is_the_chain(name):
    """The same verdict and the same law, under the same keys."""
    rule, rng, V, K = verify.get(name), np.random.default_rng(3), 3, 4
    keys = jax.random.split(jax.random.key(4), K + 1)
    keys = VerifyKeys(keys[0], keys[0], keys)

    @jax.jit
    def both(logits, tokens):
        chain = rule.law(logits, Proposal(tokens))
        tree = rule.law(logits, Proposal(tokens, parents=trees.chain(K)))
        verdicts, places = (rule.sample(keys, tree), rule.sample(keys, chain)), np.arange(K + 1)
        after = jax.vmap(tree.after)(places), jax.vmap(chain.emission)(places)
        return verdicts, (tree.survival, chain.survival), after

    for _ in range(20):
        logits = jnp.asarray(2 * rng.normal(size=(K + 1, V)), jnp.float32)
        tokens = jnp.asarray(rng.integers(-1, V, K), jnp.int32)
        (ours, theirs), survival, after = both(logits, tokens)
        np.testing.assert_allclose(*survival, atol=1e-6)
        n = int(theirs.num_accepted)
        assert int(ours.num_accepted) == n
        assert (ours.tokens[: n + 1] == theirs.tokens[: n + 1]).all()
        np.testing.assert_allclose(after[0][n], after[1][n], atol=1e-6)


def test_which_rules_take_trees():
    tree = (0, 0, 1)
    able = {name for name, rule in verify.RULES.items() if rule.trees}
    assert able == {"greedy", "coupled"}
    for kind in ("one_hot", "coupled"):
        assert verify.default_rule(kind, False, tree).name == "coupled"
        verify.check(verify.get("coupled"), kind, False, tree)
    verify.check(verify.get("greedy"), "sampled", True, tree)
    for name in ("token", "block"):
        with pytest.raises(ValueError, match="a tree of 3: use rule 'coupled'") as error:
            verify.check(verify.get(name), "one_hot", False, tree)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="draw them 'one_hot' or 'coupled'"):
        verify.check(verify.get("coupled"), "sampled", False, tree)
