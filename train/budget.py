"""What fits the memory that the statistics and their solves may take (`--memory`): the Gram matrix, or sparse codes in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..devices import total_memory
from ..errors import SplinterpError
from ..quantities import format_bytes
from .config import TrainConfig

# Float64 matrices [d_sae, d_in] of a last solve by conjugate gradients, with the sums it is made from: two cross moments, C, W, R, P, A·P,
# a temporary each of the product and of the check, and of the choice of the ridge the best decoder, the last one, where the next begins, and
# a copy of the present one.
_VECTORS = 12
# Those of a solve within training, where no ridge is chosen: without the last three.
_VECTORS_WITHIN = 9


def gram_bytes(config: TrainConfig) -> int:
    """What a run with the Gram matrix takes at its peak: the matrix, that of the system and its factor, and that of the validation rows
    where the ridge is chosen by them."""
    return (4 if config.last_solve and config.ridge is None else 3) * 8 * config.d_sae**2


def memory_budget(config: TrainConfig, device: torch.device) -> int:
    """Bytes: `config.memory`, or half of the memory there is on the device."""
    return config.memory or total_memory(device) // 2


def solves_by_cg(config: TrainConfig, device: torch.device) -> bool:
    """Whether the run's solves do without the Gram matrix.

    Raises:
        SplinterpError: they would have to, but codes of this activation are dense.
    """
    needed, budget = gram_bytes(config), memory_budget(config, device)
    if not (config.last_solve or config.alternates):
        return False
    if needed <= budget:
        return False
    if config.activation != "topk":
        raise SplinterpError(
            f"The Gram matrix of {config.d_sae:,} latents takes up to {format_bytes(needed)}, and --memory is {format_bytes(budget)}; only "
            "codes of topk can be solved for without it: raise --memory, or train fewer --latents."
        )
    return True


def check_machine(config: TrainConfig, device: torch.device) -> None:
    """See at once, and not when the steps are done, that the device has the memory for solves with the Gram matrix.

    Raises:
        SplinterpError: it has not.
    """
    needed, there = gram_bytes(config), total_memory(device)
    if needed > there and (config.last_solve or config.alternates):
        raise SplinterpError(
            f"There is not enough memory for {config.d_sae:,} latents: solves take up to {format_bytes(needed)}, which --memory allows, and "
            f"there are {format_bytes(there)}; lower --memory or use fewer --latents."
        )


@contextmanager
def enough_memory(config: TrainConfig, device: torch.device, advice: str) -> Iterator[None]:
    """Where memory cannot be allocated within the block, a sentence that ends in this advice.

    Raises:
        SplinterpError: it cannot.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises it as it is
        if "allocate" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise SplinterpError(
            f"There is not enough memory for {config.d_sae:,} latents: statistics and solves may take "
            f"{format_bytes(memory_budget(config, device))}; {advice}"
        ) from None


def codes_bytes(config: TrainConfig, d_in: int, device: torch.device, matrices: int = _VECTORS) -> int:
    """What is left of the budget for codes, beside the matrices of conjugate gradients; those of the last solve, if not told.

    Raises:
        SplinterpError: nothing.
    """
    vectors, budget = matrices * 8 * config.d_sae * d_in, memory_budget(config, device)
    if vectors >= budget:
        raise SplinterpError(
            f"A solve of {config.d_sae:,} latents takes {format_bytes(vectors)} even without the Gram matrix, and --memory is "
            f"{format_bytes(budget)}; raise it or use fewer --latents."
        )
    return budget - vectors


def window_rows(config: TrainConfig, d_in: int, memory_rows: int, device: torch.device, world: int = 1) -> int:
    """Rows that a window of `memory_rows` keeps, in `world` parts: no more than the run has, or fit.

    Raises:
        SplinterpError: not even one batch fits.
    """
    assert config.k is not None
    row = 4 * d_in + 8 * (config.k_start or config.k)
    room = codes_bytes(config, d_in, device, _VECTORS_WITHIN) // row * world
    if room < min(config.batch_size, config.rows):
        raise SplinterpError(
            f"--memory {format_bytes(memory_budget(config, device))} does not hold one batch of rows with their codes beside a solve; "
            "raise it or use fewer --latents."
        )
    return min(memory_rows, config.rows, room)


def shares(configs: Sequence[TrainConfig], d_in: int, device: torch.device) -> list[int]:
    """What each of several runs that are trained together may take of the budget, which is theirs together; in bytes.

    Their solves come one after another. So each may take what the others' statistics leave, where that is enough for every Gram matrix;
    else all have equal parts.

    Raises:
        SplinterpError: a part is too small even without a Gram matrix, or the machine has not the memory for all runs.
    """
    n, budget = len(configs), memory_budget(configs[0], device)
    kept = [8 * config.d_sae**2 if config.alternates else 0 for config in configs]
    solving = [gram_bytes(c) - own if c.alternates or c.last_solve else 0 for c, own in zip(configs, kept, strict=True)]
    together = sum(kept) + max(solving)
    fits = together <= budget
    parts = [budget - (sum(kept) - own) if fits else max(1, budget // n) for own in kept]
    for config, part in zip(configs, parts, strict=True):
        try:
            if solves_by_cg(replace(config, memory=part), device):
                codes_bytes(replace(config, memory=part), d_in, device)
        except SplinterpError as error:
            raise SplinterpError(
                f"The {n} SAEs of the sweep would take {format_bytes(together)} for statistics and solves, and share {format_bytes(budget)} "
                f"(--memory). {error}"
            ) from None
    # Weights, their gradients and Adam's two moments of encoder and decoder, and a batch's pre-activations; all in float32.
    batches = [config.batch_size * (2 if config.pull else 1) for config in configs]  # pursuit has as much again
    weights = sum(4 * (4 * 2 * d_in + batch) * config.d_sae for config, batch in zip(configs, batches, strict=True))
    needed, there = weights + min(together, budget), total_memory(device)
    if needed > there:
        raise SplinterpError(
            f"The {n} SAEs of the sweep take {format_bytes(needed)} together, and this machine has {format_bytes(there)}: sweep fewer at a "
            "time, or use fewer --latents."
        )
    return parts
