"""Templates, and how figures are written in them."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..quantities import format_bytes, format_count, format_seconds

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """A page; every text in it is escaped, but for what is marked as safe."""
    return _environment().get_template(template).render(now=time(), **values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "count": format_count, "bytes": format_bytes, "seconds": format_seconds, "figure": figure, "when": when, "link": quote,
        "percent": lambda share: f"{share:.0%}",
    }  # fmt: skip
    return made


def figure(value: Any) -> str:
    """A figure or a setting as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def when(seconds: float | None) -> str:
    """A time in the service's time zone."""
    return "–" if seconds is None else f"{datetime.fromtimestamp(seconds):%d %b, %H:%M}"
