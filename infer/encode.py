"""The codes of a store's rows, as a store of codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..sae import SAE, Codes
from ..store import Store
from ..store.batches import Split, plan_epoch
from .codes_store import CodesStore, write_codes
from .encoders import Encoder
from .fingerprints import sae_fingerprint

BATCH = 4096


@torch.no_grad()
def encode_store(
    sae: SAE,
    source: Path | None,
    encoder: Encoder,
    store: Store,
    site: str,
    split: Split,
    out: Path,
    device: torch.device,
    *,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> CodesStore:
    """Write the codes of a split's rows, in the store's order, into a store of codes: with split "all" row i is the store's row i.

    Memory does not grow with the number of rows.

    Args:
        source: where the SAE lies; None: in memory. device: that rows are encoded on. progress: told how many rows are done.

    Raises:
        StoreError: `out` is taken, or rows cannot be read. SplinterpError: what the encoder raises.
    """
    spans = plan_epoch(store.rows, BATCH, split=split, shuffle=False)

    def batches() -> Iterator[tuple[np.ndarray, Codes]]:
        done = 0
        for i, x in enumerate(store.batches(site, BATCH, split=split, shuffle=False, device=device)):
            rows = np.concatenate([np.arange(a, b) for a, b in spans.spans(i)])
            yield rows, encoder(x.to(device, torch.float32, copy=True))
            done += len(x)
            if progress:
                progress(done)

    attributes = {
        "sae": str(source.absolute()) if source else None, "sae_fingerprint": sae_fingerprint(sae), "store": str(store.path.absolute()),
        "store_fingerprint": store.fingerprint, "site": site, "split": split, "encoder": encoder.name, "encoder_settings": encoder.settings,
        "splinterp_version": __version__,
    }  # fmt: skip
    return write_codes(out, batches(), sae.config.d_sae, attributes, force=force)
