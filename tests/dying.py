"""One of several processes is killed while another waits for it in a collective.

python tests/dying.py VICTIM --coordinator=... --num_processes=2 --process_id=...
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

VICTIM = int(sys.argv.pop(1))


@dataclasses.dataclass(frozen=True)
class Options:
    pass


def main(options: Options) -> None:
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec

    from specjax.core import hosts
    from specjax.core.sharding import make_mesh

    mesh = make_mesh(data=2)
    rows = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    spread = jax.make_array_from_callback((2, 2), rows, lambda i: np.ones((2, 2))[i])
    np.testing.assert_array_equal(hosts.fetch({"x": spread})["x"], np.ones((2, 2)))
    assert hosts.from_first("seed", lambda: 2**40 + 5) == 2**40 + 5
    if jax.process_index() == VICTIM:
        time.sleep(1.0)  # the other one is waiting
        os.kill(os.getpid(), signal.SIGKILL)
    hosts.fetch(spread)
    time.sleep(600)  # a computation that is not ready yet does not block the one who asks


if __name__ == "__main__":
    Script("dying", None, Options, main, several=True)()
