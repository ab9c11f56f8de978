"""Doing the trainings of a recipe: each once, several at a time, and none that was done before."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from threading import Event, Lock
from typing import Any

import torch

from ...bench.cells import Cells
from ...bench.quality import tuned as tune
from ...quantities import json_safe
from ...sae import SAE, fired_counts
from . import strong
from .data import MEAN, SPREAD, Data
from .experiments import Job
from .published import Published, trained
from .strong import Strong, Tuned

PICTURES = 8  # images, and filters

# Told steps done, steps in all (guessed where a grid may grow), and what was done last.
Progress = Callable[[int, int, str], None]


class _Left(Exception):
    """Others failed, or the user asked for an end."""


@dataclass(frozen=True)
class Outcome:
    """What came of a training, by seed: `cells` (None: it diverged); of a tuned one its `lr`, and validation FVU by rate (`grid`)."""

    cells: list[dict[str, Any] | None]
    lr: float | None = None
    grid: dict[float, float] = field(default_factory=dict)


class Workers:
    """Trains jobs in `workers` threads; torch leaves Python's lock while it computes."""

    def __init__(self, recipe: str, data: Data, cells: Cells, workers: int, progress: Progress | None = None) -> None:
        self.recipe, self.data, self.cells, self.workers, self.progress = recipe, data, cells, workers, progress
        self._lock, self._leave = Lock(), Event()
        self._seeds: dict[Job, Sequence[int]] = {}
        self._done = self._expected = 0

    def run(self, seeds: Mapping[Job, Sequence[int]]) -> Mapping[Job, dict[str, Outcome]]:
        """Each job's outcome with its seeds, by stage. Where the user interrupts, or one fails, the others end within a step."""
        jobs, self._seeds = list(seeds), dict(seeds)
        self._done, self._expected = 0, sum(map(self._steps, jobs))
        for seed in {seed for of in seeds.values() for seed in of}:  # read here, and not by whoever comes first
            for over_all in {isinstance(job, Published) and job.over_all for job in jobs}:
                self.data.split(seed, 1, over_all)
        # The longest first, so that nobody is left with it at the end.
        order = sorted(jobs, key=self._steps, reverse=True)
        with ThreadPoolExecutor(self.workers) as pool:
            futures: dict[Job, Future[dict[str, Outcome]]] = {job: pool.submit(self._done_by, job) for job in order}
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
            finally:
                self._leave.set()
                pool.shutdown(cancel_futures=True)
        failed = [e for f in futures.values() if not f.cancelled() and (e := f.exception()) and not isinstance(e, _Left)]
        if failed:
            raise failed[0]
        return {job: futures[job].result() for job in jobs}

    def _steps(self, job: Job) -> int:
        seeds = len(self._seeds[job])
        return job.steps * (seeds if isinstance(job, Published) else seeds - 1 + len(job.grid.factors))

    def _check(self) -> None:
        if self._leave.is_set():
            raise _Left

    def _done_by(self, job: Job) -> dict[str, Outcome]:
        self._check()
        seeds = self._seeds[job]
        if isinstance(job, Published):
            return {strong.SOLVED: Outcome([self._published(job, seed) for seed in seeds])}
        outcomes = {}
        for stage in job.stages:

            def fvu_at(lr: float, stage: str = stage) -> float:
                found = self._tuned(job, lr, seeds[0])[stage]
                return found["validation_fvu"] if found and found["validation_fvu"] is not None else float("inf")

            grid, _ = tune(fvu_at, job.grid.factors, job.grid.unit, job.grid.extensions)
            lr = min(grid, key=lambda rate: (grid[rate], rate))
            outcomes[stage] = Outcome([self._tuned(job, lr, seed)[stage] for seed in seeds], lr, grid)
        return outcomes

    def _published(self, job: Published, seed: int) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            sae, told = trained(job, self.data.split(seed, job.rows, job.over_all), seed, self._check)
            return told | self._pictures(job, seed, sae)

        return self._cell(asdict(job), seed, job.steps, make)

    def _tuned(self, job: Strong | Tuned, lr: float, seed: int) -> dict[str, Any]:
        """By stage."""
        settings = {**asdict(job.at(lr)), "decay": True} if isinstance(job, Tuned) else asdict(job.at(lr, seed))

        def make() -> dict[str, Any]:
            data = self.data.split(seed, job.rows)
            if isinstance(job, Tuned):
                sae, told = strong.tuned(job.at(lr), data, seed, self._check)
            else:
                sae, told = strong.trained(job.at(lr, seed), data, self._check)
            if sae:
                told[strong.SOLVED] |= self._pictures(job, seed, sae)
            return told

        return self._cell(settings, seed, job.steps, make)

    def _cell(self, settings: dict[str, Any], seed: int, steps: int, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        identity = {"recipe": self.recipe, "data": self.data.fingerprint, "settings": settings, "seed": seed}
        with self._lock:
            found = self.cells.find(identity)
        if found is None:
            made = json_safe(make())
            with self._lock:
                found = self.cells.add(identity, made)
        with self._lock:
            self._done += steps
            if self.progress:
                self.progress(self._done, max(self._done, self._expected), f"{settings['rows']:,} rows, seed {seed}")
        return found

    def _pictures(self, job: Job, seed: int, sae: SAE) -> dict[str, Any]:
        """Of the first seed's SAEs of all images."""
        if not self.data.image or seed != self._seeds[job][0] or job.rows != self.data.rows:
            return {}
        test = self.data.split(seed, 1).test[:PICTURES]
        # Those latents that these images use most.
        often = fired_counts(sae.encode(self.data.split(seed, 1).test), sae.config.d_sae)
        used = often.argsort(descending=True, stable=True)[:PICTURES]
        pixels = lambda rows: packed((rows * SPREAD + MEAN).clamp(0, 1))  # noqa: E731
        filters = lambda rows: packed(0.5 + 0.5 * rows / rows.abs().amax(1, keepdim=True).clamp(min=1e-12))  # noqa: E731
        return {
            "pictures": {
                "images": pixels(test), "reconstructions": pixels(sae(test)), "encoder": filters(sae.W_enc.T[used]),
                "decoder": filters(sae.W_dec[used]),
            }
        }  # fmt: skip


def packed(rows: torch.Tensor) -> str:
    """Rows [N, 784] of values from 0 to 1 as 8 bits each, in base64."""
    return base64.b64encode((rows * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def default_workers() -> int:
    """As many as there are cores for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
