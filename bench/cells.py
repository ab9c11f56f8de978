"""The cells of a benchmark, a line of JSON each in one file: a bench that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import SplinterpError
from ..store.files import Lock

NAME = "cells.jsonl"
PACKAGES = ("train", "sae")  # whose sources decide what comes of a cell


class Cells:
    """The file `cells.jsonl` in a folder that this process has for itself until `close`. What is found of a key is its last line.

    Raises:
        StoreError: another process has the folder. SplinterpError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(folder)
        self.path = folder / NAME
        self._found: dict[str, dict[str, Any]] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # what follows was being written when the process was killed
        try:
            for line in whole.splitlines():
                cell = json.loads(line)
                self._found[cell["key"]] = cell
        except (ValueError, KeyError, TypeError):
            self.close()
            raise SplinterpError(f"{self.path} is damaged; remove it, or give another --out.") from None
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")

    def __len__(self) -> int:
        return len(self._found)

    def find(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The cell that was made of the same, if there is one."""
        return self._found.get(key_of(identity))

    def add(self, identity: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
        """Keep what came of a cell; returns it as it will be found."""
        cell = json.loads(json.dumps({"key": key_of(identity), "sources": sources(), **identity, **told}))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
        self._found[cell["key"]] = cell
        return cell

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release(remove=True)


def key_of(identity: dict[str, Any]) -> str:
    """A short name for plain JSON, the same whenever the content is."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@cache
def sources() -> str:
    """Changes with any line of the code that trains: cells of other sources are told apart, not thrown away."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
