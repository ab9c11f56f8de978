"""What a command has to say besides its results, and is no error."""

from __future__ import annotations

from rich.console import Console

_console = Console(stderr=True)


def note(sentence: str) -> None:
    """On stderr, in whole, however narrow the terminal."""
    _console.print(f"Note: {sentence}", style="yellow", markup=False, highlight=False, soft_wrap=True)
