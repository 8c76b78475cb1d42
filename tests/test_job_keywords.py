"""What Python hands to the functions of specjax.jobs is checked as a command line is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest

from specjax import jobs
from specjax.core.options import keywords, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    number: int = option(1, "A number.")
    share: float | None = option(None, "A share.")
    kind: Literal["a", "b"] = option("a", "A kind.")
    names: tuple[str, ...] = option((), "Names.")
    loud: bool = option(False, "Whether.")
    output: str | None = option(None, "A file.", file="")


@keywords(Options)
def job(options: Options) -> Options:
    """Hands back what it got."""
    return options


MISTAKES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"nunber": 1}, "nunber: no such option; did you mean number?"),
    ({"number": 1.5}, "number=1.5: must be int."),
    ({"number": True}, "number=True: must be int."),
    ({"share": "half"}, "share='half': must be float"),
    ({"kind": "c"}, "kind='c': must be Literal"),
    ({"names": (1,)}, "names=(1,): must be tuple"),
    ({"loud": "yes"}, "loud='yes': must be bool."),
    ({"output": "missing/x.json"}, "lies in no existing directory"),
)


@pytest.mark.parametrize(("given", "told"), MISTAKES)
def test_a_mistake_is_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        job(**given)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_lists_texts_and_paths_are_taken(tmp_path: Path) -> None:
    made = job(names=["a"], share=1, output=tmp_path / "x.json")  # type: ignore[arg-type]
    assert (made.names, made.share, made.output) == (("a",), 1, str(tmp_path / "x.json"))
    assert job(names="ab").names == ("ab",)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", dir(jobs))
def test_every_job_names_what_it_does_not_know(name: str) -> None:
    with pytest.raises(ValueError, match=r"^nothing: no such option"):
        getattr(jobs, name)(nothing=1)
