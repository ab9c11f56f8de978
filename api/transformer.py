"""An SAE as a scikit-learn transformer: rows in, codes out, in pipelines and searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, validate_data

from ..devices import choose_device
from ..errors import SplinterpError
from ..infer import Encoder, EncoderOptions, make_encoder
from ..infer.codes_store import to_csr
from ..sae import SAE
from .opened import AnySAE, open_sae


class SAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Rows [N, d_in] to their codes [N, d_sae] by a finished SAE, and back.

    `fit` learns nothing: it only opens the SAE, and gives rows to encoders that need some for a choice of their own (λ where no `l1` is
    told, k of an SAE that has none).

    Args:
        sae: in memory, a directory, or what `splinterp.train` returned.
        encoder: where codes come from; k, l1, residual, signed, steps and start belong to it: see `splinterp.infer.EncoderOptions`.
        dense: give arrays, not CSR matrices.
        batch_size: rows at once.
    """

    def __init__(
        self,
        sae: AnySAE,
        *,
        encoder: str = "native",
        k: int | None = None,
        l1: float | None = None,
        residual: float | None = None,
        signed: bool | None = None,
        steps: int | None = None,
        start: str | None = None,
        dense: bool = False,
        batch_size: int = 4096,
        device: str = "auto",
    ) -> None:
        self.sae = sae
        self.encoder = encoder
        self.k = k
        self.l1 = l1
        self.residual = residual
        self.signed = signed
        self.steps = steps
        self.start = start
        self.dense = dense
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Open the SAE.

        Raises:
            SplinterpError: there is none, it takes rows of another width than X [N, d_in], or there is no such encoder.
            ValueError: X is no array of finite numbers.
        """
        if self.batch_size < 1:
            raise SplinterpError(f"The batch_size must be at least 1, not {self.batch_size}.")
        X = validate_data(self, _plain(X), dtype=np.float32)
        self.sae_, directory = self._opened()
        d_in = self.sae_.config.d_in
        if X.shape[1] != d_in:
            raise SplinterpError(f"The SAE takes rows of width {d_in}, and X has {X.shape[1]}.")
        told = {name: getattr(self, name) for name in ("k", "l1", "residual", "signed", "steps", "start")}
        sample = torch.from_numpy(X[: self.batch_size]).to(self.sae_.W_enc)
        self.encoder_: Encoder = make_encoder(self.sae_, EncoderOptions(name=self.encoder, **told), directory, lambda: sample)
        self._n_features_out = self.sae_.config.d_sae
        return self

    @torch.no_grad()
    def transform(self, X: Any) -> sparse.csr_matrix | np.ndarray:
        """Codes of rows X [N, d_in], float32 [N, d_sae]: CSR, or an array if `dense`."""
        if not hasattr(self, "encoder_"):
            self.fit(X)  # there was nothing to learn
        X = validate_data(self, _plain(X), dtype=np.float32, reset=False)
        found = [to_csr(self.encoder_(rows.to(self.sae_.W_enc)), self._n_features_out) for rows in self._batches(X)]
        counts, indices, data = (np.concatenate(parts) for parts in zip(*found, strict=True))
        codes = sparse.csr_matrix((data, indices, np.append(0, counts.cumsum())), shape=(len(X), self._n_features_out))
        return codes.toarray() if self.dense else codes

    @torch.no_grad()
    def inverse_transform(self, X: Any) -> np.ndarray:
        """Reconstructions of codes X [N, d_sae], sparse or dense: float32 [N, d_in]."""
        sae = self.sae_ if hasattr(self, "sae_") else self._opened()[0]
        checked: Any = check_array  # whose annotations come from its defaults
        Z = checked(X, accept_sparse="csr", dtype=np.float32)
        if Z.shape[1] != sae.config.d_sae:
            raise SplinterpError(f"The SAE has {sae.config.d_sae} latents, and the codes {Z.shape[1]}.")
        parts = [Z[a : a + self.batch_size] for a in range(0, Z.shape[0], self.batch_size)]
        dense = (part.toarray() if sparse.issparse(part) else part for part in parts)
        return np.concatenate([sae.decode(torch.from_numpy(part).to(sae.W_dec)).cpu().numpy() for part in dense])

    def _opened(self) -> tuple[SAE, Path | None]:
        return open_sae(self.sae, choose_device(self.device))

    def _batches(self, X: np.ndarray) -> tuple[torch.Tensor, ...]:
        return torch.from_numpy(X).split(self.batch_size)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _plain(X: Any) -> Any:
    """A tensor as scikit-learn can take it, which knows neither bfloat16 nor gradients nor GPUs; anything else as it is."""
    return X.detach().to("cpu", torch.float32) if isinstance(X, torch.Tensor) else X
