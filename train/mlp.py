"""An MLP as an SAE's encoder, trained on the decoder as it is: Adam on the squared error of x̂ = decode(mlp(x)) over training rows.

It begins as the SAE's own encoder. With H ≥ 2·d_in hidden units it can be just that, x = relu(x) − relu(−x); with fewer it has as many of the
leading directions of W_enc as they hold. The other units begin at random, without a say (W_2 is zero there). Only which latents it takes
differs from the SAE at first: always the k largest contributions, k being the SAE's own or, of one that has none, its L0 rounded; so that what it
gains is not gained by more latents.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devices import suitable_threads
from ..errors import SplinterpError
from ..evaluate.metrics import evaluate_rows
from ..infer.encoders import budget_of
from ..infer.fingerprints import sae_fingerprint
from ..infer.mlp import TENSORS, MlpEncoder, decoder_norms, mlp_paths, save_mlp
from ..sae import SAE, decode
from ..store import Store
from .loop import Progress
from .rows import Rows, check_width, raw_rows

# Tuned once: 768 hidden units, 60,000 rows of the embedded model, batches of 512. Half of it came to the same, twice and three times it to worse.
LR = 1e-3
BETAS = (0.9, 0.99)
WARM_UP = 0.05


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """How an MLP encoder is trained.

    Attributes:
        hidden: H, its width. rows: training rows in all, epochs counted. batch_size: rows a step. lr: Adam's, which rises over the first
            twentieth of the steps and then falls to zero. seed: of the hidden units that begin at random, and of the order of the rows.

    Raises:
        SplinterpError: a value that cannot be.
    """

    hidden: int
    rows: int
    batch_size: int = 512
    lr: float = LR
    seed: int = 0

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.rows < 1 or self.batch_size < 1:
            raise SplinterpError(
                f"An MLP encoder needs a width, rows and a batch size of at least 1; got {self.hidden}, {self.rows} and {self.batch_size}."
            )
        if not 0 < self.lr < float("inf"):
            raise SplinterpError(f"The learning rate must be above 0, not {self.lr}.")

    @property
    def steps(self) -> int:
        return -(-self.rows // self.batch_size)

    def lr_at(self, step: int) -> float:
        """The rate at `step`, from 0."""
        rising = (step + 1) / max(1.0, WARM_UP * self.steps)
        return self.lr * min(1.0, rising, (self.steps - step) / self.steps)


@dataclass(frozen=True)
class MlpResult:
    """The encoder, for raw rows; where its weights lie; and what its .json holds of held-out rows and time."""

    encoder: MlpEncoder
    path: Path
    summary: dict[str, Any]


def train_mlp(
    sae: SAE,
    directory: Path,
    store: Store,
    site: str,
    config: MlpConfig,
    device: torch.device,
    *,
    progress: Progress | None = None,
    force: bool = False,
) -> MlpResult:
    """Train an MLP encoder for `sae`, which lies in `directory`, and write it beside it.

    Raises:
        SplinterpError: there is one of this width already, the SAE takes rows of another width, the store has no rows to keep apart, or
            the loss is no number any more: nothing is written then.
    """
    path = mlp_paths(directory, config.hidden)[0]
    if path.exists() and not force:
        raise SplinterpError(f"{path} exists already; give another --width, or --force to replace it.")
    check_width(sae.config.d_in, str(directory), store, site)
    if store.split_rows("train") < 1 or store.split_rows("held_out") < 1:
        raise SplinterpError(f"{store.path} has too few rows ({store.rows:,}) to keep some apart for evaluation; harvest more.")
    sae, begun = sae.to(device), time.monotonic()
    mean = store.site(site).mean
    k, note = budget_of(sae, lambda: next(raw_rows(store, site, device, "train")))
    with suitable_threads(config.hidden * sae.config.d_sae, device):
        before = evaluate_rows(sae, raw_rows(store, site, device, "held_out"), mean)
        mlp = fit_mlp(sae, Rows.of(store, site, device), k, config, progress)
        after = evaluate_rows(sae, raw_rows(store, site, device, "held_out"), mean, mlp.encode)
    summary = {
        **after, "encoder": "mlp", "native": before, "note": note, "settings": asdict(config), "sae": sae_fingerprint(sae),
        "store_fingerprint": store.fingerprint, "site": site, "seconds": time.monotonic() - begun,
    }  # fmt: skip
    return MlpResult(mlp, save_mlp(mlp, sae, directory, summary), summary)


def fit_mlp(sae: SAE, rows: Rows, k: int, config: MlpConfig, progress: Progress | None = None) -> MlpEncoder:
    """The trained encoder, for raw rows.

    Raises:
        SplinterpError: the loss is no number any more.
    """
    norms = decoder_norms(sae)
    atoms = torch.where(norms[:, None] > 0, sae.plain().W_dec / norms[:, None], 0.0)
    b_dec = (sae.b_dec - rows.mean) / rows.scale
    mlp = begin(sae, rows.mean, rows.scale, k, config)
    weights = [getattr(mlp, name).requires_grad_() for name in TENSORS]
    adam = torch.optim.Adam(weights, lr=config.lr, betas=BETAS, fused=True)
    done = 0
    for step, x in enumerate(rows.training(config.batch_size, config.rows, config.seed)):
        for group in adam.param_groups:
            group["lr"] = config.lr_at(step)
        loss = (decode(mlp.sizes(x), atoms, b_dec) - x).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        done += len(x)
        if step % 20 == 0 or done == config.rows:
            if not loss.isfinite():
                raise SplinterpError(
                    f"The MLP encoder diverged by step {step:,}, and nothing is written; give it a lower --lr."
                )
            if progress:
                progress("mlp", done, config.rows, {"fvu": float(loss.detach())})  # of rows whose mean square is 1
    trained = replace(mlp, **{name: getattr(mlp, name).detach() for name in TENSORS})
    return trained.fold_normalisation(rows.mean, rows.scale, norms)


def begin(sae: SAE, mean: Tensor, scale: float, k: int, config: MlpConfig) -> MlpEncoder:
    """The SAE's own encoder as an MLP, of normalised rows (x − mean)/scale and sizes in their units."""
    plain, norms = sae.plain(), decoder_norms(sae)
    W, b = plain.W_enc * norms, (mean @ plain.W_enc + plain.b_enc) * norms / scale
    d_in, d_sae = W.shape
    U, S, V = torch.linalg.svd(W.double(), full_matrices=False)
    r = min(len(S), config.hidden // 2)
    U, V = U[:, :r].to(W), (S[:r, None] * V[:r]).to(W)
    rest = config.hidden - 2 * r
    generator = torch.Generator().manual_seed(config.seed)
    at_random = torch.randn(d_in, rest, generator=generator).div_(d_in**0.5).to(W)
    return MlpEncoder(
        torch.cat([U, -U, at_random], 1), W.new_zeros(config.hidden), torch.cat([V, -V, W.new_zeros(rest, d_sae)]), b,
        torch.ones_like(norms), k, sae.config.architecture == "abstopk",
    )  # fmt: skip
