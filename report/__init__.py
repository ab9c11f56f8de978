"""What people see: tables, the contexts in which latents fire, and a run's report."""

from .contexts import Context, LatentContexts, top_contexts
from .statistics import LatentStatistics, accumulate
from .terminal import print_contexts
from .write import write_report

__all__ = ["Context", "LatentContexts", "LatentStatistics", "accumulate", "print_contexts", "top_contexts", "write_report"]
