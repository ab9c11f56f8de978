"""The processes of one training run, as torchrun starts them, and what they do together: torch.distributed, in a few verbs.

With a single process every verb does nothing, so that whoever uses them needs no second way. All ranks call the same verbs in the same
order; what they get is the same on each, to the bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..errors import SaidElsewhere, SplinterpError
from ..ranks import Ranks
from .pulse import Pulse

# As long as ranks wait for each other to come, in the beginning.
_MEETING = timedelta(minutes=5)
# As long as one rank may let the others wait: the first solves, evaluates and writes for all. A rank that dies is noticed at once.
_PATIENCE = timedelta(hours=1)
# Elements that are sent to or by the first rank at once: what is under way is beside what is there.
_SLAB = 2**22


class Group:
    """Rank `rank` of `world`, `sharing` of which share a device's memory. The first rank solves, evaluates, writes and tells."""

    def __init__(self, rank: int = 0, world: int = 1, sharing: int = 1, pulse: Pulse | None = None) -> None:
        self.rank, self.world, self.sharing, self._pulse = rank, world, sharing, pulse

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world > 1

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each by its sum over the ranks."""
        self._reduce(dist.ReduceOp.SUM, *tensors)

    def max_(self, *tensors: Tensor) -> None:
        """Replace each by its elementwise maximum over the ranks."""
        self._reduce(dist.ReduceOp.MAX, *tensors)

    def min_(self, *tensors: Tensor) -> None:
        """Replace each by its elementwise minimum over the ranks."""
        self._reduce(dist.ReduceOp.MIN, *tensors)

    def sum_to_first_(self, *tensors: Tensor) -> None:
        """Replace each by its sum over the ranks on the first; elsewhere what is left in it is undefined."""
        if self.several:
            with self._in_touch():
                for tensor in tensors:
                    for piece in tensor.view(-1).split(_SLAB):
                        dist.reduce(piece, 0)

    def broadcast_(self, *tensors: Tensor) -> None:
        """Replace each by the first rank's."""
        if self.several:
            with self._in_touch():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def gather(self, values: Tensor) -> Tensor:
        """The values [n] of all ranks in their order, of which each may have another number."""
        if not self.several:
            return values
        with self._in_touch():
            lengths = torch.zeros(self.world, dtype=torch.int64)
            lengths[self.rank] = len(values)
            dist.all_reduce(lengths)
            padded = values.new_zeros(int(lengths.max()))
            padded[: len(values)] = values
            parts = [torch.empty_like(padded) for _ in range(self.world)]
            dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, lengths.tolist(), strict=True)])

    def collect(self, part: Tensor) -> list[Tensor]:
        """The parts [n, …], each of its own n, of all ranks in their order, on the first and on a CPU; elsewhere nothing."""
        part = part.cpu().contiguous()
        lengths = self.gather(torch.tensor([len(part)])).tolist()
        if not self.first:
            self._pass(part, 0, dist.send)
            return []
        parts = [part, *(part.new_empty(n, *part.shape[1:]) for n in lengths[1:])]
        for rank in range(1, self.world):
            self._pass(parts[rank], rank, dist.recv)
        return parts

    def deal(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """This rank's of the parts [n, …] on a CPU that the first has; `like` tells dtype and shape beyond n."""
        lengths = self.tell([len(part) for part in parts])
        if not self.first:
            part = torch.empty(lengths[self.rank], *like.shape[1:], dtype=like.dtype)
            self._pass(part, 0, dist.recv)
            return part
        for rank in range(1, self.world):
            self._pass(parts[rank].contiguous(), rank, dist.send)
        return parts[0]

    def sum(self, value: float) -> float:
        """The sum of a number over the ranks."""
        total = torch.tensor(value, dtype=torch.float64)
        self.sum_(total)
        return float(total)

    def any(self, *asked: bool) -> tuple[bool, ...]:
        """For each of these, whether it is so on any rank."""
        if not self.several:
            return asked
        flags = torch.tensor(asked, dtype=torch.uint8)
        self.max_(flags)
        return tuple(bool(flag) for flag in flags)

    def tell(self, what: Any) -> Any:
        """What the first rank says, in JSON's types."""
        if not self.several:
            return what
        with self._in_touch():
            said = torch.tensor(list(json.dumps(what).encode()) if self.first else [], dtype=torch.uint8)
            length = torch.tensor(len(said))
            dist.broadcast(length, 0)
            said = said if self.first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(said, 0)
        return json.loads(bytes(said.tolist()))

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """At the end of the block the ranks wait for each other; where one has refused, all end. The block has no verbs in it.

        Raises:
            SplinterpError, OSError: this rank's own, unless one before it says the same. SaidElsewhere: on the others.
        """
        own: SplinterpError | OSError | None = None
        try:
            yield
        except (SplinterpError, OSError) as error:
            if not self.several:
                raise
            own = error
        if not self.several:
            return
        # Texts of different lengths, parted by a zero byte.
        said = bytes(self.gather(torch.tensor([*str(own or "").encode(), 0], dtype=torch.uint8)).tolist())
        texts = [text.decode() for text in said.split(b"\0")[:-1]]
        if own is not None and texts.index(str(own)) == self.rank:
            raise own
        if any(texts):
            raise SaidElsewhere(str(own) if own is not None else next(filter(None, texts)))

    @contextmanager
    def all_or_none(self, kind: type[Exception], *arguments: object) -> Iterator[None]:
        """Where the block raises an exception of this kind on one rank, all ranks raise it, with these arguments. No verbs in it."""
        failed = False
        try:
            yield
        except kind:
            failed = True
        if self.any(failed)[0]:
            raise kind(*arguments)

    def said_once(self, error: SplinterpError) -> SplinterpError:
        """An error that all ranks end by, as this one raises it: the first in its own words."""
        return error if self.first else SaidElsewhere(str(error))

    def _reduce(self, how: Any, *tensors: Tensor) -> None:
        if self.several:
            with self._in_touch():
                # All at once: each waits for the network on its own.
                for work in [dist.all_reduce(tensor, how, async_op=True) for tensor in tensors]:
                    assert work is not None  # or this process were none of the group's
                    work.wait()

    def _pass(self, tensor: Tensor, rank: int, how: Any) -> None:
        with self._in_touch():
            for piece in tensor.view(-1).split(_SLAB):
                how(piece, rank)

    @contextmanager
    def _in_touch(self) -> Iterator[None]:
        """Turns torch's error, where another rank has ended, into a sentence."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # gloo raises it as it is, NCCL a subclass
            lost = self._pulse.silent() if self._pulse else []
            who = " and ".join(f"rank {rank}, which has ended" for rank in lost) or "another rank"
            raise SplinterpError(
                f"Rank {self.rank} of {self.world} has lost touch with {who}: see what is said there. The same command with --resume goes on "
                "from the last checkpoint."
            ) from error


ALONE = Group()


@contextmanager
def joined_ranks(ranks: Ranks, device: torch.device) -> Iterator[Group]:
    """The group of these ranks, once all have come; each on a device of its own, or several on a CPU or a GPU.

    Raises:
        SplinterpError: they do not find each other.
    """
    if not ranks.several:
        yield ALONE
        return
    if os.environ.get("MASTER_PORT") == "0":
        raise SplinterpError(
            "The ranks cannot meet at port 0; start torchrun with --standalone, or with a --master-port of its own."
        )
    backend, sharing = "gloo", ranks.here
    if device.type == "cuda":
        torch.cuda.set_device(device)
        sharing = -(-ranks.here // torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if sharing == 1 else "cpu:gloo,cuda:gloo"  # NCCL refuses two ranks on one GPU
    try:
        store, rank, world = next(iter(rendezvous("env://", ranks.rank, ranks.world, timeout=_MEETING)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise SplinterpError(
            f"Rank {ranks.rank} of {ranks.world} did not find the others ({str(error).splitlines()[0]}); start all with torchrun, or unset "
            "WORLD_SIZE for a single process."
        ) from error
    pulse = Pulse(store, rank, world)
    try:
        yield Group(rank, world, sharing, pulse)
    finally:
        pulse.stop()
        dist.destroy_process_group()
