"""A finished SAE beside the rows that it takes: what every command and function on an SAE begins with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast, get_args

import torch
from torch import Tensor

from .. import store as stores
from ..devices import choose_device
from ..errors import SplinterpError
from ..infer import Encoder, EncoderOptions, make_encoder
from ..sae import SAE
from ..sae import load_sae as read_sae
from ..sites import site_of, trained_elsewhere
from ..store import Site, Store
from ..store.batches import Split
from ..store.places import Location
from ..train import check_width, raw_rows
from .hub import SCHEME, fetch


class Made(Protocol):
    """What training or a refit comes to: an SAE, and where it lies."""

    @property
    def sae(self) -> SAE: ...
    @property
    def directory(self) -> Path: ...


AnySAE = SAE | Made | str | os.PathLike[str]  # one in memory, a result, or a directory
AnyStore = Store | Location


class Opened(NamedTuple):
    """An SAE and a site of a store whose rows it takes.

    directory: where the SAE lies; None: in memory alone.
    """

    sae: SAE
    directory: Path | None
    store: Store
    site: Site
    device: torch.device

    def rows(self, split: Split) -> Iterator[Tensor]:
        """Rows of a split in the store's order, float32 [≤ 4096, d_in]."""
        return raw_rows(self.store, self.site.name, self.device, split)

    def sample(self) -> Tensor:
        """Some training rows."""
        return next(self.rows("train"))

    def elsewhere(self) -> str | None:
        """A note where the SAE was trained on another store."""
        return trained_elsewhere(self.sae, self.store, told(self.directory))

    def encoder(self, options: EncoderOptions) -> Encoder:
        """The encoder that the options speak of."""
        return make_encoder(self.sae, options, self.directory, self.sample)


def open_both(sae: AnySAE, store: AnyStore, site: str | None = None, device: str = "auto") -> Opened:
    """Open both where they are not open yet.

    Args:
        site: None: the SAE's own, or the store's only one.

    Raises:
        SplinterpError: one of them is missing, or they do not go together.
    """
    on = choose_device(device)
    loaded, directory = open_sae(sae, on)
    opened = store if isinstance(store, Store) else stores.open(store)
    chosen = opened.site(site or site_of(loaded, opened))
    check_width(loaded.config.d_in, told(directory), opened, chosen.name)
    return Opened(loaded, directory, opened, chosen, on)


def open_sae(sae: AnySAE, device: str | torch.device = "cpu") -> tuple[SAE, Path | None]:
    """The SAE on the device, and where it lies. Raises SAEError as `load_sae`."""
    if isinstance(sae, SAE):
        return sae.to(device), None
    if isinstance(sae, str | os.PathLike):
        directory = fetch(sae) if isinstance(sae, str) and sae.startswith(SCHEME) else Path(sae)
        return read_sae(directory, device), directory
    return sae.sae.to(device), sae.directory


def load_sae(sae: AnySAE, device: str | torch.device = "cpu") -> SAE:
    """Read an SAE in SAELens's format, ours or SAELens's own, in float32: a directory, or hf://user/repo/folder[@revision] on the hub.

    Raises:
        SAEError: no such directory or place on the hub, not an SAE, damaged, or of a kind that is not supported.
    """
    return open_sae(sae, device)[0]


def told(directory: Path | None) -> str:
    """Where an SAE lies, in words."""
    return "memory" if directory is None else str(directory)


def split_of(name: str) -> Split:
    """A split by its name. Raises SplinterpError for another one."""
    if name not in get_args(Split):
        raise SplinterpError(f"There is no split '{name}' of the rows; there are {', '.join(get_args(Split))}.")
    return cast("Split", name)
