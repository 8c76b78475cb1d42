"""specjax: lossless speculative decoding as one XLA program.

target = specjax.load("demo:target")
draft = specjax.load("demo:draft")
out = specjax.generate(target, specjax.drafters.LM(draft, num_draft=5), "def area(", seed=0)
out.text, out.tau, out.trace
"""

from specjax import drafters, verify
from specjax.api import Output, Piece, check, generate, stream
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.load import Model, load
from specjax.core.sharding import make_mesh, parse_mesh
from specjax.diagnosis import DrafterReport, check_drafter
from specjax.measure.trace import Cycle, Trace
from specjax.sampling import Options

__all__ = [
    "Cycle",
    "DrafterReport",
    "Model",
    "Options",
    "Output",
    "Piece",
    "Trace",
    "check",
    "check_drafter",
    "drafters",
    "generate",
    "load",
    "load_drafter",
    "make_mesh",
    "parse_mesh",
    "stream",
    "verify",
]
