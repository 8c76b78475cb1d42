"""Operations that platforms write differently: one reference each, with variants beside it.

A variant is a function in its operation's file, or a file beside it, and stands in the operation's
table by platform. `tests/test_ops.py` holds all that are listed here to their references.
"""

from specjax.core.ops.apart import APART, apart
from specjax.core.ops.argmax import ARGMAX, argmax
from specjax.core.ops.attend import ATTEND, attend
from specjax.core.ops.blocks import ATTEND_BLOCKS, Seen, attend_blocks
from specjax.core.ops.experts import EXPERTS, Stack, experts, gated_silu
from specjax.core.ops.gated import gated
from specjax.core.ops.heads import Form, Products, Rotation, heads, split_heads
from specjax.core.ops.likeliest import likeliest
from specjax.core.ops.linear import (
    GROUPED,
    PRODUCT,
    SUM_OVER_MESH,
    WEIGHT_GRADIENT,
    activation_dtype,
    linear,
    sum_over_mesh,
)
from specjax.core.ops.lookup import ROWS, lookup
from specjax.core.ops.norm import Norm, add_norm, adds_at_once
from specjax.core.ops.one_softmax import Cached
from specjax.core.ops.op import Op
from specjax.core.ops.per_head import PER_HEAD, per_head
from specjax.core.ops.steps import steps
from specjax.core.ops.stream import (
    Unnormed,
    add_product,
    adds_in_products,
    norm_product,
    norms_in_products,
)
from specjax.core.ops.write import (
    WRITE,
    Columns,
    Projected,
    Write,
    tokens_of,
    waiting_for,
    write,
    write_all,
    write_at,
    writes_at_once,
)

OPS = {
    "product": PRODUCT,
    "weight gradient": WEIGHT_GRADIENT,
    "sum over mesh": SUM_OVER_MESH,
    "grouped product": GROUPED,
    "lookup": ROWS,
    "argmax": ARGMAX,
    "attend": ATTEND,
    "attend blocks": ATTEND_BLOCKS,
    "write": WRITE,
    "experts": EXPERTS,
    "per head": PER_HEAD,
    "apart": APART,
}

__all__ = [
    "OPS",
    "Cached",
    "Columns",
    "Form",
    "Norm",
    "Op",
    "Products",
    "Projected",
    "Rotation",
    "Seen",
    "Stack",
    "Unnormed",
    "Write",
    "activation_dtype",
    "add_norm",
    "add_product",
    "adds_at_once",
    "adds_in_products",
    "apart",
    "argmax",
    "attend",
    "attend_blocks",
    "experts",
    "gated",
    "gated_silu",
    "heads",
    "likeliest",
    "linear",
    "lookup",
    "norm_product",
    "norms_in_products",
    "per_head",
    "split_heads",
    "steps",
    "sum_over_mesh",
    "tokens_of",
    "waiting_for",
    "write",
    "write_all",
    "write_at",
    "writes_at_once",
]
