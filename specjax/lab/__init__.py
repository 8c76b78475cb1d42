"""Everything about decoding rather than of it: costs, benchmarks, audits, pictures, compiling.

What it imports besides the core's packages is the extra ``specjax[lab]``.
"""

from __future__ import annotations

_EXTRA = ("matplotlib", "scipy", "yaml")


def told(error: ModuleNotFoundError) -> str:
    """One line on what of the extra is not installed; raises ``error`` if it is no part of it."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRA:
        raise error
    return f"{package} is not installed: pip install 'specjax[lab]' (in a checkout '.[lab]')."
