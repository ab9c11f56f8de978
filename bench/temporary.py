"""What benches of training share: a run in a directory that is gone afterwards."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..devices import choose_device
from ..errors import SplinterpError
from ..sae import SAE
from ..store import Store
from ..store.files import read_json
from ..train import TrainConfig, train
from ..train.directory import METRICS, RUN
from ..train.loop import Progress


@dataclass(frozen=True)
class Trained:
    """A run that was: its SAE (of raw rows), what summary.json held, and the lines of metrics.jsonl."""

    sae: SAE
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]


def train_once(
    store: Store, site: str | None, config: TrainConfig, device: str = "auto", progress: Progress | None = None
) -> Trained | None:
    """Train one SAE on a site of `store`, and keep no file of it; None where training diverged.

    Raises:
        SplinterpError: see `train`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        try:
            result = train(store, site, config, out, choose_device(device), progress)
        except SplinterpError:
            if (out / RUN).exists() and "diverged" in read_json(out / RUN):
                return None
            raise
        lines = (out / METRICS).read_text(encoding="utf-8").splitlines()
        return Trained(result.sae, result.summary, [json.loads(line) for line in lines])
