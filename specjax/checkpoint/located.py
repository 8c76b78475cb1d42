"""Where a checkpoint is: files here, or on the hub; the same for all processes, and left alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from specjax.checkpoint.errors import CheckpointError
from specjax.core import alike, hosts, own, pulse

DEMO = Path(__file__).resolve().parent.parent / "demo"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What models and tokenizers are read from.
_READ = ("*.safetensors", "*.bin", "*.pt", "*.json", "*.model", "*.jinja", "*.tiktoken", "*.txt")


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Around the reading of a checkpoint: all processes read the same, and nobody writes it.

    Args:
      path: its directory, or its one file.

    Raises:
      ValueError: naming the file that is another one on this process than on process 0.
      CheckpointError: naming the file that was changed meanwhile.
    """

    before = alike.stamps(files_of(path))
    if hosts.count() > 1:
        hosts.check_alike(f"The files of {path}", alike.fingerprints(files_of(path)))
    yield
    after = alike.stamps(files_of(path))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            raise CheckpointError(
                f"{path}: {name} was changed while it was read; wait until it is written, and "
                "start again."
            )


def files_of(path: Path) -> list[Path]:
    """The files of a checkpoint that are read: of a directory, or the one file that it is."""
    if path.is_file():
        return [path]
    return [p for pattern in _READ for p in path.glob(pattern) if p.is_file()]


def contents(names: Iterable[str | None]) -> dict[str, dict[str, str]]:
    """The `alike.fingerprints` of each checkpoint that lies here under one of these names.

    Results depend on them: a run that goes on compares them with those that it began with. Raises
    OSError if one cannot be read.
    """
    found = {}
    for name in dict.fromkeys(filter(None, names)):
        place = own.read_place(name).rest if own.is_own(name) else name
        if place and (path := Path(place).expanduser()).exists():
            found[name] = alike.fingerprints(files_of(path))
    return found


def locate(name: str) -> tuple[Path, bool]:
    """The local path that ``name`` means, and whether it is a hub repository instead."""
    if name.startswith("demo:"):
        which = name.removeprefix("demo:")
        there = sorted(path.parent.name for path in DEMO.glob("*/config.json"))
        if not there:
            raise CheckpointError(f"{name}: this installation lacks {DEMO}; reinstall it.")
        if which not in there:
            known = ", ".join(f"demo:{embedded}" for embedded in there)
            raise CheckpointError(f"{name}: the embedded checkpoints are {known}.")
        return DEMO / which, False
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path, False
    if path.is_file():
        if path.suffix != ".bin":
            raise CheckpointError(
                f"{path}: not a checkpoint; give the directory that holds config.json and "
                "*.safetensors, or a llama2.c .bin file."
            )
        return path, False
    if _REPOSITORY.fullmatch(name) and path.suffix not in (".bin", ".safetensors", ".json"):
        return path, True
    raise CheckpointError(
        f"{name!r}: no such file or directory; give a checkpoint directory, a llama2.c .bin file, "
        "demo:target, or a hub repository as owner/name."
    )


def download(repository: str, revision: str | None, otherwise: Sequence[str] = ()) -> Path:
    """The local snapshot of a hub repository, fetched if need be.

    ``otherwise`` names files that are fetched where there are no safetensors.
    """
    import huggingface_hub  # only here: it brings a client of HTTP
    from huggingface_hub import errors as hub

    at = f"{repository} (revision {revision})" if revision else repository

    def fetch(*more: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[
                    "*.json",
                    "*.jinja",
                    "*.safetensors",
                    "tokenizer*",
                    "tiktoken*",
                    *more,
                ],
                # Other formats of the same weights, which some repositories carry along.
                ignore_patterns=["*/*", "consolidated*"],
            )
        )

    try:
        with pulse.doing(f"downloading {repository}", limit=pulse.LONGEST):
            path = fetch()
            if otherwise and not any(path.glob("*.safetensors")):
                path = fetch(*otherwise)
        return path
    except hub.GatedRepoError:
        message = "is gated; accept its licence on the hub and log in with `hf auth login`"
    except hub.RevisionNotFoundError:
        message = "has no such revision"
    except hub.RepositoryNotFoundError:
        message = (
            "is neither a local path nor a public repository on the hub; check the spelling, or "
            "log in with `hf auth login` if it is private"
        )
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError):
        message = (
            "is not a local path, and not in the hub's cache while the hub cannot be reached; "
            "check the path or the network"
        )
    except (OSError, ValueError, hub.HfHubHTTPError) as error:
        message = f"could not be fetched from the hub: {str(error).strip().partition(chr(10))[0]}"
    raise CheckpointError(f"{at} {message}.")
