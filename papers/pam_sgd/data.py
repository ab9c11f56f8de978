"""What the experiments are made of: MNIST's images, or a store's rows in the paper's proportions; by seed, training rows in an order of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...errors import SplinterpError
from ...harvest.hub import hub_commit
from ...store import Store
from ...store.import_idx import idx_source
from ..gemma import Sizes, ZScored

HUB = "ylecun/mnist"
SIDE = 28
MEAN, SPREAD = 0.1307, 0.3081  # of MNIST's training pixels, which run from 0 to 1; as everybody takes them
VALIDATION_OF_TEST = 5  # one in so many of the test file's images is there to choose by, where the training file is whole
SPLIT = (0.8, 0.1, 0.1)  # of a single file
PLACES = ("", "MNIST/raw", "raw")  # torchvision's root, or the folder itself


class Split(NamedTuple):
    """Rows [N, d_in] in float32: to train on, to choose by, to report."""

    train: Tensor
    validation: Tensor
    test: Tensor


class Data(Protocol):
    """Rows to train on and to report, by seed."""

    @property
    def fingerprint(self) -> str:
        """Of the rows."""
        ...

    @property
    def told(self) -> dict[str, Any]:
        """What they are, for readers."""
        ...

    @property
    def rows(self) -> int:
        """In the whole training set."""
        ...

    @property
    def d_in(self) -> int:
        """Their width."""
        ...

    @property
    def image(self) -> bool:
        """Whether they are SIDE × SIDE pixels."""
        ...

    def split(self, seed: int, rows: int, over_all: bool = False) -> Split:
        """The first `rows` training rows in this seed's order; with fewer, some of the same. `over_all`: normalised as the paper's code does."""
        ...


@dataclass(frozen=True)
class Mnist:
    """Images [N, 784], normalised by MEAN and SPREAD as in the paper."""

    whole: Split
    told: dict[str, Any]
    fingerprint: str
    image: bool = True

    @property
    def rows(self) -> int:
        return len(self.whole.train)

    @property
    def d_in(self) -> int:
        return self.whole.train.shape[1]

    def split(self, seed: int, rows: int, over_all: bool = False) -> Split:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))
        return self.whole._replace(train=self.whole.train[order[:rows]])


@dataclass(frozen=True)
class Activations:
    """A store's rows, z-scored: as many as the paper has for each latent. Each seed has training rows of its own."""

    store: Store
    site: str
    sizes: Sizes
    told: dict[str, Any]
    image: bool = False
    _kept: dict[tuple[int, bool], Split] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, site: str, latents: int | None) -> Activations:
        """Raises SplinterpError: the store has not the rows."""
        sizes = Sizes.of_site(store, site, latents)
        told = {
            "source": str(store.path), "site": site, "d_in": store.site(site).d, "model": store.attributes.get("model"),
            "split": f"{sizes.rows:,} training rows, shuffled anew for each seed; every figure is of held-out rows",
        }  # fmt: skip
        return cls(store, site, sizes, told)

    @property
    def fingerprint(self) -> str:
        return f"{self.store.fingerprint}/{self.site}"

    @property
    def rows(self) -> int:
        return self.sizes.rows

    @property
    def d_in(self) -> int:
        return self.store.site(self.site).d

    def split(self, seed: int, rows: int, over_all: bool = False) -> Split:
        found = self._kept.get((seed, over_all))
        if found is None:
            z = ZScored.of(self.store, self.site, self.rows, seed, over_all)
            found = self._kept[seed, over_all] = Split(z.train, z.validation, z.held_out)
        return found._replace(train=found.train[:rows])


def mnist(folder: Path | None) -> Mnist:
    """MNIST from the IDX files in `folder`, or, where none is named, from its usual place on huggingface.co.

    With both files training rows are the training file's, as in the paper, and of the test file's images one in five is there to choose by.
    A single file's images are split 8 : 1 : 1.

    Raises:
        SplinterpError: there are no such files, or they hold no images of 28 × 28; or the network cannot be reached.
    """
    train, test, source = _from_hub() if folder is None else (*_from_folder(folder), str(folder))
    if train is not None and test is not None:
        one_in = len(test) // VALIDATION_OF_TEST
        parts = Split(train, test[:one_in], test[one_in:])
        how = "training file for training; of the test file's images the first fifth to choose by, the rest to report"
    else:
        only = train if train is not None else test
        assert only is not None
        first, second = (round(len(only) * sum(SPLIT[:n])) for n in (1, 2))
        parts = Split(only[:first], only[first:second], only[second:])
        name = "training" if train is not None else "test (t10k)"
        how = f"only MNIST's {name} file was given: its {len(only):,} images are split 8 : 1 : 1"
    counts = {name: len(part) for name, part in parts._asdict().items()}
    if min(counts.values()) < 1:
        raise SplinterpError(
            f"{source} holds too few images to split into training, validation and test; give MNIST's own files."
        )
    told = {"source": source, "d_in": SIDE * SIDE, **counts, "split": how}
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.to(torch.uint8).numpy().tobytes())
    return Mnist(Split(*((part / 255 - MEAN) / SPREAD for part in parts)), told, digest.hexdigest()[:16])


def _from_folder(folder: Path) -> tuple[Tensor | None, Tensor | None]:
    if not folder.is_dir():
        raise SplinterpError(f"There is no folder {folder}; give --data the one that holds MNIST's IDX files, or leave it out.")
    for place in PLACES:
        found = [_images(folder / place, name) for name in ("train", "t10k")]
        if any(images is not None for images in found):
            return found[0], found[1]
    raise SplinterpError(
        f"{folder} holds neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte (.gz or not); give another --data."
    )


def _images(folder: Path, name: str) -> Tensor | None:
    """Pixels [N, 784] from 0 to 255 of the file that is called so, if it is there."""
    files = sorted(
        path for path in folder.glob(f"{name}-images?idx3-ubyte*") if path.name.removesuffix(".gz").endswith("ubyte")
    )
    if not files:
        return None
    source = idx_source(files[0], None)
    if set(source.sites.values()) != {SIDE * SIDE}:
        raise SplinterpError(
            f"{files[0]} holds rows of width {next(iter(source.sites.values()))}, not images of 28 × 28; give MNIST's."
        )
    return torch.cat([next(iter(rows.values())) for rows, _ in source.slabs()])


def _from_hub() -> tuple[Tensor, Tensor, str]:
    """Raises SplinterpError: it cannot be reached, or is not what it was."""
    commit = hub_commit(HUB, "dataset", None, SplinterpError)
    if commit is None:
        raise SplinterpError(
            f"MNIST is read from huggingface.co ({HUB}), which cannot be reached; connect to the network, or name a folder with its IDX "
            "files by --data."
        )
    import numpy as np
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    pixels: Callable[[Any], Tensor] = lambda rows: torch.from_numpy(  # noqa: E731
        np.stack([np.asarray(image, np.float32).reshape(-1) for image in rows["image"]])
    )
    try:
        train, test = (pixels(load_dataset(HUB, split=name, revision=commit)) for name in ("train", "test"))
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError) as error:
        told = str(error).strip().splitlines()
        raise SplinterpError(f"MNIST cannot be read from {HUB}: {told[0] if told else type(error).__name__}.") from error
    return train, test, f"huggingface.co/datasets/{HUB}@{commit[:8]}"
