"""Names that files give to what lies beside them."""

from __future__ import annotations


def is_plain(name: object) -> bool:
    """Whether a name is that of something right here: no path, and neither this folder nor the one above it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\\0") and len(name) <= 255
