"""`Spec`: what a user hands over, and what a kind of drafter says about itself.

Nobody keeps a list of kinds: whoever must know something of one asks its spec, by `ask`, so that an
object that has ``bind`` alone is answered for by the defaults here.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from specjax.checkpoint.drafters.format import Formats
from specjax.core.family import Family
from specjax.core.options import check_count
from specjax.core.types import Array
from specjax.drafters.base import Drafter
from specjax.models.frozen import Frozen
from specjax.models.target import Target


@dataclasses.dataclass(frozen=True)
class Trial:
    """The same weights read in another way: if tau rises with them, that is what went wrong."""

    what: str  # such as "taps one higher"
    means: str  # what it says about the checkpoint, and what to do
    spec: Any  # the drafter read so
    beyond: int = 0  # it makes no difference in texts of up to so many tokens


@dataclasses.dataclass(frozen=True)
class Misreading:
    """One thing that a low tau may mean, and how to test it."""

    cause: str  # what is known of it, without a full stop; what was tried is added
    trials: tuple[Trial, ...] = ()
    likely: bool = False  # what is known of it speaks for it: it comes before the others


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is asked of a drafter that is compiled without weights; 0: as it is published."""

    num_draft: int
    layers: int = 0
    taps: int = 0
    vocab: int = 0  # of a head of its own
    latent: bool = False  # attention of the kind and sizes of the target's latent one
    shards: int = 1  # that its vocabulary must divide into


@dataclasses.dataclass(frozen=True)
class Outline:
    """A network without weights, and the other fields of its spec."""

    network: Callable[..., Any]  # (config, dtype=, rngs=) -> the module
    config: Any
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Spec(abc.ABC):
    """What a user hands over: a drafter that does not know its target yet.

    A subclass writes ``bind``; all else has a default that suffices. Fields that are read where a
    spec has them, and that a subclass declares as it likes:

      name: str, for messages and traces; without it the class's own, in small letters.
      num_draft: int | None, K; None: as many as it was trained for.
      kind: str | None, how guesses are drawn; None: what suits the request.
      net: `models.Frozen`, its own network: what is trained, saved, counted and shown.
      target_ids: [V_draft] int32, the target's id of each row of a head of its own.
    """

    # What the command line says of the kind.
    summary: ClassVar[str] = "a drafter of one's own"
    # Whether it is made from a model or a checkpoint, and which one is inside the package.
    needs_model: ClassVar[bool] = False
    demo: ClassVar[str | None] = None
    # Whether a checkpoint may be named of one that is also made from nothing.
    may_load: ClassVar[bool] = False
    # Whether it lies in the files of its target; what `formats` reads first then reads those.
    in_target: ClassVar[bool] = False
    # Where its guesses come from; None: from a trained network if it has a ``net``, else its own.
    family: ClassVar[Family | None] = None
    # Whether its first k guesses are those of the same drafter with num_draft=k.
    nested: ClassVar[bool] = False
    # Whether its K is not that of the spec which its checkpoint is loaded as.
    recounts: ClassVar[bool] = False
    # The class of ``net.module``, made as ``net_class(config, dtype=, rngs=)``: needed to load what
    # was saved in the plain format (`checkpoint.drafters.plain`).
    net_class: ClassVar[Any] = None

    @abc.abstractmethod
    def bind(self, target: Target, kind: str) -> Drafter:
        """The drafter for ``target`` (a `specjax.Model`).

        ``kind`` is the kind of guesses that suits the request; a drafter that has only one way to
        guess ignores it. Raises ValueError if the two do not fit.
        """

    # --- made ---------------------------------------------------------------------------

    @classmethod
    def made(cls, loaded: Any, num_draft: int | None) -> Any:
        """One of what was loaded (a model, a spec of this kind, or None) with K guesses.

        Raises:
          ValueError: if that is of another kind, or K cannot be chosen.
        """
        if isinstance(loaded, cls):
            return with_num_draft(loaded, num_draft)
        if not ask(cls, "needs_model") and (loaded is None or not ask(cls, "may_load")):
            return with_num_draft(cls(), num_draft)
        kind = type(loaded).__name__
        summary = ask(cls, "summary")
        raise ValueError(f"{summary} was asked for, but what was loaded is a {kind}.")

    @classmethod
    def said(cls, text: str) -> Any:
        """What NAME:TEXT names where TEXT is no checkpoint; None: it is one."""
        del text
        return None

    @classmethod
    def fresh(cls, target: Target, *, num_draft: int, seed: int = 0, **sizes: Any) -> Any:
        """A randomly initialised one for ``target``, in its dtype: what training begins with.

        ``sizes`` is the section of that name of a training config. Raises ValueError.
        """
        del target, num_draft, seed, sizes
        raise ValueError(f"{cls.__name__} has no classmethod fresh(target, *, num_draft, seed).")

    @classmethod
    def objective(cls) -> Any:
        """The class of what it is trained for, see `train.objectives.base`. Raises ValueError."""
        raise ValueError(f"{cls.__name__} has no classmethod objective() to be trained for.")

    @classmethod
    def formats(cls) -> Formats:
        """The published formats of its checkpoints, read and written.

        Without one it is saved in the plain format, and loads back from that.
        """
        return Formats()

    # The sizes that `outline` looks at: "taps", "vocab".
    outline_sizes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def outline(cls, target: Any, sizes: Sizes) -> Outline | None:
        """Its network for a target of that config, for compiling without weights.

        None: what `fresh` makes is compiled. Raises ValueError, in one line, on sizes that do not
        fit.
        """
        del target, sizes
        return None

    # --- asked --------------------------------------------------------------------------

    def own_net(self) -> Frozen | None:
        """Its own network; None: it has none."""
        net = getattr(self, "net", None)
        return net if isinstance(net, Frozen) else None

    def own_model(self) -> Any:
        """The whole language model that it drafts with, a `specjax.Model`; None: it has none."""
        return None

    def with_net(self, net: Frozen) -> Any:
        """The same drafter with other weights."""
        return dataclasses.replace(self, net=net)  # type: ignore[type-var]

    takes_window: ClassVar[bool] = False  # whether it can be `windowed`

    def windowed(self, window: int) -> Any:
        """The same weights, whose layers see the last ``window`` tokens of a text alone.

        Raises:
          ValueError: if they see no text, or other memory than keys and values.
        """
        raise ValueError(
            f"window={window}: {name_of(self)} has none to set; DFlash's kinds and EAGLE-3 have."
        )

    def passes(self, num_draft: int) -> int:
        """Passes of a cycle that wait for each other."""
        del num_draft
        return 1

    def tokens_fed(self, num_draft: int) -> int:
        """Tokens a row that go through its network in a cycle, over all passes."""
        return num_draft + 1

    def target_passes(self, target: Target, num_draft: int) -> tuple[Frozen, int]:
        """What it runs of the target again, and in how many passes of a cycle."""
        del num_draft
        return target.net, 0

    def weight_reads(self, weight: str, num_draft: int) -> int:
        """How many passes of a cycle read a weight of the network, by its path; 0: none does."""
        del weight
        count: int = ask(self, "passes")(num_draft)
        return count

    def misreadings(self, target: Target) -> Iterable[Misreading]:
        """What a tau near 1 may mean besides the usual, likeliest first."""
        del target
        return ()

    def outputs(self, target: Target, golden: Mapping[str, Any], prompt: Any) -> dict[str, Array]:
        """The arrays of a golden file of its reference implementation, computed here.

        ``golden`` holds the inputs, ``prompt`` [S] int32 is the text. Raises ValueError.
        """
        del target, golden, prompt
        raise ValueError(
            f"No golden file is known for {type(self).__name__} drafters; compare a language model "
            "as a target, without --target."
        )


def ask(spec: object, fact: str) -> Any:
    """What ``spec`` (an object or a class) says of itself; where it says nothing, what `Spec` does.

    >>> ask(spec, "passes")(num_draft)
    """
    if hasattr(spec, fact):
        return getattr(spec, fact)
    default = inspect.getattr_static(Spec, fact)
    owner = spec if inspect.isclass(spec) else type(spec)
    instance = None if inspect.isclass(spec) else spec
    return default.__get__(instance, owner) if hasattr(default, "__get__") else default


def name_of(spec: object) -> str:
    """What a drafter is called in messages and traces."""
    name = getattr(spec, "name", None)
    return name if isinstance(name, str) else type(spec).__name__.lower()


def is_trained(kind: Any) -> bool:
    """Whether a kind (a class) can be made with random weights, to be trained."""
    said = getattr(kind, "fresh", None)
    return said is not None and getattr(said, "__func__", said) is not Spec.fresh.__func__  # type: ignore[attr-defined]


def with_window(spec: Any, window: int) -> Any:
    """``spec`` seeing the last ``window`` tokens alone. Raises ValueError as `Spec.windowed`."""
    check_count("window", window)
    return ask(spec, "windowed")(window)


def with_num_draft(spec: Any, num_draft: int | None) -> Any:
    """``spec`` with K guesses; None: as it is. Raises ValueError if it has no such field."""
    if num_draft is None:
        return spec
    fields = [f.name for f in dataclasses.fields(spec)] if dataclasses.is_dataclass(spec) else []
    if "num_draft" not in fields:
        raise ValueError(
            f"num_draft={num_draft}: {type(spec).__name__} has no field num_draft; set it where "
            "the drafter is made."
        )
    return dataclasses.replace(spec, num_draft=num_draft)
