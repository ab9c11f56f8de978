"""The text that every Python carries: the source of its own standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# encodings/ is tables of code points, the rest is not the library's own source.
_EXCLUDED = {"encodings", "site-packages", "dist-packages", "__pycache__", "__phello__"}
_TESTS = {"test", "tests", "idle_test"}  # missing from slim distributions, so no part of the text by default


def stdlib_files(tests: bool = False) -> list[tuple[str, Path]]:
    """All (name relative to the library, path) of the standard library's sources, sorted by name; or those of its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in _EXCLUDED and not name.startswith("config-")]
        relative = Path(folder).relative_to(root)
        if bool(_TESTS.intersection(relative.parts)) == tests:
            found += [((relative / name).as_posix(), Path(folder, name)) for name in files if name.endswith(".py")]
    return sorted(found)


def stdlib_documents(tests: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every non-empty source file of the standard library (or of its tests), in order of name."""
    for name, path in stdlib_files(tests):
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield name, text


def is_held_out(name: str, one_in: int = 20) -> bool:
    """Whether the embedded model's training left this file out: one file in `one_in`, by the hash of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % one_in == 0
