"""Compile every kernel for NVIDIA's architecture argv[1] (80: A100, 90: H100) as its callers launch it, and print the kernels' names.

All of Triton runs but the launch itself: what it makes of the arguments, types, layouts, machine code. No GPU is needed for that.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
import triton
from splinterp.sae import SparseCodes, by_latent, triton_kernels
from triton.backends.compiler import GPUTarget


class Driver:
    """As much of a GPU as compiling asks for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(architecture: int) -> None:
    triton.runtime.driver.set_active(Driver(architecture))
    triton.JITFunction.__getitem__ = lambda kernel, grid: partial(kernel.run, grid=grid, warmup=True)
    for n, d_in, d_sae, k in (
        (1, 1, 1, 1),
        (8, 2304, 4096, 64),
        (3, 70, 20, 17),
    ):  # numbers that are 1, or multiples of 16, are special
        codes = SparseCodes(torch.zeros(n, k, dtype=torch.int64), torch.ones(n, k))
        x, W = torch.ones(n, d_in), torch.ones(d_sae, d_in)
        triton_kernels.decode(*codes, W, x[0])
        triton_kernels.code_gradient(x, codes.indices, W)
        pattern = by_latent(codes, d_sae)
        triton_kernels.sum_rows(pattern, x, codes.values)
        triton_kernels.sum_rows(pattern, x, codes.values, codes.values)
        triton_kernels.add_gram(torch.zeros(d_sae, d_sae, dtype=torch.float64), codes.indices, *[codes.values.double()] * 2)
    for name, kernel in vars(triton_kernels).items():
        if isinstance(kernel, triton.JITFunction):
            binaries = [binary for caches in kernel.device_caches.values() for binary in caches[0].values()]
            assert all(binary.asm["cubin"] for binary in binaries)
            print(name)


if __name__ == "__main__":
    main(int(sys.argv[1]))
