"""What PAM-SGD and Adam share: the trainable encoder, its codes, and its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sae import SAE, Architecture, Codes, SAEConfig, select_topk, sparse_if_sparse
from .batchtopk import Threshold, select_batch_topk
from .config import Activation, TrainConfig
from .jumprelu import JumpReLU
from .precision import Rounding, pre_activations, rounding
from .state import State, joined, part

ARCHITECTURES: dict[Activation, Architecture] = {
    "topk": "topk",
    "batchtopk": "jumprelu",
    "relu": "standard",
    "jumprelu": "jumprelu",
}  # as finished
NO_ROW = 1e-8  # the norm up to which a solved row counts as none


class Weights:
    """An SAE being trained on normalised rows: W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in] with unit-norm rows, b_dec; float32.

    The encoder lies in memory by latents, as `W_enc_rows` [d_sae, d_in]: so its gradient comes from sparse codes. With BatchTopK there is
    the `threshold` of the finished encoder too, with JumpReLU there are the thresholds that are learnt.
    """

    def __init__(self, d_in: int, config: TrainConfig, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        directions = torch.randn(config.d_sae, d_in, generator=generator)
        directions = (directions / directions.norm(dim=1, keepdim=True)).to(device)
        self.config = config
        self.rounding: Rounding = rounding(config.precision, device)
        self.k = config.k  # the loop may begin with more, and come down to config.k
        self.W_dec = directions
        # Tied at the start, and small: the first reconstructions then fall short instead of overshooting.
        self.W_enc_rows = directions * 0.5
        self.b_enc = torch.zeros(config.d_sae, device=device)
        self.b_dec = torch.zeros(d_in, device=device)
        self.threshold = Threshold(config, device) if config.activation == "batchtopk" else None
        self.jumprelu = JumpReLU(d_in, config, device) if config.activation == "jumprelu" else None

    @property
    def W_enc(self) -> Tensor:
        """[d_in, d_sae], a view."""
        return self.W_enc_rows.T

    def pre_activations(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalised rows [N, d_in] -> [N, d_sae], in `out` if given (without gradients); rounded as `config.precision` has it."""
        return pre_activations(x, self.W_enc_rows, self.b_enc, self.rounding, out)

    def activate(self, pre: Tensor) -> Codes:
        """Pre-activations [N, d_sae] of a training batch -> codes."""
        if self.config.activation == "relu":
            return sparse_if_sparse(pre.relu())
        if self.jumprelu:
            return self.jumprelu.encode(pre)
        assert self.k is not None
        return (select_topk if self.config.activation == "topk" else select_batch_topk)(pre, self.k)

    def encode(self, x: Tensor) -> Codes:
        """A training batch of normalised rows [N, d_in] -> codes."""
        return self.activate(self.pre_activations(x))

    @torch.no_grad()
    def set_decoder(self, W_dec: Tensor, b_dec: Tensor) -> Tensor | None:
        """Take a solved decoder [d_sae, d_in], [d_in], its rows brought back to unit norm.

        Returns the factors [d_sae] by which all codes grow, because the encoder is scaled so that the reconstructions stay; or None if
        the encoder was left alone. That is so where a penalty shrinks, or else the encoder would take the shrinkage over and be shrunk
        again at the next solve, without end (measured: L0 falls with ReLU and L1, the FVU rises to 1 with α). Unit norms without it, as in
        the method of optimal directions, keep the balance between the losses; the last solve makes good the shrinkage.
        """
        norms = W_dec.norm(dim=1)
        solved = norms > NO_ROW
        norms = torch.where(solved, norms, 1)
        self.W_dec.copy_(
            torch.where(solved[:, None], W_dec / norms[:, None], self.W_dec)
        )  # a latent that did not fire keeps its row
        self.b_dec.copy_(b_dec)
        if self.config.activation == "relu" or self.config.alpha:
            return None
        self.W_enc.mul_(norms)
        self.b_enc.mul_(norms)
        if self.jumprelu:
            self.jumprelu.rescale(norms)
        return norms

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        thresholds = {name: kept.state() for name, kept in self._thresholds().items()}
        return self._tensors() | joined(**thresholds)

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Take the weights back."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        for name, kept in self._thresholds().items():
            kept.load_state(part(state, name))

    def sae(self) -> SAE:
        """The SAE of normalised rows that these weights are; BatchTopK's is a JumpReLU SAE with one threshold for all latents."""
        c = self.config
        config = SAEConfig(ARCHITECTURES[c.activation], self.W_dec.shape[1], c.d_sae, c.k if c.activation == "topk" else None)
        weights = {name: t.clone(memory_format=torch.contiguous_format) for name, t in self._tensors().items()}
        threshold = self.jumprelu.threshold if self.jumprelu else None
        if self.threshold:
            threshold = torch.full_like(weights["b_enc"], float(self.threshold.value))
        return SAE(config, **weights, threshold=threshold)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}

    def _thresholds(self) -> dict[str, Threshold | JumpReLU]:
        kept = {"threshold": self.threshold, "jumprelu": self.jumprelu}
        return {name: one for name, one in kept.items() if one is not None}
