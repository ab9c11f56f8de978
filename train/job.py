"""A training job: what `train` is asked for, worked out against the store by all ranks alike, told of, and then done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from .. import store as stores
from ..devices import choose_device
from ..ranks import Ranks
from ..store import Site, Store
from ..store.places import Location
from .axes import Member, members, parse_axes
from .config import TrainConfig
from .group import Group, joined_ranks
from .loop import Progress
from .run import train
from .settings import TrainOptions
from .stages import TrainResult
from .sweep import MemberResult, train_sweep
from .training import CHECKPOINT_EVERY, Tell


@dataclass(frozen=True)
class Job:
    """One SAE to train, or the `saes` of a sweep.

    Attributes:
        config: the settings; of a sweep those of its first SAE. rows: training rows of the store. out: the directory to leave.
    """

    store: Store
    site: Site
    rows: int
    config: TrainConfig
    saes: list[Member]
    out: Path
    device: torch.device
    group: Group

    def train(
        self, progress: Progress | None, tell: Tell, *, force: bool = False, resume: bool = False,
        checkpoint_every: float = CHECKPOINT_EVERY, logger: str = "none",
    ) -> TrainResult:  # fmt: skip
        """Train the one SAE: see `run.train`."""
        self._tell_beginning(resume, tell)
        return train(
            self.store, self.site.name, self.config, self.out, self.device, progress, force, resume=resume,
            checkpoint_every=checkpoint_every, logger=logger, tell=tell, group=self.group,
        )  # fmt: skip

    def train_sweep(
        self, progress: Progress | None, tell: Tell, *, force: bool = False, resume: bool = False,
        checkpoint_every: float = CHECKPOINT_EVERY, logger: str = "none",
    ) -> list[MemberResult]:  # fmt: skip
        """Train the SAEs of the sweep: see `sweep.train_sweep`."""
        self._tell_beginning(resume, tell)
        return train_sweep(
            self.store, self.site.name, self.saes, self.out, self.device, progress, force, resume=resume,
            checkpoint_every=checkpoint_every, logger=logger, tell=tell, group=self.group,
        )  # fmt: skip

    def _tell_beginning(self, resume: bool, tell: Tell) -> None:
        if resume and self.group.first and not self.out.exists():
            tell(f"There is nothing to go on with at {self.out}: the training begins.")


@contextmanager
def job(
    store: Store | Location, site: str | None, options: TrainOptions, sweep: Sequence[str], out: Path | None, device: str
) -> Iterator[Job]:
    """Look at the store and settle what is trained; within the block the ranks that torchrun started stay together.

    Args:
        sweep: axes ("k=16,32"); none: one SAE. out: None: a name of its own in runs/, from the store's, the method's and the time.

    Raises:
        SplinterpError: settings that cannot be, no such store or site, or no such device.
    """
    ranks = Ranks.of_environment()
    on = choose_device(ranks.device(device, torch.cuda.device_count()))
    with joined_ranks(ranks, on) as group:
        with group.agreed():
            axes = parse_axes(sweep)
            opened = store if isinstance(store, Store) else stores.open(store)
            chosen, rows = opened.site(site), opened.split_rows("train")
            saes = members(options, axes, chosen.d, rows) if axes else []
            config = saes[0].config if saes else options.config(chosen.d, rows)
        named = Path(group.tell(str(out or free_run_name(opened, "sweep" if axes else options.method))))
        yield Job(opened, chosen, rows, config, saes, named, on, group)


def free_run_name(store: Store, what: str) -> Path:
    """A directory in runs/ for what is made of a store now."""
    return Path("runs") / f"{store.path.name.removesuffix('.zarr')}-{what}-{datetime.now():%Y%m%d-%H%M%S}"
