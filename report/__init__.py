"""What people see: tables, the contexts in which latents fire, and a run's report. Called, it is `splinterp.api.report`."""

from ..callable_packages import make_callable
from .build import LATENTS, Progress
from .contexts import Context, LatentContexts, top_contexts
from .statistics import LatentStatistics, accumulate
from .terminal import print_contexts
from .write import write_report

__all__ = [
    "LATENTS",
    "Context",
    "LatentContexts",
    "LatentStatistics",
    "Progress",
    "accumulate",
    "print_contexts",
    "top_contexts",
    "write_report",
]

make_callable(__name__)
