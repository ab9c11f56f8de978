"""A run that was stopped, and goes on: its run.json and the header of its checkpoint."""

from __future__ import annotations

import shutil
import signal
from contextlib import suppress
from pathlib import Path

import torch
from runs import signal_at
from splinterp import store
from splinterp.errors import Interrupted
from splinterp.train import TrainOptions, train

from .kit import Prepared, Target
from .saes import Weights
from .stores import make
from .trees import Tree


def resumed(folder: Path) -> Prepared:
    make(folder / "acts.zarr", columns=False)
    held = store.open(folder / "acts.zarr")
    config = TrainOptions(latents=6, k=2, tokens=400, batch_size=100, ridge=0.1, pursuit=0.0).config(
        3, held.split_rows("train")
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(Interrupted):
        train(held, "h", config, folder / "stopped", torch.device("cpu"), signal_at(200))
    signal.signal(signal.SIGINT, before)
    weights = Weights(folder / "stopped" / "checkpoint.safetensors")
    tree = Tree(folder / "stopped", ["run.json", weights.header.name])

    def one(data: bytes) -> None:
        tree.write(data)
        weights.write(checked=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(folder / "stopped", folder / "run")
        train(held, "h", config, folder / "run", torch.device("cpu"), resume=True)

    return Prepared([tree.seed()], one)


TARGETS = (Target("resume", "run.json and the checkpoint of a run that goes on", resumed),)
