"""Training runs that are interrupted, killed or refused a disk, and go on as if nothing had happened."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import left_by, signal_at
from splinterp import store as stores
from splinterp.errors import Interrupted, SplinterpError, StoreError
from splinterp.sae import load_sae
from splinterp.store.files import Lock
from splinterp.train import TrainConfig, train, training
from splinterp.train import checkpoint as files
from splinterp.train.loop import Progress
from splinterp.train.pam import PAM
from splinterp.train.rows import Rows
from splinterp.train.schedule import lr_at

SITE, D_IN, D_SAE, N = "hook", 24, 96, 6000
CONFIG = TrainConfig(
    method="pam", activation="topk", d_sae=D_SAE, rows=12_000, batch_size=256, lr=1e-2, k=6, k_start=12, solve_every=3,
    dead_after=1000, memory_rows=2000,
)  # fmt: skip
CONFIGS = {
    "pam as it comes": replace(CONFIG, solve_every=None, memory_rows=None),
    "with solves on the way": CONFIG,
    "with jitter": replace(CONFIG, jitter=0.3),
    "solve-only, M=2": replace(CONFIG, decoder_steps=False, encoder_steps=2, mu_enc=0.1),
    "without a Gram matrix": replace(CONFIG, memory=250_000),
    "adam": replace(CONFIG, method="adam"),
    "relu": replace(CONFIG, activation="relu", k=None, k_start=None, l1=1.0),
    "batchtopk": replace(CONFIG, activation="batchtopk"),
    "jumprelu": replace(CONFIG, activation="jumprelu"),
    "resampling": replace(CONFIG, activation="jumprelu", revive="resample", dead_after=600, decay=0.1),
    "resampling without a Gram matrix": replace(CONFIG, revive="resample", dead_after=600, decay=0.1, memory=250_000),
    "batchtopk, adam": replace(CONFIG, activation="batchtopk", method="adam"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stores.create(tmp_path_factory.mktemp("resume") / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=N) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(N, D_SAE, generator=generator) * (torch.rand(N, D_SAE, generator=generator) < 0.06)
        writer.add({SITE: codes @ torch.randn(D_SAE, D_IN, generator=generator)}, {})
        return writer.finish()


@pytest.mark.parametrize("name", CONFIGS)
def test_interrupted_and_resumed_is_uninterrupted(store, tmp_path, name):
    """In the first epoch, in the carry into the second, in the second, and in the last solve."""
    config = CONFIGS[name]
    train(store, None, config, tmp_path / "whole")
    for rows in ([2000, 5632], [9000]):
        with pytest.raises(
            Interrupted, match=r"Stopped after step .* of 47; .*run holds a checkpoint of step .*--resume goes on"
        ):
            train(store, None, config, tmp_path / "run", progress=signal_at(*rows), resume=True)
        assert load_sae(tmp_path / "run").config.d_sae == D_SAE  # an SAE to look at meanwhile
    with pytest.raises(Interrupted, match="holds the SAE as trained, without the last solve"):
        train(store, None, config, tmp_path / "run", progress=interrupt("last solve"), resume=True)
    size = (tmp_path / "run" / files.CHECKPOINT).stat().st_size
    assert size < 4 * (2 * D_IN * D_SAE + D_IN + D_SAE) + 2000  # only the weights are still needed
    train(store, None, config, tmp_path / "run", resume=True)
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["resumed"]) == 3


def test_memory_may_be_another_where_the_statistics_are_of_the_same_kind(store, tmp_path):
    """The default follows the machine, and a run may go on on a smaller one."""
    with pytest.raises(Interrupted):
        train(store, None, CONFIG, tmp_path / "run", progress=signal_at(2000))
    with pytest.raises(SplinterpError, match=r"with another --memory than there is now; .*run\.json tells it"):
        train(store, None, replace(CONFIG, memory=250_000), tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["memory"] > 250_000
    another = replace(CONFIG, memory=10**9)
    train(store, None, another, tmp_path / "run", resume=True)
    train(store, None, another, tmp_path / "whole")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def interrupt(stage: str) -> Progress:
    """A progress callback by which `stage` is interrupted as soon as it tells of itself."""

    def progress(at: str, done: int, total: int, figures: dict[str, float]) -> None:
        if at == stage:
            raise KeyboardInterrupt

    return progress


def test_sigterm_is_taken_as_ctrl_c_and_handlers_are_put_back(store, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="--resume goes on"):
        train(store, None, CONFIG, tmp_path / "run", progress=signal_at(2000, number=signal.SIGTERM))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_ctrl_c_ends_at_once(store, tmp_path, monkeypatch):
    """Even while the first one's checkpoint is being written: the one before stays."""
    real = files.write_checkpoint

    def again(path, position, state):
        if position.steps > 5:
            os.kill(os.getpid(), signal.SIGINT)
        real(path, position, state)

    monkeypatch.setattr(training, "write_checkpoint", again)
    monkeypatch.setattr(training, "MOST_OF_THE_TIME", math.inf)
    with pytest.raises(Interrupted, match=r"Interrupted in step 7 of 47; .*checkpoint of step 5.*--resume"):
        train(store, None, CONFIG, tmp_path / "run", progress=signal_at(6 * 256), checkpoint_every=0)
    monkeypatch.undo()
    train(store, None, CONFIG, tmp_path / "run", resume=True)
    train(store, None, CONFIG, tmp_path / "whole")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_a_run_stopped_before_its_first_checkpoint_begins_again(store, tmp_path):
    with pytest.raises(Interrupted, match="holds no checkpoint yet"):
        train(store, None, CONFIG, tmp_path / "run", progress=interrupt("train"))
    train(store, None, CONFIG, tmp_path / "run", resume=True)
    train(store, None, CONFIG, tmp_path / "whole", resume=True)  # no run at all yet: it begins
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


@pytest.fixture(scope="module")
def interrupted(store, tmp_path_factory) -> Path:
    """A run that was interrupted after about a quarter."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Interrupted):
        train(store, None, CONFIG, out, progress=signal_at(3000))
    return out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 2e-2, "seed": 3}, r"was begun with lr=0.01, seed=0, and not with lr=0.02, seed=3; --resume needs the same"),
        ({"k": 7}, "begun with k=6, and not with k=7"),
    ],
)
def test_other_settings_are_named(store, interrupted, options, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        train(store, None, replace(CONFIG, **options), interrupted, resume=True)


def test_another_store_is_named(tmp_path, interrupted):
    with stores.create(tmp_path / "other.zarr", sites={SITE: D_IN}, dtype="float32", rows=N) as writer:
        writer.add({SITE: torch.randn(N, D_IN)}, {})
        other = writer.finish()
    with pytest.raises(SplinterpError, match="begun with store_fingerprint="):
        train(other, None, CONFIG, interrupted, resume=True)


def test_what_cannot_be_resumed_is_told(store, tmp_path, interrupted):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(SplinterpError, match="is not a run directory"):
        train(store, None, CONFIG, tmp_path / "mine", resume=True)
    with pytest.raises(SplinterpError, match="--resume or --force, not both"):
        train(store, None, CONFIG, interrupted, resume=True, force=True)
    with pytest.raises(SplinterpError, match=r"exists already; .*--resume"):
        train(store, None, CONFIG, interrupted)
    train(store, None, replace(CONFIG, rows=1000), tmp_path / "run")
    with pytest.raises(SplinterpError, match="is finished: there is nothing to resume"):
        train(store, None, replace(CONFIG, rows=1000), tmp_path / "run", resume=True)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["notes.txt"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "other shape", "metrics"])
def test_damage_is_told(store, tmp_path, interrupted, damage):
    shutil.copytree(interrupted, tmp_path / "run")
    path = tmp_path / "run" / files.CHECKPOINT
    data = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            path.write_bytes(data[:-1000])
        case "flipped":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "emptied":
            path.write_bytes(b"")
        case "other shape":
            position, state = files.read_checkpoint(path)
            files.write_checkpoint(path, position, {**state, "weights.b_dec": torch.zeros(1)})
        case "metrics":
            (tmp_path / "run" / "metrics.jsonl").write_text("")
    before = path.read_bytes()
    with pytest.raises(SplinterpError, match=r"(damaged|does not fit|lines are lost).*--force"):
        train(store, None, CONFIG, tmp_path / "run", resume=True)
    assert path.read_bytes() == before
    assert not (tmp_path / "run" / ".lock").exists()


def test_two_processes_do_not_train_in_one_directory(store, tmp_path, interrupted):
    shutil.copytree(interrupted, tmp_path / "run")
    lock = Lock(tmp_path / "run")
    for options in ({"resume": True}, {"force": True}):
        with pytest.raises(StoreError, match="written by another process"):
            train(store, None, CONFIG, tmp_path / "run", **options)
    lock.release(remove=True)
    assert (tmp_path / "run" / files.CHECKPOINT).exists()


def test_force_leaves_nothing_of_an_interrupted_run(store, tmp_path, interrupted):
    shutil.copytree(interrupted, tmp_path / "run")
    config = replace(CONFIG, rows=1000)
    train(store, None, config, tmp_path / "run", force=True)
    train(store, None, config, tmp_path / "fresh")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "fresh")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_keeps_the_last_good_checkpoint(store, tmp_path, monkeypatch, value):
    """A weight goes bad between two lines of the log, so that only the checkpoint can see it."""
    monkeypatch.setattr(training, "MOST_OF_THE_TIME", math.inf)
    real = PAM.step

    def poisoned(self, x, lr, rows):
        figures = real(self, x, lr, rows)
        if self.batches == 20:
            with torch.no_grad():
                self.weights.b_enc[3] = value
        return figures

    monkeypatch.setattr(PAM, "step", poisoned)
    with pytest.raises(
        SplinterpError, match=r"diverged by step 20 .*keeps step 19\. --resume with a lower --lr \(it was 0\.01\)"
    ):
        train(store, None, CONFIG, tmp_path / "run", checkpoint_every=0)
    monkeypatch.undo()
    assert not files.unsound(files.read_checkpoint(tmp_path / "run" / files.CHECKPOINT)[1])
    with pytest.raises(SplinterpError, match=r"diverged at step 20 and would do so again; .*lower --lr \(it was 0\.01\)"):
        train(store, None, CONFIG, tmp_path / "run", resume=True)
    with pytest.raises(SplinterpError, match=r"begun with lr=0\.01, and not with lr=0\.02"):
        train(store, None, replace(CONFIG, lr=2e-2), tmp_path / "run", resume=True)
    train(store, None, replace(CONFIG, lr=5e-3), tmp_path / "run", resume=True)
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (told["settings"]["lr"], told["diverged_before"]) == (5e-3, [{"step": 20, "lr": 1e-2}])
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rates == [lr_at(step, CONFIG if step < 19 else replace(CONFIG, lr=5e-3)) for step in range(CONFIG.steps)]


def test_a_disk_that_refuses_a_checkpoint_costs_no_training(store, tmp_path, monkeypatch):
    real, told = files.write_checkpoint, []

    def full(path, position, state):
        if position.steps > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, position, state)

    monkeypatch.setattr(training, "write_checkpoint", full)
    monkeypatch.setattr(training, "MOST_OF_THE_TIME", math.inf)
    train(store, None, CONFIG, tmp_path / "run", checkpoint_every=0, tell=told.append)
    assert told[0].startswith("Checkpoint: ")
    assert "weights, optimiser, statistics" in told[0]
    assert (
        told[1]
        == "The checkpoint of step 4 could not be written (No space left on device); that of step 3 is kept. Training goes on."
    )
    monkeypatch.undo()
    train(store, None, CONFIG, tmp_path / "whole")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_checkpoints_take_no_more_than_their_share(tmp_path, monkeypatch):
    clock = [0.0]

    def slow(path, position, state):
        clock[0] += 30.0

    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training, "write_checkpoint", slow)
    checkpoints = training.Checkpoints(tmp_path, 60.0, files.Position(), found=False)
    written = 0
    for _ in range(5000):  # seconds of training
        clock[0] += 1.0
        if checkpoints.due():
            checkpoints.write(files.Position(), {})
            written += 1
    assert clock[0] - 5000 == 30.0 * written
    assert 5 <= written <= 0.05 * clock[0] / 30 + 1


def test_training_draws_no_random_numbers_of_the_process(store, tmp_path):
    """Or else a checkpoint would have to keep the generator's state."""
    before = torch.get_rng_state()
    train(store, None, replace(CONFIG, rows=2000), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("batch", "total"), [(256, 12_000), (100, 12_000), (7, 6000), (5000, 20_000), (1000, 500)])
def test_batches_go_on_after_those_that_are_skipped(store, batch, total):
    rows = Rows.of(store, SITE, torch.device("cpu"))
    whole = [x.clone() for x in rows.training(batch, total, seed=2)]
    for n in {0, 1, len(whole) // 2, len(whole) - 1, len(whole)}:
        rest = [x.clone() for x in rows.training(batch, total, seed=2, skip=min(total, n * batch))]
        assert len(rest) == len(whole) - n
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[n:], strict=True))


def test_statistics_keep_their_factor(store):
    """Bringing the sums up to date at a checkpoint would round where an uninterrupted run does not."""
    x = next(Rows.of(store, SITE, torch.device("cpu")).training(512, 512, seed=0))
    kept, other = PAM(D_IN, CONFIG, torch.device("cpu")), PAM(D_IN, CONFIG, torch.device("cpu"))
    for _ in range(2):
        kept.step(x, 1e-3)
    other.load_state({name: tensor.clone() for name, tensor in kept.state().items()})
    for pam in (kept, other):
        for _ in range(2):
            pam.step(x, 1e-3)
    for name, tensor in kept.state().items():
        assert torch.equal(tensor, other.state()[name]), name


def test_killed_at_random_moments_and_resumed_is_uninterrupted():
    """The campaign's short form, in a process that has not begun any threads that a fork would lose."""
    campaign = Path(__file__).parent / "campaigns" / "kill_train.py"
    done = subprocess.run(
        [sys.executable, campaign, "3", "--methods", "1", "--seed", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| failures | 0 |" in done.stdout
