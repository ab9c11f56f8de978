"""Runs beside one another as an object: what `splinterp.compare` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SplinterpError
from . import compare
from .picture import Picture
from .runs import RunSeen, read_runs

AXES = ("tokens", "seconds", "l0")


@dataclass(frozen=True)
class Comparison:
    """Runs, and sentences on what they lack. A notebook shows the figures and the curves."""

    runs: list[RunSeen]
    lacking: list[str]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Comparison:
        """The runs in these directories. Raises SplinterpError as `read_runs`."""
        return cls(*read_runs(paths))

    @property
    def notes(self) -> list[str]:
        """Sentences that belong beside the figures."""
        return compare.notes(self.runs, self.lacking)

    def as_json(self) -> dict[str, Any]:
        """Figures, curves and the settings that differ, as plain JSON."""
        return compare.as_json(self.runs, self.lacking)

    def page(self) -> str:
        """All of it as an HTML page that fetches nothing."""
        return compare.page(self.runs, self.lacking)

    def picture(self, against: str = "tokens") -> Picture:
        """Held-out FVU against tokens, seconds or l0. Raises SplinterpError for another axis."""
        if against not in AXES:
            raise SplinterpError(f"FVU is drawn against {', '.join(AXES)}, not against '{against}'.")
        return Picture(compare.plots(self.runs)[AXES.index(against)])

    def _repr_html_(self) -> str:
        return "\n".join(compare.body(self.runs, self.lacking))
