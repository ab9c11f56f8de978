"""The rows that the statistics remember, as they are: a plain window of the last rows with their sparse codes.

It stands in for the Gram matrix where that does not fit. Unlike the exponential window of `Statistics` it weighs all its rows alike and
forgets the others: its sums can then be made afresh at every solve, of the same rows as the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sae import ByLatent, SparseCodes
from .group import ALONE, Group
from .kept_codes import ROWS_AT_ONCE, CodeCache, KeptCodes
from .state import State, number

_TENSORS = ("x", "indices", "values")


class Window:
    """A ring of the last `capacity` rows on the device: x float32 [capacity, d_in], indices int32 and values float32 [capacity, k].

    Memory: capacity·(4·d_in + 8·k) bytes. Each rank of `group` has a window of its own shares; the moments are those of all.
    """

    def __init__(
        self, d_in: int, d_sae: int, k: int, capacity: int, device: str | torch.device = "cpu", group: Group = ALONE
    ) -> None:
        self.d_in, self.d_sae, self.capacity, self.device, self.group = d_in, d_sae, capacity, torch.device(device), group
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
        """The sums of the window's rows; its codes are this window's own, and hold until the next `add`. All ranks ask together."""
        kept = KeptCodes(self.d_in, self.d_sae, self.device, CodeCache(device=self.device), self.group)
        for a in range(0, self.rows, ROWS_AT_ONCE):
            some = slice(a, min(a + ROWS_AT_ONCE, self.rows))
            kept.add(self.x[some], SparseCodes(self.indices[some], self.values[some]))
        return kept.sum_over_ranks()

    def state(self) -> dict[str, Tensor]:
        """See `train.state`: the whole ring, so that a resumed run solves from the same rows in the same order."""
        return {name: getattr(self, name) for name in _TENSORS} | {"seen": number(self.seen)}

    def load_state(self, state: State) -> None:
        """Take the ring back."""
        for name in _TENSORS:
            getattr(self, name).copy_(state[name])
        self.seen = int(state["seen"])

    def whole_state(self) -> dict[str, Tensor]:
        """On the first rank the state of one window with the rows of all ranks, in the order of their age; all ranks ask together."""
        if not self.group.several:
            return self.state()
        parts = {name: self.group.collect(getattr(self, name)[_by_age(self.seen, self.capacity)]) for name in _TENSORS}
        capacities = self.group.gather(torch.tensor([self.capacity])).sum()
        # Counted from the newest; of the same age the ranks in their order.
        order = torch.cat([torch.arange(-len(part), 0) for part in parts["x"]] or [torch.empty(0)]).argsort(stable=True)
        whole = {name: torch.cat(part)[order] for name, part in parts.items() if part}
        room = int(capacities) - len(order)
        padded = {name: torch.cat([t, t.new_zeros(room, t.shape[1])]) for name, t in whole.items()}
        return padded | {"seen": number(len(order))}

    def dealt(self, state: State) -> dict[str, Tensor]:
        """Of a state that the first rank has, with whatever capacity, what is this rank's to load: every `world`-th row.

        With more rows than there is room for the oldest are left out. All ranks ask together.
        """
        if not self.group.several and len(state["x"]) == self.capacity:
            return dict(state)
        own = self.state()
        for name in _TENSORS:
            parts: list[Tensor] = []
            if self.group.first:
                rows = state[name][_by_age(int(state["seen"]), len(state[name]))]
                parts = [rows[rank :: self.group.world][-self.capacity :] for rank in range(self.group.world)]
            part = self.group.deal(parts, own[name])
            own[name] = torch.cat([part, part.new_zeros(self.capacity - len(part), part.shape[1])])
            own["seen"] = number(len(part))
        return own


def _by_age(seen: int, capacity: int) -> Tensor:
    """The places of a ring's rows, the oldest first."""
    rows = min(seen, capacity)
    return (seen - rows + torch.arange(rows)) % capacity
