"""Records of what speculation did, and the figures drawn from them."""

from specjax.measure.trace import Cycle, Trace

__all__ = ["Cycle", "Trace"]
