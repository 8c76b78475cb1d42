"""The host's side of a batch.

`layout` makes arrays of requests, `requests` and `limits` say what can be served, `slots` how wide
the passes and how large the buffers are; `loop` is the session, and `between` and `memory` what one
leaves to the next.
"""

from specjax.session.layout import Row
from specjax.session.loop import Session

__all__ = ["Row", "Session"]
