"""What came of a fault that was tried many times."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from commands import Workshop


@dataclass
class Tally:
    """Of one fault: times tried, rows lost, results that were wrong, and the sentences that a user sees, with how often."""

    fault: str
    tried: int = 0
    lost: int = 0
    wrong: int = 0
    said: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def ended(self, what: str, shop: Workshop, status: int, allowed: tuple[int, ...] = (0, 1), said: str = "said") -> bool:
        """Note a command's end: whether it was one that a user can do something with."""
        self.tried += 1
        text, sentence = shop.text(said), shop.said(said)
        if status not in allowed or "Traceback" in text or (status == 1 and not sentence):
            self.failures.append(f"{self.fault}: {what} ended with exit code {status}: {text[-1500:]}")
            return False
        self.said[sentence if status else "(nothing: it went on)"] += 1
        return True

    def check(self, wrong: list[str]) -> None:
        """Note results that are wrong."""
        self.wrong += len(wrong)
        self.failures += [f"{self.fault}: {what}" for what in wrong]


# Given what commands work on, a source of chances, and how often to try.
Fault = Callable[[Workshop, random.Random, int], Tally]
