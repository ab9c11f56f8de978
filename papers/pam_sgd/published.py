"""Training as the paper has it, as its code does, and as the paper has it with tuned rates: PAM-SGD (Algorithm 3.1) and the gradient training beside it.

    (a) an epoch of Adam on the encoder, M updates a batch, the decoder standing still;
    (b) the decoder in closed form over all rows;

and again. What sets the two apart is the settings' (settings.py): this file only does what `Published` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...evaluate import evaluate_rows
from ...sae import SAE, Architecture, SAEConfig
from ...train import Penalties, solve_decoder
from ..alternation import AT_ONCE, solved, statistics_of
from .data import Split

CURVE_ROWS = 512  # test rows that the curves are of
LLM_FIRST = 256  # test rows that the code's sparsity is measured on

# Called now and then; raises where the training is to end.
Check = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One training of the presets paper and paper-code, or (`Tuned`) of strong.

    Attributes:
        arm: sgd (Adam on everything) or pam. architecture: topk (the k largest, signed, below zero as zero), abstopk (the k of largest
            magnitude, signs kept) or standard (ReLU).
        rows: to train on. test_batch: rows of the batches whose losses are averaged for the reported one; None: all rows alike.
        scale: of the encoder's random start. matched: whether the decoder starts as the projection on the encoder's directions; else at
            random with `decoder_scale`.
        tied: the decoder is the encoder's transpose (sgd). updates: M, on the same batch.
        l1: of Σ|z| a row, in the training loss, and (`penalised`) in the reported one. l2: of ‖W_enc‖² + ‖b_enc‖², in both.
        weight_decay: Adam's, of the weights, and (`decay_biases`) the biases. pull: μ = ν, towards the encoder at the last epoch's end.
        clip: largest norm of the gradient; the decoder's bias, whose gradient nobody clears, counts into it. None: as it comes.
        solve_first: (b) before (a), so that the decoder that is evaluated belongs to the encoder of an epoch ago.
        centred: Theorem C.1. Otherwise weights without a bias, and the mean residual as bias. alpha, beta, mu_dec, nu_dec: the solve's
            penalties, as sums over rows; the anchors are the decoder before. alpha None: a ridge towards the decoder before, chosen on
            validation rows in every solve, and no penalties.
        over_all: normalised with the test rows' part in mean and spread.
    """

    arm: Literal["sgd", "pam"]
    architecture: Architecture
    d_sae: int
    k: int
    rows: int
    epochs: int
    batch_size: int
    lr: float
    scale: float
    matched: bool = False
    decoder_scale: float = 0.0
    tied: bool = False
    updates: int = 1
    l1: float = 0.0
    l2: float = 0.0
    penalised: bool = False
    test_batch: int | None = None
    weight_decay: float = 0.0
    decay_biases: bool = False
    pull: float = 0.0
    clip: float | None = None
    solve_first: bool = False
    centred: bool = True
    alpha: float | None = 0.0
    beta: float = 0.0
    mu_dec: float = 0.0
    nu_dec: float = 0.0
    over_all: bool = False

    @property
    def steps(self) -> int:
        """Gradient steps, for the progress."""
        return self.epochs * self.updates * math.ceil(self.rows / self.batch_size)


class Net:
    """The weights in training, float32: W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in] (tied: None), b_dec."""

    def __init__(self, d_in: int, setting: Published, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.setting = s = setting
        self.W_enc = torch.randn(d_in, s.d_sae, generator=generator).mul_(s.scale)
        self.b_enc, self.b_dec = torch.zeros(s.d_sae), torch.zeros(d_in)
        self.W_dec: Tensor | None = None
        if s.matched:
            self.W_dec = (self.W_enc / self.W_enc.square().sum(0)).T.contiguous()
        elif not s.tied:
            self.W_dec = torch.randn(s.d_sae, d_in, generator=generator).mul_(s.decoder_scale)
        decoder = [] if s.arm == "pam" else [self.b_dec] if self.W_dec is None else [self.W_dec, self.b_dec]
        self.trained = [p.requires_grad_() for p in (self.W_enc, self.b_enc, *decoder)]
        groups = [
            {"params": [p], "weight_decay": s.weight_decay if p.dim() > 1 or s.decay_biases else 0.0} for p in self.trained
        ]
        self.optimizer = torch.optim.Adam(groups, lr=s.lr, fused=True)
        self.clipped = self.trained
        if s.clip is not None and s.arm == "pam":
            self.clipped = [*self.trained, self.b_dec.requires_grad_()]

    def codes(self, x: Tensor) -> Tensor:
        """Rows [N, d_in] -> dense codes [N, d_sae], differentiable."""
        pre = torch.addmm(self.b_enc, x, self.W_enc)
        if self.setting.architecture == "standard":
            return pre.relu()
        signed = self.setting.architecture == "abstopk"
        chosen = (pre.detach().abs() if signed else pre.detach()).topk(self.setting.k, dim=1).indices
        values = pre.gather(1, chosen)
        return torch.zeros_like(pre).scatter(1, chosen, values if signed else values.relu())

    def step(self, x: Tensor, anchors: list[Tensor]) -> None:
        """M updates on one batch [N, d_in]."""
        s = self.setting
        for _ in range(s.updates):
            self.optimizer.zero_grad()
            z = self.codes(x)
            loss = (torch.addmm(self.b_dec, z, self.W_enc.T if self.W_dec is None else self.W_dec) - x).square().mean()
            if s.l1:
                loss = loss + s.l1 * z.abs().sum(1).mean()
            for p, anchor in zip((self.W_enc, self.b_enc), anchors, strict=True):
                if s.l2:
                    loss = loss + s.l2 * p.square().sum()
                if s.pull:
                    loss = loss + s.pull * (p - anchor).square().sum()
            loss.backward()
            if s.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.clipped, s.clip)
            self.optimizer.step()

    @torch.no_grad()
    def solve(self, rows: Tensor, validation: Tensor | None = None) -> None:
        """(b) over all rows [N, d_in], in float64; where the ridge is to be chosen, on `validation` rows."""
        assert self.W_dec is not None
        s = self.setting
        if s.alpha is None:
            assert validation is not None
            best = solved(self.sae(), rows, validation, None)
            self.W_dec.copy_(best.W_dec)
            self.b_dec.copy_(best.b_dec)
            return
        sums = statistics_of(self.sae(), rows)
        if s.centred:
            decoder = solve_decoder(sums, Penalties(s.alpha, s.beta, s.mu_dec, s.nu_dec), W0=self.W_dec, b0=self.b_dec)
            W, b = decoder.W_dec, decoder.b_dec
        else:  # Theorem C.1 with a bias that costs infinitely much has none, and nothing is centred
            W = solve_decoder(sums, Penalties(s.alpha, math.inf)).W_dec
            b = (sums.sum_x - sums.sum_z @ W) / sums.rows
        self.W_dec.copy_(W)
        self.b_dec.copy_(b)

    def sae(self) -> SAE:
        """The SAE of these weights, which it does not share."""
        s, W_dec = self.setting, self.W_enc.T if self.W_dec is None else self.W_dec
        config = SAEConfig(s.architecture, len(self.b_dec), s.d_sae, None if s.architecture == "standard" else s.k)
        return SAE(config, *(t.detach().clone().contiguous() for t in (self.W_enc, self.b_enc, W_dec, self.b_dec)))


def fit(
    setting: Published, data: Split, seed: int, check: Check = lambda: None, after: Callable[[SAE], None] = lambda sae: None,
    decay: bool = False,
) -> SAE:  # fmt: skip
    """The SAE of the training rows; `after` is told that of every epoch. `decay`: the rate falls to zero, in a line."""
    rows, generator = data.train, torch.Generator().manual_seed(seed)
    net, step = Net(rows.shape[1], setting, seed), 0
    for _ in range(setting.epochs):
        if setting.arm == "pam" and setting.solve_first:
            net.solve(rows, data.validation)
        anchors = [net.W_enc.detach().clone(), net.b_enc.detach().clone()]
        for batch in torch.randperm(len(rows), generator=generator).split(setting.batch_size):
            check()
            if decay:
                for group in net.optimizer.param_groups:
                    group["lr"] = setting.lr * (1 - step * setting.updates / setting.steps)
            net.step(rows[batch], anchors)
            step += 1
        if setting.arm == "pam" and not setting.solve_first:
            net.solve(rows, data.validation)
        after(net.sae())
    return net.sae()


def trained(setting: Published, data: Split, seed: int, check: Check) -> tuple[SAE, dict[str, Any]]:
    """The SAE, and the figures of its cell: `loss` as the preset reports it, `mse`, `fvu`, `l0`, `dead`, `l0_first`, and by epoch `curve`."""
    curve: list[float] = []
    some = data.test[:CURVE_ROWS]
    sae = fit(setting, data, seed, check, lambda now: curve.append(mean_loss(setting, now, some)))
    return sae, {**figures(sae, data.test), "loss": mean_loss(setting, sae, data.test), "curve": curve}


@torch.no_grad()
def mean_loss(setting: Published, sae: SAE, rows: Tensor) -> float:
    """What the preset reports of rows [N, d_in]: the mean squared error of an entry, or the mean over batches with the penalties."""
    s, losses, weights = setting, [], []
    for x in rows.split(s.test_batch or AT_ONCE):
        codes = sae.encode(x)
        loss = float((sae.decode(codes) - x).square().mean())
        if s.penalised:
            values = codes if isinstance(codes, Tensor) else codes.values
            loss += s.l1 * float(values.abs().sum()) / len(x) + s.l2 * float(
                sae.W_enc.square().sum() + sae.b_enc.square().sum()
            )
        losses.append(loss)
        weights.append(1 if s.test_batch else len(x))
    return sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)


def figures(sae: SAE, rows: Tensor) -> dict[str, float]:
    """Of rows [N, d_in]: `mse` an entry, `fvu`, `l0`, `dead` (share of the latents), and `l0_first` of the first LLM_FIRST."""
    told = evaluate_rows(sae, rows.split(AT_ONCE), rows.mean(0))
    first = evaluate_rows(sae, [rows[:LLM_FIRST]])
    return {"mse": told["mse"], "fvu": told["fvu"], "l0": told["l0"], "dead": told["dead_fraction"], "l0_first": first["l0"]}
