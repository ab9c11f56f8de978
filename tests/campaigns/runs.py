"""Training runs that are interrupted, and compared by what they leave: for the campaigns and the suite (`pythonpath` in pyproject.toml)."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from splinterp.train.loop import Progress


def signal_at(*rows: int, number: int = signal.SIGINT) -> Progress:
    """A progress callback that sends this process a signal whenever so many rows have been trained on."""
    left = list(rows)

    def progress(at: str, done: int, total: int, figures: dict[str, float]) -> None:
        if left and at == "train" and done >= left[0]:
            left.pop(0)
            os.kill(os.getpid(), number)

    return progress


def without_times(value: Any) -> Any:
    """Figures, in JSON's types, but for the times in them."""
    if isinstance(value, dict):
        return {name: without_times(v) for name, v in value.items() if name not in ("seconds", "rows_per_second")}
    return value


def contents_of(directory: Path) -> dict[str, Any]:
    """What the files of a finished run hold, but for times, by their names; of run.json the settings."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return {
        "run.json": json.loads((directory / "run.json").read_text())["settings"],
        "summary.json": without_times(json.loads((directory / "summary.json").read_text())),
        "metrics.jsonl": [without_times(json.loads(line)) for line in lines],
        **{name: (directory / name).read_bytes() for name in ("cfg.json", "sae_weights.safetensors")},
    }


def left_by(directory: Path) -> dict[str, Any]:
    """`contents_of`, and the names of all files: a run that was killed at its very end may leave a lock and a checkpoint besides."""
    return {**contents_of(directory), "names": sorted(path.name for path in directory.iterdir())}
