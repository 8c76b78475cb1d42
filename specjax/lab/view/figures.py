"""All figures under one roof; each concept has a file of its own."""

from specjax.lab.view.acceptance import plot_acceptance
from specjax.lab.view.depth import plot_depth
from specjax.lab.view.heat import plot_classes, plot_heat
from specjax.lab.view.speed import Load, Point, plot_frontier, plot_speedup
from specjax.lab.view.style import save, style
from specjax.lab.view.timeline import plot_timeline
from specjax.lab.view.training import plot_training

__all__ = [
    "Load",
    "Point",
    "plot_acceptance",
    "plot_classes",
    "plot_depth",
    "plot_frontier",
    "plot_heat",
    "plot_speedup",
    "plot_timeline",
    "plot_training",
    "save",
    "style",
]
