"""A tokenizer.json, looked at before the tokenizers library reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..quantities import parse_json

LARGEST_ID = 2**24


def ids_sound(file: Path) -> bool:
    """Whether every token's id in a tokenizer.json is one: the library makes a table as long as the largest, and ends the process where it cannot.

    Raises:
        ValueError: the file is not JSON. OSError: it cannot be read.
    """
    told = parse_json(file.read_bytes())
    model, added = (told.get("model"), told.get("added_tokens")) if isinstance(told, dict) else (None, None)
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: list[Any] = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [one.get("id", 0) for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    return all(type(i) is int and 0 <= i < LARGEST_ID for i in ids)
