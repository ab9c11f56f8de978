"""The sparse autoencoder: pre-activations x·W_enc + b_enc, an activation, and x̂ = z·W_dec + b_dec.

Activations (names as in SAELens): `standard` is ReLU, `topk` keeps the k largest pre-activations and then applies ReLU, `abstopk` keeps
the k with the largest magnitudes and their signs (arXiv 2510.00404), `jumprelu` zeroes what does not exceed a threshold. A `gated` SAE is
a jumprelu SAE (`of_gated`).

The gauge. For every latent, scaling its encoder column and bias by s > 0 and its decoder row by 1/s leaves x̂ as it is (for TopK as long
as the same latents are selected). One convention settles it, here: while training, decoder rows have unit norm, so that a pre-activation
is the size of the latent's contribution and top-k compares contributions. A solve over finished codes may leave
other norms: the selection belongs to the encoder and is not touched by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import SAEError
from .codes import Codes, SparseCodes, decode
from .ragged import sparse_if_sparse

Architecture = Literal["standard", "topk", "abstopk", "jumprelu"]
WITH_K: tuple[Architecture, ...] = ("topk", "abstopk")  # those that are told how many latents a row keeps


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is, apart from its weights; the names are SAELens's.

    Attributes:
        architecture: standard (ReLU), topk, abstopk or jumprelu.
        d_in: width of the rows.
        d_sae: number of latents.
        k: latents kept a row (topk and abstopk).
        apply_b_dec_to_input: whether b_dec is subtracted from the rows before encoding.
        rescale_acts_by_decoder_norm: whether top-k compares pre-activations times the decoder rows' norms (topk and abstopk); the codes
            are then multiplied by these norms and the decoder rows divided by them.
        reshape_activations: "hook_z" of an SAE that SAELens gives the heads' outputs side by side; here rows are flat anyway.
        metadata: where it comes from: model_name, hook_name, ...
    """

    architecture: Architecture
    d_in: int
    d_sae: int
    k: int | None = None
    apply_b_dec_to_input: bool = False
    rescale_acts_by_decoder_norm: bool = False
    reshape_activations: Literal["none", "hook_z"] = "none"
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise SAEError(
                f"SAE architecture '{self.architecture}' is not supported; known are {', '.join(get_args(Architecture))}."
            )
        if self.d_in < 1 or self.d_sae < 1:
            raise SAEError(f"An SAE needs at least one input and one latent; got d_in={self.d_in}, d_sae={self.d_sae}.")
        if self.architecture in WITH_K and (self.k is None or not 1 <= self.k <= self.d_sae):
            raise SAEError(
                f"k={self.k} must be between 1 and the number of latents, {self.d_sae}; lower --k or raise --latents."
            )


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder's weights, all of one float dtype and on one device.

    Attributes:
        config: what it is.
        W_enc: [d_in, d_sae]. b_enc: [d_sae]. W_dec: [d_sae, d_in]. b_dec: [d_in]. threshold: [d_sae], jumprelu only.
    """

    config: SAEConfig
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None

    def __repr__(self) -> str:
        c = self.config
        return f"SAE({c.architecture}{f', k={c.k}' if c.k else ''}, {c.d_in} -> {c.d_sae} latents, {self.W_enc.dtype} on {self.W_enc.device})"

    def pre_activations(self, x: Tensor) -> Tensor:
        """Rows [N, d_in] -> (x − b_dec·[apply_b_dec_to_input])·W_enc + b_enc, [N, d_sae]."""
        if self.config.apply_b_dec_to_input:
            x = x - self.b_dec
        return torch.addmm(self.b_enc, x, self.W_enc)

    def encode(self, x: Tensor) -> Codes:
        """Rows [N, d_in] -> codes: SparseCodes with k entries a row for topk and abstopk; otherwise RaggedCodes where few are not zero, else
        dense [N, d_sae]."""
        pre = self.pre_activations(x)
        match self.config.architecture:
            case "topk" | "abstopk":
                assert self.config.k is not None
                if self.config.rescale_acts_by_decoder_norm:
                    pre = pre * self.W_dec.norm(dim=1)
                return (select_topk if self.config.architecture == "topk" else select_abs_topk)(pre, self.config.k)
            case "jumprelu":
                assert self.threshold is not None
                return sparse_if_sparse(pre.relu() * (pre > self.threshold))
            case "standard":
                return sparse_if_sparse(pre.relu())

    def decode(self, codes: Codes) -> Tensor:
        """Codes of N rows -> reconstructions [N, d_in]."""
        W_dec = self.W_dec
        if self.config.rescale_acts_by_decoder_norm:
            W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
        return decode(codes, W_dec, self.b_dec)

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [N, d_in] -> reconstructions [N, d_in]."""
        return self.decode(self.encode(x))

    def with_decoder(self, W_dec: Tensor, b_dec: Tensor) -> SAE:
        """The same codes with another decoder [d_sae, d_in], [d_in].

        Conventions in which the decoder takes part in encoding are first folded into the encoder, so that the codes stay what they are.
        """
        sae = self.plain()
        return replace(sae, W_dec=W_dec.to(sae.W_dec), b_dec=b_dec.to(sae.b_dec))

    def plain(self) -> SAE:
        """An equal SAE whose encoder does not use the decoder: apply_b_dec_to_input and rescale_acts_by_decoder_norm folded in."""
        W_enc, b_enc, W_dec = self.W_enc, self.b_enc, self.W_dec
        if self.config.apply_b_dec_to_input:
            b_enc = b_enc - self.b_dec @ W_enc
        if self.config.rescale_acts_by_decoder_norm:
            norms = W_dec.norm(dim=1)
            W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
        config = replace(self.config, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=False)
        return replace(self, config=config, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec)

    def fold_normalisation(self, mean: Tensor, scale: float) -> SAE:
        """An SAE of normalised rows (x − mean)/scale as one of raw rows x: the same codes, reconstructions in raw units.

        Args:
            mean: [d_in]. scale: in raw units.
        """
        sae = self.plain()
        W_enc = sae.W_enc / scale
        return replace(
            sae, W_enc=W_enc, b_enc=sae.b_enc - mean @ W_enc, W_dec=sae.W_dec * scale, b_dec=sae.b_dec * scale + mean
        )  # fmt: skip

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> SAE:
        """The same SAE on another device or in another float dtype."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{k: None if v is None else v.to(device=device, dtype=dtype) for k, v in tensors.items()})


# Whether a GPU looks for block maxima first, too: its own topk goes through a row many times, a few bits of a radix at a time, and maxima
# once. By that reckoning only: no GPU has been asked. `splinterp bench train` times both there.
_BLOCKS_ON_GPU = True


def select_topk(pre: Tensor, k: int) -> SparseCodes:
    """The k largest pre-activations a row, then ReLU: [N, d_sae] -> SparseCodes [N, k]."""
    by_blocks = pre.device.type == "cpu" or _BLOCKS_ON_GPU
    values, indices = _largest(pre, k) if by_blocks else pre.topk(k, dim=1, sorted=False)
    return SparseCodes(indices, values.relu())


def select_abs_topk(pre: Tensor, k: int) -> SparseCodes:
    """The k pre-activations a row with the largest magnitudes, as they are: [N, d_sae] -> SparseCodes [N, k]."""
    _, indices = _largest(pre.abs(), k) if pre.device.type == "cpu" else pre.abs().topk(k, dim=1, sorted=False)
    return SparseCodes(indices, pre.gather(1, indices))


def of_gated(W_enc: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W_enc [d_in, d_sae], b_enc and threshold [d_sae] of the jumprelu SAE that a gated SAE (arXiv 2404.16014) is.

    Gated codes are relu(m)·[g > 0] with g = x·W + b_gate and m = e^r·x·W + b_mag = e^r·(g − b_gate) + b_mag: and so g > 0 just where
    m > b_mag − e^r·b_gate (as arXiv 2407.14435 shows).
    """
    factor = r_mag.exp()
    return W_enc * factor, b_mag, b_mag - factor * b_gate


def _largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What topk gives, in less time on a CPU: the k largest lie in the k blocks with the largest maxima, which are found first.

    A block is every (d/size)-th latent, so that maxima are taken along contiguous memory.
    """
    n, d = pre.shape
    size = 1
    while (2 * size) ** 2 <= d // k and d % (2 * size) == 0:
        size *= 2
    if size < 4:
        return pre.topk(k, dim=1, sorted=False)
    blocks = pre.view(n, size, d // size)
    chosen = _largest(blocks.amax(1), k)[1]
    values, place = _largest(blocks.gather(2, chosen[:, None].expand(n, size, k)).view(n, size * k), k)
    return values, chosen.gather(1, place % k).add_(place.div(k, rounding_mode="floor"), alpha=d // size)
