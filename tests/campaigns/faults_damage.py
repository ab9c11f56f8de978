"""Faults of files: bytes that flip, files that are cut or empty; what reads them says so, or comes to the very same result."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from commands import COMMANDS, D_IN, Workshop
from common import contents, ended
from runs import without_times
from splinterp import store
from splinterp.errors import SplinterpError
from splinterp.infer.codes_store import open_codes
from tallies import Tally


@contextmanager
def damaged(path: Path, rng: random.Random) -> Iterator[str]:
    """Within the block a file has a byte or bit flipped, is cut, or is empty; tells which."""
    data = path.read_bytes()
    how, at = rng.choice(("bit", "bit", "bit", "byte", "cut", "emptied")), rng.randrange(max(1, len(data)))
    changed = bytearray(data)
    if how == "bit":
        changed[at] ^= 1 << rng.randrange(8)
    elif how == "byte":
        changed[at] = (changed[at] + rng.randrange(1, 256)) % 256
    else:
        del changed[at if how == "cut" else 0 :]
    path.write_bytes(changed)
    try:
        yield f"{path.name}, {how} at {at} of {len(data)}"
    finally:
        path.write_bytes(data)


def read_by_commands(fault: str, where: Callable[[Path], bool], commands: tuple[str, ...]) -> Callable[..., Tally]:
    """A fault: a file among what the commands read, of those that `where` takes, is damaged."""

    def tried(shop: Workshop, rng: random.Random, tries: int) -> Tally:
        tally = Tally(fault)
        for i in range(tries):
            for name in (n for n in commands if n in shop.references):
                files = [
                    path
                    for read in COMMANDS[name].reads
                    for path in sorted((shop.folder / read).rglob("*"))
                    if path.is_file() and where(path)
                ]
                out = shop.out(f"out-damaged-{i}-{name}-{fault.split()[-1]}", name)
                with damaged(rng.choice(files), rng) as how:
                    status = shop.run(shop.line(name, out))
                    tally.ended(f"{name}, {how},", shop, status)
                    if shop.output(name, out) not in (None, shop.references[name][0]):
                        tally.check([f"{name}: its result is silently wrong: {how}"])
                shutil.rmtree(out.parent)
        return tally

    tried.__name__ = fault.replace(" ", "_")
    return tried


def of_files(path: Path, names: tuple[str, ...]) -> list[object]:
    """What is compared where metrics.jsonl may be damaged: nothing that is computed comes from it."""
    return [
        without_times(json.loads((path / n).read_bytes())) if n == "summary.json" else (path / n).read_bytes() for n in names
    ]


KEPT = ("cfg.json", "sae_weights.safetensors")
READERS = ("merge", "encode", "eval", "report", "refit", "train")
rows_of_a_store = read_by_commands("damaged chunk", lambda path: path.name.startswith("c."), READERS)
words_of_a_store = read_by_commands(
    "damaged store metadata", lambda path: path.name in ("zarr.json", "manifest.jsonl"), READERS
)
weights = read_by_commands(
    "damaged weights file",
    lambda path: path.name in ("sae_weights.safetensors", "cfg.json"),
    ("encode", "eval", "report", "refit"),
)


def verify(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """`verify --full` finds any damage to any file of a store but those of its tokenizer, which it has no checksums of."""
    tally = Tally("any damaged file of a store, and verify --full")
    whole = shop.folder / "acts.zarr"
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    for _ in range(4 * tries):
        with damaged(rng.choice(files), rng) as how:
            status = shop.run("verify acts.zarr --full")
            tally.ended(how, shop, status)
            if status == 0:
                tally.check([f"verify --full finds nothing wrong with {how}"])
    return tally


def checkpoints(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """A run that was interrupted is resumed from files of which one is damaged."""
    tally = Tally("damaged checkpoint, run.json or metrics.jsonl, and train --resume")
    if "train" not in shop.references:
        return tally
    begun = shop.out("begun", "train")
    for seconds in (0.5, 0.7, 0.3, 0.9):
        pid = shop.start(shop.line("train", begun))
        time.sleep(seconds * shop.references["train"][3])
        os.kill(pid, signal.SIGTERM)
        ended(pid)
        if (begun / "checkpoint.safetensors").exists():
            break
        shutil.rmtree(begun, ignore_errors=True)
    for i in range(4 * tries):
        out = shop.out(f"out-checkpoint-{i}", "train")
        shutil.copytree(begun, out)
        name = rng.choice(("checkpoint.safetensors",) * 4 + ("run.json", "metrics.jsonl"))
        with damaged(out / name, rng) as how:
            status = shop.run(shop.line("train", out) + " --resume")
            tally.ended(how, shop, status)
            kept = (*KEPT, "summary.json")
            if (out / "summary.json").exists() and of_files(out, kept) != of_files(
                shop.folder / "whole-train-0" / "train", kept
            ):
                tally.check([f"a resumed run is silently wrong: {how}"])
            if status:
                shop.run(shop.line("train", out) + " --force")
                tally.check(shop.compare("train", out))
        shutil.rmtree(out.parent)
    return tally


def codes(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """A store of codes is opened and read whole."""
    tally = Tally("damaged store of codes")
    if "encode" not in shop.references:
        return tally
    whole = shop.folder / "whole-encode-0" / "encode"

    def read() -> list[torch.Tensor]:
        opened = open_codes(whole)
        return [*opened.codes(0, opened.shape[0]), torch.from_numpy(opened.rows)]

    before = read()
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    for _ in range(4 * tries):
        with damaged(rng.choice(files), rng) as how:
            tally.tried += 1
            try:
                found = read()
            except SplinterpError as error:
                tally.said[str(error).replace(f"{whole}", "CODES")[:100]] += 1
            except Exception as error:
                tally.failures.append(f"codes: {how}: {error!r}")
            else:
                tally.said["(nothing: it was read as it was)"] += 1
                if not all(torch.equal(a, b) for a, b in zip(found, before, strict=True)):
                    tally.check([f"codes are silently wrong: {how}"])
    return tally


def logs(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """A writer that was stopped goes on with files of which one is damaged."""
    tally = Tally("damaged log, pool or chunk of an unfinished store, and --resume")
    x = torch.randn(3000, D_IN, generator=torch.Generator().manual_seed(0))

    def write(path: Path, upto: int) -> None:
        with store.create(
            path, sites={"hook": D_IN}, columns=("i",), chunk_rows=100, memory=2 * 4 * 100 * 10, seed=5, resume=True
        ) as writer:
            for a in range(writer.resume_offered, upto, 130):
                b = min(a + 130, upto)
                writer.add({"hook": x[a:b]}, {"i": torch.arange(a, b)})
            if upto == len(x):
                writer.finish()

    whole, begun = shop.folder / "logs-whole", shop.folder / "logs-begun"
    write(whole, len(x))
    write(begun, 1700)
    reference = contents(whole)
    for i in range(8 * tries):
        out = shop.folder / f"logs-{i}"
        shutil.copytree(begun, out)
        files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"]
        victim = rng.choice([path for path in files if path.name == "log.jsonl"] * 12 + files)
        with damaged(victim, rng) as how:
            tally.tried += 1
            try:
                write(out, len(x))
            except SplinterpError as error:
                tally.said[str(error).replace(str(out), "STORE")[:120]] += 1
            except Exception as error:
                tally.failures.append(f"log: {how}: {error!r}")
            else:
                tally.said["(nothing: it went on)"] += 1
                data = contents(out)
                if data != reference and not store.verify(out, full=True):
                    tally.check([f"a resumed store is silently another: {how}"])
                elif data != reference:
                    tally.said["(it ended, and verify --full tells of the damage)"] += 1
        shutil.rmtree(out)
    return tally


FAULTS = (rows_of_a_store, words_of_a_store, weights, verify, checkpoints, codes, logs)
