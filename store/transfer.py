"""Batches from pinned memory to a CUDA device, copied while the batch before is being computed on."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def to_cuda(batches: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """The batches on `device`, one ahead of the caller, each in memory of its own.

    `batches` come in pinned buffers that are used again: the next is asked for only when the copy out of the last has ended. The copies
    run on a stream of their own, so that they wait for nothing that the caller computes.
    """
    side = torch.cuda.Stream(device)
    ahead: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for host in batches:
        copied = torch.cuda.Event()
        with torch.cuda.stream(side):
            there = host.to(device, non_blocking=True)
            copied.record(side)
        if ahead is not None:
            yield _hand_over(*ahead)
        copied.synchronize()
        ahead = (there, copied)
    if ahead is not None:
        yield _hand_over(*ahead)


def _hand_over(x: torch.Tensor, copied: torch.cuda.Event) -> torch.Tensor:
    """`x` for use on the caller's stream."""
    current = torch.cuda.current_stream(x.device)
    current.wait_event(copied)
    # Its memory was taken on the other stream: it must not be given away before this one is done with it.
    x.record_stream(current)
    return x
