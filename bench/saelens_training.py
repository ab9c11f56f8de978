"""SAELens's own TopK trainer as a contender: our rows, our batches in our order, our shape of the rate's rise and fall; its everything else."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from torch import Tensor

from ..devices import choose_device
from ..evaluate import evaluate_rows
from ..sae import SAE, load_sae
from ..train import TrainConfig
from ..train.loop import Progress
from ..train.rows import Rows
from ..train.schedule import lr_at
from ..train.training import HELD_OUT_EVERY, held_out_rows
from .contenders import Outcome, Place


def fit(config: TrainConfig, place: Place, progress: Progress | None = None) -> Outcome:
    """Train a TopKTrainingSAE as SAETrainer.fit does, on normalised rows (mean 0, mean square 1 per dimension).

    Of `config` it takes latents, k, rows, batch size, rate, warm-up and decay, the seed, and after how many rows a latent is dead; SAELens
    starts, normalises its decoder and revives dead latents in its own way.
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer, SAETrainerConfig

    device, c = choose_device(place.device), config
    rows = Rows.of(place.part, place.site, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(c.seed)
        assert c.k is not None
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=len(rows.mean), d_sae=c.d_sae, k=c.k, device=str(device)))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=c.steps * c.batch_size, train_batch_size_samples=c.batch_size, lr=c.lr, lr_end=c.lr, device=str(device),
            dead_feature_window=-(-c.dead_after // c.batch_size),
        ),
        sae,
        data_provider=iter(()),
    )  # fmt: skip
    # Not its own schedule, whose warm-up and decay may not overlap: it would drop the warm-up.
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: lr_at(step, c) / c.lr)
    curve: list[tuple[int, float, float]] = []
    every, done, seconds, waiting = max(1, round(HELD_OUT_EVERY * c.steps)), 0, 0.0, time.monotonic()
    with torch.enable_grad():
        for x in rows.training(c.batch_size, c.rows, c.seed_of_order):
            trainer.maybe_reset_sparsity()
            told = trainer.step(x)
            trainer.n_training_steps += 1
            done += len(x)
            seconds += time.monotonic() - waiting
            step = trainer.n_training_steps
            if step % every == 0 or step == c.steps:
                if not _finite(told.loss, sae):
                    return Outcome(None, seconds)
                curve.append((done, seconds, float(evaluate_rows(_ours(trainer.sae, device), held_out_rows(rows))["fvu"])))
                if progress:
                    progress("train", done, c.rows, {"fvu": curve[-1][2]})
            waiting = time.monotonic()
    finished = _ours(trainer.sae, device).fold_normalisation(rows.mean, rows.scale)
    return Outcome(finished, seconds, {"dead_in_training": int(trainer.dead_neurons.sum())}, curve)


def _ours(sae: Any, device: torch.device) -> SAE:
    """As SAELens saves it, and we read it."""
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return load_sae(folder, device)


def _finite(loss: Tensor, sae: torch.nn.Module) -> bool:
    return bool(loss.isfinite()) and all(bool(p.isfinite().all()) for p in sae.parameters())
