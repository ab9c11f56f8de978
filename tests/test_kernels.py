"""Triton's kernels against the same products with dense codes in float64; and that they compile.

They run in Triton's interpreter on the CPU (`make test-triton`), or on a GPU where there is one; elsewhere only the choice of the other path
is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from splinterp.sae import SparseCodes, by_latent, decode, kernels_for, select_topk, sum_rows, to_dense
from splinterp.sae import kernels as choice
from splinterp.train import Statistics, TrainConfig
from splinterp.train.gram import add_gram
from splinterp.train.pam import PAM
from splinterp.train.sparse import sparse_pass

INTERPRETED = find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
ON_A_GPU = find_spec("triton") is not None and torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda:0" if ON_A_GPU else "cpu")
running = pytest.mark.skipif(
    not (INTERPRETED or ON_A_GPU), reason="needs Triton and TRITON_INTERPRET=1 or a GPU: make test-triton"
)
with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: make test-triton")

# Rows, width, latents, codes a row: no more than one of anything, nothing a multiple of a tile, more than a tile of everything.
SHAPES = [(1, 1, 1, 1), (5, 70, 40, 1), (7, 9, 33, 20), (40, 65, 8, 2), (3, 600, 150, 130), (20, 12, 300, 3)]


def problem(n: int, d_in: int, d_sae: int, k: int) -> tuple[SparseCodes, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (some are zero, the last row is the first one's double, most latents of the last shape have none), x, W_dec, b_dec; float32."""
    generator = torch.Generator().manual_seed(n + d_in)
    x, W, b = (torch.randn(*shape, generator=generator) for shape in ((n, d_in), (d_sae, d_in), (d_in,)))
    indices, values = select_topk(torch.randn(n, d_sae, generator=generator), k)
    indices[-1], values[-1] = indices[0], values[0]
    return SparseCodes(indices.to(DEVICE), values.to(DEVICE)), x.to(DEVICE), W.to(DEVICE), b.to(DEVICE)


def close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.dtype == torch.float32
    assert (ours - reference).abs().max() <= 1e-5 * max(1.0, float(reference.abs().max()))


def test_the_choice():
    assert (kernels_for(torch.zeros(1)) is not None) == INTERPRETED
    assert (kernels_for(torch.zeros(1, device=DEVICE)) is not None) == (INTERPRETED or ON_A_GPU)
    assert kernels_for(torch.zeros(1, dtype=torch.float64, device=DEVICE)) is None
    assert kernels_for(torch.zeros(1, dtype=torch.bfloat16, device=DEVICE)) is None
    assert kernels_for(torch.zeros(1, device="meta")) is None


@running
@pytest.mark.parametrize("way", ["wrong", "not started"])
def test_kernels_that_do_not_work_are_not_used(way, monkeypatch):
    here = torch.zeros(1, device=DEVICE)
    kernels = kernels_for(here)
    assert kernels is not None
    right = kernels.code_gradient

    def broken(*arguments: torch.Tensor) -> torch.Tensor:
        if way == "wrong":
            return 1.001 * right(*arguments)
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(kernels, "code_gradient", broken)
    choice._work.cache_clear()
    with pytest.warns(RuntimeWarning, match="off by|Failed to find C compiler") as told:
        assert [kernels_for(here) for _ in range(2)] == [None, None]
    assert len(told) == 1
    choice._work.cache_clear()


@running
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_the_dense_ones(shape):
    codes, x, W, b = problem(*shape)
    z, d_sae = to_dense(codes, shape[2]).double(), shape[2]
    close(decode(codes, W, b), z @ W.double() + b.double())
    pattern, kernels = by_latent(codes, d_sae), kernels_for(x)
    assert kernels is not None
    close(kernels.code_gradient(x, codes.indices, W), (x.double() @ W.T.double()).gather(1, codes.indices))
    for ours, weight in zip(kernels.sum_rows(pattern, x, codes.values, -3 * codes.values), (1, -3), strict=True):
        close(ours, weight * z.T @ x.double())
    some = slice(d_sae // 3, d_sae // 2 + 1)
    close(sum_rows(pattern, codes.values, x, some), z.T[some] @ x.double())
    gram = torch.zeros(d_sae, d_sae, dtype=torch.float64, device=DEVICE)
    add_gram(gram, codes, pattern, weight=0.5)
    assert torch.allclose((gram + gram.T) / 2, 0.5 * z.T @ z, rtol=1e-12, atol=1e-12)
    assert torch.equal(sum_rows(pattern, codes.values, x), sum_rows(pattern, codes.values, x))  # to the bit


@running
def test_operands_need_not_be_contiguous_or_int64():
    (indices, values), x, W, b = problem(7, 9, 33, 4)
    strided = SparseCodes(indices.T.contiguous().T.int(), values.T.contiguous().T)
    assert torch.equal(decode(strided, W.T.contiguous().T, b), decode(SparseCodes(indices, values), W, b))
    nothing = SparseCodes(indices[:0], values[:0])
    assert decode(nothing, W, b).shape == (0, 9)
    assert torch.equal(sum_rows(by_latent(nothing, 33), nothing.values, x[:0]), torch.zeros(33, 9, device=DEVICE))


@running
def test_decoding_is_differentiable():
    codes, x, W, b = problem(7, 9, 33, 4)
    ours, dense = ([t.clone().requires_grad_() for t in (codes.values, W, b)] for _ in range(2))
    by_ours = torch.autograd.grad((decode(SparseCodes(codes.indices, ours[0]), *ours[1:]) - x).square().sum(), ours)
    z = torch.zeros(7, 33, device=DEVICE).scatter(1, codes.indices, dense[0])
    for a, reference in zip(by_ours, torch.autograd.grad((z @ dense[1] + dense[2] - x).square().sum(), dense), strict=True):
        close(a, reference.double())


@running
@pytest.mark.parametrize("shape", SHAPES)
def test_the_pass_and_the_statistics_are_those_of_torch(shape):
    codes, x, W, b = problem(*shape)
    ours, statistics = sparse_pass(x, codes, W, b, moment=True), Statistics(shape[1], shape[2], DEVICE)
    assert ours.cross is not None
    statistics.add(x, codes, ours.pattern, ours.cross)
    double = SparseCodes(codes.indices, codes.values.double())  # which is never for the kernels
    theirs, reference = sparse_pass(x.double(), double, W.double(), b.double()), Statistics(shape[1], shape[2], DEVICE)
    reference.add(x.double(), double)
    for a, c in zip(ours.gradients, theirs.gradients, strict=True):
        close(a, c)
    assert float(ours.squared_error) == pytest.approx(float(theirs.squared_error), rel=1e-5)
    assert torch.allclose(statistics.gram, reference.gram, rtol=1e-12, atol=1e-12)
    assert torch.allclose(statistics.cross, reference.cross, rtol=1e-5, atol=1e-5)
    assert statistics.sum_xx == pytest.approx(reference.sum_xx, rel=1e-6)


@running
def test_the_curve_is_that_of_torch(monkeypatch):
    config = TrainConfig(
        method="pam", activation="topk", d_sae=48, k=4, rows=10**6, batch_size=16, lr=1e-2, dead_after=32, solve_every=3, precision="float32"
    )  # fmt: skip
    batches = torch.randn(5, 16, 10, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    curves = []
    for on in (True, False):
        if not on:
            monkeypatch.setattr("splinterp.sae.kernels._triton_kernels", lambda: None)
        pam = PAM(10, config, DEVICE)
        curves.append([pam.step(x, 1e-2).loss for x in batches])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@with_triton
@pytest.mark.parametrize("architecture", [80, 90])
def test_they_compile_for_a_gpu(architecture):
    """No GPU is needed to make its machine code; the interpreter, which knows no types and no layouts, would take more than it does."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, str(script), str(architecture)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["_add_gram_kernel", "_code_gradient_kernel", "_decode_kernel", "_sum_rows_kernel"]
