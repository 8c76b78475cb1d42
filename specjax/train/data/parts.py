"""Data that all processes of a run read: each tokenises a block of it, and all get the whole.

Tokenising is what takes long. So the lines of a .jsonl file, or the documents of a text, go out in
blocks of about the same size, and the processes swap what became of them through files in a
directory that all of them have. With one process there is one block, and no file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from specjax.checkpoint.chat import ChatTemplate
from specjax.core import hosts, pulse
from specjax.core.files import read_bytes, write_atomically
from specjax.train.data import text
from specjax.train.data.jsonl import Block, Line, Lines, Reading, read_block, read_rows
from specjax.train.data.lines import BadLines, read_lines
from specjax.train.data.rows import Row
from specjax.train.data.text import Speech

_WAIT = 20.0  # seconds until what another host wrote has to be seen

T = TypeVar("T")


def read_together(
    path: Path,
    speech: Speech,
    template: Callable[[], ChatTemplate],
    *,
    seq_len: int,
    reading: Reading,
    folder: Path,
) -> Lines:
    """What `read_rows` returns or raises, each process having read its block of lines.

    Every process calls it, with the same files in the same order.

    Args:
      path, speech, template, seq_len, reading: as there.
      folder: a directory that all processes have (`runs.places.check_shared`); used for a while.

    Raises:
      ValueError: besides, if a process has other content in the file, cannot write into ``folder``,
        or does not see what another wrote there.
    """
    if hosts.alone():
        return read_rows(path, speech, template, seq_len=seq_len, reading=reading)
    lines = list(read_lines(path))
    content = hashlib.sha256()
    for where, raw in lines:
        content.update(os.fsencode(where) + raw)
    hosts.check_alike("The data", {str(path): content.hexdigest()})
    read = lambda some: read_block(path, some, speech, template, seq_len=seq_len, reading=reading)
    shares = blocks_of(lines, [len(raw) for _, raw in lines], hosts.count())
    own = read(shares[hosts.process()])
    blocks = [unpack(data) for data in swap(pack(own), folder)]
    return whole_of(blocks, lambda: read(lines)).whole(path, seq_len)


def encode_together(
    speech: Speech,
    texts: Sequence[str],
    *,
    cache: Path | None,
    say: Callable[[str], None],
    folder: Path,
) -> list[np.ndarray]:
    """What `text.encode` returns, each process having tokenised its block of documents.

    Called, and raises, as `read_together`. What a process finds in its cache it takes only if all
    others find it, too.
    """
    if hosts.alone():
        return text.encode(speech, texts, cache=cache, say=say)
    hosts.check_alike("The data", text.digest(texts))
    found = text.find(speech, texts, cache=cache, say=say)
    if all(hosts.from_all("tokens are kept", found is not None)) and found is not None:
        return found
    blocks = blocks_of(texts, map(len, texts), hosts.count())
    own = [speech.document(document) for document in blocks[hosts.process()]]
    given = zip(swap(text.pack(own), folder), blocks, strict=True)
    documents = [one for data, block in given for one in text.unpack(data, len(block))]
    text.keep(speech, texts, documents, cache=cache)
    return documents


def blocks_of(items: Sequence[T], sizes: Iterable[int], num: int) -> list[Sequence[T]]:
    """``num`` blocks, some maybe empty: an item is in that in which its share of all begins."""
    ends = [0, *itertools.accumulate(sizes)]
    belongs = [begin * num // max(ends[-1], 1) for begin in ends[:-1]]
    bounds = np.searchsorted(belongs, range(num + 1)).tolist()
    return [items[a:b] for a, b in itertools.pairwise(bounds)]


def whole_of(blocks: Sequence[Block], read_all: Callable[[], Block]) -> Block:
    """The blocks of a file as the one that reading it from its beginning makes.

    They are the same but for one thing: the first message of a role is tried, whether the template
    writes it at all, and those behind it in the file are not. A trial that succeeds leaves no
    trace, so another one in each block changes nothing. One that failed in a later block might not
    have been made: then ``read_all`` reads the file.
    """
    if any(block.in_vain for block in blocks[1:]):
        return read_all()
    bad = BadLines()
    passed: dict[str, tuple[int, str]] = {}
    for block in blocks:
        bad = BadLines(bad.num + block.bad.num, [*bad.said, *block.bad.said])
        for name, (num, first) in block.passed.items():
            before, very_first = passed.get(name, (0, first))
            passed[name] = (before + num, very_first)
    return Block(
        tuple(line for block in blocks for line in block.lines),
        num=sum(block.num for block in blocks),
        num_rows=sum(block.num_rows for block in blocks),
        short=sum(block.short for block in blocks),
        bad=bad,
        passed=passed,
        error=next((block.error for block in blocks if block.error), ""),
    )


def swap(own: bytes, folder: Path) -> list[bytes]:
    """What each process gives, by process, through files that are gone when this returns.

    Raises:
      ValueError: if one cannot write into ``folder``, or this one does not see what was written.
    """
    places = [folder / f".rows-{process}" for process in range(hosts.count())]
    place, told = places[hosts.process()], {"digest": hashlib.sha256(own).hexdigest()}
    try:
        write_atomically(place, own)
    except OSError as error:
        told = {"error": f"{place}: {error.strerror}."}
    answers = hosts.from_all("rows that were read", told)
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        with contextlib.suppress(OSError):
            place.unlink()
        raise ValueError(f"The rows that each process read cannot be swapped: {errors[0]}")
    files = zip(places, answers, strict=True)
    given = [own if path == place else _seen(path, answer["digest"]) for path, answer in files]
    hosts.barrier("rows are swapped")
    hosts.first_writes("rows are removed", lambda: _remove(folder))
    return given


def _seen(path: Path, digest: str) -> bytes:
    """The content of that digest, once it is seen here. Raises ValueError."""
    deadline = time.monotonic() + _WAIT
    with pulse.doing(f"waiting to see {path}", waits=True):
        while True:
            with contextlib.suppress(OSError):
                data = read_bytes(path)
                if hashlib.sha256(data).hexdigest() == digest:
                    return data
            if time.monotonic() > deadline:
                raise ValueError(f"{path}: what another process wrote there is not seen by all.")
            time.sleep(0.1)


def _remove(folder: Path) -> None:
    """Removes the blocks, those of an attempt that was killed among them."""
    for path in folder.glob(".rows-*"):
        with contextlib.suppress(OSError):
            path.unlink()


def pack(block: Block) -> bytes:
    """A block as an .npz file of arrays of numbers."""
    rows = [row for line in block.lines for row in (*line.rows, *line.undated)]
    joined = lambda arrays, dtype: np.concatenate([np.zeros(0, dtype), *arrays])
    about = {f.name: getattr(block, f.name) for f in dataclasses.fields(Block)[1:]}
    about["bad"] = [block.bad.num, block.bad.said]
    file = io.BytesIO()
    np.savez(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        lines=np.array([[x.num, len(x.rows), len(x.undated)] for x in block.lines], np.int64),
        lengths=np.array([len(row.tokens) for row in rows], np.int64),
        tokens=joined([row.tokens for row in rows], np.int32),
        supervised=np.packbits(joined([row.supervised for row in rows], bool)),
    )
    return file.getvalue()


def unpack(data: bytes) -> Block:
    """The block that `pack` wrote."""
    with np.load(io.BytesIO(data)) as arrays:
        about = json.loads(arrays["about"].tobytes())
        ends = np.cumsum(arrays["lengths"])
        tokens = np.split(arrays["tokens"], ends[:-1])
        packed, num = arrays["supervised"], int(arrays["lengths"].sum())
        supervised = np.split(np.unpackbits(packed, count=num).astype(bool), ends[:-1])
        rows = map(Row, tokens, supervised)
        take = lambda num: tuple(itertools.islice(rows, num))
        lines = tuple(Line(n, take(a), take(b)) for n, a, b in arrays["lines"].tolist())
    about["bad"] = BadLines(*about["bad"])
    about["passed"] = {name: (num, first) for name, (num, first) in about["passed"].items()}
    return Block(lines, **about)
