"""A run that a kill leaves whole and that the same command continues.

    places     where it writes: tried before any work, locked
    settings   what it depends on: written once, and compared when it is continued
    lines      what it has so far: a file that only grows, read back after a kill
    results    of these, the texts of `experiments.generate` and its like: one file, a line a prompt

The benchmark (`lab.bench.store`), training (`train.loop`) and exports stand on the same three. Of
several processes the first one reads and writes; the others get what it read (`core.hosts`).
"""
