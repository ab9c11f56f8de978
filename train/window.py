"""The rows that the statistics remember, as they are: a plain window of the last rows with their sparse codes.

It stands in for the Gram matrix where that does not fit. Unlike the exponential window of `Statistics` it weighs all its rows alike and
forgets the others: its sums can then be made afresh at every solve, of the same rows as the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sae import ByLatent, SparseCodes
from .kept_codes import ROWS_AT_ONCE, CodeCache, KeptCodes
from .state import State, number

_TENSORS = ("x", "indices", "values")


class Window:
    """A ring of the last `capacity` rows on the device: x float32 [capacity, d_in], indices int32 and values float32 [capacity, k].

    Memory: capacity·(4·d_in + 8·k) bytes.
    """

    def __init__(self, d_in: int, d_sae: int, k: int, capacity: int, device: str | torch.device = "cpu") -> None:
        self.d_in, self.d_sae, self.capacity, self.device = d_in, d_sae, capacity, torch.device(device)
        self.x, self.values = torch.zeros(capacity, d_in, device=device), torch.zeros(capacity, k, device=device)
        self.indices = torch.zeros(capacity, k, dtype=torch.int32, device=device)
        self.seen = 0

    @property
    def rows(self) -> int:
        """Rows in the window."""
        return min(self.seen, self.capacity)

    @torch.no_grad()
    def add(self, x: Tensor, codes: SparseCodes, pattern: ByLatent | None = None) -> None:
        """Take rows x [N, d_in] with at most k codes each in place of the oldest; `pattern` is not needed here."""
        x, codes = x[-self.capacity :], SparseCodes(codes.indices[-self.capacity :], codes.values[-self.capacity :])
        places = (self.seen + torch.arange(len(x), device=self.device)) % self.capacity
        k = codes.values.shape[1]
        self.x[places] = x.to(self.x)
        self.indices[places, :k] = codes.indices.to(self.indices)
        self.values[places, :k] = codes.values.detach().to(self.values)
        self.values[places, k:] = 0  # fewer codes than at the beginning of k's annealing
        self.seen += len(x)

    def rescale_latents(self, factors: Tensor) -> None:
        """Change of gauge: as if every code of latent i had been multiplied by factors[i]; factors [d_sae]."""
        factors = factors.to(self.values)
        for indices, values in zip(self.indices.split(ROWS_AT_ONCE), self.values.split(ROWS_AT_ONCE), strict=True):
            values.mul_(factors[indices.long()])

    def forget(self, latents: Tensor) -> None:
        """As if every code of these latents [n] had been zero."""
        kept = torch.ones(self.d_sae)
        kept[latents.cpu()] = 0
        self.rescale_latents(kept)

    def moments(self) -> KeptCodes:
        """The sums of the window's rows; its codes are this window's own, and hold until the next `add`."""
        kept = KeptCodes(self.d_in, self.d_sae, self.device, CodeCache(device=self.device))
        for a in range(0, self.rows, ROWS_AT_ONCE):
            some = slice(a, min(a + ROWS_AT_ONCE, self.rows))
            kept.add(self.x[some], SparseCodes(self.indices[some], self.values[some]))
        return kept

    def state(self) -> dict[str, Tensor]:
        """See `train.state`: the whole ring, so that a resumed run solves from the same rows in the same order."""
        return {name: getattr(self, name) for name in _TENSORS} | {"seen": number(self.seen)}

    def load_state(self, state: State) -> None:
        """Take the ring back."""
        for name in _TENSORS:
            getattr(self, name).copy_(state[name])
        self.seen = int(state["seen"])
