"""Kill a training run at random moments, resume it, and see that it ends as a run that nobody touched.

    python tests/campaigns/kill_train.py 20

Each run (PAM-SGD, its alternation as published, Adam, BatchTopK, or JumpReLU with resampling; 188 steps over two epochs of 12,000 rows, a checkpoint every 30 ms) is stopped up to 10
times: by SIGKILL, or, one time in four, by SIGTERM or SIGINT, after which there must be a checkpoint of the last step. It is resumed
each time by the command line, and at last left to finish; then `summary.json`, every line of `metrics.jsonl` and the settings must equal
those of the uninterrupted run, but for times, and the weights byte for byte. Runs go on until there have been as many kills as asked for. The suite
runs a short form (tests/test_train_resume.py). `--methods N` takes the first N of the methods. Exit code 1 if anything failed.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path

import torch
from common import SIGNALS, Outcome, command_line, differing, ended, forked, run_campaign, told
from runs import contents_of
from splinterp import store
from splinterp.train import gradient, training
from splinterp.train.checkpoint import CHECKPOINT, read_checkpoint
from splinterp.train.dead import DeadLatents

MOST_KILLS = 10
D_IN, ROWS = 32, 12_800
METHODS = {
    "pam": "--method pam --k-start 24",
    "as published": "--method pam --solve-only --encoder-steps 2 --mu-enc 0.1",
    "adam": "--method adam --last-solve",
    "batchtopk": "--method pam --activation batchtopk",
    "jumprelu": "--method pam --activation jumprelu --revive resample",
}


class SoonDead(DeadLatents):
    """Dead after 1,000 rows, so that AuxK and resampling take part."""

    def __init__(self, d_sae: int, dead_after: int, device: torch.device) -> None:
        super().__init__(d_sae, 1000, device)


def make_store(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(ROWS, 256, generator=generator) * (torch.rand(ROWS, 256, generator=generator) < 0.03)
    with store.create(path, sites={"hook": D_IN}, dtype="float32", rows=ROWS) as writer:
        writer.add({"hook": codes @ torch.randn(256, D_IN, generator=generator)}, {})
        writer.finish()


def start(folder: Path, out: Path, method: str) -> int:
    """A forked run, as the command line starts it."""
    command = f"train --latents 256 --k 8 --tokens 24k --batch-size 128 --checkpoint-every 0.0005 --resume {METHODS[method]}"
    train = command_line([*command.split(), "--store", str(folder / "acts.zarr"), "--out", str(out)])

    def work() -> None:
        training.MOST_OF_THE_TIME = 1.0  # of what every 30 ms leave
        gradient.DeadLatents = SoonDead
        train()

    return forked(work)


def step_kept(out: Path) -> int:
    """The step of the checkpoint in `out`; -1 where there is none."""
    return read_checkpoint(out / CHECKPOINT)[0].steps if (out / CHECKPOINT).exists() else -1


def campaign(args: Namespace, folder: Path) -> Outcome:
    """(the summary's lines, what failed)."""
    rng, failures, done, runs, steps = random.Random(args.seed), [], Counter[str](), 0, []
    begun = time.monotonic()
    # Imported before the first fork, so that a child trains within a tenth of a second.
    import splinterp.report.tables  # noqa: F401
    import torch._dynamo  # noqa: F401  torch's Adam does so

    make_store(folder / "acts.zarr")
    wholes, references = {}, {}
    for method in list(METHODS)[: args.methods]:
        at = time.monotonic()
        if ended(start(folder, folder / method, method)):
            return {}, [f"the uninterrupted run ({method}) failed"]
        wholes[method], references[method] = time.monotonic() - at, contents_of(folder / method)
        if not any(line["dead"] for line in references[method]["metrics.jsonl"]):
            return {}, [f"no latent was ever dead ({method}), so that none was revived"]
    while sum(done.values()) < args.kills and not failures:
        method, out, killed = list(references)[runs % len(references)], folder / f"run{runs}", 0
        runs += 1
        while True:
            before = step_kept(out)
            pid, sent = start(folder, out, method), None
            if killed < MOST_KILLS and sum(done.values()) < args.kills:
                time.sleep(rng.uniform(0, wholes[method]))
                sent = rng.choice(SIGNALS)
                os.kill(pid, sent)
            status = ended(pid)
            if (out / "summary.json").exists():  # also when it was killed between its last file and its end
                break
            # 1: it ended by a sentence; by a signal's number: by SIGKILL, or before it could listen.
            if sent is None or (status not in (1, -sent)):
                failures.append(f"run {runs}: exit code {status} after {sent}")
                break
            killed += 1
            done[sent.name] += 1
            steps.append(step_kept(out))
            if steps[-1] < before:
                failures.append(f"run {runs}: the checkpoint was of step {before}, and now is of {steps[-1]}")
        if failures:
            break
        failures += [
            f"run {runs} ({method}): {name} differs from the uninterrupted one"
            for name in differing(contents_of(out), references[method])
        ]
        shutil.rmtree(out)
    summary = {
        "runs, each resumed until it was finished": str(runs),
        "kills": told(done),
        "steps of the checkpoints gone on from (-1: none yet)": ", ".join(map(str, sorted(steps))),
        "failures": str(len(failures)),
        "seconds": f"{time.monotonic() - begun:.0f}",
    }
    return summary, failures


if __name__ == "__main__":
    run_campaign(__doc__, "kills", 20, campaign, methods=len(METHODS))
