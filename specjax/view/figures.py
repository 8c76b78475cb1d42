"""All figures under one roof; each concept has a file of its own."""

from specjax.view.acceptance import plot_acceptance
from specjax.view.heat import plot_classes, plot_heat
from specjax.view.speed import Load, Point, plot_frontier, plot_speedup
from specjax.view.style import save, style
from specjax.view.timeline import plot_timeline
from specjax.view.training import plot_training

__all__ = [
    "Load",
    "Point",
    "plot_acceptance",
    "plot_classes",
    "plot_frontier",
    "plot_heat",
    "plot_speedup",
    "plot_timeline",
    "plot_training",
    "save",
    "style",
]
