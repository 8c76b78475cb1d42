"""What several processes of one run say to one another; with one process, all of it is free.

Every process runs the same program on the same arguments. Process 0 reads and writes the files of a
run; what it finds there reaches the others by `from_first`, and they wait for it at a `barrier`.
Both go through JAX's coordination service, not through devices: they have time limits, and they
work while devices compute. `launch` starts the processes and ends them together.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the client of the coordination service has no public name
from jax.experimental import multihost_utils

from specjax.core import pulse

# Seconds that a wait may take. One for a process that died, is frozen or stands still ends long
# before (`lifeline`).
LIMIT = 2 * pulse.LONGEST
_PIECE = 1 << 20  # characters of a value sent at a time

_calls: collections.Counter[str] = collections.Counter()


def count() -> int:
    """The number of processes. Starts no backend where there is one."""
    return 1 if _client() is None else jax.process_count()


def alone() -> bool:
    """Whether there is one process. Starts no backend."""
    return _client() is None


def process() -> int:
    """The number of this process. Starts no backend."""
    return 0 if _client() is None else distributed.global_state.process_id


def is_first() -> bool:
    """Whether this is the process that reads, writes and prints."""
    return process() == 0


def fetch(tree: Any) -> Any:
    """The arrays of a pytree as NumPy arrays, whole on every process.

    An array that is spread over processes is gathered by a device program: all processes have to
    ask for the same arrays in the same order.
    """

    def whole(x: Any) -> np.ndarray:
        spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
        return multihost_utils.process_allgather(x, tiled=True) if spread else np.asarray(x)

    with computing("waiting for what devices compute"):
        return jax.tree.map(whole, tree)


@contextlib.contextmanager
def computing(what: str) -> Iterator[None]:
    """Around what runs programs on devices, or waits for them; ``what`` it does, for messages."""
    if _client() is None:
        yield
        return
    on_device = jax.default_backend() != "cpu"
    with pulse.doing(what, waits=True, on_device=on_device):
        yield


def placed_like(value: np.ndarray, like: jax.Array) -> jax.Array:
    """``value``, the same on every process, where ``like`` is: programs do not compile anew."""
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])


def from_first(name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` returns on process 0, on every process.

    Args:
      name: what this is; all processes call with the same names, each name equally often.
      make: called on process 0 alone; returns a JSON value. With one process it may be anything.

    Raises:
      ValueError, OSError: what ``make`` raised; a ValueError of the same text on the others.
    """
    client = _client()
    if client is None:
        return make()
    key = _key(name)
    if not is_first():
        with pulse.doing(f"waiting for process 0 ({name})", waits=True):
            answer = json.loads(_read(client, key))
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["value"]
    try:
        value = make()
    except (ValueError, OSError) as error:
        _write(client, key, json.dumps({"error": message_of(error)}))
        raise
    _write(client, key, json.dumps({"value": value}))
    return value


def first_writes(name: str, write: Callable[[], Any]) -> None:
    """Process 0 calls ``write``; the others wait until it has, and raise what it raised.

    Raises:
      ValueError, OSError: as `from_first`.
    """

    def and_return_nothing() -> None:
        write()

    from_first(name, and_return_nothing)


def from_all(name: str, value: Any) -> list[Any]:
    """What each process gives, by process, on every process; waits until all have given it.

    Args:
      name: what this is; all processes call with the same names, each name equally often.
      value: small, and of JSON. With one process it may be anything.
    """
    client = _client()
    if client is None:
        return [value]
    key = _key(name)
    _write(client, f"{key}/{process()}", json.dumps(value))
    with pulse.doing(f"waiting for all others ({name})", waits=True):
        every = range(distributed.global_state.num_processes)
        return [json.loads(_read(client, f"{key}/{number}")) for number in every]


def check_alike(name: str, value: Any) -> None:
    """Sees that ``value``, of JSON, is on every process what it is on process 0.

    Args:
      name: what this is, in the plural.
      value: of a mapping, the first part that differs is named.

    Raises:
      ValueError: naming what differs, on a process that has another one.
    """
    if count() == 1:
        return
    parts = {str(k): v for k, v in value.items()} if isinstance(value, dict) else {"": value}
    ours = {part: _told(found) for part, found in parts.items()}
    theirs = from_first(f"sums of {name}", lambda: ours)
    for part in sorted({*ours, *theirs}):
        own, first = ours.get(part), theirs.get(part)
        if own != first:
            shown = f" ({own[1]}, not {first[1]})" if own and first and own[1] and first[1] else ""
            raise ValueError(
                f"{name}{part and f', {part}'}: process {distributed.global_state.process_id} has "
                f"something else there than process 0{shown}; give all the same."
            )


def _told(value: Any) -> list[str]:
    """The digest of a JSON value, and the value where it is short."""
    text = json.dumps(value, sort_keys=True)
    return [hashlib.sha256(text.encode()).hexdigest(), text if len(text) <= 60 else ""]


def barrier(name: str, timeout: float = LIMIT) -> None:
    """Waits until every process is here.

    Args:
      name: what this is; all processes call with the same names, each name equally often.
      timeout: seconds.

    Raises:
      RuntimeError: if one is not here in time.
    """
    client = _client()
    if client is not None:
        with pulse.doing(f"waiting for all others ({name})", waits=True):
            client.wait_at_barrier(_key(name), int(timeout * 1000))


def message_of(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}."
    return " ".join(str(error).split())


def _client() -> Any:
    """The client of the coordination service; None with one process."""
    state = distributed.global_state
    return None if state.num_processes == 1 else state.client


def _key(name: str) -> str:
    _calls[name] += 1
    return f"specjax/{name}/{_calls[name]}"


def _write(client: Any, key: str, text: str) -> None:
    pieces = [text[i : i + _PIECE] for i in range(0, len(text), _PIECE)]
    for i, piece in enumerate(pieces):
        client.key_value_set(f"{key}/{i}", piece)
    client.key_value_set(f"{key}/pieces", str(len(pieces)))


def _read(client: Any, key: str) -> str:
    wait = int(LIMIT * 1000)
    num = int(client.blocking_key_value_get(f"{key}/pieces", wait))
    return "".join(client.blocking_key_value_get(f"{key}/{i}", wait) for i in range(num))
