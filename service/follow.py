"""A run's metrics.jsonl as it grows: whole lines from an offset on, and whether the run went back to a checkpoint meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..quantities import json_safe, parse_json

METRICS = "metrics.jsonl"
LARGEST = 2**20


def lines_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """(the lines from `offset` bytes on, where the next ones begin); at most 1 MiB of them.

    A run that goes on from a checkpoint cuts its file there. Where that shows (the file is shorter than `offset`, or no line begins there), all
    is told from the beginning: the offset that comes back is then that of a shorter file, or of the same one read anew, and `offset` was wrong.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if offset and (offset > size or not _begins_line(file, offset)):
                offset = 0
            file.seek(offset)
            data = file.read(LARGEST)
    except FileNotFoundError:
        return [], 0
    whole = data[: data.rfind(b"\n") + 1]
    found = []
    for piece in whole.splitlines():
        try:
            line = parse_json(piece)
        except ValueError:
            continue  # being overwritten just now
        if isinstance(line, dict):
            found.append(json_safe(line))
    return found, offset + len(whole)


def _begins_line(file: Any, offset: int) -> bool:
    file.seek(offset - 1)
    return file.read(1) == b"\n"
