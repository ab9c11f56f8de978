"""Gradient steps on an SAE's weights: Adam, as the baseline takes them on everything and PAM-SGD on what it does not solve for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..sae import ByLatent, Codes, SparseCodes
from .config import TrainConfig
from .dead import DeadLatents
from .encoder import Weights
from .jumprelu import firing
from .pursuit import DECODER_SHARE, pursue
from .resample import Resampling
from .sparse import Pursuit, add_auxk, dense_pass, sparse_pass, through_relu
from .state import State, joined, part

# Adam's β₁, β₂, and the decoder's rate in units of the encoder's: tuned for both methods on real activations (bench/RESULTS.md). Encoder and
# decoder chase each other, and what a latent does changes fast: long memories (0.9, 0.999) cost 5 % of the FVU in short runs.
BETAS, DECODER_RATE = (0.5, 0.95), 1.5
_ROWS_AT_ONCE = 1024  # of the decoder's gradient on a CPU, so that what is in between stays in the cache


class StepFigures(NamedTuple):
    """What a step tells: the loss, Σ‖x̂ − x‖² over the batch, the codes, their pattern by latent if there is one, x̂ − x [N, d_in], and
    perhaps (see `sparse_pass`) Zᵀx; all as they were in its first forward pass. And the latents that have begun anew since, and of a
    decoder's solve after the step perhaps what `half_steps` tells.
    Of several ranks each has the codes, and what follows from them, of its own share; the rest is the batch's.

    With TopK, a GPU is waited for where the two numbers are read, where dead latents are counted, and by a solve; nowhere else.
    """

    loss: float
    squared_error: float
    codes: Codes
    pattern: ByLatent | None
    error: Tensor
    cross: Tensor | None = None
    revived: Tensor | None = None
    half_steps: dict[str, float] | None = None


class GradientSteps:
    """Adam's steps on the encoder, and on the decoder (unit-norm rows) if `decoder` says so; `moment` if Zᵀx will be wanted too."""

    def __init__(self, weights: Weights, config: TrainConfig, decoder: bool, moment: bool = False) -> None:
        self.weights, self.config, self.decoder, self.moment = weights, config, decoder, moment
        self.dead = DeadLatents(config.d_sae, config.dead_after, weights.b_enc.device)
        self.encoder = [weights.W_enc_rows.requires_grad_(), weights.b_enc.requires_grad_()]
        if weights.jumprelu:
            self.encoder.append(weights.jumprelu.slow_log.requires_grad_())
        of_decoder = [weights.W_dec.requires_grad_(), weights.b_dec.requires_grad_()] if decoder else []
        self.optimizer = torch.optim.Adam(
            [{"params": self.encoder, "rate": 1.0}, {"params": of_decoder, "rate": DECODER_RATE}],
            lr=config.lr, betas=BETAS, fused=True,
        )  # fmt: skip
        self.rate = config.lr  # of the step in hand
        self.resampling = Resampling(config) if config.revive == "resample" else None
        self._pre = torch.empty(0, config.d_sae, device=weights.b_enc.device)
        self._room = self._pre.clone()

    def step(self, x: Tensor, lr: float, rows: int | None = None) -> StepFigures:
        """M = config.encoder_steps steps on one batch of normalised rows, of which x [N, d_in] is this rank's share.

        Args:
            rows: of the batch, over all ranks; None: N.
        """
        rows = len(x) if rows is None else rows
        self.rate = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        start = [p.detach().clone() for p in self.encoder] if self._proximal else None
        first = None
        for _ in range(self.config.encoder_steps):
            self.optimizer.zero_grad()
            figures = self._gradients(x, rows)
            self.weights.group.sum_(*(p.grad for p in self._trained if p.grad is not None))
            if start is not None:
                self._pull(start)
            self.update()
            first = first or figures
        assert first is not None
        self.dead.update(first.codes, rows, self.weights.group)
        if self.resampling is None:
            return first
        revived = self.resampling.revive(self.weights, self.optimizer, self.dead.indices(), first.error, lr)
        if revived is not None:
            self.dead.rows_since[revived] = 0
        return first._replace(revived=revived)

    def state(self) -> dict[str, Tensor]:
        """The moments of Adam, once there has been a step, the dead latents' counters, and a random generator if there is one; the weights
        belong to others."""
        moments = {f"{i}.{name}": value for i, p in enumerate(self._trained) for name, value in self.optimizer.state[p].items()}
        resampling = self.resampling.state() if self.resampling else {}
        return joined(adam=moments, dead=self.dead.state(), resampling=resampling)

    def load_state(self, state: State) -> None:
        """Take moments and counters back. Raises SplinterpError where the moments are not those of these weights."""
        moments = [part(part(state, "adam"), str(i)) for i in range(len(self._trained))]
        for p, own in zip(self._trained, moments, strict=True):
            shapes = {"step": torch.Size(), "exp_avg": p.shape, "exp_avg_sq": p.shape}
            if any(moments) and {name: value.shape for name, value in own.items()} != shapes:
                raise SplinterpError(
                    "The checkpoint's moments of Adam do not fit its weights; start the run again with --force."
                )
            self.optimizer.state[p] = {name: value.clone().to(p.device) for name, value in own.items()}
        self.dead.load_state(part(state, "dead"))
        if self.resampling:
            self.resampling.load_state(part(state, "resampling"))

    @property
    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def _proximal(self) -> bool:
        return bool(self.config.mu_enc or self.config.nu_enc)

    @torch.no_grad()
    def _gradients(self, x: Tensor, rows: int) -> StepFigures:
        w, c, numel = self.weights, self.config, rows * x.shape[1]
        # Memory that is kept costs a tenth of the product less than memory that is new each time.
        if self._pre.shape[0] < len(x):
            self._pre = torch.empty(len(x), c.d_sae, dtype=x.dtype, device=x.device)
        pre = w.pre_activations(x, out=self._pre[: len(x)])
        if w.jumprelu:
            assert w.k is not None
            codes, through, penalty = w.jumprelu.forward(pre, w.k, rows, w.group)
            told = firing(codes)
        else:
            told = codes = w.activate(pre, rows)
            l1 = c.l1 / numel
            through, penalty = through_relu(codes, l1), 0.0
            if l1:
                penalty = l1 * _total(codes)
                w.group.sum_(penalty)
        if w.threshold:
            w.threshold.update(codes, rows, w.group)
        if isinstance(codes, Tensor):
            done = dense_pass(x, codes, w.W_dec, w.b_dec, self.decoder, through, rows)
        else:
            pursuit = self._pursuit(x, codes, pre) if c.pull and isinstance(codes, SparseCodes) else None
            done = sparse_pass(
                x, codes, w.W_dec, w.b_dec, self.decoder, through, rows, moment=self.moment, pursuit=pursuit, pull=c.pull,
                share=1.0 if c.method == "pursuit" else DECODER_SHARE * self.rate / c.lr,
            )  # fmt: skip
        w.group.sum_(done.squared_error)
        loss = done.squared_error / numel + penalty
        if c.revive == "auxk" and c.aux_coefficient and len(dead := self.dead.indices()):
            revival = add_auxk(done, c.aux_coefficient, x, pre, w.W_dec, dead, done.squared_error)
            w.group.sum_(revival)
            loss = loss + revival
        for name, gradient in done.gradients._asdict().items():
            getattr(w, name).grad = gradient
        pattern = None if w.jumprelu else done.pattern
        return StepFigures(float(loss), float(done.squared_error), told, pattern, done.error, done.cross)

    def _pursuit(self, x: Tensor, codes: SparseCodes, pre: Tensor) -> Pursuit:
        w = self.weights
        if self._room.shape[0] < len(x):
            self._room = torch.empty_like(pre)
        return lambda error: pursue(x, codes, error, pre, w.W_dec, w.b_dec, w.rounding, self._room[: len(x)])

    @torch.no_grad()
    def _pull(self, start: list[Tensor]) -> None:
        """The gradient of μ_enc‖W_enc − W_encᵗ‖² + ν_enc‖b_enc − b_encᵗ‖²."""
        # thresholds, where there are some, are free
        for p, p0, weight in zip(self.encoder, start, (self.config.mu_enc, self.config.nu_enc), strict=False):
            assert p.grad is not None
            p.grad.add_(p - p0, alpha=2 * weight)

    @torch.no_grad()
    def update(self) -> None:
        """Adam's step along the gradients that are there, with the decoder's rows of unit norm."""
        if not self.decoder:
            self.optimizer.step()
            return
        W_dec = self.weights.W_dec
        assert W_dec.grad is not None
        at_once = _ROWS_AT_ONCE if W_dec.device.type == "cpu" else len(W_dec)
        for gradient, rows in zip(W_dec.grad.split(at_once), W_dec.split(at_once), strict=True):
            # Along a row the gradient would only change its norm, which is then put back to one.
            gradient.addcmul_((gradient * rows).sum(1, keepdim=True), rows, value=-1)
        self.optimizer.step()
        W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_(min=1e-12))


def _total(codes: Codes) -> Tensor:
    return (codes if isinstance(codes, Tensor) else codes.values).sum()
