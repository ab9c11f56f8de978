"""Faults of disks: full ones, read-only ones, files that go or are cut while they are read, and two processes at one output."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commands import COMMANDS, Workshop, advice
from common import ended
from tallies import Tally


@contextmanager
def small_disk(at: Path, size: int) -> Iterator[Callable[[int | None], Callable[[], None]]]:
    """A file system of `size` bytes at `at`: what is given is told a new size, and gives what a child is to do first.

    Where this process may not mount one, no file of the child may be larger than the size.
    """
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at], check=False, capture_output=True).returncode
        == 0
    )

    def limit(size: int) -> Callable[[], None]:
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={size}", at], check=True)
            return lambda: None
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    try:
        yield limit
    finally:
        if mounted:
            subprocess.run(["umount", at], check=True)


def full_disk(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """The disk is full after some part of what is to be written; then there is room, and the command is given again as it says."""
    tally = Tally("a full disk")
    for i in range(tries):
        for name in shop.references:
            if name == "eval":
                continue
            whole = shop.folder / f"whole-{name}-0"
            size = sum(-(-path.stat().st_size // 4096) * 4096 for path in whole.rglob("*") if path.is_file())
            out = shop.out(f"out-full-{name}-{i}", name)
            with small_disk(out.parent, 2**28) as limit:
                before = limit(4096 * rng.randrange(1, max(2, size // 4096)))
                status = ended(shop.start(shop.line(name, out), before))
                tally.ended(name, shop, status)
                more = (status and advice(shop.said())) or ""
                if shop.output(name, out) not in (None, shop.references[name][0]):
                    tally.check([f"{name}: a reader takes for complete what is not"])
                limit(2**28)
                tally.check(shop.settle(name, out, more) if status else shop.compare(name, out))
    return tally


def read_only(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """The folder to write to is read-only; then it is not."""
    tally = Tally("a read-only folder")
    for i in range(tries):
        for name in shop.references:
            if name == "eval":
                continue
            out = shop.out(f"out-ro-{name}-{i}", name)
            with locked_folder(out.parent) as unlock:
                tally.ended(name, shop, shop.run(shop.line(name, out)), (1,))
                unlock()
                tally.check(shop.settle(name, out))
    return tally


@contextmanager
def locked_folder(folder: Path) -> Iterator[Callable[[], None]]:
    """Nothing can be written into the folder within the block, until what is given is called."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield lambda: folder.chmod(0o755)
        finally:
            folder.chmod(0o755)
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,rw", folder], check=True) and None
    finally:
        subprocess.run(["umount", folder], check=True)


def inputs_that_go(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """At a random moment a file that is being read is gone, or cut to some of its length; then it is back."""
    tally = Tally("an input file that vanishes or is cut while it is read")
    for i in range(tries):
        for name, (new, _, _, seconds) in shop.references.items():
            root = shop.folder / rng.choice(COMMANDS[name].reads)
            files = [path for path in ([root] if root.is_file() else sorted(root.rglob("*"))) if path.is_file()]
            # The rows and the weights are most of what is read.
            victim = max(rng.sample(files, min(3, len(files))), key=lambda path: path.stat().st_size)
            kept = shop.folder / "kept"
            shutil.copy2(victim, kept)
            out = shop.out(f"out-gone-{name}-{i}", name)
            pid = shop.start(shop.line(name, out))
            time.sleep(rng.uniform(0, seconds))
            how = rng.choice(("gone", "cut", "emptied"))
            if how == "gone":
                victim.unlink()
            else:
                os.truncate(victim, 0 if how == "emptied" else rng.randrange(victim.stat().st_size))
            status = ended(pid)
            tally.ended(f"{name}, {victim.relative_to(shop.folder)} {how},", shop, status)
            if (found := shop.output(name, out)) not in (None, new):
                # Of the file as it is now, where it went before the command looked. That is told, too, of what is known to lack something.
                again = shop.out(f"out-gone-{name}-{i}-again", name)
                told = ended(shop.start(shop.line(name, again)))
                if (
                    told
                    or found != shop.output(name, again)
                    or (name == "report" and "its curve is not whole" not in str(found))
                ):
                    tally.check([f"{name}: takes for complete what is not, {victim.relative_to(shop.folder)} being {how}"])
            shutil.copy2(kept, victim)
            if status:  # else what there is has just been compared
                tally.check(shop.settle(name, out))
    return tally


def two_at_once(shop: Workshop, rng: random.Random, tries: int) -> Tally:
    """Two processes begin the same output at about the same time, with and without --force."""
    tally = Tally("two processes on one output")
    for i in range(tries):
        for name in shop.references:
            if name == "eval":
                continue
            out = shop.out(f"out-two-{name}-{i}", name)
            force = rng.random() < 0.5 and name != "harvest"
            if force:
                shutil.copytree(shop.folder / f"whole-{name}-1", out.parent, dirs_exist_ok=True)
            line = f"{shop.line(name, out)} {'--force' if force else ''}"
            first = shop.start(line)
            time.sleep(rng.uniform(0, 0.5) * shop.references[name][3])
            second = shop.start(line, said="said2")
            statuses = ended(first), ended(second)
            for status, said in zip(statuses, ("said", "said2"), strict=True):
                tally.ended(name, shop, status, said=said)
            if 0 in statuses:
                tally.check(shop.compare(name, out))
            else:
                tally.check([f"{name}: neither came to its end: {shop.said()} / {shop.said('said2')}"])
    return tally


FAULTS = (full_disk, read_only, inputs_that_go, two_at_once)
