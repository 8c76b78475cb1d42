"""One of several processes dies, freezes or sleeps while another waits for it in a collective.

python tests/dying.py VICTIM HOW --coordinator=... --num_processes=2 --process_id=...
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from specjax.cli.script import Script
from specjax.core.options import option

VICTIM, HOW = int(sys.argv.pop(1)), sys.argv.pop(1)


@dataclasses.dataclass(frozen=True)
class Options:
    output: str | None = option(None, "A file that process 0 writes, before and after.")


def main(options: Options) -> None:
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec

    from specjax.core import hosts
    from specjax.core.sharding import make_mesh
    from specjax.runs import lines

    mesh = make_mesh(data=2)
    rows = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    spread = jax.make_array_from_callback((2, 2), rows, lambda i: np.ones((2, 2))[i])
    np.testing.assert_array_equal(hosts.fetch({"x": spread})["x"], np.ones((2, 2)))
    assert hosts.from_first("seed", lambda: 2**40 + 5) == 2**40 + 5
    if options.output is not None and hosts.is_first():
        lines.append(Path(options.output), {}, durable=False)
    if jax.process_index() == VICTIM:
        time.sleep(1.0)  # the other one is waiting
        if HOW in ("SIGKILL", "SIGSTOP"):
            os.kill(os.getpid(), signal.Signals[HOW])
            if options.output is not None:
                lines.append(Path(options.output), {})
        else:
            time.sleep(600)
    hosts.fetch(spread)
    time.sleep(600)  # a computation that is not ready yet does not block the one who asks


if __name__ == "__main__":
    Script("dying", None, Options, main, several=True)()
