"""Faults of what runs: a clock that jumps, memory that ends, rows that are no numbers, training that diverges, and ranks that are killed."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from commands import D_IN, Workshop, of_store
from common import ended
from runs import contents_of
from splinterp import store
from tallies import Tally

PATIENCE = 60.0  # seconds that the others have once a rank is killed
HARVEST = "harvest --dataset text --layer 0 --tokens {tokens} --context 64 --batch-size 8 --memory 1MiB --out {out}"
WEEK = 7 * 86400.0


def clock(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """The clock of the day jumps by up to a week, forwards or backwards, whenever it is looked at."""
    tally = Tally("a clock that jumps")

    def jumping() -> None:
        real, chances = time.time, random.Random(seed)
        time.time = lambda: real() + chances.uniform(-WEEK, WEEK)

    for i in range(tries):
        for name in shop.references:
            seed = rng.randrange(2**31)
            out = shop.out(f"out-clock-{i}-{name}", name)
            for path in (shop.folder / "acts.zarr").rglob("*"):
                moment = time.time() + rng.uniform(-WEEK, WEEK)
                os.utime(path, (moment, moment))
            tally.ended(name, shop, shop.run(shop.line(name, out), jumping), (0,))
            tally.check(shop.compare(name, out))
    return tally


def memory(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """The forward pass of a harvest may have so much memory more than the model, and no more: the system refuses what is beyond."""
    tally = Tally("no memory left in the forward pass")
    if "harvest" not in shop.references:
        return tally
    line = "harvest --dataset text --layer 0 --layer 3 --tokens 20k --context 128 --batch-size 512 --memory 1MiB --out {out}"
    whole = shop.out("memory-whole", "harvest")
    if shop.run(line.format(out=whole)):
        tally.failures.append(f"without a limit: {shop.text()}")
    expected = store.open(whole)

    def limited() -> None:
        from splinterp.harvest import run

        load = run.load_reader

        def load_reader(*args: object) -> object:
            reader = load(*args)
            threading.stack_size(2**19)  # so that the writer's threads are not what is refused
            used = int(re.search(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
            resource.setrlimit(resource.RLIMIT_DATA, (used + room, resource.RLIM_INFINITY))
            return reader

        run.load_reader = load_reader

    for i in range(tries):
        out, room = shop.out(f"out-memory-{i}", "harvest"), rng.randrange(60, 160) << 20
        status = shop.run(line.format(out=out), limited)
        tally.ended(f"with {room >> 20} MiB", shop, status)
        told = re.findall(r"The memory does not hold.*", shop.text())
        tally.said.update(re.sub(r"\d+", "N", sentence) for sentence in told)
        if status == 0:
            opened = store.open(out)
            tally.lost += max(0, expected.rows - opened.rows)
            for site in expected.sites:
                if not torch.allclose(
                    opened.acts(site, 0, opened.rows).float(), expected.acts(site, 0, opened.rows).float(), rtol=0.02, atol=0.02
                ):
                    tally.check([f"rows differ by more than rounding with {room >> 20} MiB: {told}"])
    return tally


def no_numbers(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """Some rows of a file to import, or of what a model gives, are NaN or infinite; they are left out and counted, and all others are there."""
    tally = Tally("NaN and infinite activations")
    x = np.load(shop.folder / "part0.npy")
    for i in range(tries):
        bad = np.flatnonzero(np.random.default_rng(rng.randrange(2**31)).random(len(x)) < rng.choice((0.0005, 0.05, 0.5, 1.0)))
        spoilt = x.copy()
        spoilt[bad, rng.randrange(D_IN)] = rng.choice((np.nan, np.inf, -np.inf))
        np.save(shop.folder / "spoilt.npy", spoilt)
        out = shop.out(f"out-nan-{i}", "import")
        status = shop.run(f"import spoilt.npy --out {out}")
        tally.ended(f"{len(bad)} of {len(x)} rows", shop, status)
        if status == 0:
            opened = store.open(out)
            kept = np.delete(x, bad, 0)
            tally.lost += max(0, len(kept) - opened.rows)
            found = opened.acts(None, 0, opened.rows).float().numpy()
            if not np.array_equal(found[np.lexsort(found.T)], kept[np.lexsort(kept.T)]):
                tally.check(["the rows that are stored are not the finite ones"])
            if opened.attributes["dropped_non_finite"] != len(bad):
                tally.check([f"{opened.attributes['dropped_non_finite']} rows are counted as dropped, and {len(bad)} were"])
        elif len(bad) < len(x):
            tally.lost += len(x) - len(bad)
    tally.check(_foreign(shop, tally, x))
    return tally


def _foreign(shop: Workshop, tally: Tally, x: np.ndarray) -> list[str]:
    """A Zarr array of another program with such rows is trained on as it is."""
    import zarr

    spoilt, path = x.copy(), shop.folder / "spoilt.zarr"
    spoilt[len(x) // 2, 3] = np.nan
    array = zarr.create_array(str(path), shape=x.shape, chunks=(512, D_IN), dtype="float32")
    array[:] = spoilt
    status = shop.run(f"train --store {path} --latents 64 --k 4 --tokens 20k --batch-size 256 --out out-foreign")
    tally.ended("training on a Zarr array of another program", shop, status)
    return [] if status else ["training on NaN comes to an end as if nothing were wrong"]


def divergence(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """A learning rate from 10 to 10³⁰; then it is gone on with, or begun anew, with one that is not too high, as the sentence says."""
    tally = Tally("training that diverges")
    for i in range(tries):
        lr, method = (
            10 ** rng.uniform(1, 30),
            rng.choice(("pam", "adam", "pam --activation batchtopk", "adam --activation jumprelu")),
        )
        out = shop.out(f"out-lr-{i}", "train")
        line = f"train --store acts.zarr --latents 64 --k 4 --tokens 20k --batch-size 256 --checkpoint-every 0.0005 --method {method} --out {out}"
        status = shop.run(f"{line} --lr {lr:g}")
        tally.ended(f"--lr {lr:g} --method {method}", shop, status)
        if status == 0:
            fvu = json.loads((out / "summary.json").read_text())["fvu"]
            if fvu is None or not fvu < 1:
                tally.said[f"… and what it went on to has an FVU of 10^{np.log10(fvu or 1):.0f} or so"] += 1
                if "FVU" not in shop.text() and "fvu" not in shop.text():
                    tally.check([f"an FVU of {fvu} is not told"])
        else:
            if (out / "summary.json").exists():
                tally.check(["a run that diverged has a summary"])
            goes_on = "--resume" in shop.text() and shop.run(f"{line} --lr 0.001 --resume") == 0
            tally.said["… and a lower rate goes on from the checkpoint"] += goes_on
            # A rate that was far too high may have left a checkpoint that no rate goes on from: then the sentence says what remains.
            if not goes_on and ("--force" not in shop.text() or shop.run(f"{line} --lr 0.001 --force")):
                tally.check([f"it cannot be gone on with: {shop.text()}"])
        shutil.rmtree(out.parent)
    return tally


def _ranks(shop: Workshop, line: str, world: int, name: str) -> list[int]:
    """Forked ranks, as torchrun starts them; what each says is in a file of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def as_rank(rank: int) -> Callable[[], None]:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return lambda: os.environ.update({key: str(value) for key, value in told.items()})

    return [shop.start(line, as_rank(rank), f"said-{name}-{rank}") for rank in range(world)]


def _kill_one(pids: list[int], victim: int, seconds: float, asked: bool) -> tuple[dict[int, int | None], float]:
    """(how the others have ended, None for one that had to be killed; seconds until the last had). asked: by SIGTERM, as torchrun does."""
    time.sleep(seconds)
    os.kill(pids[victim], signal.SIGKILL)
    ended(pids[victim])
    for rank, pid in enumerate(pids):
        if asked and rank != victim:
            os.kill(pid, signal.SIGTERM)
    begun, found = time.monotonic(), dict[int, int | None]()
    for rank, pid in enumerate(pids):
        while rank != victim and rank not in found:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                found[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - begun > PATIENCE:
                os.kill(pid, signal.SIGKILL)
                ended(pid)
                found[rank] = None
            time.sleep(0.02)
    return found, time.monotonic() - begun


def training_ranks(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """One of two or three ranks that train together is killed; the others end within a minute, and a single process goes on to the end."""
    tally = Tally("a killed rank of a training")
    for i in range(tries):
        world = rng.choice((2, 3))
        out = shop.out(f"out-ranks-{i}", "train")
        line = f"train --store acts.zarr --latents 64 --k 4 --tokens 60k --batch-size 256 --checkpoint-every 0.001 --device cpu --out {out}"
        victim, pids, asked = rng.randrange(world), _ranks(shop, line, world, str(i)), rng.random() < 0.5
        until = time.monotonic() + PATIENCE
        # Before all have met only torchrun can know that one is missing, and ask the others to end.
        while not asked and not (out / "run.json").exists() and time.monotonic() < until:
            time.sleep(0.02)
        found, seconds = _kill_one(pids, victim, rng.uniform(0, 4), asked)
        tally.tried += 1
        for rank, status in found.items():
            said = shop.text(f"said-{i}-{rank}")
            if status not in (0, 1) or "Traceback" in said:
                tally.failures.append(
                    f"rank {rank} of {world}, rank {victim} being killed, ended with {status} after {seconds:.0f} s: {said[-800:]}"
                )
            elif said:
                tally.said[re.sub(r"\d+", "N", re.sub(r"\S*out-\S*", "OUT", said.splitlines()[-1]))] += 1
        single = f"{line} {'--resume' if out.exists() else ''}"
        if not (out / "summary.json").exists() and shop.run(single):
            tally.check([f"it cannot be gone on with: {shop.text()}"])
        elif not (contents_of(out)["summary.json"]["fvu"] < 1 and contents_of(out)["summary.json"]["rows_trained"] == 60_000):
            tally.check([f"the resumed run is not whole: {contents_of(out)['summary.json']}"])
    return tally


def harvesting_ranks(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """One of two ranks that harvest together is killed; the other ends, and both resumed give the rows of one process."""
    tally = Tally("a killed rank of a harvest")
    if "harvest" not in shop.references:
        return tally
    seconds = shop.references["harvest"][3]
    expected = _rows(shop.folder / "whole-harvest-0" / "harvest")
    for i in range(tries):
        out = shop.out(f"out-ranks-harvest-{i}", "harvest")
        line = HARVEST.format(tokens=3000, out=out)
        victim, pids = rng.randrange(2), _ranks(shop, line, 2, f"h{i}")
        found, waited = _kill_one(pids, victim, rng.uniform(0, seconds), rng.random() < 0.5)
        tally.tried += 1
        for rank, status in found.items():
            said = shop.text(f"said-h{i}-{rank}")
            if status not in (0, 1) or "Traceback" in said:
                tally.failures.append(
                    f"rank {rank}, the other being killed, ended with {status} after {waited:.0f} s: {said[-800:]}"
                )
        for _ in range(2):
            for rank, pid in enumerate(_ranks(shop, f"{line} --resume", 2, f"h{i}")):
                status, said = ended(pid), shop.said(f"said-h{i}-{rank}")
                if status not in (0, 1) or (status and "nothing to resume" not in said):
                    tally.check([f"rank {rank} cannot be resumed ({status}): {shop.text(f'said-h{i}-{rank}')}"])
        if of_store(out) is None or _rows(out) != expected:
            tally.check(["the rows are not those of one process"])
    return tally


def _rows(path: Path) -> list[bytes]:
    opened = store.open(path)
    parts = [opened.acts(site, 0, opened.rows).view(torch.int16).numpy() for site in opened.sites]
    parts += [opened.column(name)[:, None] for name in opened.columns]
    return sorted(b"".join(part[i].tobytes() for part in parts) for i in range(opened.rows))


def torchrun(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """A worker of a real torchrun, of a training and of a harvest, is killed; torchrun ends the others, and --resume goes on."""
    tally = Tally("a killed worker of torchrun")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    train = "train --store acts.zarr --latents 64 --k 4 --tokens 200k --batch-size 256 --checkpoint-every 0.001 --device cpu"
    for i in range(max(1, tries // 10)):
        for name, line, goal in (
            ("train", train, "checkpoint.safetensors"),
            (
                "harvest",
                "harvest --dataset text --layer 0 --tokens 8000 --context 64 --batch-size 1 --memory 1MiB",
                ".ranks/1/log.jsonl",
            ),
        ):
            out = shop.out(f"out-torchrun-{name}-{i}", name)
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "splinterp"]
            said = (shop.folder / "said").open("w")
            running = subprocess.Popen(
                [*command, *line.split(), "--out", str(out)], cwd=shop.folder, env=environment, stdout=said, stderr=said
            )
            until = time.monotonic() + 120
            while time.monotonic() < until and running.poll() is None and not (out / goal).exists():
                time.sleep(0.05)
            workers = [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
            if not workers:
                tally.failures.append(f"{name}: there was no worker to kill: {shop.text()[-800:]}")
                continue
            os.kill(rng.choice(workers), signal.SIGKILL)
            begun = time.monotonic()
            try:
                running.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                tally.failures.append(f"{name}: torchrun has not ended in {PATIENCE:.0f} s")
                running.kill()
            tally.tried += 1
            own = [line for line in shop.text().splitlines() if "--resume" in line or "lost touch" in line]
            tally.said.update(f"{name}: {re.sub(r'[0-9][0-9,]*', 'N', re.sub(r'[^ ]*out-[^ ]*', 'OUT', line))}" for line in own)
            tally.said[f"{name}: (ended after {time.monotonic() - begun:.0f} s)"] += 1
            short = line
            done = subprocess.run(
                [*command, *short.split(), "--out", str(out), "--resume"],
                cwd=shop.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode:
                tally.check([f"{name}: it cannot be resumed: {done.stderr[-800:]}"])
            elif name == "harvest" and store.verify(out, full=True):
                tally.check([f"{name}: {store.verify(out, full=True)}"])
    return tally


FAULTS = (clock, memory, no_numbers, divergence, training_ranks, harvesting_ranks, torchrun)
