"""The checkpoints of a training run: whole or not there, and checked before they are trusted.

Orbax writes to a temporary directory and renames it, so a kill leaves the ones before. What it does
not notice is a file that was cut or changed later; so beside the checkpoints lie the sums of their
files, and one that differs is set aside for the one before it. Training goes on while files are
written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from specjax.core import hosts
from specjax.core.files import check_allowed, read_json, write_atomically
from specjax.train.state import TrainState

_CHUNK = 1 << 22  # bytes that are summed at a time
_log = logging.getLogger("absl")


def _is_ours(record: logging.LogRecord) -> bool:
    """Orbax tells from its threads, with a stack each, of an error that it raises as well."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


class SaveFailed(RuntimeError):
    """A checkpoint could not be written, and the ones before it are whole. One line."""


class Foreign(ValueError):
    """A checkpoint is whole, but of another model. One line."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """Where a run goes on."""

    state: TrainState
    data: Any  # what `save` was given; None: there was no checkpoint
    saved: str = ""  # when, local time

    @property
    def step(self) -> int:
        return int(self.state.step)


class Checkpoints:
    """The last two training states under a directory."""

    def __init__(self, directory: Path, say: Callable[[str], None] = print):
        """``say`` is told, in one line, of a checkpoint that is damaged."""
        self._directory, self._say = directory.absolute(), say
        self._sums_path = self._directory.with_name(self._directory.name + ".sums.json")
        _log.addFilter(_is_ours)
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._writing: _Writing | None = None

    def save(self, state: TrainState, data: Any) -> None:
        """Begins to write; returns when the state may be donated. `finish` waits for the rest.

        Orbax has it on the host by then. On CPU that is the state itself, which JAX then does not
        give to a program that it is donated to.

        Args:
          state: what is trained; a step that is saved already is left as it is.
          data: what else a resumed run needs, in JSON.

        Raises:
          SaveFailed: if the file system did not take this one or the one before; nothing of it is
            left then.
        """
        self.finish()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_dict(state)), data=ocp.args.JsonSave(data)
        )
        check_allowed(self._directory)
        try:
            with hosts.computing(f"saving step {step}"):
                self._manager.save(step, args=items, force=True)
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error
        self._writing = _Writing(step, self._complete)

    def finish(self) -> None:
        """Waits until what `save` began is whole, and noted so.

        Raises:
          SaveFailed: if the file system does not take it; nothing of it is left then.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        with hosts.computing(f"saving step {writing.step}"):
            error = writing.wait()
        if error is not None:
            raise self._failed(writing.step, error) from error

    def _complete(self) -> None:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        if hosts.is_first():  # the checkpoint is in its place when all processes have written
            self._note_sums()

    def _failed(self, step: int, error: BaseException) -> BaseException:
        """What is to be raised. Tensorstore reports a full disk as a ValueError."""
        if not isinstance(error, OSError | ValueError):
            return error
        self._remove_unfinished(step)
        reason = " ".join(str(error).split())
        return SaveFailed(
            f"The checkpoint of step {step} could not be written to {self._directory}: "
            f"{reason[:300]}. Checkpoints before it are whole: make room and run the same "
            "command again."
        )

    def _note_sums(self) -> None:
        """Notes the sums of the newest checkpoint, and forgets those of removed ones."""
        known = self._sums()
        steps = self._steps()
        sums = {str(s): known.get(str(s)) or _sums(self._directory / str(s)) for s in steps}
        write_atomically(self._sums_path, json.dumps(sums) + "\n")

    def _sums(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            sums = read_json(self._sums_path)
            return sums if isinstance(sums, dict) else {}
        return {}

    def _steps(self) -> list[int]:
        """The steps of the checkpoints that lie there, newest first."""
        if not self._directory.is_dir():
            return []
        return sorted(int(p.name) for p in self._directory.iterdir() if p.name.isdigit())[::-1]

    def _remove_unfinished(self, step: int) -> None:
        """Removes what a failed save left; its other writers may still be at work for a moment."""
        for _ in range(50):
            left = list(self._directory.glob(f"{step}.orbax-checkpoint-tmp*"))
            if not left:
                return
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.02)

    def restore(self, like: TrainState) -> Restored:
        """The newest whole state, placed as ``like`` is; ``like`` itself if there is none.

        Raises:
          Foreign: if a checkpoint is undamaged but of another model.
          SaveFailed: as `finish`.
        """
        self.finish()
        while True:
            newest = hosts.from_first("newest checkpoint", self._newest)
            if newest["set_aside"]:
                self._manager.close()
                self._open()
            if newest["step"] is None:
                return Restored(like, None)
            path = self._directory / str(newest["step"])
            try:
                return dataclasses.replace(self._read(newest["step"], like), saved=newest["saved"])
            except Exception as error:  # Orbax and tensorstore raise whatever they met
                reason = " ".join(str(error).split())[:200]
                if newest["has_sums"] or hosts.count() > 1:  # others may have read it
                    raise Foreign(
                        f"{path} is whole, but holds no state of this run ({reason}); use another "
                        "--workdir."
                    ) from error
                self._set_aside(path, reason)
                self._manager.close()
                self._open()

    def _newest(self) -> dict[str, Any]:
        """The newest checkpoint whose files are those that were written; others are set aside."""
        sums, found = self._sums(), False
        for step in self._steps():
            path, expected = self._directory / str(step), sums.get(str(step))
            if expected is not None and _sums(path) != expected:
                self._set_aside(path, "its files are not those that were written")
                found = True
                continue
            if expected is None and any(sums.get(str(s)) for s in self._steps() if s < step):
                # Killed before it was noted, or damaged since: nobody can tell. The steps from the
                # one before are the same again.
                self._set_aside(path, "it was not noted as whole")
                found = True
                continue
            when = datetime.datetime.fromtimestamp(path.stat().st_mtime)
            saved, known = when.isoformat(" ", "seconds"), expected is not None
            return {"step": step, "saved": saved, "has_sums": known, "set_aside": found}
        return {"step": None, "set_aside": found}

    def _read(self, step: int, like: TrainState) -> Restored:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _as_dict(like)
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        )
        with hosts.computing(f"restoring step {step}"):
            restored = self._manager.restore(step, args=items)
        return Restored(TrainState(**restored["state"]), restored["data"])

    def _set_aside(self, path: Path, reason: str) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again."""
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        self._say(f"The checkpoint {path} is damaged ({reason}): it is now {aside.name}.")

    def close(self) -> None:
        """Raises SaveFailed as `finish` does."""
        try:
            self.finish()
        finally:
            with contextlib.suppress(OSError, ValueError):  # which `finish` has told
                self._manager.close()


class _Writing:
    """A checkpoint that is being written, in a thread of its own."""

    def __init__(self, step: int, complete: Callable[[], None]):
        self.step = step
        self._complete = complete
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._complete()
        except BaseException as error:  # whoever waits is told
            self._error = error

    def wait(self) -> BaseException | None:
        """What went wrong, if anything did."""
        self._thread.join()
        return self._error


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _sums(directory: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a directory."""
    found = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        size, crc = 0, 0
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                size, crc = size + len(piece), zlib.crc32(piece, crc)
        found[path.relative_to(directory).as_posix()] = [size, crc]
    return found
