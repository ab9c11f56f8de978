"""What a client may name: relative paths that stay inside the service's root, links resolved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import SplinterpError

LONGEST = 500


class PathError(SplinterpError):
    """A path that a client may not name."""


@dataclass(frozen=True)
class Root:
    """The directory that the service looks after; `path` is absolute and has no links in it."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> Root:
        """Raises SplinterpError where there is no such directory."""
        if not path.is_dir():
            raise SplinterpError(f"{path} is not a directory; make it, or give another --root.")
        return cls(path.resolve())

    def inside(self, text: str, what: str = "path") -> Path:
        """The absolute path of what a client calls `text`; it need not exist.

        Raises:
            PathError: it is absolute or a URL, goes up, is hidden (as the service's own folder is), looks like an option, or is a link that
                leads out of the root.
        """
        found = self.path / checked(text, what)
        try:
            resolved = found.resolve()
        except (OSError, RuntimeError):  # a name too long for the file system, or links in a circle
            raise PathError(f"The {what} '{text}' cannot be a path here.") from None
        if not resolved.is_relative_to(self.path) or any(
            part.startswith(".") for part in resolved.relative_to(self.path).parts
        ):
            raise PathError(f"The {what} '{text}' leads out of the service's root.")
        return found

    def claim(self, text: str, what: str = "path") -> str:
        """What is read or written at `text`, by its real place: the same for every name of it."""
        return self.inside(text, what).resolve().relative_to(self.path).as_posix()

    def name(self, path: Path) -> str:
        """How clients call a path inside the root."""
        return path.relative_to(self.path).as_posix()


def checked(text: str, what: str = "path") -> PurePosixPath:
    """A relative path of plain names. Raises PathError otherwise."""
    if not text or len(text) > LONGEST or not text.isprintable():
        raise PathError(f"A {what} must be 1 to {LONGEST} printable characters.")
    if ":" in text or "\\" in text:  # Path makes s3:/x of s3://x
        raise PathError(f"The {what} '{text}' must be a path inside the service's root, without colons and no URL.")
    path = PurePosixPath(text)
    if path.is_absolute():
        raise PathError(f"The {what} '{text}' is absolute; name it relative to the service's root.")
    if not path.parts or any(part.startswith((".", "-", "~")) or len(part.encode()) > 250 for part in path.parts):
        raise PathError(
            f"The {what} '{text}' must be of plain names, without '..' and without names that begin with '.', '-' or '~'."
        )
    return path


def overlap(one: str, other: str) -> bool:
    """Whether two claims are the same, or one lies within the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
