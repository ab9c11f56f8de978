"""The name that was meant: the nearest of those that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(name: str, there: Iterable[str]) -> str:
    """ " Did you mean X?" of the nearest of the names that there are, for the end of a sentence; nothing where none is near."""
    found = get_close_matches(name, sorted(set(there)), 1)
    return f" Did you mean {found[0]}?" if found else ""


def did_you_mean_path(path: Path, fits: Callable[[Path], bool]) -> str:
    """The same of a path that is not there, among its neighbours that fit; they are given as the path was."""
    try:
        there = [other.name for other in path.parent.iterdir() if fits(other)]
    except OSError:  # its folder is not there either, or not to be read
        return ""
    found = get_close_matches(path.name, sorted(there), 1)
    return f" Did you mean {path.parent / found[0]}?" if found else ""
