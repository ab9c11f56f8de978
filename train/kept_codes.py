"""Statistics without the Gram matrix: the sparse codes are kept, and (Σ z zᵀ)·V is made from them as Zᵀ(Z·V).

For k codes a row that is 4·N·k·n operations on a V [d_sae, n], and 8·N·k bytes of float32 codes, where the Gram matrix takes 8·d_sae².
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from io import BufferedRandom
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..quantities import format_bytes
from ..sae import SparseCodes, by_latent, decode, sum_rows
from .group import ALONE, Group
from .moments import squared_error, variance

# Rows of one product: enough that adding up [d_sae, n] is little beside the gathering, few enough that Z·V is small.
ROWS_AT_ONCE = 16_384
# Latents whose sums are added at once, so that no second matrix [d_sae, n] is made.
_LATENTS_AT_ONCE = 4096


class CodeCache:
    """Sparse codes of many rows: in the memory of `device` (the host) up to `memory` bytes, beyond that in a temporary file.

    The file has no name, so that nothing of it is left behind however the process ends.
    """

    def __init__(self, memory: float = float("inf"), directory: Path | None = None, device: str | torch.device = "cpu") -> None:
        self.memory, self.directory, self.device = memory, directory, torch.device(device)
        self._held: list[SparseCodes] = []
        self._held_bytes = 0
        self._file: BufferedRandom | None = None
        self._blocks: list[tuple[int, int, torch.dtype]] = []  # in the file: rows, k, dtype of the values

    def append(self, codes: SparseCodes) -> None:
        """Keep codes [N, k]; those that are int32 and on the device already are not copied.

        Raises:
            SplinterpError: the disk refuses them.
        """
        codes = SparseCodes(codes.indices.to(self.device, torch.int32), codes.values.detach().to(self.device))
        size = codes.indices.nbytes + codes.values.nbytes
        if self._file is None and self._held_bytes + size <= self.memory:
            self._held.append(codes)
            self._held_bytes += size
            return
        try:
            self._file = self._file or tempfile.TemporaryFile(dir=self.directory)  # noqa: SIM115
            for tensor in codes:
                self._file.write(tensor.cpu().contiguous().numpy().data)
            self._file.flush()
        except OSError as error:
            raise SplinterpError(
                f"The codes that the solve without a Gram matrix works on do not fit {format_bytes(self.memory)} of memory, and "
                f"{self.directory or tempfile.gettempdir()} did not take them ({error.strerror}); make room there, or raise --memory."
            ) from error
        rows, k = codes.values.shape
        self._blocks.append((rows, k, codes.values.dtype))

    def __iter__(self) -> Iterator[SparseCodes]:
        """All codes in their order, in blocks of about ROWS_AT_ONCE rows."""
        waiting: list[SparseCodes] = []
        for codes in chain(self._held, self._read()):
            waiting.append(codes)
            if sum(len(c.values) for c in waiting) >= ROWS_AT_ONCE:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)

    def _read(self) -> Iterator[SparseCodes]:
        if self._file is None:
            return
        self._file.seek(0)
        for rows, k, dtype in self._blocks:
            indices, values = torch.empty(rows, k, dtype=torch.int32), torch.empty(rows, k, dtype=dtype)
            for tensor in (indices, values):
                self._file.readinto(tensor.numpy().data)
            yield SparseCodes(indices.to(self.device), values.to(self.device))


def _joined(blocks: list[SparseCodes]) -> SparseCodes:
    """Blocks of equally many codes a row as one."""
    return blocks[0] if len(blocks) == 1 else SparseCodes(*(torch.cat(part) for part in zip(*blocks, strict=True)))


class KeptCodes:
    """`Moments` of rows whose codes are kept, not their Gram matrix; see that protocol for the attributes.

    Every sum and product is taken in float64. Memory: 8·d_sae·d_in bytes and the cache's. Each rank of `group` keeps the codes of its own
    rows: once `sum_over_ranks` has been called, sums and products are those of all, and all must ask for products together.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        device: str | torch.device = "cpu",
        cache: CodeCache | None = None,
        group: Group = ALONE,
    ) -> None:
        self.d_in, self.d_sae, self.device = d_in, d_sae, torch.device(device)
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)  # noqa: E731
        self.cross, self.sum_z, self.sum_x, self.diagonal = zeros(d_sae, d_in), zeros(d_sae), zeros(d_in), zeros(d_sae)
        self.sum_xx, self.rows = 0.0, 0.0
        self._caches, self._group = [cache or CodeCache()], group

    @torch.no_grad()
    def add(self, x: Tensor, codes: SparseCodes) -> None:
        """Add rows x [N, d_in] with their codes [N, k], the same k in every call."""
        self._caches[0].append(codes)
        x, codes = x.to(self.device, torch.float64), _double(codes, self.device)
        self._add_products(self.cross, codes, x)
        latents, values = codes.indices.reshape(-1), codes.values.reshape(-1)
        self.sum_z.scatter_add_(0, latents, values)
        self.diagonal.scatter_add_(0, latents, values.square())
        self.sum_x.add_(x.sum(0))
        self.sum_xx += float(torch.linalg.vector_norm(x) ** 2)
        self.rows += len(x)

    @torch.no_grad()
    def product(self, V: Tensor) -> Tensor:
        """(Σ z zᵀ)·V for a float64 V [d_sae, n]: one pass over the codes."""
        out, none = torch.zeros_like(V), V.new_zeros(V.shape[1])
        for block in chain.from_iterable(self._caches):
            codes = _double(block, self.device)
            self._add_products(out, codes, decode(codes, V, none))
        self._group.sum_(out)
        return out

    def sum_over_ranks(self) -> KeptCodes:
        """Make the sums those of all ranks' rows, once; the codes stay where they are."""
        self._group.sum_(self.cross, self.sum_z, self.sum_x, self.diagonal)
        self.sum_xx, self.rows = self._group.sum(self.sum_xx), self._group.sum(self.rows)
        return self

    def absorb(self, other: KeptCodes) -> None:
        """Add the sums and the codes of other rows to these, in place; the codes are shared."""
        for name in ("cross", "sum_z", "sum_x", "diagonal"):
            getattr(self, name).add_(getattr(other, name))
        self.sum_xx += other.sum_xx
        self.rows += other.rows
        self._caches.extend(other._caches)

    def loss(self, W_dec: Tensor, b_dec: Tensor) -> float:
        """Σ ‖z·W_dec + b_dec − x‖² over the rows; see `moments.squared_error`."""
        return squared_error(self, W_dec, b_dec)

    def variance(self) -> float:
        """Σ ‖x − x̄‖² over the rows."""
        return variance(self)

    def _add_products(self, to: Tensor, codes: SparseCodes, source: Tensor) -> None:
        """to += Zᵀ·source, slice by slice."""
        pattern = by_latent(codes, self.d_sae)
        for a in range(0, self.d_sae, _LATENTS_AT_ONCE):
            some = slice(a, min(a + _LATENTS_AT_ONCE, self.d_sae))
            to[some].add_(sum_rows(pattern, codes.values, source, some))


def _double(codes: SparseCodes, device: torch.device) -> SparseCodes:
    """As products take them: int64 and float64, on the device."""
    return SparseCodes(codes.indices.to(device, torch.int64), codes.values.to(device, torch.float64))
