"""The published formats of DFlash, DFlash2 and DSpark."""

from __future__ import annotations

from specjax.checkpoint.drafters.format import Format, Formats
from specjax.checkpoint.drafters.source import Source
from specjax.drafters.dflash import deepspec, layouts, speculators, zlab

_TENSORS = {"fc.weight", "hidden_norm.weight"}


def _looks(source: Source, *, selects: bool) -> bool:
    names = source.tensors.keys()
    found = names >= _TENSORS and zlab.BLOCK in source.raw
    return found and selects == any(n.startswith("candidate_selector.") for n in names)


FORMATS = Formats(
    read=(
        Format(
            "z-lab DFlash",
            zlab.read,
            zlab.read_config,
            architectures=("DFlashDraftModel",),
            looks=lambda source: _looks(source, selects=False),
        ),
        Format(
            "z-lab DFlash2",
            zlab.read,
            zlab.read_config,
            architectures=("DFlash2DraftModel",),
            looks=lambda source: _looks(source, selects=True),
        ),
        Format(
            "DeepSpec DSpark",
            deepspec.read,
            deepspec.read_config,
            architectures=("DSparkDraftModel", "Qwen3DSparkModel", "Gemma4DSparkModel"),
        ),
        Format(
            "speculators DFlash",
            speculators.read,
            speculators.read_config,
            speculators=("dflash", "dflash2"),
        ),
    ),
    write={"zlab": layouts.zlab, "speculators": layouts.speculators},
)
