"""The optimal decoder for a finished SAE, whoever trained it: one pass over a store, and nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..devices import suitable_threads
from ..errors import SplinterpError
from ..evaluate.metrics import evaluate_rows, paired_gain
from ..sae import SAE, Architecture, save_sae
from ..store import Store
from ..store.files import Lock
from .budget import check_machine, codes_bytes, enough_memory, solves_by_cg
from .config import Activation, TrainConfig
from .decoder import Penalties
from .directory import RUN, SUMMARY, check_is_run, describe, remove_run, write_json
from .last_solve import WithoutGram, last_solve
from .loop import Progress
from .rows import check_width, raw_rows

# A solved decoder is taken if its gain on the validation rows is more than so many of its standard errors. With 3, one that does worse on the
# held-out rows, of which there are about twice as many, is taken in at most one of 500 cases, whatever its true gain; what is forgone is small.
STANDARD_ERRORS = 3.0

# Whose codes are as sparse as theirs.
_ACTIVATIONS: dict[Architecture, Activation] = {"topk": "topk", "abstopk": "topk", "standard": "relu", "jumprelu": "jumprelu"}


@dataclass(frozen=True)
class RefitResult:
    """The SAE that was written, the directory, and what summary.json holds."""

    sae: SAE
    directory: Path
    summary: dict[str, Any]


def refit(
    sae: SAE,
    source: str,
    store: Store,
    site: str,
    out: Path,
    *,
    ridge: float | None = None,
    memory: int | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    force: bool = False,
) -> RefitResult:
    """Write `sae` with the decoder that is optimal for its codes over the store's training rows (Theorem C.1) into the directory `out`.

    Codes stay what they are. Conventions by which the decoder takes part in encoding are folded into the encoder, so that they do. Where the
    solved decoder is not clearly better on the validation rows (few rows, and an SAE that knows them), the SAE is written as it was; the
    held-out rows have no say in it, so that their figures are honest. Only a store too small for validation rows is judged by held-out ones.

    Args:
        sae: of the store's raw rows, as `load_sae` gives it. source: where it comes from, for run.json.
        ridge: relative, towards the present decoder; None: chosen on the validation rows (see `last_solve`).
        memory: bytes that the solve may take; None: half of the device's. Where the Gram matrix takes more, conjugate gradients.

    Raises:
        SplinterpError: `out` exists, the SAE is of another width, or the store has too few rows, or there is not the memory.
    """
    device, d_in, d_sae = torch.device(device), sae.config.d_in, sae.config.d_sae
    if out.exists() and not force:
        raise SplinterpError(f"{out} exists already; give another --out, or --force to replace it.")
    check_width(d_in, source, store, site)
    rows = store.split_rows("train")
    if rows < 1 or store.split_rows("held_out") < 1:
        raise SplinterpError(f"{store.path} has too few rows ({store.rows:,}) to keep some apart for evaluation; harvest more.")
    # A run that is nothing but its last solve.
    config = TrainConfig(
        method="pam", activation=_ACTIVATIONS[sae.config.architecture], d_sae=d_sae, k=sae.config.k or d_sae, rows=rows, batch_size=4096,
        lr=1.0, ridge=ridge, memory=memory,
    )  # fmt: skip
    without_gram = None
    if solves_by_cg(config, device):
        without_gram = WithoutGram(codes_bytes(config, d_in, device), out)
    else:
        check_machine(config, device)
    if out.exists():
        check_is_run(out)
    sae = sae.to(device)
    with _held(out):
        return _refit(sae, source, store, site, out, config, without_gram, device, progress)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The directory, made if need be, for this process alone; one that was made for nothing goes again.

    Raises:
        StoreError: another process is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out)
    try:
        yield
    finally:
        lock.release(remove=True)
        if not any(out.iterdir()):
            out.rmdir()


def _refit(
    sae: SAE, source: str, store: Store, site: str, out: Path, config: TrainConfig, without_gram: WithoutGram | None, device: torch.device,
    progress: Progress | None,
) -> RefitResult:  # fmt: skip
    """`refit`, once everything that can be refused has been, in a directory that nobody else writes to."""
    mean, begun, rows, done = store.site(site).mean, time.monotonic(), store.split_rows("train"), 0

    def tell(n: int) -> None:
        nonlocal done
        done += n
        if progress:
            progress("refit", done, rows, {"fvu before": float(before["fvu"])})

    with suitable_threads(sae.W_enc.numel(), device):
        before = evaluate_rows(sae, raw_rows(store, site, device, "held_out"), mean)
        by = "validation" if store.split_rows("validation") else "held_out"
        validation = raw_rows(store, site, device, "validation") if by == "validation" else None
        train_rows = raw_rows(store, site, device, "train")
        with enough_memory(config, device, "lower --memory."):
            solution = last_solve(sae, train_rows, Penalties(), config.ridge, tell, without_gram, validation=validation)
        assert solution  # there are no other ranks
        solved, told = solution
        after = evaluate_rows(solved, raw_rows(store, site, device, "held_out"), mean)
        gain, error = paired_gain(sae, solved, raw_rows(store, site, device, by))
        kept = not (after["fvu"] < before["fvu"] if by == "held_out" else gain > STANDARD_ERRORS * error)
    metadata = {**solved.config.metadata, "refit_on": store.fingerprint}
    written = sae if kept else replace(solved, config=replace(solved.config, metadata=metadata))
    if (out / RUN).exists():
        remove_run(out)
    described = describe(store, site, config, device)
    write_json(out / RUN, {**described, "settings": {"refit_of": source, "ridge": config.ridge, "memory": config.memory}})
    save_sae(written, out)
    summary = {
        **(before if kept else after),
        "encoder": "native",
        "method": "refit",
        "before_refit": before,
        "solved": after,
        "kept": kept,
        "decided_by": {
            "split": by,
            "gain": gain / sae.config.d_in,
            "standard_error": error / sae.config.d_in,
            "n_rows": store.split_rows(by),
        },
        "last_solve": asdict(told),
        "seconds": time.monotonic() - begun,
    }
    write_json(out / SUMMARY, summary)
    return RefitResult(written, out, summary)
