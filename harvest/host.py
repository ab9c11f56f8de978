"""Rows on their way from a GPU into pinned memory, on a stream of its own, while the GPU goes on with the next forward pass."""

from __future__ import annotations

import queue
from collections.abc import Mapping

import torch


class Rows:
    """Rows of one batch: `wait` gives them on the host, and `release` gives back the memory that they lie in."""

    def __init__(self, acts: Mapping[str, torch.Tensor]) -> None:
        self._acts = acts

    def wait(self) -> Mapping[str, torch.Tensor]:
        """For every site [n, d] on the CPU; valid until `release`."""
        return self._acts

    def release(self) -> None:
        """No more than forgets them: rows on the CPU own their memory."""


class _Copied(Rows):
    def __init__(self, acts: Mapping[str, torch.Tensor], done: torch.cuda.Event, buffer: _Buffer, home: queue.Queue[_Buffer]):
        super().__init__(acts)
        self._done, self._buffer, self._home = done, buffer, home

    def wait(self) -> Mapping[str, torch.Tensor]:
        self._done.synchronize()
        return self._acts

    def release(self) -> None:
        self._home.put(self._buffer)


class _Buffer:
    """Pinned memory that grows to the largest batch seen."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def views(self, acts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Room of every tensor's shape and dtype, one behind the other (rows are at least 2 bytes, so all are aligned)."""
        sizes = {site: x.numel() * x.element_size() for site, x in acts.items()}
        if self._bytes.numel() < sum(sizes.values()):
            self._bytes = torch.empty(sum(sizes.values()), dtype=torch.uint8, pin_memory=True)
        views, at = {}, 0
        for site, x in acts.items():
            views[site] = self._bytes[at : at + sizes[site]].view(x.dtype).view(x.shape)
            at += sizes[site]
        return views


class HostCopies:
    """Starts copies of rows to the host; rows that are there already pass through."""

    def __init__(self, device: torch.device, buffers: int) -> None:
        """`buffers`: batches on their way at once; beyond that `start` waits for a `release`."""
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._free: queue.Queue[_Buffer] = queue.Queue()
        for _ in range(buffers):
            self._free.put(_Buffer())

    def start(self, acts: Mapping[str, torch.Tensor]) -> Rows:
        """Begin to copy `acts`, for every site [n, d], once the current stream has made them."""
        if self._side is None:
            return Rows(acts)
        buffer = self._free.get()
        views, done = buffer.views(acts), torch.cuda.Event()
        self._side.wait_stream(torch.cuda.current_stream(self._side.device))
        with torch.cuda.stream(self._side):
            for site, x in acts.items():
                views[site].copy_(x, non_blocking=True)
                # Its memory was taken on the other stream: it must not be given away before the copy has ended.
                x.record_stream(self._side)
            done.record(self._side)
        return _Copied(views, done, buffer, self._free)
