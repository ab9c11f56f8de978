"""An MLP as an encoder of a dictionary that stays as it is: x·W_1 + b_1, ReLU, ·W_2 + b_2, and the k largest of that.

Its pre-activations are sizes of contributions, u = z·‖W_dec‖, so that the selection does not depend on the dictionary's gauge. Files lie beside the
SAE's: `encoder-mlp-<H>.safetensors` with the four tensors, for raw rows, and `encoder-mlp-<H>.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SAEError, SplinterpError
from ..quantities import parse_json
from ..sae import SAE, SparseCodes
from ..sae.model import select_abs_topk, select_topk
from ..sae.seal import check_settings, sealed, unsealed
from ..store.files import write_bytes
from .fingerprints import decoder_fingerprint

TENSORS = ("W_1", "b_1", "W_2", "b_2")


@dataclass(frozen=True)
class MlpEncoder:
    """Weights of one float dtype, on one device.

    Attributes:
        W_1: [d_in, H]. b_1: [H]. W_2: [H, d_sae]. b_2: [d_sae].
        norms: [d_sae], of the dictionary's rows. k: latents a row. signed: whether the largest are those by magnitude, with their signs.
    """

    W_1: Tensor
    b_1: Tensor
    W_2: Tensor
    b_2: Tensor
    norms: Tensor
    k: int
    signed: bool = False

    @property
    def hidden(self) -> int:
        """H, its width."""
        return len(self.b_1)

    def sizes(self, x: Tensor) -> SparseCodes:
        """Rows [N, d_in] -> the k largest sizes u [N, k]; differentiable in the four tensors."""
        pre = torch.addmm(self.b_2, torch.addmm(self.b_1, x, self.W_1).relu_(), self.W_2)
        return (select_abs_topk if self.signed else select_topk)(pre, self.k)

    def encode(self, x: Tensor) -> SparseCodes:
        """Rows [N, d_in] -> codes z = u/‖W_dec‖, [N, k]; zero at a latent of no length."""
        sizes, norms = self.sizes(x), self.norms
        return sizes._replace(values=sizes.values * torch.where(norms > 0, 1 / norms, 0.0)[sizes.indices])

    def fold_normalisation(self, mean: Tensor, scale: float, norms: Tensor) -> MlpEncoder:
        """One of normalised rows (x − mean)/scale, whose decoder is the SAE's over `scale`, as one of raw rows: the same codes.

        Args:
            mean: [d_in]. scale: in raw units. norms: [d_sae], of the SAE's own decoder.
        """
        W_1 = self.W_1 / scale
        return replace(
            self, W_1=W_1, b_1=self.b_1 - mean @ W_1, W_2=self.W_2 * scale, b_2=self.b_2 * scale, norms=norms
        )  # fmt: skip

    def to(self, device: torch.device, dtype: torch.dtype) -> MlpEncoder:
        """The same on another device, in another float dtype."""
        return replace(self, **{n: getattr(self, n).to(device, dtype) for n in (*TENSORS, "norms")})


def decoder_norms(sae: SAE) -> Tensor:
    """‖W_dec‖ of the decoder that codes are for, [d_sae]."""
    return sae.plain().W_dec.norm(dim=1)


def mlp_paths(directory: Path, hidden: int | str) -> tuple[Path, Path]:
    """The files of an MLP encoder of a width: its weights, and what describes it."""
    return directory / f"encoder-mlp-{hidden}.safetensors", directory / f"encoder-mlp-{hidden}.json"


def save_mlp(mlp: MlpEncoder, sae: SAE, directory: Path, told: dict[str, Any]) -> Path:
    """Write it (float32) into the directory, each file whole or not at all; returns the path of its weights.

    Args:
        sae: whose decoder it is for. told: plain JSON that says where it comes from.
    """
    weights, description = mlp_paths(directory, mlp.hidden)
    tensors = {n: getattr(mlp, n).detach().to("cpu", torch.float32).contiguous() for n in TENSORS}
    decisive = {"hidden": mlp.hidden, "k": mlp.k, "signed": mlp.signed, "decoder": decoder_fingerprint(sae)}
    write_bytes(weights, sealed(tensors, decisive))
    about = {"architecture": "mlp", "d_in": sae.config.d_in, "d_sae": sae.config.d_sae, **decisive, **told}
    write_bytes(description, (json.dumps(about, indent=2) + "\n").encode())
    return weights


def mlps_of(directory: Path | None) -> list[Path]:
    """The weights of the MLP encoders in a directory, the narrowest first; none of an SAE in memory."""
    found = directory.glob(mlp_paths(Path(), "*")[0].name) if directory else ()
    return sorted(found, key=lambda path: (len(path.name), path.name))


def find_mlp(sae: SAE, directory: Path | None, path: Path | None = None) -> tuple[MlpEncoder, Path]:
    """The MLP encoder at `path`, or the only one in the SAE's directory, and where it lies.

    Raises:
        SplinterpError: there is none, or there are several. SAEError: as `load_mlp`.
    """
    if path is None:
        found = mlps_of(directory)
        if directory is None:
            raise SplinterpError("An SAE in memory has no MLP encoder beside it; name one: --encoder mlp:PATH.")
        if not found:
            raise SplinterpError(f"There is no MLP encoder in {directory}; `splinterp mlp {directory} --store …` trains one.")
        if len(found) > 1:
            raise SplinterpError(f"There are several MLP encoders in {directory}; name one: --encoder mlp:{found[-1]}.")
        path = found[0]
    return load_mlp(path, sae), path


def load_mlp(path: Path, sae: SAE) -> MlpEncoder:
    """Read an MLP encoder of this SAE's decoder, onto its device, in its dtype.

    Raises:
        SAEError: it is missing, damaged, or of another decoder.
    """
    description = path.with_suffix(".json")
    if not path.is_file() or not description.is_file():
        raise SAEError(f"There is no MLP encoder at {path} (an encoder-mlp-<H>.safetensors and its .json).")
    try:
        about = parse_json(description.read_bytes())
        k, signed, decoder, hidden = int(about["k"]), bool(about["signed"]), about["decoder"], int(about["hidden"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise SAEError(f"The MLP encoder {path} is damaged: {error!r}.") from error
    if not 1 <= k <= sae.config.d_sae:
        raise SAEError(f"The MLP encoder {path} is damaged: it would keep {k} of {sae.config.d_sae} latents.")
    tensors, settings = unsealed(path)
    check_settings(description, about, path, settings)
    if decoder != decoder_fingerprint(sae):
        raise SAEError(
            f"The MLP encoder {path} was trained for another decoder than this SAE's; train one with `splinterp mlp`."
        )
    d_in, d_sae = sae.config.d_in, sae.config.d_sae
    shapes = {"W_1": (d_in, hidden), "b_1": (hidden,), "W_2": (hidden, d_sae), "b_2": (d_sae,)}
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise SAEError(f"The MLP encoder {path} does not fit its .json: {name} should be {shape}.")
    return MlpEncoder(**{n: tensors[n].to(sae.W_dec) for n in TENSORS}, norms=decoder_norms(sae), k=k, signed=signed)
