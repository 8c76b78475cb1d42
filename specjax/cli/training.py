"""How the training scripts end."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

import jax

from specjax.cli.errors import fail
from specjax.core import launch
from specjax.jobs.training import NotDone
from specjax.train import loop
from specjax.train.checkpoints import Foreign, SaveFailed

RESUMABLE = 42  # exit status of a run that SIGTERM ended, saved: start it again


@contextlib.contextmanager
def one_line_ends() -> Iterator[None]:
    """A run that ends early ends the process, in one line."""
    if jax.default_backend() == "cpu":
        loop.keep_freed_memory()
    try:
        yield
    except loop.Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr, flush=True)
        # JAX may crash when Python is torn down under a program of its own that still runs.
        launch.exit_together(130 if stopped.signum == signal.SIGINT else RESUMABLE)
    except (NotDone, SaveFailed, Foreign, FloatingPointError) as error:
        fail(str(error))
