"""Whether a drafter is one, found out when it is bound: by its fields, and by shape alone.

Nothing is computed, so a mistake costs no compilation and is named where it was made. What shapes
cannot tell (a guess that is no token, a q that was not drawn from) is told by `check_proposed`,
when the first cycle has run, and by the audit.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import trees
from specjax.core.by_shape import Misfit, calling, is_ours, takes
from specjax.core.sharding import use_mesh
from specjax.core.types import KINDS, Proposal
from specjax.drafters.base import Drafter, parents_of, widths_of
from specjax.drafters.rehearsal import Rehearsal
from specjax.drafters.spec import Spec
from specjax.models.config import UNNORMED
from specjax.models.target import Target

_METHODS = {
    "init": ("rows", "slots"),
    "prefill": ("state", "tokens", "count", "features"),
    "propose": ("state", "context"),
    "update": ("held", "kept"),
    "grow": ("state", "slots"),
}
_FIELDS = ("num_draft", "kind", "taps")
_SEE = "see specjax/drafters/base.py"
_SEEN: dict[Any, Proposal] = {}  # what was found right -> the shapes of its guesses


def name_of(drafter: Any) -> str:
    """What a drafter is called: its name, or that of its class."""
    name = getattr(drafter, "name", None) or getattr(drafter, "__name__", None)
    return name if isinstance(name, str) else type(drafter).__name__


def check_spec(spec: Any) -> None:
    """Raises ValueError, in one line, on what cannot be bound to a target."""
    if inspect.isclass(spec):
        raise Misfit(f"{spec.__name__} is a class; hand over an instance of it, or its name.")
    if not callable(getattr(spec, "bind", None)):
        raise Misfit(
            f"a {type(spec).__name__} is no drafter: hand over a spec, which has a method "
            "bind(target, kind) (specjax.drafters), or a name such as 'ngram:4'."
        )
    said = takes(spec.bind, ("target", "kind"))
    if said is not None:
        raise Misfit(f"{name_of(spec)}: bind must take (target, kind), and takes {said}.")


def bind(
    spec: Spec, target: Target, kind: str, *, greedy: bool = False, counts: bool = False
) -> tuple[Drafter, Proposal]:
    """The drafter for ``target``, checked, and the shapes of what it proposes.

    Args:
      spec: what was handed over.
      target: a `specjax.Model`.
      kind: the kind of guesses that suits the request.
      greedy: whether all rows are at temperature 0.
      counts: whether a penalty counts tokens.

    Raises:
      ValueError: in one line, if it does not fit the target or is no `Drafter`.
    """
    check_spec(spec)
    name = name_of(spec)
    drafter = calling(f"{name}.bind()", lambda: spec.bind(target, kind), ValueError)
    return drafter, check_drafter(drafter, name, target, greedy=greedy, counts=counts)


def check_drafter(
    drafter: Any,
    name: str,
    target: Target,
    *,
    greedy: bool = False,
    counts: bool = False,
    all_of_it: bool = False,
) -> Proposal:
    """The shapes that it proposes. Raises ValueError, in one line, on what is not a `Drafter`.

    Tracing a network takes a while (0.3 s for a language model), so that what the methods of this
    library's own drafters return is looked at only with ``all_of_it``.
    """
    _check_methods(drafter, name)
    _check_fields(drafter, name, target)
    if is_ours(drafter) and not all_of_it:
        return _as_promised(drafter, target)
    leaves, structure = jax.tree.flatten(drafter)
    shapes = tuple((np.shape(x), str(getattr(x, "dtype", type(x)))) for x in leaves)
    net = jax.tree.structure(target.net)
    seen = (structure, shapes, net, target.dtype, target.mesh, greedy, counts)
    known = _SEEN.get(seen)
    if known is None:
        with use_mesh(target.mesh):
            known = _SEEN[seen] = Rehearsal(drafter, name, target, greedy, counts).proposal()
    return known


def _check_methods(drafter: Any, name: str) -> None:
    """Those of the protocol are there, and take what the cycle hands them."""
    kind = type(drafter).__name__
    if drafter is None or inspect.isclass(drafter):
        what = "None" if drafter is None else f"the class {drafter.__name__}"
        raise Misfit(f"{name}.bind() returns {what}; it must return a drafter, {_SEE}.")
    lacking = [f"{m}()" for m in _METHODS if not callable(getattr(drafter, m, None))]
    lacking += [f for f in _FIELDS if not hasattr(drafter, f)]
    if lacking:
        own = [a for a in dir(drafter) if not a.startswith("_")]
        wanted = [m.removesuffix("()") for m in lacking]
        near = [n for m in wanted for n in difflib.get_close_matches(m, own, 1, 0.75)]
        hint = f" (it has {', '.join(near)})" if near else ""
        raise Misfit(f"{name} binds to a {kind}, which lacks {', '.join(lacking)}{hint}; {_SEE}.")
    more = {"cut": ("state", "length")} if hasattr(drafter, "cut") else {}
    for method, names in (_METHODS | more).items():
        said = takes(getattr(drafter, method), names)
        if said is None:
            continue
        hint = ""
        if method == "update":
            hint = (
                ": held is what propose returned, kept a specjax.core.types.Kept with tokens, "
                "count, features and path"
            )
        raise Misfit(f"{name}: {method} must take ({', '.join(names)}){hint}; it takes {said}.")


def _check_fields(drafter: Any, name: str, target: Target) -> None:
    """The static ones, and that it is a pytree."""
    kind, K = type(drafter).__name__, drafter.num_draft
    odd = [x for x in jax.tree.leaves(drafter) if not isinstance(x, _LEAVES)]
    if odd:
        raise Misfit(
            f"{name} binds to a {kind} that is no pytree of arrays (it holds a "
            f"{type(odd[0]).__name__}): decorate its class with specjax.core.types.pytree, and "
            "declare what is no array with static()."
        )
    fields = dataclasses.fields(drafter) if dataclasses.is_dataclass(drafter) else ()
    for f in fields:
        if f.metadata.get("static") and isinstance(getattr(drafter, f.name), _ARRAYS):
            raise Misfit(
                f"{name} binds to a {kind} whose {f.name} is an array, and static(): compiled "
                "programs cannot be told apart by it; declare it without static()."
            )
    for field in (*_FIELDS, "parents", "widths"):
        if hasattr(drafter, field) and _is_traced(drafter, field):
            raise Misfit(
                f"{name} binds to a {kind} whose {field} is a leaf of the pytree: declare it "
                f"`{field}: ... = static()`, so that it is compiled in."
            )
    if not isinstance(K, int | np.integer) or isinstance(K, bool) or K < 0:
        raise Misfit(f"{name}: num_draft is {K!r}; must be the number of guesses a cycle.")
    if drafter.kind not in KINDS:
        raise Misfit(f"{name}: kind is {drafter.kind!r}; must be one of {', '.join(KINDS)}.")
    whole = lambda t: isinstance(t, int | np.integer) and not isinstance(t, bool)
    taps, last = drafter.taps, target.config.num_layers
    if not isinstance(taps, tuple) or not all(map(whole, taps)):
        raise Misfit(f"{name}: taps is {taps!r}; must be a tuple of ints, () for none.")
    beyond = [t for t in taps if t != UNNORMED and not 0 <= t <= last]
    if beyond:
        raise ValueError(
            f"{name} taps hidden_states[{beyond[0]}], but {target.name} has {last} layers, so "
            f"hidden_states[0] to hidden_states[{last}]."
        )
    _check_widths(drafter, name)
    parents = parents_of(drafter)
    if parents is None:
        return
    try:
        trees.check_parents(parents)
    except ValueError as error:
        raise Misfit(f"{name}: {error}") from None
    if len(parents) != K:
        raise Misfit(
            f"{name}: num_draft is {K}, and parents names {len(parents)} guesses; they must agree."
        )


def _check_widths(drafter: Any, name: str) -> None:
    """Those that a drafter may say: ascending numbers of guesses, up to all."""
    widths = widths_of(drafter)
    whole = isinstance(widths, tuple) and all(isinstance(w, int) and w >= 0 for w in widths)
    if not whole or list(widths) != sorted({*widths}) or widths[-1] != drafter.num_draft:
        raise Misfit(
            f"{name}: widths is {widths!r}; must be a tuple of numbers of guesses that ascends to "
            f"num_draft, {drafter.num_draft}."
        )


def _as_promised(drafter: Drafter, target: Target) -> Proposal:
    size, V = (2, drafter.num_draft), target.config.vocab_size
    sampled = drafter.kind == "sampled" and drafter.num_draft > 0
    q = jax.ShapeDtypeStruct((*size, V), jnp.float32) if sampled else None
    tokens: Any = jax.ShapeDtypeStruct(size, jnp.int32)
    return Proposal(tokens, q, parents_of(drafter))  # type: ignore[arg-type]


_ARRAYS = jax.Array | np.ndarray
_LEAVES = _ARRAYS | jax.ShapeDtypeStruct | np.generic | bool | int | float


def _is_traced(drafter: Any, field: str) -> bool:
    """Whether a field is not what it was once the leaves are others."""
    leaves, structure = jax.tree.flatten(drafter)
    mark = object()
    try:
        other = getattr(jax.tree.unflatten(structure, [mark] * len(leaves)), field)
    except Exception:  # a property of arrays, say: then it is made of leaves
        return True
    return other is mark or (isinstance(other, tuple) and any(x is mark for x in other))


def check_proposed(
    proposed: np.ndarray, vocab_size: int, name: str, committed: np.ndarray | None = None
) -> None:
    """Raises ValueError, in one line, on guesses that are no tokens.

    Args:
      proposed: [B, S, K] int32, by starting position; of a trace.
      vocab_size: V.
      name: the drafter's.
      committed: [B, S] int32, -1 where no cycle started; None: all count.
    """
    bad = (proposed < -1) | (proposed >= vocab_size)
    if committed is not None:
        bad &= (committed >= 0)[..., None]
    if not bad.any():
        return
    row, place, i = (int(x) for x in np.argwhere(bad)[0])
    raise Misfit(
        f"{name}: guess {i + 1} of the cycle that starts at position {place} of row {row} is "
        f"{proposed[row, place, i]}, but the vocabulary has ids 0 to {vocab_size - 1}; -1 is no "
        "guess."
    )
