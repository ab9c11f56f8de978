"""Latents and their contexts in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .contexts import LatentContexts
from .pieces import visible


def print_contexts(console: Console, latents: list[LatentContexts]) -> None:
    """A table of latents, the activating token of each context marked in reverse and ⟨brackets⟩ (seen in a log file too)."""
    table = Table(title="What some latents fire on", show_lines=True, expand=True)
    table.add_column("latent", justify="right", no_wrap=True)
    table.add_column("fires on", justify="right", no_wrap=True)
    table.add_column("strongest contexts")
    for latent in latents:
        lines = Text()
        for i, context in enumerate(latent.contexts):
            if i:
                lines.append("\n")
            lines.append(f"{context.value:6.1f}  ", style="dim")
            lines.append(visible(context.before))
            lines.append("⟨" + visible(context.token) + "⟩", style="reverse bold")
            lines.append(visible(context.after))
        table.add_row(str(latent.latent), f"{latent.density:.2%}", lines)
    console.print(table)
