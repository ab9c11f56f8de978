"""Signs of life of the ranks of a run, so that one that has lost touch can say with whom."""

from __future__ import annotations

import threading
import time

from torch.distributed.distributed_c10d import Store

_BEAT = 0.5  # seconds
_LISTENED = 8  # beats that a rank must miss to count as ended: on a busy machine a thread may wait long for its turn


class Pulse:
    """Beats in a thread of its own from now on, whatever the rank waits for."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="splinterp-pulse", daemon=True)
        self._thread.start()

    def silent(self) -> list[int]:
        """The ranks that have ended, after listening for some seconds."""
        try:
            before = self._heard()
            time.sleep(_LISTENED * _BEAT)
            return [rank for rank, (a, b) in enumerate(zip(before, self._heard(), strict=True)) if a == b]
        except RuntimeError:
            return [0]  # where torchrun does not keep the store, the first rank does

    def stop(self) -> None:
        """Beat no more."""
        self._ended.set()
        self._thread.join()

    def _heard(self) -> list[int]:
        return [self._store.add(_key(rank), 0) for rank in range(self._world)]

    def _beat(self) -> None:
        try:
            while not self._ended.wait(_BEAT):
                self._store.add(_key(self._rank), 1)
        except RuntimeError:  # the store has ended, and with it the rank or torchrun that kept it
            return


def _key(rank: int) -> str:
    return f"splinterp/pulse/{rank}"
