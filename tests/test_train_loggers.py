"""Figures go where --logger says, each step once, whatever interrupts the run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from splinterp import store as stores
from splinterp.errors import Interrupted, SplinterpError
from splinterp.train import TrainConfig, train

CONFIG = TrainConfig(method="pam", activation="topk", d_sae=32, rows=3000, batch_size=128, lr=1e-2, k=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("loggers") / "acts.zarr"
    with stores.create(path, sites={"hook": 8}, dtype="float32", rows=3000) as writer:
        writer.add({"hook": torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))}, {})
        return writer.finish()


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def after(n: int):
    """A progress callback by which the run is interrupted, without a checkpoint, when it has told of itself n times."""
    seen = []

    def progress(*told: object) -> None:
        seen.append(told)
        if len(seen) == n:
            raise KeyboardInterrupt

    return progress


def train_interrupted(store, out: Path, logger: str, monkeypatch) -> None:
    """Interrupted twelve steps in, eight after its last checkpoint, and resumed."""
    from splinterp.train import training

    monkeypatch.setattr(training.Checkpoints, "due", lambda self: self.step is None or self.step < 4)
    with pytest.raises(Interrupted):
        train(store, None, CONFIG, out, logger=logger, progress=after(12))
    train(store, None, CONFIG, out, logger=logger, resume=True)


@pytest.fixture
def recorded(monkeypatch) -> list[dict]:
    """TensorBoard's writer, or, without the package, one that takes its calls: what purge_step supersedes is dropped."""
    written: list[dict] = []

    class SummaryWriter:
        def __init__(self, directory: str, purge_step: int | None = None) -> None:
            assert Path(directory).name == "tensorboard"
            written[:] = [one for one in written if purge_step is None or one["step"] < purge_step]

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append({"name": name, "value": value, "step": step})

        def close(self) -> None: ...

    package, module = ModuleType("tensorboard"), ModuleType("torch.utils.tensorboard")
    package.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return written


def test_tensorboard_is_given_every_line_once(store, tmp_path, recorded, monkeypatch):
    train_interrupted(store, tmp_path / "run", "tensorboard", monkeypatch)
    for name in ("loss", "fvu", "held_out_fvu"):
        expected = [(line["step"], line[name]) for line in lines(tmp_path / "run") if name in line]
        assert [(one["step"], one["value"]) for one in recorded if one["name"] == name] == expected
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"name": "summary/fvu", "value": summary["fvu"], "step": 24} in recorded


def test_tensorboard_itself_reads_every_line_once(store, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_interrupted(store, tmp_path / "run", "tensorboard", monkeypatch)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    read = [(event.step, event.value) for event in events.Scalars("loss")]
    assert read == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines(tmp_path / "run")]


def test_wandb_works_without_a_network(store, tmp_path, monkeypatch, written_at_last):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(store, None, CONFIG, tmp_path / "run", logger="wandb")
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    written = written_at_last(kept)
    assert b"held_out_fvu" in written
    assert b"store_fingerprint" in written  # every setting goes along
    train(store, None, CONFIG, tmp_path / "run", force=True)
    assert not (tmp_path / "run" / "wandb").exists()


def test_wandb_gets_one_identity_for_a_run(store, tmp_path, monkeypatch):
    """By which the service joins what was logged before an interruption and after it."""
    wandb = pytest.importorskip("wandb")
    begun: list[dict] = []

    class Run:
        summary: ClassVar[dict[str, float]] = {}

        def log(self, figures: dict[str, float], step: int) -> None:
            begun[-1].setdefault("steps", []).append(step)

        def finish(self) -> None:
            begun[-1]["finished"] = True

    def init(**options: object) -> Run:
        begun.append(options)
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    train_interrupted(store, tmp_path / "run", "wandb", monkeypatch)
    train(store, None, CONFIG, tmp_path / "other", logger="wandb")
    assert begun[0]["id"] == begun[1]["id"] != begun[2]["id"]
    assert begun[0]["steps"] == list(range(1, 13))
    assert begun[1]["steps"] == list(range(5, 25))
    assert all(run["finished"] for run in begun)
    assert Run.summary["fvu"] == json.loads((tmp_path / "run" / "summary.json").read_text())["fvu"]


def test_a_service_that_refuses_is_told(store, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def init(**options: object):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(SplinterpError, match=r"No API key configured\); set WANDB_MODE=offline, or use `wandb login`"):
        train(store, None, CONFIG, tmp_path / "run", logger="wandb")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_sentence_and_costs_nothing(store, tmp_path, monkeypatch, name):
    train(store, None, CONFIG, tmp_path / "run")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
    with pytest.raises(SplinterpError, match=rf'pip install "splinterp\[{name}\]"'):
        train(store, None, CONFIG, tmp_path / "run", force=True, logger=name)
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_an_unknown_logger_is_told(store, tmp_path):
    with pytest.raises(SplinterpError, match="--logger comet is unknown; choose one of none, tensorboard, wandb"):
        train(store, None, CONFIG, tmp_path / "run", logger="comet")
    assert not (tmp_path / "run").exists()
