"""Products of sparse codes on a CUDA device, in Triton: float32 in and out, float32 sums, float64 in the Gram matrix.

Each program makes one row (or latent) of the result over one tile of columns. Tiles are the slow axis of every grid: all programs of one
tile run before those of the next, and the tile of the matrix that they gather from, chosen narrow enough, stays in the L2 cache. Sums are
in a fixed order, so that results repeat to the bit; only the Gram matrix is added to by atomics.

They have run in Triton's interpreter and have been compiled for NVIDIA's architectures 80 and 90, but no GPU has run them yet: the
constants below are by reckoning, not by measurement.
"""

# Triton need not be installed, and its decorator turns a function into something that is launched by [grid](arguments).
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import TritonError

from .codes import ByLatent, SparseCodes, by_latent

__all__ = ["INTERPRETED", "TritonError", "add_gram", "code_gradient", "decode", "deviation", "sum_rows"]

# Bytes of a gathered matrix's tile, and the narrowest and widest tiles: a third of the smallest L2 cache in question (A100: 40 MB).
_TILE_BYTES, _NARROWEST, _WIDEST = 12 * 2**20, 64, 512
# Entries whose rows are on their way at once: their latency is then shared, and a latent that fires on every row is no long queue.
_ENTRIES = 16
_PARTNERS = 64  # of an entry, in the Gram matrix, at once


class _Decode(torch.autograd.Function):
    """z·W_dec + b_dec with its gradients, each by a kernel."""

    @staticmethod
    def forward(ctx, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        ctx.save_for_backward(indices, values, W_dec)
        (n, k), d_in = indices.shape, W_dec.shape[1]
        out = values.new_empty(n, d_in)
        if out.numel():
            with torch.cuda.device_of(out):
                _decode_kernel[(n, _tiles(W_dec))](
                    out, indices, values, W_dec.contiguous(), b_dec.contiguous(), k, d_in, _width(W_dec), _ENTRIES
                )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx, *by_outs: Tensor) -> tuple[Tensor | None, ...]:
        (by_out,) = by_outs
        indices, values, W_dec = ctx.saved_tensors
        _, of_values, of_W_dec, of_b_dec = ctx.needs_input_grad
        by_out = by_out.contiguous()
        by_values = code_gradient(by_out, indices, W_dec) if of_values else None
        by_W_dec = None
        if of_W_dec:
            (by_W_dec,) = sum_rows(by_latent(SparseCodes(indices, values), len(W_dec)), by_out, values)
        return None, by_values, by_W_dec, by_out.sum(0) if of_b_dec else None


def decode(indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """x̂_r = Σ_j values_rj·W_dec[indices_rj] + b_dec: int64 and float32 [N, k], [d_sae, d_in], [d_in] -> [N, d_in]; differentiable."""
    return _Decode.apply(indices.contiguous(), values.contiguous(), W_dec, b_dec)


def code_gradient(error: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """⟨error_r, W_dec[indices_rj]⟩ for every entry of the codes: [N, d_in], [N, k], [d_sae, d_in] -> [N, k].

    Each tile's share is written apart and then summed, N·k·tiles numbers in all.
    """
    (n, k), d_in = indices.shape, W_dec.shape[1]
    shares = error.new_empty(_tiles(W_dec), n, k)
    if shares.numel():
        with torch.cuda.device_of(error):
            _code_gradient_kernel[(n, len(shares))](
                shares, error.contiguous(), indices.contiguous(), W_dec.contiguous(), n, k, d_in, _width(W_dec), _ENTRIES
            )  # fmt: skip
    return shares.sum(0)


def sum_rows(pattern: ByLatent, source: Tensor, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, ...]:
    """Zᵀ·source [d_sae, n] for a Z that has the weights `first` [N, k] at the codes' entries, and for one that has `second` there.

    Two of them cost little more than one: the rows of source [N, n], gathered entry by entry, are most of the work.
    """
    d_sae, n = len(pattern.starts) - 1, source.shape[1]
    out = [source.new_empty(d_sae, n) for _ in range(1 if second is None else 2)]
    if d_sae and n:
        weights = [w.contiguous() for w in (first, first if second is None else second)]
        with torch.cuda.device_of(source):
            _sum_rows_kernel[(d_sae, _tiles(source))](
                out[0], out[-1], pattern.starts, pattern.order, pattern.rows, *weights, source.contiguous(), n,
                len(out) == 2, _width(source), _ENTRIES,
            )  # fmt: skip
    return tuple(out)


def add_gram(gram: Tensor, indices: Tensor, left: Tensor, right: Tensor) -> None:
    """Add to `gram`, float64 [d_sae, d_sae], a matrix whose symmetric part is that of Σ_r left_r right_rᵀ, for left = c·right, float64 [N, k].

    Each pair of a row's entries is added once, doubled; those whose product is zero are left out. The order of the sums is not fixed.
    """
    n, k = indices.shape
    if n and k:
        arguments = (t.contiguous() for t in (indices, left, right))
        with torch.cuda.device_of(gram):
            _add_gram_kernel[(n, triton.cdiv(k, _ENTRIES))](gram, *arguments, len(gram), k, _PARTNERS, _ENTRIES)


def deviation(device: torch.device) -> float:
    """The largest deviation of the kernels from dense products in float64, on a small problem, in units of each result's largest entry."""
    generator = torch.Generator().manual_seed(0)
    x, W, b, values, order = (
        torch.randn(*shape, generator=generator).to(device) for shape in ((9, 70), (30, 70), (70,), (9, 5), (9, 30))
    )
    indices = order.argsort(1)[:, :5].contiguous()
    z, X = torch.zeros(9, 30, dtype=torch.float64, device=device).scatter(1, indices, values.double()), x.double()
    pattern, gram = by_latent(SparseCodes(indices, values), 30), torch.zeros(30, 30, dtype=torch.float64, device=device)
    add_gram(gram, indices, values.double(), values.double())
    results = [
        (decode(indices, values, W, b), z @ W.double() + b.double()),
        (code_gradient(x, indices, W), (X @ W.double().T).gather(1, indices)),
        *zip(sum_rows(pattern, x, values, -values), (z.T @ X, -z.T @ X), strict=True),
        ((gram + gram.T) / 2, z.T @ z),
    ]
    return max(float((ours - exact).abs().max() / exact.abs().max()) for ours, exact in results)


def _width(matrix: Tensor) -> int:
    """Columns of one tile of a gathered matrix: a power of two, no more than the matrix needs."""
    fits = _TILE_BYTES // (matrix.element_size() * max(1, len(matrix)))
    widest = min(_WIDEST, triton.next_power_of_2(matrix.shape[1]))
    return min(widest, max(_NARROWEST, 1 << (max(1, fits).bit_length() - 1)))


def _tiles(matrix: Tensor) -> int:
    return triton.cdiv(matrix.shape[1], _width(matrix))


@triton.jit
def _decode_kernel(out, indices, values, W_dec, b_dec, k, d_in, WIDTH: tl.constexpr, ENTRIES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < d_in
    total = tl.load(b_dec + columns, inside, 0.0)
    for begin in range(0, k, ENTRIES):
        entries = begin + tl.arange(0, ENTRIES)
        there = entries < k
        latents = tl.load(indices + row * k + entries, there, 0).to(tl.int64)
        weights = tl.load(values + row * k + entries, there, 0.0)
        gathered = tl.load(W_dec + latents[:, None] * d_in + columns[None, :], there[:, None] & inside[None, :], 0.0)
        total += tl.sum(weights[:, None] * gathered, 0)
    tl.store(out + row * d_in + columns, total, inside)


@triton.jit
def _code_gradient_kernel(shares, error, indices, W_dec, n, k, d_in, WIDTH: tl.constexpr, ENTRIES: tl.constexpr):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tile * WIDTH + tl.arange(0, WIDTH)
    inside = columns < d_in
    e = tl.load(error + row * d_in + columns, inside, 0.0)
    for begin in range(0, k, ENTRIES):
        entries = begin + tl.arange(0, ENTRIES)
        there = entries < k
        latents = tl.load(indices + row * k + entries, there, 0).to(tl.int64)
        gathered = tl.load(W_dec + latents[:, None] * d_in + columns[None, :], there[:, None] & inside[None, :], 0.0)
        tl.store(shares + (tile * n + row) * k + entries, tl.sum(e[None, :] * gathered, 1), there)


@triton.jit
def _sum_rows_kernel(
    out, out2, starts, order, rows, weights, weights2, source, width, BOTH: tl.constexpr, WIDTH: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < width
    total = tl.zeros([WIDTH], tl.float32)
    total2 = tl.zeros([WIDTH], tl.float32)
    end = tl.load(starts + latent + 1)
    for begin in range(tl.load(starts + latent), end, ENTRIES):
        entries = begin + tl.arange(0, ENTRIES)
        there = entries < end
        places = tl.load(order + entries, there, 0)
        row = tl.load(rows + entries, there, 0)
        gathered = tl.load(source + row[:, None] * width + columns[None, :], there[:, None] & inside[None, :], 0.0)
        total += tl.sum(tl.load(weights + places, there, 0.0)[:, None] * gathered, 0)
        if BOTH:
            total2 += tl.sum(tl.load(weights2 + places, there, 0.0)[:, None] * gathered, 0)
    tl.store(out + latent * width + columns, total, inside)
    if BOTH:
        tl.store(out2 + latent * width + columns, total2, inside)


@triton.jit
def _add_gram_kernel(gram, indices, left, right, d_sae, k, PARTNERS: tl.constexpr, ENTRIES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * ENTRIES
    entries = first + tl.arange(0, ENTRIES)
    i = tl.load(indices + row * k + entries, entries < k, 0).to(tl.int64)
    z = tl.load(left + row * k + entries, entries < k, 0.0)
    for begin in range(first, k, PARTNERS):  # the entries before have met these already
        partners = begin + tl.arange(0, PARTNERS)
        j = tl.load(indices + row * k + partners, partners < k, 0)
        products = z[:, None] * tl.load(right + row * k + partners, partners < k, 0.0)[None, :]
        products = tl.where(partners[None, :] == entries[:, None], products, 2 * products)
        wanted = (partners[None, :] >= entries[:, None]) & (products != 0)
        tl.atomic_add(gram + i[:, None] * d_sae + j[None, :], products, wanted, sem="relaxed")


INTERPRETED = not isinstance(_decode_kernel, triton.JITFunction)  # the kernels run on the CPU then, slowly, in NumPy
