"""What people see: tables, and the contexts in which latents fire."""

from .contexts import Context, LatentContexts, interesting_latents, top_contexts
from .terminal import print_contexts

__all__ = ["Context", "LatentContexts", "interesting_latents", "print_contexts", "top_contexts"]
