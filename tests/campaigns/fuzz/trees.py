"""Inputs that are several files: one JSON object of their contents by their names.

A content is JSON's (of a name in .jsonl a list, a line an item), or a string: the bytes themselves. Bytes that are no such object are the first
file's alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Repair = Callable[[dict[str, bytes], dict[str, Any]], None]


class Tree:
    """Some files below a folder, rewritten for every input; others there stay as they are.

    Args:
        names: of the files, relative to `folder`, the first one first; each is there. repair: makes checksums fit, given the files' bytes and the
            object, so that what lies behind a checksum is come upon: whoever forges a file can do that, too.
    """

    def __init__(self, folder: Path, names: Sequence[str], repair: Repair | None = None) -> None:
        self.folder, self.names, self._repair = folder, tuple(names), repair
        self._valid = {name: (folder / name).read_bytes() for name in names}
        self._now: dict[str, bytes | None] = dict(self._valid)

    def seed(self, **changes: Any) -> bytes:
        """The files as they are, or with changes by name."""
        return json.dumps({name: _value(name, data) for name, data in self._valid.items()} | changes).encode()

    def write(self, data: bytes) -> None:
        """Make the files those of an input."""
        self._write(self._contents(data))

    def restore(self) -> None:
        """Make the files valid again."""
        self._write(self._valid)

    def _write(self, wanted: Mapping[str, bytes]) -> None:
        for name in self.names:
            if self._now[name] == wanted.get(name):
                continue
            path, content = self.folder / name, wanted.get(name)
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._now[name] = content

    def _contents(self, data: bytes) -> dict[str, bytes]:
        try:
            told = json.loads(data)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict) or not told.keys() & set(self.names):
            return {**self._valid, self.names[0]: data}
        found = {name: _bytes(name, told[name]) for name in self.names if told.get(name) is not None}
        if self._repair and told.get("repair", True):
            self._repair(found, told)
        return found


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def _value(name: str, data: bytes) -> Any:
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in data.splitlines()]
    return json.loads(data) if name.endswith(".json") or name.startswith(".z") or "/.z" in name else data.decode("latin-1")


def _bytes(name: str, content: Any) -> bytes:
    if isinstance(content, str):
        try:
            return content.encode("latin-1")
        except UnicodeEncodeError:
            return content.encode("utf-8", errors="surrogatepass")
    if isinstance(content, list) and name.endswith(".jsonl"):
        return b"".join(
            (line.encode("utf-8", "surrogatepass") if isinstance(line, str) else encoded(line)) + b"\n" for line in content
        )
    return encoded(content)


def reread(files: Mapping[str, bytes], name: str) -> Any:
    """A file's JSON value; None where it has none."""
    try:
        return json.loads(files.get(name, b"null"))
    except (ValueError, RecursionError):
        return None
