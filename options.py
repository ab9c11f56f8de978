"""Parsers of command-line options."""

from __future__ import annotations

import typer

from .errors import SplinterpError
from .quantities import parse_quantity


def quantity(text: str | int) -> int:
    """Options such as 20000, 10k, 1M, 2.5B; typer hands over defaults too, which are numbers already."""
    try:
        return text if isinstance(text, int) else parse_quantity(text)
    except SplinterpError as error:
        raise typer.BadParameter(str(error)) from None
