"""Kill commands at random moments, do what they say, and see that what comes of it is what an untouched command leaves.

    python tests/campaigns/kill_commands.py 350

Import, merge, a sweep, encode, report, refit and eval (harvest, train and the service have campaigns of their own) are stopped up to 10 times
an output: by SIGKILL, or, one time in four, by SIGTERM or SIGINT. Every other time there is the output of another such command at first, which
--force is to replace. Then the command is given again, with the option that its own sentence names, until it has come to its end. After each
kill what a reader takes for complete must be the old output or the new one; at the end all files must equal, byte for byte but for
times, those of a command that nobody touched, with nothing else beside them. `--commands N` takes the first N. Exit code 1 if anything failed.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path

from commands import Workshop, advice
from common import SIGNALS, Outcome, ended, run_campaign, told

MOST_KILLS = 10
KILLED = ("import", "merge", "sweep", "encode", "report", "refit", "eval")


class Kills:
    """Outputs that are asked for while kills come."""

    def __init__(self, folder: Path, names: tuple[str, ...], seed: int) -> None:
        self.shop, self.rng = Workshop(folder, names), random.Random(seed)
        self.by_signal, self.by_command, self.said = Counter[str](), Counter[str](), Counter[str]()
        self.outputs, self.failures = 0, list[str]()

    def one(self, name: str, most: int) -> None:
        """One output, with up to so many kills on the way."""
        shop, killed = self.shop, 0
        new, old, _, seconds = shop.references[name]
        out = shop.out(f"out{self.outputs}", name)
        self.outputs += 1
        there_before = name != "eval" and self.outputs % 2 == 0
        if there_before:
            shutil.copytree(shop.folder / f"whole-{name}-1", out.parent, dirs_exist_ok=True)
        allowed = (None, new, old) if there_before else (None, new)
        more = "--force" if there_before else ""
        while killed < min(most, MOST_KILLS):
            pid, sent = shop.start(f"{shop.line(name, out)} {more}"), self.rng.choice(SIGNALS)
            time.sleep(self.rng.uniform(0, 1.1 * seconds))
            os.kill(pid, sent)
            status, said = ended(pid), shop.said()
            if status == 0:
                break
            if status not in (1, -sent) or "Traceback" in shop.text():
                self.failures.append(f"{name}: exit code {status} after {sent.name}: {shop.text()}")
                return
            more = (status == 1 and advice(said)) or more
            if status == 1:
                self.said[f"{name}: {said}"] += 1
                if "exists already" in said or "nothing to resume" in said:
                    continue  # it had ended before the signal came
            killed += 1
            self.by_signal[sent.name] += 1
            self.by_command[name] += 1
            if shop.output(name, out) not in allowed:
                self.failures.append(f"{name}: a reader takes for complete what is not, after {sent.name}")
        self.failures += shop.settle(name, out, more)
        shutil.rmtree(out.parent)


def campaign(args: Namespace, folder: Path) -> Outcome:
    """(the summary's lines, what failed)."""
    begun, names = time.monotonic(), KILLED[: args.commands]
    kills = Kills(folder, names, args.seed)
    share = -(-args.kills // len(names))
    for name in names:
        while kills.by_command[name] < share and len(kills.failures) < 5:
            kills.one(name, share - kills.by_command[name])
    summary = {
        "outputs, each asked for until it was there": str(kills.outputs),
        "kills": told(kills.by_signal),
        "kills by command": ", ".join(f"{name} {n}" for name, n in kills.by_command.items()),
        "failures": str(len(kills.failures)),
        "seconds": f"{time.monotonic() - begun:.0f}",
        **{f"said {n} times": said for said, n in sorted(kills.said.items())},
    }
    return summary, kills.failures


if __name__ == "__main__":
    run_campaign(__doc__, "kills", 350, campaign, commands=len(KILLED))
