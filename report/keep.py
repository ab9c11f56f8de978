"""What is kept of a stream of entries (latent, strength, row) in memory that does not grow with it: the m first by some key, and histograms.

Neither depends on the order in which the entries come, nor on how they are cut into batches.
"""

from __future__ import annotations

import numpy as np

BINS = 64
MOST_WAITING = 2**18  # entries that may wait to be sorted in
_NOTHING = -(2**20)  # an exponent
_LEVELS = BINS.bit_length() - 1


class Kept:
    """For every latent the m entries with the smallest keys: the strongest ones by −strength, a uniform sample by random keys.

    Attributes:
        keys: float64 [d_sae, m], ascending. values: float32 [d_sae, m]. rows: int64 [d_sae, m]. Where a latent has fewer than m entries, the
            rest have key ∞, value 0 and row -1. They hold all entries once `settle` has been called.
    """

    def __init__(self, d_sae: int, m: int) -> None:
        self.keys = np.full((d_sae, m), np.inf)
        self.values = np.zeros((d_sae, m), np.float32)
        self.rows = np.full((d_sae, m), -1, np.int64)
        # Entries that wait have room of their own from the start: small arrays that live on between the large ones of every batch would keep the
        # allocator from using that memory again.
        self._room: tuple[np.ndarray, ...] = tuple(
            np.empty(MOST_WAITING, dtype) for dtype in (np.int64, np.float64, np.float32, np.int64)
        )
        self._waiting = 0

    def add(self, latent: np.ndarray, key: np.ndarray, value: np.ndarray, row: np.ndarray) -> None:
        """Take entries, each array [n]; of equal keys the lower row is kept."""
        worth = np.flatnonzero(key <= self.keys[latent, -1])  # others cannot enter, and after some batches that is nearly all
        while len(worth):
            some, worth = np.split(worth, [MOST_WAITING - self._waiting])
            for room, new in zip(self._room, (latent, key, value, row), strict=True):
                room[self._waiting : self._waiting + len(some)] = new[some]
            self._waiting += len(some)
            if self._waiting == MOST_WAITING:
                self.settle()

    def settle(self) -> None:
        """Sort in the entries that wait."""
        latent, key, value, row = (room[: self._waiting] for room in self._room)
        self._waiting = 0
        touched, m = np.unique(latent), self.keys.shape[1]
        latent = np.concatenate([np.repeat(touched, m), latent])
        key, value, row = (
            np.concatenate([old[touched].ravel(), new])
            for old, new in ((self.keys, key), (self.values, value), (self.rows, row))
        )
        order = np.lexsort((row, key, latent))
        latent, key, value, row = latent[order], key[order], value[order], row[order]
        rank = np.arange(len(latent)) - np.searchsorted(latent, latent)  # place within its latent
        first = rank < m
        at = latent[first], rank[first]
        self.keys[at], self.values[at], self.rows[at] = key[first], value[first], row[first]


def random_keys(row: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each entry, as good as random and always the same: splitmix64 of row and latent, float64 [n]."""
    with np.errstate(over="ignore"):
        x = row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + latent.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


class Histograms:
    """A histogram of strengths for every latent, from one pass: 64 equal bins from 0 to the smallest power of two above its largest strength.

    When a larger strength comes, pairs of bins are joined until it fits, which loses nothing but resolution: in the end at least 32 bins are used.

    Attributes:
        counts: int64 [d_sae, 64]. exponents: int32 [d_sae], bins end at 2^exponent; meaningless where nothing was counted.
    """

    def __init__(self, d_sae: int) -> None:
        self.counts = np.zeros((d_sae, BINS), np.int64)
        self.exponents = np.full(d_sae, _NOTHING, np.int32)

    @property
    def ends(self) -> np.ndarray:
        """Where each latent's last bin ends, float64 [d_sae]; 0 where nothing was counted."""
        return np.where(self.exponents > _NOTHING, np.ldexp(1.0, self.exponents.clip(-1000)), 0.0)

    def add(self, latent: np.ndarray, strength: np.ndarray) -> None:
        """Count entries: latents [n] and strengths above zero [n]."""
        largest = self.exponents.copy()
        np.maximum.at(largest, latent, np.frexp(strength)[1])  # 2^exponent is the smallest power above
        grown = np.flatnonzero((largest > self.exponents) & (self.exponents > _NOTHING))
        for steps in range(1, _LEVELS + 1):
            self._join(grown[(largest - self.exponents)[grown] >= steps])
        self.exponents = largest
        bins = np.ldexp(strength.astype(np.float64), _LEVELS - largest[latent]).astype(np.int64)
        np.add.at(self.counts.reshape(-1), latent * BINS + bins, 1)

    def _join(self, latents: np.ndarray) -> None:
        """Bins twice as wide for some latents."""
        joined = self.counts[latents].reshape(-1, BINS // 2, 2).sum(2)
        self.counts[latents] = np.concatenate([joined, np.zeros_like(joined)], axis=1)
