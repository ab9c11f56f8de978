"""What a finished run's figures give cause to doubt, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..quantities import is_figure


def doubts(summary: Mapping[str, Any]) -> list[str]:
    """Of what summary.json holds: an SAE that fires on nothing or explains nothing, and what the last solve warned of."""
    fvu, told = summary.get("fvu"), []
    if summary.get("dead_fraction") == 1:
        told.append(
            "No latent fires on any held-out row: the SAE gives one and the same row for all. A lower --lr, or a lower --l1, may help."
        )
    elif is_figure(fvu) and fvu >= 1:
        told.append(
            f"The SAE explains nothing of the held-out rows: its FVU is {fvu:.4g}, and that of their mean is 1. A lower --lr may help."
        )
    if warning := (summary.get("last_solve") or {}).get("warning"):
        told.append(warning)
    return told
