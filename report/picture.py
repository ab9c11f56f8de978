"""A picture as SVG, which notebooks show by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """An <svg> element."""

    svg: str

    def save(self, path: str | Path) -> Path:
        """Write it as an .svg file."""
        path = Path(path)
        path.write_text(self.svg + "\n", encoding="utf-8")
        return path

    def _repr_svg_(self) -> str:
        return self.svg
